"""A volume that is on disk while it is made and looked at, for what is larger than the memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from monai.data import MetaTensor

__all__ = ["CHUNK_BYTES", "StoredVolume"]

CHUNK_BYTES = 2**25
"""The number of bytes that are read at a time, to be written again."""


class StoredVolume:
    """Voxels [C, X, Y, Z], float32, in a file without a name, which is gone when it is closed or the process ends.

    It is indexed by up to four slices, as a tensor is, and gives a tensor of its own; what was never written is zero.
    Files are read and written, not mapped: mapped pages would count as the process's memory. Fast are parts of few
    places along ``axis``, and of few along Z (as NIfTI files lie); slow are those of few along the other axis, which
    read all of the file.

    Attributes:
        shape, ndim: those that a tensor would have.
        meta, affine: those that a ``MetaTensor`` would have.
        least, greatest: the extremes of the voxels that were written, [C] each.
        broken: how many of the voxels that were written are NaN or infinite.

    Args:
        folder: the folder on whose disk the file lies.
        like: a volume of the same shape and metadata; its voxels are not looked at.
        axis: the array axis, 0 to 2, along which slabs are written and read.
    """

    def __init__(self, folder: str | os.PathLike, like: MetaTensor, axis: int) -> None:
        self.shape, self.ndim = torch.Size(like.shape), like.ndim
        self.meta, self.affine = like.meta, like.affine
        others = [a for a in (3, 2, 1) if a != axis + 1]
        self.order = (0, axis + 1, *others)
        self.least = torch.full((self.shape[0],), torch.inf)
        self.greatest = -self.least
        self.broken = 0
        # it lives as long as the volume
        self.file = tempfile.TemporaryFile(dir=folder, prefix=".partial-", buffering=0)  # noqa: SIM115
        self.file.truncate(self.numel() * np.dtype(np.float32).itemsize)

    def __enter__(self) -> StoredVolume:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the file. The metadata stay."""
        self.file.close()

    def numel(self) -> int:
        return self.shape.numel()

    def narrow(self, axis: int, start: int, length: int) -> torch.Tensor:
        """Read a part along one axis, 0 to 3."""
        return self[(slice(None),) * axis + (slice(start, start + length),)]

    def __getitem__(self, position: tuple[slice, ...]) -> torch.Tensor:
        ranges = self._ranges(position)
        part = np.empty([len(r) for r in ranges], np.float32)
        for offset, row, columns in self._rows(ranges, part):
            whole = row if columns is None else np.empty((row.shape[0], self._sizes()[3]), np.float32)
            self._transfer(self.file.readinto, offset, whole)
            if columns is not None:
                row[...] = whole[:, columns]
        return torch.from_numpy(part).permute(*np.argsort(self.order).tolist())

    def __setitem__(self, position: tuple[slice, ...], values: torch.Tensor) -> None:
        ranges = self._ranges(position)
        part = np.ascontiguousarray(values.detach().to(torch.float32).permute(self.order).numpy())
        if part.shape != tuple(len(r) for r in ranges):
            raise ValueError(f"a part of shape {tuple(values.shape)} does not fit {position}")
        for offset, row, columns in self._rows(ranges, part):
            if columns is not None:
                raise ValueError(f"only whole rows along array axis {self.order[3] - 1} can be written")
            self._transfer(self.file.write, offset, row)
        self.broken += part.size - int(np.isfinite(part).sum())
        rest = tuple(range(1, 4))
        self.least = torch.minimum(self.least, torch.from_numpy(part.min(rest)))
        self.greatest = torch.maximum(self.greatest, torch.from_numpy(part.max(rest)))

    def chunks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Read parts of whole planes along Z, in order: where each begins, and its voxels [C, X, Y, n]."""
        thickness = max(1, CHUNK_BYTES * self.shape[3] // (4 * self.numel()))
        for start in range(0, self.shape[3], thickness):
            yield start, self.narrow(3, start, min(thickness, self.shape[3] - start))

    def _sizes(self) -> list[int]:
        return [self.shape[axis] for axis in self.order]

    def _ranges(self, position: tuple[slice, ...]) -> list[range]:
        """Places along the axes in the file's order."""
        position = (*position, *(slice(None),) * (self.ndim - len(position)))
        ranges = [range(*one.indices(size)) for one, size in zip(position, self.shape, strict=True)]
        if any(r.step != 1 for r in ranges):
            raise ValueError(f"{position}: expected slices without steps")
        return [ranges[axis] for axis in self.order]

    def _rows(self, ranges: list[range], part: np.ndarray) -> Iterator[tuple[int, np.ndarray, slice | None]]:
        """Voxels that lie together in the file: offset, place in ``part``, and which columns count (None for all)."""
        sizes = self._sizes()
        channels, places, rows, columns = ranges
        chosen = None if len(columns) == sizes[3] else slice(columns.start, columns.stop)
        for c, channel in enumerate(channels):
            if chosen is None and len(rows) == sizes[2]:
                yield (channel * sizes[1] + places.start) * sizes[2] * sizes[3], part[c], None
                continue
            for p, place in enumerate(places):
                yield ((channel * sizes[1] + place) * sizes[2] + rows.start) * sizes[3], part[c, p], chosen

    def _transfer(self, step, voxels: int, array: np.ndarray) -> None:
        """Read or write all of an array, of which the system takes 2 GiB at a time at most."""
        self.file.seek(voxels * array.itemsize)
        bytes_left = memoryview(array).cast("B") if array.size else b""
        while len(bytes_left):
            done = step(bytes_left)
            if not done:
                raise OSError("the temporary file of the output is shorter than expected")
            bytes_left = bytes_left[done:]
