"""RDN: residual dense network (arXiv 1802.08797)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.upsample import Upsample, scale_per_axis


class ResidualDenseBlock(nn.Module):
    """Convolutions that each see all before them, fused by a 1x1 convolution and added to the input (RDB).

    [B, channels, H, W] -> [B, channels, H, W]; arguments as of `RDN`.
    """

    def __init__(self, channels: int, growth_rate: int, num_layers: int, negative_slope: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels + i * growth_rate, growth_rate, 3, padding=1), nn.LeakyReLU(negative_slope)
            )
            for i in range(num_layers)
        )
        self.fusion = nn.Conv2d(channels + num_layers * growth_rate, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = torch.cat([y, layer(y)], dim=1)
        return x + self.fusion(y)


@records_arguments
class RDN(nn.Module):
    """Residual dense network: densely connected blocks whose outputs are all fused, then an up-sampler.

    An image [B, in_channels, H, W] of any H, W >= 1 becomes [B, out_channels, H * rows, W * columns]. The defaults are
    those of the RDST paper (arXiv 2302.11184), 5.8 million weights at x4; the network of its own paper has ReLUs
    (`negative_slope=0.0`), and either 20 blocks of 6 layers of 32 or 16 blocks of 8 layers of 64.

    Attributes:
        scale_factors: (rows, columns) by which the output is larger.
        size_multiple, minimum_size: 1, any size will do.
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        scale: 1, 2, 3, 4 or 8, or one of them per slice axis such as [1, 4].
        channels: width between the blocks.
        growth_rate: channels that every convolution of a block adds.
        num_layers: convolutions in each block.
        num_blocks: residual dense blocks.
        negative_slope: of the leaky ReLU after these convolutions; 0 is a plain ReLU.

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
        growth_rate: int = 32,
        num_layers: int = 6,
        num_blocks: int = 20,
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.scale_factors = scale_per_axis(scale)
        self.head = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResidualDenseBlock(channels, growth_rate, num_layers, negative_slope) for _ in range(num_blocks)
        )
        self.global_fusion = nn.Sequential(
            nn.Conv2d(num_blocks * channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.upsample = Upsample(channels, scale)
        self.last = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns]."""
        shallow = self.head(x)
        y = self.second(shallow)
        outputs: list[Tensor] = []
        for block in self.blocks:
            y = block(y)
            outputs.append(y)
        deep = self.global_fusion(torch.cat(outputs, dim=1))
        return self.last(self.upsample(deep + shallow))
