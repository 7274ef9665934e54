"""ConvNetSR: super-resolution with ConvNeXt blocks (arXiv 2201.03545), as measured in the RDST paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import MLPBlock
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.upsample import Upsample, scale_per_axis


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
class ConvNetSR(nn.Module):
    """ConvNeXt blocks between a first convolution and an up-sampler, the purely convolutional rival of RDST.

    An image [B, in_channels, H, W] of any H, W >= 1 becomes [B, out_channels, H * rows, W * columns]. The defaults are
    ConvNet-lite of the RDST paper (arXiv 2302.11184), 0.88 million weights at x4; ConvNet-large has `channels=192,
    num_blocks=32`, 12.5 million.

    Attributes:
        scale_factors: (rows, columns) by which the output is larger.
        size_multiple, minimum_size: 1, any size will do.
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        scale: 1, 2, 3, 4 or 8, or one of them per slice axis such as [1, 4].
        channels: width of the blocks.
        num_blocks: ConvNeXt blocks.

    Raises:
        ValueError: unsupported scale.
    """

    size_multiple = 1
    minimum_size = 1

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int | Sequence[int] = 4,
        *,
        channels: int = 64,
        num_blocks: int = 16,
    ) -> None:
        super().__init__()
        self.scale_factors = scale_per_axis(scale)
        self.head = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(channels) for _ in range(num_blocks)))
        self.upsample = Upsample(channels, scale)
        self.last = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns]."""
        shallow = self.head(x)
        return self.last(self.upsample(self.blocks(shallow) + shallow))
