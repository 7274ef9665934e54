"""Slices of a volume as radiologists look at them."""

from __future__ import annotations

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Orientation

from medsr_monai.transforms.geometry import PLANES, plane_axis, spacing

__all__ = ["EDGES", "LEFT_EDGE", "displayed_slice", "pixel_edges"]

EDGES = {"sagittal": "APSI", "coronal": "RLSI", "axial": "RLAP"}
"""Where a slice's left, right, upper and lower edge point to (array axes to the left, posterior, superior)."""

LEFT_EDGE = {plane: letters[0] for plane, letters in EDGES.items()}


def displayed_slice(volume: MetaTensor, plane: str, number: int = 0) -> np.ndarray:
    """Slice [H, W] of a volume [1, X, Y, Z], or [H, W, C] of several channels, rows from top to bottom.

    The patient's left is on the right, or front on the left in sagittal slices; oblique volumes count as the nearest
    anatomical orientation.

    Args:
        volume: its affine tells the orientation.
        plane: sagittal, coronal or axial.
        number: of the slice along the array's axis.
    """
    part = Orientation("LPS")(volume.narrow(plane_axis(volume.affine, plane) + 1, number, 1)).as_tensor()
    image = part.select(PLANES.index(plane) + 1, 0).permute(2, 1, 0)
    # rows of axial slices begin at the front, which is up; those of the others at the feet
    image = (image if plane == "axial" else image.flip(0)).numpy()
    return image[..., 0] if image.shape[2] == 1 else image


def pixel_edges(affine: np.ndarray, plane: str) -> tuple[float, float]:
    """Edges (rows, columns) in mm of a displayed slice's pixels."""
    columns, rows = (spacing(affine)[plane_axis(affine, name)] for name in PLANES if name != plane)
    return float(rows), float(columns)
