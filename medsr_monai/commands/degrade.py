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
    """Make a low-resolution volume from a high-resolution one, at the same place in space, to test a method on.

    Where a side is no multiple of the scale, the far end is cropped to one.

    Args:
        input: a NIfTI or FreeSurfer file.
        output: the NIfTI file to write.
        scale: by how much the voxels grow, a whole number of at least 2.
        direction: in-plane for larger pixels, or through-plane for thicker slices, such as the bundle rdst_e_thick
            takes.
        plane: axial, coronal or sagittal, the plane of the slices. auto takes the one with the finest pixels.
        method: how fine voxels are averaged, bicubic (the default in-plane), gaussian (the default through-plane), box,
            kspace or another of the kinds that --psf lists.
        fwhm: for the method gaussian, the full width at half maximum of the profile in voxels of the input. By default
            it is the scale.
        psf: KIND, KIND:FWHM_MM such as box:4.5, or ct:FWHM_MM:SHARPNESS, the point spread of a scanner, which takes the
            place of --method and --fwhm. KIND is gaussian, box, rounded, kspace, kspace_hamming, kspace_fermi, ct or
            bicubic. By default the width is the output's voxel size; a smaller one leaves gaps between slices.
        noise: the standard deviation of added Gaussian noise, as a fraction of the intensity range.
        seed: the seed of the noise; the same seed gives the same noise.
        frame: which frame of a 4D file to take, counted from 0.
        nan_value: a number, such as 0, to put in place of voxels that are NaN. Without it a volume with NaN is refused.
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
