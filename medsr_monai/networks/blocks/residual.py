"""Residual blocks of convolutions, with and without channel attention."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with an activation between them, weighted and added to their input: [B, channels, H, W].

    Source: EDSR, arXiv 1707.02921, section 3.1.

    Args:
        channels: of the input and the output.
        negative_slope: of the leaky ReLU; 0 is a plain ReLU.
        res_scale: weight of the convolutions beside the input.
    """

    def __init__(self, channels: int, negative_slope: float, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.LeakyReLU(negative_slope)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res_scale * self.conv2(self.act(self.conv1(x)))


def convolution(channels: int) -> nn.Module:
    """Return the 3x3 convolution that a `ResidualChannelAttentionBlock` has when nothing else is asked for."""
    return nn.Conv2d(channels, channels, 3, padding=1)


class ResidualChannelAttentionBlock(nn.Module):
    """Two convolutions and a weight for every channel, added to their input (RCAB): [B, channels, H, W].

    Source: RCAN, arXiv 1807.02758, section 3.3. The channel attention is squeeze and excitation.

    Args:
        channels: of the input and the output.
        reduction: the attention works on channels // reduction numbers an image, at least 1.
        conv: what to build the two convolutions with, from the number of channels.
    """

    def __init__(self, channels: int, reduction: int, conv: Callable[[int], nn.Module] = convolution) -> None:
        super().__init__()
        self.conv1 = conv(channels)
        self.act = nn.ReLU()
        self.conv2 = conv(channels)
        self.attention = SqueezeExcitation(channels, max(1, channels // reduction))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.conv2(self.act(self.conv1(x))))


class ResidualGroup(nn.Module):
    """`num_blocks` residual channel attention blocks and a 3x3 convolution, added to their input: [B, channels, H, W].

    Source: RCAN, arXiv 1807.02758, section 3.2. Arguments as of `ResidualChannelAttentionBlock`.
    """

    def __init__(
        self, channels: int, num_blocks: int, reduction: int, conv: Callable[[int], nn.Module] = convolution
    ) -> None:
        super().__init__()
        blocks = [ResidualChannelAttentionBlock(channels, reduction, conv) for _ in range(num_blocks)]
        self.body = nn.Sequential(*blocks, nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
