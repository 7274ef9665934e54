"""Voxel geometry: which array axis is cut by which anatomical plane, and where a volume's outer corners lie.

A super-resolved or degraded volume covers the same space as its source, so its outer corners (the outer faces of the
corner voxels, in millimetres) stay where they were; everything here keeps that.
"""

from __future__ import annotations

import itertools
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
    "PLANES",
    "MatchCornersd",
    "SyncRefMetad",
    "axis_factors",
    "outer_corners",
    "plane_axis",
    "resized_affine",
    "sharp_plane",
    "spacing",
]

PLANES = ("sagittal", "coronal", "axial")
"""Planes by the world axis that runs across their slices: left-right, posterior-anterior, inferior-superior."""

ISOTROPIC_RATIO = 1.25
"""Voxels whose longest edge is below this multiple of the shortest one count as isotropic."""

SQUARE_RATIO = 1.05
"""Pixels whose longer edge is below this multiple of the shorter one count as square."""


def _affine(affine: np.ndarray | torch.Tensor) -> np.ndarray:
    return np.asarray(affine, dtype=np.float64)


def spacing(affine: np.ndarray | torch.Tensor) -> np.ndarray:
    """Voxel edge lengths in mm, one per array axis, of a 4x4 ``affine``."""
    return np.linalg.norm(_affine(affine)[:3, :3], axis=0)


def plane_axis(affine: np.ndarray | torch.Tensor, plane: str) -> int:
    """Array axis (0, 1 or 2) that runs across the slices of an anatomical plane.

    Oblique volumes count as the nearest anatomical orientation.

    Args:
        affine: 4x4, voxel index to millimetres in RAS+.
        plane: ``sagittal``, ``coronal`` or ``axial``.

    Raises:
        ValueError: for an unknown plane.
    """
    if plane not in PLANES:
        raise ValueError(f"plane is {plane!r}, expected one of {', '.join(PLANES)}")
    return int(np.flatnonzero(nibabel.io_orientation(_affine(affine))[:, 0] == PLANES.index(plane))[0])


def sharp_plane(affine: np.ndarray | torch.Tensor, shape: Sequence[int] | None = None) -> str:
    """Plane that a volume was acquired in, by voxel size: axial where voxels are isotropic.

    One voxel edge clearly longer than the others is the slice thickness, and the plane across it has the finest pixels.
    Square pixels that are larger than the slice is thick are the exception, as after an in-plane degradation. Of a
    single slice, which ``shape`` tells, it is that slice's plane.
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


def axis_factors(axis: int, scale: int | Sequence[int]) -> tuple[int, int, int]:
    """Factor per array axis of a 2D ``scale`` on slices across ``axis``: ``(1, 4), axis 0`` gives ``(1, 1, 4)``."""
    factors = list(ensure_tuple_rep(scale, 2))
    factors.insert(axis, 1)
    return tuple(factors)


def resized_affine(affine: np.ndarray | torch.Tensor, shape: Sequence[int], new_shape: Sequence[int]) -> np.ndarray:
    """Affine (float64, 4x4) under which a grid of ``new_shape`` voxels has the outer corners of the grid ``shape``.

    Both shapes have 3 axes, or 2 for an image.
    """
    depth = (1,) * (3 - len(shape))
    return _affine(affine) @ scale_affine((*shape, *depth), (*new_shape, *depth))


def outer_corners(affine: np.ndarray | torch.Tensor, shape: Sequence[int]) -> np.ndarray:
    """The 8 outer corners [8, 3] in mm of a volume of ``shape`` voxels: index -0.5 to size - 0.5 along each axis."""
    index = np.array(list(itertools.product(*((-0.5, size - 0.5) for size in shape))))
    return nibabel.affines.apply_affine(_affine(affine), index)


class MatchCornersd(MapTransform):
    """Give a resized volume the affine under which its outer corners are those of a reference volume.

    Inferers hand on the metadata of their input, whose affine is wrong for an output of another size: the saved file
    would cover several times the field of view. Never undo preprocessing of a super-resolved volume with ``Invertd``,
    which restores that affine.

    Args:
        keys: resized volumes [C, X, Y, Z].
        ref_key: key of the reference volume, a ``MetaTensor`` [C, X, Y, Z].
    """

    def __init__(self, keys: KeysCollection = "pred", ref_key: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ref_key = ref_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        ref = d[self.ref_key]
        for key in self.key_iterator(d):
            shape = tuple(d[key].shape[1:])
            affine = torch.as_tensor(resized_affine(ref.affine, ref.shape[1:], shape))
            volume = d[key].as_tensor() if isinstance(d[key], MetaTensor) else d[key]
            meta = dict(ref.meta, affine=affine, original_affine=affine.clone(), spatial_shape=np.array(shape))
            d[key] = MetaTensor(volume, meta=meta, applied_operations=[])
        return d


class SyncRefMetad(MapTransform):
    """Tell the input's metadata the output's grid, so that MONAI Label leaves the output as it is.

    MONAI Label appends ``Restored`` to every post-processing: it resizes the prediction to the input's
    ``spatial_shape`` and gives it the input's ``original_affine``, which would undo the super-resolution. Put this
    last; it has no effect elsewhere.
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
