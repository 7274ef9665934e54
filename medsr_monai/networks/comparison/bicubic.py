"""Bicubic interpolation, written as a network so that every pipeline runs it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.upsample import enlarge, scale_per_axis


@records_arguments
class Bicubic(nn.Module):
    """Bicubic enlargement without weights: [B, C, H, W] -> [B, C, H * rows, W * columns].

    The same as OpenCV's INTER_CUBIC (a = -0.75, pixel centres at half numbers); not clipped to the input's range.

    Attributes:
        scale_factors: (rows, columns) by which the output is larger.
        size_multiple, minimum_size: 1, any size will do.
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        in_channels: channels of the input; kept so that a config can exchange networks.
        out_channels: channels of the output, equal to in_channels.
        scale: 1, 2, 3, 4 or 8, or one of them per slice axis such as [1, 4].

    Raises:
        ValueError: the scale is not supported, or out_channels differs from in_channels.
    """

    size_multiple = 1
    minimum_size = 1

    def __init__(self, in_channels: int = 1, out_channels: int = 1, scale: int | Sequence[int] = 4) -> None:
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(
                f"Bicubic keeps its channels: in_channels is {in_channels} and out_channels {out_channels}, "
                "expected equal numbers; set out_channels to in_channels."
            )
        self.scale_factors = scale_per_axis(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge [B, C, H, W] -> [B, C, H * rows, W * columns]."""
        rows, columns = self.scale_factors
        return enlarge(x, rows, columns)
