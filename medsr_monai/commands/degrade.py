"""Make low-resolution volumes."""

from __future__ import annotations

import math

from medsr_monai.atomic import check_input
from medsr_monai.errors import naming
from medsr_monai.upscaling.cases import nifti_output


def degrade(
    input: str,
    output: str,
    scale: int = 4,
    direction: str = "in-plane",
    plane: str = "auto",
    method: str | None = None,
    fwhm: float | None = None,
    psf: str | None = None,
    noise: float = 0.0,
    seed: int = 0,
    frame: int | None = None,
    overwrite: bool = False,
) -> None:
    """Make a low-resolution volume of a high-resolution one; its outer corners stay where they are.

    Args:
        input: NIfTI or FreeSurfer file.
        output: NIfTI file.
        scale: integer factor.
        direction: in-plane (larger pixels) or through-plane (thicker slices, as `upscale --bundle rdst_e_thick` takes).
        plane: axial, coronal or sagittal, auto for the one with the finest pixels.
        method: bicubic (default in-plane), gaussian (default through-plane), box or kspace, or another kind, see psf.
        fwhm: width of the Gaussian slice profile in voxels, default the scale.
        psf: point spread of the scanner in place of method and fwhm, as KIND or KIND:FWHM_MM, such as box:4.5. KIND is
            gaussian, box, rounded, kspace, kspace_hamming, kspace_fermi, ct (ct:FWHM_MM:SHARPNESS) or bicubic; the
            width is the output's spacing where it is left out. A width below the spacing leaves gaps between slices.
        noise: standard deviation of Gaussian noise as a fraction of the intensity range.
        seed: of the noise.
        frame: of a 4D file, counted from 0.
        overwrite: replace an existing output.
    """
    check_input(input)
    out = nifti_output(output, overwrite, input)
    if direction not in ("in-plane", "through-plane"):
        raise ValueError(f"direction is {direction!r}, expected in-plane or through-plane")
    if scale < 2:
        raise ValueError(f"scale is {scale}, expected at least 2")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise is {noise}, expected a fraction of the intensity range such as 0.02")
    if psf is not None and (method is not None or fwhm is not None):
        raise ValueError("psf states the point spread alone: drop method and fwhm")
    from medsr_monai.data import LoadVolumed, describe_volume, write_volume
    from medsr_monai.transforms import (
        AXES,
        PLANES,
        axis_factors,
        intensity_range,
        parse_point_spread,
        plane_axis,
        sharp_plane,
        spacing,
    )
    from medsr_monai.transforms import degrade as degrade_volume

    if psf is not None:
        parse_point_spread(psf, 1.0)  # before anything is read
    with naming(input):
        volume = LoadVolumed("image", frame=frame).load(input)
        low, high = intensity_range(volume, "minmax")
    chosen = sharp_plane(volume.affine, volume.shape[1:]) if plane == "auto" else plane
    axis = plane_axis(volume.affine, chosen)
    if direction == "in-plane":
        factors = axis_factors(axis, scale)
    else:
        factors = tuple(scale if a == axis else 1 for a in range(3))
    chosen_method = method or ("bicubic" if direction == "in-plane" else "gaussian")
    if psf is not None:
        edges = spacing(volume.affine).tolist()
        chosen_method = [parse_point_spread(psf, factor * edge) for factor, edge in zip(factors, edges, strict=True)]
    result = degrade_volume(
        volume,
        factors,
        chosen_method,
        fwhm=fwhm,
        noise_std=noise * (high - low),
        noise_seed=seed,
    )
    cropped = [n % f for n, f in zip(volume.shape[1:], factors, strict=True)]
    if any(cropped):
        print(f"{input}: cropped by {'x'.join(map(str, cropped))} voxels at the far end, to a multiple of {scale}")
    write_volume(result, out)
    thick = f", thick axis {AXES[PLANES.index(chosen)]}" if direction == "through-plane" else ""
    print(f"{out}: {describe_volume(result)}, {direction}, plane {chosen}{thick}")
