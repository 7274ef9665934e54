"""Slices of a volume, turned as radiologists look at them."""

from __future__ import annotations

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Orientation

from medsr_monai.transforms.geometry import PLANES, plane_axis, spacing

__all__ = ["EDGES", "displayed_slice", "pixel_edges"]

EDGES = {"sagittal": "APSI", "coronal": "RLSI", "axial": "RLAP"}
"""The letters of the directions that the left, right, upper and lower edges of a displayed slice point to."""


def displayed_slice(volume: MetaTensor, plane: str, number: int = 0) -> np.ndarray:
    """Return a slice [H, W] of a volume, or [H, W, C] of several channels, with rows from top to bottom.

    The patient's left is on the right; in sagittal slices the front is on the left. Oblique volumes count as the
    nearest anatomical orientation.

    Args:
        volume: the volume [C, X, Y, Z], whose affine tells the orientation.
        plane: sagittal, coronal or axial.
        number: position of the slice along the array axis.
    """
    part = Orientation("LPS")(volume.narrow(plane_axis(volume.affine, plane) + 1, number, 1)).as_tensor()
    image = part.select(PLANES.index(plane) + 1, 0).permute(2, 1, 0)
    # the rows of axial slices begin at the front, which is up, and those of the others at the feet
    image = (image if plane == "axial" else image.flip(0)).numpy()
    return image[..., 0] if image.shape[2] == 1 else image


def pixel_edges(affine: np.ndarray, plane: str) -> tuple[float, float]:
    """Return the edges (rows, columns) of a displayed slice's pixels, in mm."""
    columns, rows = (spacing(affine)[plane_axis(affine, name)] for name in PLANES if name != plane)
    return float(rows), float(columns)
