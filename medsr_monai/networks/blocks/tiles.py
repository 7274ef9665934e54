"""Overlapping tiles of one size that cover an image, for networks that take one size only."""

from __future__ import annotations

import torch
from torch import Tensor


def tile_starts(length: int, size: int, overlap: int) -> list[int]:
    """First lines of the fewest tiles of `size` lines that cover `length` >= size lines, evenly spread.

    Neighbours share at least `overlap` lines, 0 <= overlap < size.
    """
    steps = -((size - length) // (size - overlap))  # rounded up
    return [(length - size) * i // max(steps, 1) for i in range(steps + 1)]


def tile_weights(size: int, device: torch.device | None = None) -> Tensor:
    """Weights of a tile's pixels, largest in the middle and falling linearly to its borders: [size, size], over 0."""
    places = torch.arange(1, size + 1, device=device)
    line = torch.minimum(places, places.flip(0)) * (2.0 / size)
    return torch.outer(line, line)


def axis_tiles(length: int, size: int, overlap: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Tiles along an axis of any length as tensors, without a condition, so that they are exported once for all.

    An axis shorter than `size` is padded as by `pad_to_size`; tiles start and weigh as in `tile_starts` and
    `tile_weights`.

    Returns:
        places: the line of the image that each line of the tiles shows, [tiles * size].
        shares: of each line of the tiles in each line of the image, [length, tiles * size]; the shares of a line of the
            image sum up to 1.
    """
    lacking = torch.sym_max(size - length, 0)
    before = lacking - lacking // 2
    excess = torch.sym_max(length - size, 0)
    steps = (excess + size - overlap - 1) // (size - overlap)
    starts = torch.arange(steps + 1, device=device) * excess // torch.sym_max(steps, 1)
    line = torch.arange(size, device=device)
    lines = (starts[:, None] + line - before).flatten()
    weights = (torch.minimum(line, line.flip(0)) + 1.0).repeat(starts.shape[0])
    shares = weights * (lines == torch.arange(length, device=device)[:, None])
    return lines.clamp(0, length - 1), shares / shares.sum(dim=1, keepdim=True)
