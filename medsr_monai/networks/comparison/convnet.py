"""ConvNetSR: super-resolution with ConvNeXt blocks (arXiv 2201.03545), as measured in the RDST paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import MLPBlock
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.convolutional import ConvolutionalNetwork


class ConvNeXtBlock(nn.Module):
    """7x7 depth-wise convolution, LayerNorm, two-layer perceptron, weighted and added: [B, channels, H, W].

    Source: ConvNeXt, arXiv 2201.03545, figure 4; the learnt weight of each channel starts at 1e-6.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = LayerNorm2d(channels, eps=1e-6)
        self.mlp = MLPBlock(channels, 4 * channels, dropout_mode="vista3d")
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x)).permute(0, 2, 3, 1)
        return x + (self.gamma * self.mlp(y)).permute(0, 3, 1, 2)


@records_arguments
class ConvNetSR(ConvolutionalNetwork):
    """ConvNeXt blocks between a first convolution and an up-sampler, the purely convolutional rival of RDST.

    The defaults are ConvNet-lite of the RDST paper (arXiv 2302.11184), 0.88 million weights at x4; ConvNet-large has
    `channels=192, num_blocks=32`, 12.5 million. Attributes, the other arguments and errors are those of
    `ConvolutionalNetwork`.

    Args:
        num_blocks: ConvNeXt blocks.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int | Sequence[int] = 4,
        *,
        channels: int = 64,
        num_blocks: int = 16,
    ) -> None:
        body = nn.Sequential(*(ConvNeXtBlock(channels) for _ in range(num_blocks)))
        super().__init__(in_channels, out_channels, scale, channels, body)
