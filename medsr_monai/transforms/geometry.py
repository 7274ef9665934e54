"""Voxel geometry: which array axis is cut by which anatomical plane, and where a volume's outer corners lie.

A super-resolved or degraded volume covers the same space as its source, so its outer corners (the outer faces of the
corner voxels, in millimetres) stay where they were. Everything here keeps to that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.transforms.utils import scale_affine
from monai.utils import ensure_tuple_rep

__all__ = [
    "AXES",
    "PLANES",
    "PLANE_ACROSS",
    "MatchCornersd",
    "SyncRefMetad",
    "axis_factors",
    "describe_grid",
    "format_edges",
    "implausible_grid",
    "outer_corners",
    "plane_axis",
    "resized_affine",
    "sharp_plane",
    "spacing",
    "target_size",
    "thick_axis",
    "with_corners_of",
]

PLANES = ("sagittal", "coronal", "axial")
"""The planes, in the order of the world axes in AXES, which run across their slices."""

AXES = ("left-right", "posterior-anterior", "inferior-superior")
"""The world axes x, y and z of RAS+, by the directions between which they run."""

PLANE_ACROSS = dict(zip(AXES, PLANES, strict=True))
"""For each world axis, the plane across whose slices it runs."""

ISOTROPIC_RATIO = 1.25
"""Voxels whose longest edge is below this multiple of the shortest one count as isotropic."""

THICK_RATIO = 1.5
"""Slices are thick if they measure at least this multiple of the other voxel edges."""

MAX_EXTENT = 3000.0
"""Largest plausible extent of a volume in mm; a longer one has wrong voxel sizes or wrong units."""

MAX_ROUNDING = 0.1
"""Largest error, in voxels, that a place may have when it is held in single precision, as in a NIfTI header."""

SQUARE_RATIO = 1.05
"""Pixels whose longer edge is below this multiple of the shorter one count as square."""


def _affine(affine: np.ndarray | torch.Tensor) -> np.ndarray:
    return np.asarray(affine, dtype=np.float64)


def spacing(affine: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return the voxel edges in mm, one for each array axis, of a 4x4 ``affine``."""
    return np.linalg.norm(_affine(affine)[:3, :3], axis=0)


def plane_axis(affine: np.ndarray | torch.Tensor, plane: str) -> int:
    """Return the array axis (0, 1 or 2) that runs across the slices of an anatomical plane.

    Oblique volumes count as the nearest anatomical orientation.

    Args:
        affine: the 4x4 matrix from voxel indices to millimetres in RAS+.
        plane: ``sagittal``, ``coronal`` or ``axial``.

    Raises:
        ValueError: the plane is unknown.
    """
    if plane not in PLANES:
        raise ValueError(f"plane is {plane!r}, expected one of {', '.join(PLANES)}")
    return int(np.flatnonzero(nibabel.io_orientation(_affine(affine))[:, 0] == PLANES.index(plane))[0])


def sharp_plane(affine: np.ndarray | torch.Tensor, shape: Sequence[int] | None = None) -> str:
    """Return the plane that a volume was acquired in, by voxel size; axial if the voxels are isotropic.

    One voxel edge that is clearly longer than the others is the slice thickness, and the plane across it has the finest
    pixels. The exception are square pixels whose edges are longer than the slice thickness, as after an in-plane
    degradation. A single slice, which ``shape`` tells, was acquired in its own plane.

    Args:
        affine: the 4x4 matrix from voxel indices to millimetres in RAS+.
        shape: number of voxels (X, Y, Z); None if only the voxel size counts.
    """
    edges = spacing(affine)
    short, middle, long = np.sort(edges)
    if shape is not None and list(shape).count(1) == 1:
        across = list(shape).index(1)
    elif long < ISOTROPIC_RATIO * short:
        return "axial"
    else:
        across = edges.argmin() if long < SQUARE_RATIO * middle else edges.argmax()
    return PLANES[int(nibabel.io_orientation(_affine(affine))[int(across), 0])]


def thick_axis(affine: np.ndarray | torch.Tensor, least_ratio: float = THICK_RATIO) -> str:
    """Return the world axis, one of AXES, that runs across thick slices: that of the longest voxel edge.

    Oblique volumes count as the nearest anatomical orientation.

    Args:
        affine: the 4x4 matrix from voxel indices to millimetres in RAS+.
        least_ratio: least ratio of the longest edge to the shortest one.

    Raises:
        ValueError: the ratio is smaller, or the middle edge is nearer to the longest one than to the shortest one (by
            their ratios), so that two axes are thick.
    """
    edges = spacing(affine)
    short, middle, long = np.sort(edges)
    if long < least_ratio * short:
        raise ValueError(
            f"voxels of {format_edges(edges)} mm have no thick axis, the longest edge is below {least_ratio:g} times "
            "the shortest: nothing to do, unless you give --force and --thick-axis"
        )
    if middle**2 > short * long:
        raise ValueError(
            f"voxels of {format_edges(edges)} mm are thick along two axes: choose --thick-axis {', '.join(AXES)}"
        )
    return AXES[int(nibabel.io_orientation(_affine(affine))[edges.argmax(), 0])]


def target_size(size: int, edge: float, target: float) -> int:
    """Return the number of voxels, each closest to ``target`` mm, that fill ``size`` voxels of ``edge`` mm.

    The number is whole and the outer corners stay, so the new edge, ``size * edge`` divided by it, is near ``target``
    and seldom equal to it. Half-way between two numbers the larger one is taken, whatever the rounding errors of an
    affine, which depend on the orientation.
    """
    return max(1, math.floor(size * edge / target * (1 + 1e-6) + 0.5))


def format_edges(edges: Sequence[float]) -> str:
    """Return voxel edges as a message shows them, such as 0.91x0.91x3."""
    return "x".join(f"{edge:.3g}" for edge in edges)


def axis_factors(axis: int, scale: int | Sequence[int]) -> tuple[int, int, int]:
    """Return the factor of each array axis for a 2D ``scale`` of slices across ``axis``; (1, 4), axis 0: (1, 1, 4)."""
    factors = list(ensure_tuple_rep(scale, 2))
    factors.insert(axis, 1)
    return tuple(factors)


def resized_affine(affine: np.ndarray | torch.Tensor, shape: Sequence[int], new_shape: Sequence[int]) -> np.ndarray:
    """Return the affine (float64, 4x4) that gives a grid of ``new_shape`` the outer corners of the grid of ``shape``.

    Both shapes have 3 axes, or 2 for an image.
    """
    depth = (1,) * (3 - len(shape))
    return _affine(affine) @ scale_affine((*shape, *depth), (*new_shape, *depth))


def outer_corners(affine: np.ndarray | torch.Tensor, shape: Sequence[int]) -> np.ndarray:
    """Return the 8 outer corners [8, 3] in mm of a volume: indices -0.5 and size - 0.5 along each axis."""
    index = np.array(list(itertools.product(*((-0.5, size - 0.5) for size in shape))))
    return nibabel.affines.apply_affine(_affine(affine), index)


def with_corners_of(ref: MetaTensor, volume: torch.Tensor, shape: Sequence[int] | None = None) -> MetaTensor:
    """Return a volume with the metadata of ``ref`` and the affine under which both have the same outer corners.

    Args:
        ref: the volume [C, X, Y, Z] from which the other was made.
        volume: the volume [C, X, Y, Z] on a grid of another size.
        shape: the shape (X, Y, Z) of the part of ``ref``, from index 0 on, that the volume covers; None if it is all.
    """
    size = tuple(volume.shape[1:])
    affine = torch.as_tensor(resized_affine(ref.affine, ref.shape[1:] if shape is None else shape, size))
    meta = dict(ref.meta, affine=affine, original_affine=affine.clone(), spatial_shape=np.array(size))
    data = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    return MetaTensor(data, meta=meta, applied_operations=[])


def describe_grid(affine: np.ndarray | torch.Tensor, shape: Sequence[int]) -> str:
    """Return a grid in words, such as ``184x152x12 voxels of 1x1x5 mm``."""
    return f"{'x'.join(map(str, shape))} voxels of {format_edges(spacing(affine))} mm"


def implausible_grid(affine: np.ndarray | torch.Tensor, shape: Sequence[int]) -> str | None:
    """Return in words why no scanner makes a grid with this finite, regular affine; None if one may."""
    edges = spacing(affine)
    extent, distance = (edges * shape).max(), np.abs(outer_corners(affine, shape)).max()
    if extent > MAX_EXTENT:
        return f"voxels of {format_edges(edges)} mm make it {extent / 1000:.3g} m long"
    if distance * np.finfo(np.float32).eps > MAX_ROUNDING * edges.min():
        return (
            f"voxels of {format_edges(edges)} mm, {distance:.3g} mm away from the origin: headers cannot tell their "
            "places apart"
        )
    return None


class MatchCornersd(MapTransform):
    """Give a resized volume the affine under which its outer corners are those of a reference volume.

    Inferers hand on the metadata of their input, whose affine is wrong for an output of another size: the saved file
    would cover several times the field of view. Never undo preprocessing of a super-resolved volume with ``Invertd``,
    which restores that affine.

    Args:
        keys: keys of resized volumes [C, X, Y, Z].
        ref_key: key of the reference volume, a ``MetaTensor`` [C, X, Y, Z].
    """

    def __init__(self, keys: KeysCollection = "pred", ref_key: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ref_key = ref_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        ref = d[self.ref_key]
        for key in self.key_iterator(d):
            d[key] = with_corners_of(ref, d[key])
        return d


class SyncRefMetad(MapTransform):
    """Write the output's grid to the input's metadata, so that MONAI Label leaves the output as it is.

    MONAI Label appends ``Restored`` to every post-processing, which resizes the prediction to the input's
    ``spatial_shape`` and gives it the input's ``original_affine``, and so would undo the super-resolution. Put this
    transform last; it has no effect elsewhere.

    Args:
        keys: keys of the input, whose metadata are changed.
        ref_key: key of the output, a ``MetaTensor`` [C, X, Y, Z].
    """

    def __init__(self, keys: KeysCollection = "image", ref_key: str = "pred", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ref_key = ref_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        pred = d[self.ref_key]
        for key in self.key_iterator(d):
            d[key].meta["spatial_shape"] = np.array(pred.shape[1:])
            d[key].meta["original_affine"] = pred.affine.clone()
        return d
