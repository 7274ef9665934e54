"""Super-resolve volumes and pictures."""

from __future__ import annotations

from pathlib import Path

from medsr_monai.atomic import check_input
from medsr_monai.suffixes import VOLUME_SUFFIXES
from medsr_monai.upscaling.bundles import DEFAULT_BUNDLE, bundle_folder
from medsr_monai.upscaling.cases import output_file

OUTPUT_FORMATS = ("nifti", "dicom")


def upscale(
    input: str,
    output: str,
    bundle: str = DEFAULT_BUNDLE,
    plane: str = "auto",
    device: str = "auto",
    weights: str | None = None,
    frame: int | None = None,
    nan_value: float | None = None,
    slice_batch: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    tile: int | None = None,
    thick_axis: str = "auto",
    target_spacing: float | None = None,
    refine: str = "both",
    force: bool = False,
    psf: str = "auto",
    series: str | None = None,
    all_series: bool = False,
    jobs: int = 1,
    picture: bool = True,
    enforce_consistency: bool = False,
    consistency_bound: float | None = None,
    noise: float | None = None,
    output_format: str = "nifti",
    max_memory: str | None = None,
    trust_code: bool = False,
    overwrite: bool = False,
) -> int:
    """Super-resolve a volume or a picture, or all of a folder, with a bundle.

    Of a volume it writes float32 NIfTI in the input's units, of a picture (grey or RGB, 8 or 16 bits) a picture of the
    same kind, whose pixel size, where the input states it, is divided too.

    Most bundles enlarge the slices of one plane; a bundle for thick slices, such as rdst_e_thick, makes them thin.

    Beside every output stands a JSON file of the same name: what it was made of, with what and how.

    A folder goes on after a bad case and where an earlier run has stopped: an output that is complete and that this run
    would make again is kept. The output folder's status.csv says what became of every case. The exit code is 0 if all
    cases are done or kept, 1 if some are, 2 if none is; of a single input 0 or 1. torchrun shares a folder out, too:
    torchrun --nproc_per_node 2 -m medsr_monai upscale FOLDER OUT

    Args:
        input: NIfTI file (.nii, .nii.gz), FreeSurfer file (.mgz), folder of such files, or DICOM study (a folder with
            those below it, or a zip); PNG, TIFF, JPEG or single DICOM file, or a folder of these without volumes.
        output: NIfTI file, or PNG, TIFF or JPEG file for a picture (of a DICOM file either), or a folder (made if
            missing), in which pictures are written as PNG, those of TIFF files as TIFF. With --output-format dicom a
            new or empty folder for the series, or for several series a folder with one for each.
        bundle: name of a bundle (see `medsr models`) or path of its folder.
        plane: axial, coronal or sagittal: the plane whose slices are enlarged; auto is the one with the finest pixels.
        device: auto, cpu, cuda:0; auto gives each process of several the next GPU.
        weights: another weights file than the bundle's models/model.pt, or a network that `medsr export` wrote.
        frame: of a 4D file, counted from 0.
        nan_value: what takes the place of NaN, as registrations leave it outside of the scan, such as 0; without it
            NaN is refused.
        slice_batch: slices computed at a time; auto is 4 on a CPU, on CUDA as many as fit into its free memory.
        precision: float32, bfloat16, float16 (autocast: convolutions and matrix products) or auto, which is float32 on
            a CPU and float16 on CUDA. On the sample volume the largest error is 1 % of the range with bfloat16, 0.2 %
            with float16.
        compile: compile the network (torch.compile) for the slices' size and number: minutes at first, less when the
            same has been compiled before; worth it on CUDA and for folders of volumes of one size.
        tile: side in pixels of tiles, to save memory; leaves faint seams. Default: whole slices.
        thick_axis: of thick slices, the direction across them: left-right (sagittal slices), posterior-anterior
            (coronal) or inferior-superior (axial); auto is that of the longest voxel edge.
        target_spacing: of thick slices: the thickness in mm to be reached, as nearly as whole slices within the same
            outer corners allow; by default the smaller edge of the pixels.
        refine: of thick slices: both planes that contain the thick axis, averaged, or one of them, in half the time:
            axial, coronal or sagittal.
        force: of thick slices: refine voxels that are nearly isotropic, too.
        psf: point spread of the scanner, for networks that are told it, as KIND or KIND:FWHM_MM, such as box:4.5: of
            thick slices their profile, else that of the pixels. KIND is one of those of `medsr degrade --psf`. auto
            finds it in the header and in the volume, unknown tells nothing.
        series: of a DICOM study: number or SeriesInstanceUID of the series to take, several behind commas. Default:
            all but localisers, derived series and secondary captures, which are named and left out.
        all_series: of a DICOM study: take those too.
        jobs: processes on this machine that share a folder's cases, each with its share of the cores.
        max_memory: keep the main memory of the process below this, such as 4GiB or 500MiB: take fewer slices at a time,
            then make the output slab by slab through a file on its disk, as large as the uncompressed output. Of
            volumes on the CPU; each of several --jobs gets its share.
        output_format: nifti, or dicom for a derived series (MR or CT) in the study of a DICOM input.
        picture: write a quality picture beside each output, NAME.quality.png, and of a folder index.html with all of
            them. It shows planes of input and output, and what the output, degraded again, differs from the input.
        enforce_consistency: change the output as little as possible so that, degraded again, it equals the input up to
            the bound or the input's noise, whichever is larger.
        consistency_bound: for the RMS of this difference, in parts of the input's intensity range. Default: 0.001.
        noise: standard deviation of the input's noise, in its units, where it is known, 0 for none; by default it is
            estimated.
        trust_code: run TorchScript (.ts), and a bundle whose configuration holds code that no installed bundle has.
        overwrite: replace existing outputs, also those that medsr has not written; of a folder, make all of them anew.
    """
    bundle_folder(bundle)
    if output_format not in OUTPUT_FORMATS:
        raise ValueError(f"output_format is {output_format!r}, expected {' or '.join(OUTPUT_FORMATS)}")
    check_input(input)
    if output_format == "nifti" and input.lower().endswith(VOLUME_SUFFIXES) and not Path(output).is_dir():
        output_file(output, overwrite, input)  # a name that may not be written is refused before anything is loaded
    from medsr_monai.upscaling.cohort import upscale_files
    from medsr_monai.upscaling.upscaler import Options

    options = Options(
        bundle,
        weights=weights,
        device=device,
        plane=plane,
        thick_axis=thick_axis,
        target_spacing=target_spacing,
        refine=refine,
        force=force,
        psf=psf,
        frame=frame,
        nan_value=nan_value,
        slice_batch=slice_batch,
        precision=precision,
        compile=compile,
        tile=tile,
        max_memory=max_memory,
        enforce_consistency=enforce_consistency,
        consistency_bound=consistency_bound,
        noise=noise,
        trust_code=trust_code,
    )
    return upscale_files(
        input,
        output,
        options,
        series=series,
        all_series=all_series,
        jobs=jobs,
        picture=picture,
        dicom=output_format == "dicom",
        overwrite=overwrite,
    )
