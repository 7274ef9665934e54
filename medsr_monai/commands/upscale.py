"""Super-resolve volumes and pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medsr_monai.commands.bundles import DEFAULT_BUNDLE, BundleRunner, bundle_folder, choose_device
from medsr_monai.commands.files import NIFTI_SUFFIXES, describe, find_cases, naming, reason_of, write_volume

if TYPE_CHECKING:
    from monai.data import MetaTensor


def upscale(
    input: str,
    output: str,
    bundle: str = DEFAULT_BUNDLE,
    plane: str = "auto",
    device: str = "auto",
    weights: str | None = None,
    frame: int | None = None,
    slice_batch: int = 4,
    tile: int | None = None,
    thick_axis: str = "auto",
    target_spacing: float | None = None,
    refine: str = "both",
    force: bool = False,
    series: str | None = None,
    all_series: bool = False,
    overwrite: bool = False,
) -> int:
    """Super-resolve a volume or a picture, or all of a folder, with a bundle.

    Of a volume it writes float32 NIfTI in the input's units, of a picture (grey or RGB, 8 or 16 bits) a picture of the
    same kind, whose pixel size, where the input states it, is divided too.

    Most bundles enlarge the slices of one plane; a bundle for thick slices, such as transmrsr, makes them thin.

    Args:
        input: NIfTI file (.nii, .nii.gz), FreeSurfer file (.mgz), folder of such files, or DICOM study (a folder with
            those below it, or a zip); PNG, TIFF, JPEG or single DICOM file, or a folder of these without volumes.
        output: NIfTI file, or PNG, TIFF or JPEG file for a picture (of a DICOM file either), or a folder (made if
            missing), in which pictures are written as PNG, those of TIFF files as TIFF.
        bundle: name of a bundle (see `medsr models`) or path of its folder.
        plane: axial, coronal or sagittal: the plane whose slices are enlarged; auto is the one with the finest pixels.
        device: auto, cpu, cuda:0.
        weights: another weights file than the bundle's models/model.pt.
        frame: of a 4D file, counted from 0.
        slice_batch: slices computed at a time.
        tile: side in pixels of tiles, to save memory; leaves faint seams. Default: whole slices.
        thick_axis: of thick slices, the direction across them: left-right (sagittal slices), posterior-anterior
            (coronal) or inferior-superior (axial); auto is that of the longest voxel edge.
        target_spacing: of thick slices: the thickness in mm to be reached, as nearly as whole slices within the same
            outer corners allow. Default: the smaller edge of the pixels.
        refine: of thick slices: both planes that contain the thick axis, averaged, or one of them, in half the time:
            axial, coronal or sagittal.
        force: of thick slices: refine voxels that are nearly isotropic, too.
        series: of a DICOM study: number or SeriesInstanceUID of the series to take, several behind commas. Default:
            all but localisers, derived series and secondary captures, which are named and left out.
        all_series: of a DICOM study: take those too.
        overwrite: replace existing outputs.
    """
    bundle_folder(bundle)
    cases = find_cases(input, output, overwrite, series, all_series)
    from medsr_monai.data import is_dicom_file
    from medsr_monai.transforms import PLANES

    if plane not in ("auto", *PLANES):
        raise ValueError(f"plane is {plane!r}, expected auto, {', '.join(PLANES)}")
    if slice_batch < 1 or (tile is not None and tile < 32):
        raise ValueError("slice_batch must be at least 1 and tile at least 32 pixels")
    device = choose_device(device)
    overrides = {"frame": frame, "sw_batch_size": slice_batch, "device": f"$torch.device('{device}')"}
    # what is not given is left to the bundle, which has some of these
    if plane != "auto":
        overrides["plane"] = plane
    if thick_axis != "auto":
        overrides["thick_axis"] = thick_axis
    if target_spacing is not None:
        overrides["target_spacing"] = target_spacing
    if refine != "both":
        overrides["refine"] = refine
    if force:
        overrides["force"] = True
    if tile is not None:
        overrides["inferer#roi_size"] = [tile, tile]
    if any(is_dicom_file(path) and out.name.endswith(NIFTI_SUFFIXES) for path, out, _ in cases):
        overrides["preprocessing#pictures"] = False  # it is a volume of one slice then
    runner = BundleRunner(bundle, weights, **overrides)
    inferer = runner["inferer"]  # checks its options
    failed = 0
    for case in cases:
        path, out = case.source, case.output
        try:
            with naming(path):
                item = runner.read(case.input)
                what = describe(item["image"])
                if "picture" in item["image"].meta:
                    _check_picture(runner, item["image"], out, plane)
                else:
                    what += f", {inferer.describe(item['image'])}"
                print(f"{path}: {what}", flush=True)
                result = runner.run(item)
                write_volume(result, out)
                print(f"{out}: {describe(result)}", flush=True)
        except ValueError as error:
            failed += 1
            print(f"medsr: error: {reason_of(error)}", file=sys.stderr, flush=True)
    if failed and len(cases) > 1:
        print(f"medsr: error: {failed} of {len(cases)} volumes failed", file=sys.stderr)
    return 1 if failed else 0


def _check_picture(runner: BundleRunner, image: MetaTensor, out: Path, plane: str) -> None:
    """Refuse a picture that was asked for as if it were a volume, or that the output's format cannot hold."""
    from medsr_monai.data import check_format

    if "plane" not in runner.parser or plane not in ("auto", "axial"):
        asked = f"plane is {plane!r}" if "plane" in runner.parser else f"{Path(runner.folder).name} is for thick slices"
        raise ValueError(f"{asked}, but a picture has one slice, which is enlarged in its own plane")
    check_format(out, image)
