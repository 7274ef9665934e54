"""Consistency of a super-resolved volume with its input: how it is measured, and a projection that improves it.

A volume x is consistent with its input y if D(x), the volume degraded again, is y. D is linear and separable, with one
matrix for each axis (:func:`medsr_monai.transforms.sampling_matrix`). So its singular vectors are known,
and the limit of iterative back-projection, x + D'(y - D(x)) again and again, is computed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from scipy.optimize import brentq

from medsr_monai.transforms.point_spread import METHODS, PointSpread, sampling_matrix

__all__ = ["DataConsistency", "Residual"]

SLAB_VOXELS = 2**22
"""Number of voxels of the output that are worked on at a time: 32 MiB in float64."""
NEGLIGIBLE = 1e-6
"""Singular values below this share of the largest one count as zero, since the degradation removes what they carry."""
MARGIN = 1e-4
"""Share of a bound by which the residual ends below it, which leaves room for rounding the volume to float32."""


@dataclass(frozen=True)
class Residual:
    """The size of the residual D(x) - y, in the volumes' units.

    Attributes:
        rms: root mean square.
        max: largest absolute value.
    """

    rms: float
    max: float


class DataConsistency:
    """Degrade super-resolved volumes again, compare them with their inputs, and project them onto these.

    Every axis that has grown is degraded to the input's number of samples. The ratio need not be whole, since both
    grids have the same outer faces. Volumes are worked on slab by slab along an axis that has not grown.

    Memory: a few float64 copies of a slab of the output, and for `project` the result.

    Args:
        method: degradation along every axis that has grown: a :class:`medsr_monai.transforms.PointSpread` or
            its kind.
        fwhm: width of the kind "gaussian" in fine samples; None takes that of the thick sample.
        slab_voxels: number of voxels of the output in a slab, which is at least one slice.

    Raises:
        ValueError: the method is unknown.
    """

    def __init__(self, method: str | PointSpread, *, fwhm: float | None = None, slab_voxels: int = SLAB_VOXELS) -> None:
        if isinstance(method, str) and method not in METHODS:
            raise ValueError(f"degradation method is {method!r}, expected one of {', '.join(METHODS)}")
        self.method = method
        self.fwhm = fwhm
        self.slab_voxels = slab_voxels

    def grown(self, pred: torch.Tensor, image: torch.Tensor) -> list[int]:
        """Return the tensor axes along which the output [C, X, Y, Z] has more samples than the input.

        Raises:
            ValueError: the output has other channels or fewer samples than the input, or all axes have grown.
        """
        shapes = f"the output has the shape {tuple(pred.shape)}, the input {tuple(image.shape)}"
        if pred.ndim != image.ndim or pred.shape[0] != image.shape[0]:
            raise ValueError(f"{shapes}: expected as many channels and axes")
        if any(p < i for p, i in zip(pred.shape, image.shape, strict=True)):
            raise ValueError(f"{shapes}: expected at least as many samples along each axis")
        axes = [axis for axis in range(1, pred.ndim) if pred.shape[axis] != image.shape[axis]]
        if len(axes) == pred.ndim - 1:
            raise ValueError(f"{shapes}: expected an axis that has not grown, along which slabs are cut")
        return axes

    def residual(self, pred: torch.Tensor, image: torch.Tensor) -> Residual:
        """Measure the residual of an output [C, X, Y, Z] and its input, both in the same units."""
        squares, largest = 0.0, 0.0
        for _, part, slab in self._slabs(pred, image):
            difference = self._degrade(slab, part.shape) - part
            squares += float(difference.square().sum())
            largest = max(largest, float(difference.abs().max()))
            del part, slab, difference  # before the next ones are made
        return Residual(float(np.sqrt(squares / image.numel())), largest)

    def residual_slice(self, pred: torch.Tensor, image: torch.Tensor, axis: int, number: int) -> torch.Tensor:
        """Return a slice of D(x) - y in the input's grid: [C, X, Y, Z] with one sample along ``axis`` (1 to 3)."""
        thin = _plain(pred)
        if axis in self.grown(pred, image):
            row = self._matrix(pred.shape[axis], image.shape[axis])[number]
            nonzero = torch.nonzero(row)[:, 0]
            first, stop = int(nonzero.min()), int(nonzero.max()) + 1
            thickness, total = max(1, self.slab_voxels * pred.shape[axis] // pred.numel()), None
            for start in range(first, stop, thickness):
                weights = row[start : min(start + thickness, stop)]
                slab = thin.narrow(axis, start, len(weights)).double()
                slab = torch.tensordot(slab, weights, dims=([axis], [0])).unsqueeze(axis)
                total = slab if total is None else total.add_(slab)
            thin = total
        else:
            thin = thin.narrow(axis, number, 1).double()
        part = _plain(image).narrow(axis, number, 1).double()
        return self._degrade(thin, part.shape) - part

    def project(self, pred: torch.Tensor, image: torch.Tensor, bound: float) -> torch.Tensor:
        """Return the volume nearest to ``pred``, by least squares, whose residual's RMS is below a bound.

        The true volume's residual is the input's noise. If its RMS is below the bound, the result is never farther from
        the true volume than ``pred``, since it is a projection onto a convex set that holds the true volume: the PSNR
        cannot fall. With the bound at the noise's RMS (Morozov's discrepancy principle) noise is not copied into the
        output.

        Parts of the input that no volume can show after the degradation, such as the highest frequency of ``kspace``,
        stay in the residual, which may then remain above the bound.

        Args:
            pred: output [C, X, Y, Z] of floats, which is not changed.
            image: its input, in the same units.
            bound: bound of the residual's RMS over all voxels and channels, in these units; 0 means as small as
                rounding allows.

        Returns:
            [C, X, Y, Z] with the type and the metadata of ``pred``, affine and outer corners as they were.

        Raises:
            ValueError: the bound is negative or infinite, or `grown` refuses the shapes.
        """
        if not 0 <= bound < np.inf:
            raise ValueError(f"bound is {bound}, expected 0 or more, in the input's units")
        axes = self.grown(pred, image)
        parts = {axis: _singular_vectors(self._matrix(pred.shape[axis], image.shape[axis])) for axis in axes}
        squared = torch.ones((), dtype=torch.float64)
        for _, values, _ in parts.values():
            squared = squared[..., None] * values.square()
        energy, total = torch.zeros_like(squared), 0.0
        others = [axis for axis in range(pred.ndim) if axis not in axes]
        for _, part, slab in self._slabs(pred, image):
            difference = self._degrade(slab, part.shape) - part
            total += float(difference.square().sum())
            energy += _along(difference, {axis: left.T for axis, (left, _, _) in parts.items()}).square().sum(others)
        strength = _strength(squared, energy, total, ((1 - MARGIN) * bound) ** 2 * image.numel())
        out = _plain(pred).clone()
        if strength is None:
            return _like(out, pred)
        shape = [1] * pred.ndim
        for axis, size in zip(axes, squared.shape, strict=True):
            shape[axis] = size
        weights = (squared.sqrt() / (squared + strength)).reshape(shape)
        for position, part, slab in self._slabs(pred, image):
            difference = self._degrade(slab, part.shape) - part
            back = weights * _along(difference, {axis: left.T for axis, (left, _, _) in parts.items()})
            out[position] -= _along(back, {axis: right for axis, (_, _, right) in parts.items()}).to(out)
        return _like(out, pred)

    def _matrix(self, size: int, small: int) -> torch.Tensor:
        return sampling_matrix(size, small, self.method, self.fwhm)

    def _degrade(self, slab: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Return a slab of the output degraded to ``shape``."""
        pairs = enumerate(zip(slab.shape, shape, strict=True))
        return _along(slab, {axis: self._matrix(*sizes) for axis, sizes in pairs if sizes[0] != sizes[1]})

    def _slabs(
        self, pred: torch.Tensor, image: torch.Tensor
    ) -> Iterator[tuple[tuple[slice, ...], torch.Tensor, torch.Tensor]]:
        """Yield the place of each slab, the input's part of it and the output's, both float64."""
        axes = self.grown(pred, image)
        along = max((a for a in range(1, pred.ndim) if a not in axes), key=lambda a: pred.shape[a])
        thickness = max(1, self.slab_voxels * pred.shape[along] // pred.numel())
        for start in range(0, pred.shape[along], thickness):
            position = (slice(None),) * along + (slice(start, start + thickness),)
            yield position, _plain(image)[position].double(), _plain(pred)[position].double()


def _plain(volume: torch.Tensor) -> torch.Tensor:
    return volume.as_tensor() if isinstance(volume, MetaTensor) else volume


def _like(volume: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    return MetaTensor(volume).copy_meta_from(ref) if isinstance(ref, MetaTensor) else volume


def _along(volume: torch.Tensor, matrices: dict[int, torch.Tensor]) -> torch.Tensor:
    """Multiply a volume by a matrix along each of some axes."""
    for axis, matrix in matrices.items():
        volume = torch.movedim(torch.movedim(volume, axis, -1) @ matrix.T, -1, axis)
    return volume


def _singular_vectors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return left vectors [n, k], nonzero singular values [k] and right vectors [N, k] of a matrix [n, N]."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > NEGLIGIBLE * values.max()
    return left[:, kept], values[kept], right[kept].T


def _strength(squared: torch.Tensor, energy: torch.Tensor, total: float, allowed: float) -> float | None:
    """Return the regularisation at which the residual's sum of squares is ``allowed``; None if it is smaller already.

    With the Lagrange multiplier of the bound, the nearest volume keeps the share ``strength / (squared + strength)`` of
    the residual along each pair of singular vectors. It grows with the strength, which is therefore found as a root.

    Args:
        squared: squares of the singular values.
        energy: the residual's squares along the singular vectors, of the same shape.
        total: the sum of all the residual's squares.
        allowed: the sum that the result may have.
    """
    if total <= allowed:
        return None
    beyond = max(0.0, total - float(energy.sum()))

    def excess(logarithm: float) -> float:
        strength = 10.0**logarithm
        return beyond + float((energy * (strength / (squared + strength)) ** 2).sum()) - allowed

    if excess(-20) >= 0:
        return 0.0
    return 10.0 ** brentq(excess, -20, 20, xtol=1e-12)
