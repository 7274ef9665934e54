"""EDSR: enhanced deep residual network (arXiv 1707.02921)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.residual import ResidualBlock
from medsr_monai.networks.blocks.upsample import Upsample, scale_per_axis


@records_arguments
class EDSR(nn.Module):
    """Enhanced deep residual network: residual blocks without normalisation, then an up-sampler.

    An image [B, in_channels, H, W] of any H, W >= 1 becomes [B, out_channels, H * rows, W * columns]. The defaults are
    the large network of its paper, 43.1 million weights at x4; EDSR-lite of the RDST paper (arXiv 2302.11184) has
    `channels=64, num_blocks=16, negative_slope=0.2, res_scale=1.0`, 1.5 million.

    Attributes:
        scale_factors: (rows, columns) by which the output is larger.
        size_multiple, minimum_size: 1, any size will do.
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        scale: 1, 2, 3, 4 or 8, or one of them per slice axis such as [1, 4].
        channels: width between the first and the last convolution.
        num_blocks: residual blocks.
        negative_slope: of the leaky ReLU in each block; 0 is a plain ReLU.
        res_scale: weight of a block's convolutions beside its input.

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
        channels: int = 256,
        num_blocks: int = 32,
        negative_slope: float = 0.0,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__()
        self.scale_factors = scale_per_axis(scale)
        self.head = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(channels, negative_slope, res_scale) for _ in range(num_blocks)))
        self.conv_after_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsample = Upsample(channels, scale)
        self.last = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns]."""
        shallow = self.head(x)
        deep = self.conv_after_body(self.blocks(shallow))
        return self.last(self.upsample(deep + shallow))
