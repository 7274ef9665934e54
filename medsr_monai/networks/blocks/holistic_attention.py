"""Attention between the outputs of a network's layers, and over channels and positions together (HAN)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerAttention(nn.Module):
    """Let the outputs of several layers weigh each other, then fuse them: [B, layers, C, H, W] -> [B, C, H, W].

    Every layer gains a mixture of the layers least like it, times a learnt factor that starts at 0.
    Source: HAN, arXiv 2008.08767, section 3.2, with the authors' difference to the largest score.
    """

    def __init__(self, layers: int, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.conv = nn.Conv2d(layers * channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        layers = x.flatten(2)
        scores = layers @ layers.transpose(1, 2)
        weights = torch.softmax(scores.amax(dim=-1, keepdim=True) - scores, dim=-1)
        return self.conv((self.gamma * (weights @ layers) + layers).view(x.shape).flatten(1, 2))


class ChannelSpatialAttention(nn.Module):
    """Weigh every value by its neighbours in channel, row and column: [B, C, H, W] -> the same.

    A 3x3x3 convolution through the channels, with a learnt factor that starts at 0.
    Source: HAN, arXiv 2008.08767, section 3.3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.conv = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + x * (self.gamma * torch.sigmoid(self.conv(x.unsqueeze(1)).squeeze(1)))


class HolisticAttention(nn.Module):
    """Both attentions, joined by a 3x3 convolution: outputs of layers, each [B, C, H, W], newest first -> [B, C, H, W].

    The newest is weighed by channel and position, all of them by layer.
    Source: HAN, arXiv 2008.08767, section 3.1.
    """

    def __init__(self, layers: int, channels: int) -> None:
        super().__init__()
        self.layer = LayerAttention(layers, channels)
        self.channel_spatial = ChannelSpatialAttention()
        self.fusion = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, outputs: list[Tensor]) -> Tensor:
        attended = [self.channel_spatial(outputs[0]), self.layer(torch.stack(outputs, dim=1))]
        return self.fusion(torch.cat(attended, dim=1))
