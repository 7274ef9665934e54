"""Upsampling by convolution and pixel shuffle, by one factor or by one factor an axis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = {1: [], 2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}  # supported scale of an axis -> factors, one after the other


def scale_per_axis(scale: int | Sequence[int]) -> tuple[int, int]:
    """Read a scale, one int or one int per slice axis, as (rows, columns).

    Raises:
        ValueError: not one or two ints out of 1, 2, 3, 4 and 8.
    """
    factors = list(scale) if isinstance(scale, (list, tuple)) else [scale, scale]
    if len(factors) != 2 or any(factor not in STEPS for factor in factors):
        raise ValueError(
            f"scale is {scale}: expected one of {list(STEPS)}, or two of them for rows and columns such as [1, 4]; "
            "for another scale, train the next larger one and resample its output."
        )
    return int(factors[0]), int(factors[1])


def require_equal_channels(in_channels: int, out_channels: int) -> None:
    """Refuse a bicubic residual, the enlarged input added to the output, where their channels differ.

    Raises:
        ValueError: the numbers are not equal.
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
        ValueError: unsupported scale.
    """

    def __init__(self, channels: int, scale: int | Sequence[int]) -> None:
        layers: list[nn.Module] = []
        rows_and_columns = [STEPS[factor] for factor in scale_per_axis(scale)]
        for rows, columns in zip_longest(*rows_and_columns, fillvalue=1):
            layers.append(nn.Conv2d(channels, channels * rows * columns, 3, padding=1))
            layers.append(PixelShuffle(rows, columns))
        super().__init__(*layers)


def enlarge(x: Tensor, rows: int, columns: int) -> Tensor:
    """Enlarge bicubically, as OpenCV's INTER_CUBIC (a = -0.75): [B, C, H, W] -> [B, C, H * rows, W * columns].

    Not clipped to the input's range.
    """
    return F.interpolate(x, size=(x.shape[2] * rows, x.shape[3] * columns), mode="bicubic", align_corners=False)


def merge_with_shuffled(
    weight: Tensor, bias: Tensor, last_weight: Tensor, last_bias: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Merge a 3x3 convolution, a pixel shuffle and a 3x3 convolution into one 5x5 convolution before a pixel shuffle.

    Nothing but borders stands between them, so they are one linear map; where the last convolution makes few channels
    it needs a twentieth of the operations. Gradients flow to all four.

    Args:
        weight, bias: of the first, [C * rows * columns, in_channels, 3, 3] and [C * rows * columns].
        last_weight, last_bias: of the second, [out_channels, C, 3, 3] and [out_channels].

    Returns:
        weight [out_channels * rows * columns, in_channels, 5, 5] and bias.
    """
    out, channels = last_weight.shape[:2]
    phases: list[Tensor] = []
    for row in range(rows):
        for column in range(columns):
            # the second convolution as one of the pixels before the shuffle, for each pixel that one of them becomes
            places = [columns + column - 1, 2 * columns - column - 2, rows + row - 1, 2 * rows - row - 2]
            taps = F.pad(last_weight, places).view(out, channels, 3, rows, 3, columns)
            phases.append(taps.permute(0, 1, 3, 5, 2, 4).reshape(out, -1, 3, 3))
    coarse = torch.stack(phases, dim=1).flatten(0, 1)
    merged_bias = last_bias.repeat_interleave(rows * columns) + coarse.sum((2, 3)) @ bias
    return F.conv_transpose2d(coarse, weight), merged_bias


def shuffle_and_convolve(
    x: Tensor, weight: Tensor, bias: Tensor, last_weight: Tensor, last_bias: Tensor, rows: int, columns: int
) -> Tensor:
    """A 3x3 convolution, a pixel shuffle and a 3x3 convolution, by `merge_with_shuffled`.

    [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns]. The outermost pixels, for which the last
    convolution pads with zeros, are computed one layer after the other, from strips of x; H and W are at least 2.
    """
    high, wide = 2 if rows > 1 else 3, 2 if columns > 1 else 3
    strips: list[Tensor] = []
    for strip in (x[:, :, :high], x[:, :, -high:], x[:, :, :, :wide], x[:, :, :, -wide:]):
        strip = pixel_shuffle(F.conv2d(strip, weight, bias, padding=1), rows, columns)
        strips.append(F.conv2d(strip, last_weight, last_bias, padding=1))
    top, bottom, left, right = strips
    weight, bias = merge_with_shuffled(weight, bias, last_weight, last_bias, rows, columns)
    y = pixel_shuffle(F.conv2d(x, weight, bias, padding=2), rows, columns)
    y = torch.cat([top[:, :, :1], y[:, :, 1:-1], bottom[:, :, -1:]], dim=2)
    return torch.cat([left[:, :, :, :1], y[:, :, :, 1:-1], right[:, :, :, -1:]], dim=3)
