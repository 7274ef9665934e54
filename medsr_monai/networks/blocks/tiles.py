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
