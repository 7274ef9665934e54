"""Low-resolution volumes made of high-resolution ones, to measure what a method makes of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from medsr_monai.errors import MedsrError, naming
from medsr_monai.transforms import axis_factors, intensity_range, parse_point_spread, plane_axis, sharp_plane, spacing
from medsr_monai.transforms import degrade as degrade_volume
from medsr_monai.upscaling.kinds import like, name_of, to_volume

if TYPE_CHECKING:
    from medsr_monai.upscaling.kinds import Volume

__all__ = ["degrade"]

DIRECTIONS = ("in-plane", "through-plane")


def degrade(
    volume: Volume,
    scale: int = 4,
    *,
    direction: str = "in-plane",
    plane: str = "auto",
    method: str | None = None,
    fwhm: float | None = None,
    psf: str | None = None,
    noise: float = 0.0,
    seed: int = 0,
    frame: int | None = None,
    nan_value: float | None = None,
) -> Any:
    """Make a low-resolution volume of a high-resolution one; its outer corners stay where they are.

    Where a side is no multiple of the scale, the far end is cropped to one; the corners are then those of the rest.

    Args:
        volume: path, nibabel image, MetaTensor or pair (array, affine), see :mod:`medsr_monai.upscaling.kinds`.
        scale: integer factor of at least 2.
        direction: in-plane (larger pixels) or through-plane (thicker slices).
        plane: axial, coronal or sagittal, auto for the one with the finest pixels.
        method: bicubic (default in-plane), gaussian (default through-plane), box or kspace, see
            :func:`medsr_monai.transforms.sampling_matrix`.
        fwhm: full width at half maximum of the Gaussian slice profile in voxels of the input, by default the scale.
        psf: point spread of the scanner in place of method and fwhm, as KIND or KIND:FWHM_MM, see
            :func:`medsr_monai.transforms.parse_point_spread`.
        noise: standard deviation of Gaussian noise as a fraction of the intensity range.
        seed: of the noise: the same seed gives the same noise.
        frame: of a path or nibabel image with four axes, counted from 0.
        nan_value: what takes the place of NaN; None refuses it.

    Returns:
        The same kind as ``volume``, float32; a path gives a nibabel image, equal to the file that the command
        ``medsr degrade`` writes.

    Raises:
        MedsrError: one line: what is wrong with an option or with the volume.
    """
    if direction not in DIRECTIONS:
        raise MedsrError(f"direction is {direction!r}, expected {' or '.join(DIRECTIONS)}")
    if scale < 2:
        raise MedsrError(f"scale is {scale}, expected at least 2")
    if not 0 <= noise < math.inf:
        raise MedsrError(f"noise is {noise}, expected a fraction of the intensity range such as 0.02")
    if psf is not None:
        if method is not None or fwhm is not None:
            raise MedsrError("psf states the point spread alone: drop method and fwhm")
        with naming():
            parse_point_spread(psf, 1.0)  # before anything is read
    image = to_volume(volume, frame, nan_value=nan_value)
    with naming(name_of(volume)):
        low, high = intensity_range(image, "minmax")
        axis = plane_axis(image.affine, sharp_plane(image.affine, image.shape[1:]) if plane == "auto" else plane)
        in_plane = direction == "in-plane"
        factors = axis_factors(axis, scale) if in_plane else tuple(scale if a == axis else 1 for a in range(3))
        method = method or ("bicubic" if in_plane else "gaussian")
        if psf is not None:
            edges = spacing(image.affine).tolist()
            method = [parse_point_spread(psf, factor * edge) for factor, edge in zip(factors, edges, strict=True)]
        result = degrade_volume(image, factors, method, fwhm=fwhm, noise_std=noise * (high - low), noise_seed=seed)
    return like(result, volume)
