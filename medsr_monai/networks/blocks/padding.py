"""Padding of an image to a size that a network can work on; the caller crops the output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: int, least: int = 1) -> Tensor:
    """Pad an image [B, C, H, W] at the bottom and right until H and W are multiples of `multiple`, `least` at least.

    An axis is reflected where it is longer than the padding; otherwise its last line is repeated.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript looks into no `and`)
        if torch.compiler.is_compiling():
            rows = padded_places(x.shape[2], multiple, least, x.device)
            return x.index_select(2, rows).index_select(3, padded_places(x.shape[3], multiple, least, x.device))
    down = max(-x.shape[2] % multiple, least * multiple - x.shape[2])
    right = max(-x.shape[3] % multiple, least * multiple - x.shape[3])
    if down > 0:
        x = F.pad(x, [0, 0, 0, down], mode="reflect" if down < x.shape[2] else "replicate")
    if right > 0:
        x = F.pad(x, [0, right, 0, 0], mode="reflect" if right < x.shape[3] else "replicate")
    return x


def padded_places(length: int, multiple: int, least: int = 1, device: torch.device | None = None) -> Tensor:
    """Tell which of `length` lines each line shows after `pad_to_multiple`: [padded length].

    There is no condition on the length in it, so that it is exported once for all lengths.
    """
    count = (length + multiple - 1) // multiple
    size = (count if least == 1 else torch.sym_max(count, least)) * multiple
    places = torch.arange(size, device=device)
    last = torch.full_like(places, length - 1)
    reflects = torch.full_like(places, 2 * length - size) > 0
    return torch.where(reflects, last - (places - last).abs(), torch.minimum(places, last))


def margins(length: int, size: int) -> tuple[int, int]:
    """Count the lines to put before and after `length` lines to have at least `size`; an odd one is put before."""
    lacking = max(size - length, 0)
    return lacking - lacking // 2, lacking // 2


def pad_to_size(x: Tensor, size: int) -> Tensor:
    """Pad an image [B, C, H, W] evenly on all sides to at least [size, size], repeating its border (see `margins`)."""
    top, bottom = margins(x.shape[2], size)
    left, right = margins(x.shape[3], size)
    return F.pad(x, [left, right, top, bottom], mode="replicate")
