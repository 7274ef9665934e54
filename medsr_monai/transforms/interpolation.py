"""Interpolation to a finer grid with the same outer corners, for any real ratio: cubic B-splines, a matrix per axis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from monai.data import MetaTensor

from medsr_monai.transforms.geometry import with_corners_of

__all__ = ["resample", "spline_matrix"]


def _cubic_b_spline(distance: np.ndarray) -> np.ndarray:
    """Centred cubic B-spline: 2/3 at 0, 1/6 at 1, 0 from 2 on."""
    x = np.abs(distance)
    near = 2 / 3 - x**2 + x**3 / 2
    far = np.clip(2 - x, 0, None) ** 3 / 6
    return np.where(x < 1, near, far)


def _basis(size: int, positions: np.ndarray) -> np.ndarray:
    """B-splines [len(positions), size] around ``size`` samples, repeated as in a mirror beyond the outer faces."""
    first = np.floor(positions).astype(int) - 1
    source = first[:, None] + np.arange(4)
    weights = _cubic_b_spline(positions[:, None] - source)
    source %= 2 * size
    source = np.where(source < size, source, 2 * size - 1 - source)
    matrix = np.zeros((len(positions), size))
    np.add.at(matrix, (np.arange(len(positions))[:, None], source), weights)
    return matrix


@lru_cache(maxsize=64)
def spline_matrix(size_in: int, size_out: int) -> torch.Tensor:
    """Make the matrix [size_out, size_in], float64, that interpolates ``size_in`` samples at ``size_out`` places.

    Samples are centres of equal voxels, and both rows of voxels have the same outer faces: output ``j`` lies at
    ``(j + 0.5) * size_in / size_out - 0.5``, so that for an integer factor k sample ``i`` lies at
    ``k * i + (k - 1) / 2`` of the output. Beyond the outer faces samples are repeated as in a mirror (half-sample
    symmetric), by which the curve is flat there. It passes through the samples: the prefilter is part of the matrix.
    Equal to ``scipy.ndimage.zoom(..., order=3, mode="reflect", grid_mode=True)``, whose prefilter, though, is exact
    only from about 12 samples on (2e-4 off for 2 samples).

    Going to a coarser grid is allowed, and is not low-pass filtered: see :mod:`medsr_monai.transforms.degradation`.

    Raises:
        ValueError: a size below 1.

    Source: Unser, Aldroubi, Eden, IEEE Transactions on Signal Processing 41 (1993), interpolation by B-splines.
    """
    if size_in < 1 or size_out < 1:
        raise ValueError(f"interpolation from {size_in} to {size_out} samples: expected at least 1 of each")
    positions = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
    coefficients = np.linalg.inv(_basis(size_in, np.arange(size_in, dtype=np.float64)))
    return torch.from_numpy(_basis(size_in, positions) @ coefficients)


def resample(image: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Bring an image to a grid of another size with the same outer corners, interpolated by :func:`spline_matrix`.

    Args:
        image: [..., *spatial], float, with as many spatial axes as there are sizes. A ``MetaTensor`` [C, *spatial] gets
            the affine that keeps its outer corners.
        sizes: voxels along each spatial axis; an axis that has as many already is left alone.

    Raises:
        ValueError: an image of integers, more sizes than axes, or a size below 1.
    """
    if not image.is_floating_point():
        raise ValueError(f"image is {image.dtype}: interpolated intensities are no integers, convert it to float32")
    if len(sizes) > image.ndim:
        raise ValueError(f"image has {image.ndim} axes and {len(sizes)} sizes: expected one for each spatial axis")
    out = image.as_tensor() if isinstance(image, MetaTensor) else image
    for axis, size in enumerate(sizes, start=-len(sizes)):
        if size != out.shape[axis]:
            matrix = spline_matrix(out.shape[axis], size).to(out)
            # mixed precision is for networks
            with torch.autocast(out.device.type, enabled=False):
                out = torch.movedim(torch.movedim(out, axis, -1) @ matrix.T, -1, axis)
    out = out.contiguous()
    return with_corners_of(image, out) if isinstance(image, MetaTensor) else out
