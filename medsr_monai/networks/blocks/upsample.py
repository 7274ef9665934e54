"""Upsampling by convolution and pixel shuffle, by one factor or by one factor an axis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch.nn.functional as F
from torch import Tensor, nn

STEPS = {1: [], 2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}
"""The supported scales of an axis, and the factors by which `Upsample` reaches each of them, one after the other."""


def scale_per_axis(scale: int | Sequence[int]) -> tuple[int, int]:
    """Read a scale, given as one int or as one int per slice axis, as (rows, columns).

    Raises:
        ValueError: the scale is not one or two ints out of 1, 2, 3, 4 and 8.
    """
    factors = list(scale) if isinstance(scale, (list, tuple)) else [scale, scale]
    if len(factors) != 2 or any(factor not in STEPS for factor in factors):
        raise ValueError(
            f"scale is {scale}: expected one of {list(STEPS)}, or two of them for rows and columns such as [1, 4]; "
            "for another scale, train the next larger one and resample its output."
        )
    return int(factors[0]), int(factors[1])


def require_equal_channels(in_channels: int, out_channels: int) -> None:
    """Refuse a bicubic residual, which adds the enlarged input to the output, where their channels differ.

    Raises:
        ValueError: in_channels and out_channels are not equal.
    """
    if in_channels != out_channels:
        raise ValueError(
            f"bicubic_residual adds {in_channels} input channels to {out_channels} output channels: expected equal "
            "numbers; set out_channels to in_channels, or bicubic_residual to false."
        )


def pixel_shuffle(x: Tensor, rows: int, columns: int) -> Tensor:
    """Move channels into space: [B, C * rows * columns, H, W] -> [B, C, H * rows, W * columns].

    With rows == columns this is `torch.nn.functional.pixel_shuffle`, which keeps channels_last and is then faster.
    """
    if rows == columns:
        return F.pixel_shuffle(x, rows)
    b, c, h, w = x.shape
    x = x.reshape(b, c // (rows * columns), rows, columns, h, w)
    return x.permute(0, 1, 4, 2, 5, 3).reshape(b, -1, h * rows, w * columns)


class PixelShuffle(nn.Module):
    """`pixel_shuffle` as a module: [B, C * rows * columns, H, W] -> [B, C, H * rows, W * columns]."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows = rows
        self.columns = columns

    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle(x, self.rows, self.columns)


class Upsample(nn.Sequential):
    """3x3 convolutions, each followed by a pixel shuffle: [B, channels, H, W] -> [B, channels, H * rows, W * columns].

    4 and 8 are taken in steps of 2, and an axis that has arrived keeps its size: [1, 4] is (1, 2) twice. Scale 1 is no
    layer at all. Source: EDSR, arXiv 1707.02921, section 4; the pixel shuffle is ESPCN's, arXiv 1609.05158, equation 4.

    Raises:
        ValueError: the scale is not supported.
    """

    def __init__(self, channels: int, scale: int | Sequence[int]) -> None:
        layers: list[nn.Module] = []
        rows_and_columns = [STEPS[factor] for factor in scale_per_axis(scale)]
        for rows, columns in zip_longest(*rows_and_columns, fillvalue=1):
            layers.append(nn.Conv2d(channels, channels * rows * columns, 3, padding=1))
            layers.append(PixelShuffle(rows, columns))
        super().__init__(*layers)


def enlarge(x: Tensor, rows: int, columns: int) -> Tensor:
    """Enlarge an image bicubically, as OpenCV's INTER_CUBIC: [B, C, H, W] -> [B, C, H * rows, W * columns].

    The kernel has a = -0.75, pixel centres lie at half numbers, and the result is not clipped to the input's range.
    """
    return F.interpolate(x, size=(x.shape[2] * rows, x.shape[3] * columns), mode="bicubic", align_corners=False)
