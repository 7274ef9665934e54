"""Overlapping tiles of one size that cover an image, for networks that take one size only."""

from __future__ import annotations

import torch
from torch import Tensor


def tile_starts(length: int, size: int, overlap: int) -> list[int]:
    """Find the first lines of the fewest tiles of `size` lines that cover `length` >= size lines, evenly spread.

    Neighbours share at least `overlap` lines, 0 <= overlap < size.
    """
    steps = -((size - length) // (size - overlap))  # rounded up
    return [(length - size) * i // max(steps, 1) for i in range(steps + 1)]


def tile_weights(size: int, device: torch.device | None = None) -> Tensor:
    """Weigh a tile's pixels, most in the middle and linearly less to its borders: [size, size], all above 0."""
    places = torch.arange(1, size + 1, device=device)
    line = torch.minimum(places, places.flip(0)) * (2.0 / size)
    return torch.outer(line, line)


def axis_tiles(length: int, size: int, overlap: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Cover an axis of any length with tiles, without a condition, so that it is exported once for all lengths.

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


def cut_into_tiles(x: Tensor, size: int, overlap: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut images [B, C, H, W] into the tiles of `axis_tiles`; undone by `join_tiles`.

    Returns:
        tiles: of all images, one after the other and each row by row, [B * down * right, C, size, size].
        row_shares, column_shares: what `axis_tiles` gives for H and for W.
    """
    b, c = x.shape[0], x.shape[1]
    rows, row_shares = axis_tiles(x.shape[2], size, overlap, x.device)
    columns, column_shares = axis_tiles(x.shape[3], size, overlap, x.device)
    tiles = x.index_select(2, rows).index_select(3, columns)
    tiles = tiles.reshape(b, c, rows.shape[0] // size, size, columns.shape[0] // size, size)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, size, size), row_shares, column_shares


def join_tiles(tiles: Tensor, row_shares: Tensor, column_shares: Tensor) -> Tensor:
    """Join the tiles of `cut_into_tiles`, of any number of channels, to images [B, C, H, W]."""
    c, size = tiles.shape[1], tiles.shape[2]
    down, right = row_shares.shape[1] // size, column_shares.shape[1] // size
    y = tiles.reshape(-1, down, right, c, size, size).permute(0, 3, 1, 4, 2, 5)
    y = y.reshape(-1, c, down * size, right * size)
    return row_shares.to(y.dtype) @ y @ column_shares.to(y.dtype).T
