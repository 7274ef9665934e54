"""What an inferer does to a volume, told from its grid alone: one answer, in the plane and through it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medsr_monai.transforms.point_spread import PointSpread

__all__ = ["InferencePlan", "SlicePass"]


@dataclass(frozen=True)
class SlicePass:
    """The slices of one plane, as the network sees them.

    Attributes:
        plane: axial, coronal or sagittal.
        axis: array axis across the slices, 0 to 2.
        count: how many there are.
        rows, columns: of each of them.
    """

    plane: str
    axis: int
    count: int
    rows: int
    columns: int


@dataclass(frozen=True)
class InferencePlan:
    """What is done to one volume.

    Attributes:
        shape: of the input, (X, Y, Z).
        new_shape: of the output.
        passes: one for each plane whose slices the network sees; the output is their mean.
        sentence: the same in words, for a log line.
        volumes: of the output's size that are held in memory at a time.
        tiled: whether slices are computed in tiles, whose overlaps MONAI counts in one more such volume.
        thick_axis: left-right, posterior-anterior or inferior-superior, across thick slices; None where the slices
            of one plane are enlarged.
        array_axis: the array axis nearest to it, 0 to 2.
        edge, new_edge: thickness of the slices in mm, before and after.
        point_spread: that of the input, which the network is told; None if it is unknown, or yet to be found.
        interpolated: whether the network gets slices that are interpolated to the output's grid already.
    """

    shape: tuple[int, int, int]
    new_shape: tuple[int, int, int]
    passes: tuple[SlicePass, ...]
    sentence: str
    volumes: int = 1
    tiled: bool = False
    thick_axis: str | None = None
    array_axis: int | None = None
    edge: float | None = None
    new_edge: float | None = None
    interpolated: bool = False
    point_spread: PointSpread | None = None

    @property
    def planes(self) -> tuple[str, ...]:
        """Names of the planes whose slices the network sees."""
        return tuple(one.plane for one in self.passes)

    @property
    def enlarged_axes(self) -> tuple[int, ...]:
        """The array axis across thick slices, or the two axes of the slices that are enlarged."""
        if self.array_axis is not None:
            return (self.array_axis,)
        return tuple(axis for axis in range(3) if axis != self.passes[0].axis)

    @property
    def size(self) -> int:
        """Thick slices of the input."""
        return self.shape[self.array_axis]

    @property
    def new_size(self) -> int:
        """Slices that are made of them."""
        return self.new_shape[self.array_axis]

    @property
    def thickness(self) -> float | None:
        """Of a thick slice, in slices of the output; None where the slices of one plane are enlarged."""
        return None if self.array_axis is None else self.new_size / self.size

    @property
    def compared_axis(self) -> int | None:
        """The longest array axis that has not grown, along which output and input are compared slab by slab."""
        kept = [axis for axis in range(3) if self.shape[axis] == self.new_shape[axis]]
        return max(kept, key=lambda axis: self.new_shape[axis]) if kept else None

    @property
    def in_one_go(self) -> bool:
        """Whether slabs of the network's output follow the axis along which output and input are compared."""
        return len(self.passes) == 1 and self.passes[0].axis == self.compared_axis

    def pixels(self, multiple: int = 1) -> int:
        """Pixels that the network sees in all, each slice padded to a multiple of its window."""

        def padded(side: int) -> int:
            return math.ceil(side / multiple) * multiple

        return sum(one.count * padded(one.rows) * padded(one.columns) for one in self.passes)
