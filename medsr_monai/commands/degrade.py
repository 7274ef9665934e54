"""Make low-resolution volumes."""

from __future__ import annotations

from medsr_monai.atomic import check_input
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
    nan_value: float | None = None,
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
        nan_value: what takes the place of NaN, such as 0; without it NaN is refused.
        overwrite: replace an existing output.
    """
    check_input(input)
    out = nifti_output(output, overwrite, input)
    from medsr_monai.data import describe_volume, write_volume
    from medsr_monai.evaluation.degrade import degrade as degrade_volume
    from medsr_monai.transforms import AXES, PLANES, sharp_plane
    from medsr_monai.upscaling.kinds import to_volume

    volume = to_volume(input, frame, nan_value=nan_value)
    chosen = sharp_plane(volume.affine, volume.shape[1:]) if plane == "auto" else plane
    result = degrade_volume(
        volume, scale, direction=direction, plane=chosen, method=method, fwhm=fwhm, psf=psf, noise=noise, seed=seed
    )
    cropped = [n - m * scale if m < n else 0 for n, m in zip(volume.shape[1:], result.shape[1:], strict=True)]
    if any(cropped):
        print(f"{input}: cropped by {'x'.join(map(str, cropped))} voxels at the far end, to a multiple of {scale}")
    write_volume(result, out)
    thick = f", thick axis {AXES[PLANES.index(chosen)]}" if direction == "through-plane" else ""
    print(f"{out}: {describe_volume(result)}, {direction}, plane {chosen}{thick}")
