"""Super-resolve volumes and pictures."""

from __future__ import annotations

from typing import Literal

from medsr_monai.atomic import check_input
from medsr_monai.suffixes import VOLUME_SUFFIXES
from medsr_monai.upscaling.bundles import AUTO_BUNDLE, bundle_folder
from medsr_monai.upscaling.cases import is_folder_name, output_file

OUTPUT_FORMATS = ("nifti", "dicom")


def upscale(
    input: str,
    output: str,
    bundle: str = AUTO_BUNDLE,
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
    scale: int | None = None,
    series: str | None = None,
    all_series: bool = False,
    series_descriptions: bool = False,
    jobs: int = 1,
    picture: bool = True,
    enforce_consistency: bool = False,
    consistency_bound: float | None = None,
    noise: float | None = None,
    output_format: str = "nifti",
    max_memory: str | None = None,
    trust_code: bool = False,
    adapt: Literal["scan", "protocol"] | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    overwrite: bool = False,
) -> int:
    """Super-resolve a volume or a picture, or everything in a folder, with a bundle (a trained network).

    A volume becomes a NIfTI file, float32, in the input's units and at the same place in space. A picture (grey or RGB,
    8 or 16 bits) becomes a picture of the same kind; where the input states the size of its pixels, the output does
    too.

    By default the bundle is chosen for each input, and a line says which one, why, and what was measured on such scans:
    slices at least 1.5 times as thick as their pixels are made thin, other volumes get finer pixels by the smallest
    scale that there is, and pictures go to the bundle that was trained on such. `medsr inspect INPUT` says it before.

    Beside every output stands a JSON file of the same name, which records the input, the weights and the options.

    In a folder, a case that fails does not stop the others. The same command, typed again, goes on where it has
    stopped: outputs that are complete and were made in the same way are kept. The output folder's status.csv lists what
    became of every case. The exit code is 0 if all cases are done or kept, 1 if only some are, and 2 if none is; for a
    single input it is 0 or 1.

    Several GPUs or machines share a folder with torchrun, such as for two processes `torchrun --nproc_per_node 2 -m
    medsr_monai upscale FOLDER OUT`.

    Args:
        input: a NIfTI file (.nii, .nii.gz), a FreeSurfer file (.mgz), a folder of such files, or a DICOM study (a
            folder with its files at any depth, or a zip). Also a picture (PNG, TIFF, JPEG) or a single DICOM file, or a
            folder of these that holds no volumes.
        output: the NIfTI file to write; of a picture or a single DICOM file, a PNG, TIFF or JPEG file. Or a folder,
            made if missing (a name without a suffix, or one that ends in /), as for several inputs; in it pictures
            become PNG files and TIFF pictures TIFF files. With --output-format dicom a new or empty folder for the
            series, or for several series a folder with one for each.
        bundle: the name of a bundle (see `medsr models`) or the path of its folder. auto takes the one that fits the
            input; --scale and --plane leave it those that enlarge slices, --target-spacing, --thick-axis, --refine and
            --force those for thick slices.
        plane: axial, coronal or sagittal, the plane whose slices are enlarged. auto takes the one with the finest
            pixels.
        device: where the network runs, such as cpu, cuda:0 or, on a Mac, mps. auto takes a CUDA GPU where there is one,
            and gives each of several processes the next one.
        weights: a weights file to use in place of the bundle's models/model.pt, or a network that `medsr export` wrote.
        frame: which frame of a 4D file to take, counted from 0.
        nan_value: a number, such as 0, to put in place of voxels that are NaN, as registrations leave them outside of
            the scan. Without it a volume with NaN is refused.
        slice_batch: how many slices are computed at a time. auto is 4 on a CPU, and on a GPU as many as fit into its
            free memory.
        precision: float32, or for more speed bfloat16 or float16 in convolutions and matrix products (autocast). auto
            is float32 on a CPU and float16 on a GPU. On the sample volume the largest error is 1 % of the intensity
            range with bfloat16 and 0.2 % with float16.
        compile: compile the network with torch.compile. This takes minutes the first time that slices of a size are
            met; it pays on a GPU, for folders of volumes of one size.
        tile: cut the slices into tiles whose sides have this many pixels, at least 32, to save memory. Tiles leave
            faint seams. By default slices are computed whole.
        thick_axis: with a bundle for thick slices, the direction across the slices, left-right for sagittal slices,
            posterior-anterior for coronal or inferior-superior for axial ones. auto is that of the longest voxel edge.
        target_spacing: with a bundle for thick slices, the slice thickness in mm to reach. The nearest one is taken
            with which whole slices fill the same space. By default it is the shorter edge of the pixels.
        refine: with a bundle for thick slices, the plane in which the network works. Two planes contain the direction
            across the slices. both averages their results; axial, coronal or sagittal takes one, in half the time.
        force: with a bundle for thick slices, also refine voxels that are nearly cubic already.
        psf: KIND or KIND:FWHM_MM, such as box:4.5, for how the scanner blurs (its point spread). Some networks can be
            told this, of thick slices their profile, else the profile of the pixels. `medsr degrade --help` lists the
            kinds. auto finds it in the header and in the volume, and unknown tells the network nothing.
        scale: the factor by which the sides of the slices grow, such as 4, for the choice of the bundle. By default it
            is the smallest that there is.
        series: which series of a DICOM study to take, by number or SeriesInstanceUID, several with commas between them.
            By default all but localisers, derived series and secondary captures, which are named and left out.
        all_series: take all series of a DICOM study, also localisers, derived series and secondary captures.
        series_descriptions: name the outputs of DICOM series by their descriptions, which are free text and may hold
            what should not leave the hospital. By default names are of number and modality.
        jobs: how many processes on this machine share the cases of a folder, each with its share of the cores.
        picture: write a quality picture beside each output, NAME.quality.png, and for a folder index.html with all of
            them. It shows slices of the input and of the output, and how far the output, made coarse again, differs
            from the input.
        enforce_consistency: change the output as little as possible so that, made coarse again, it equals the input
            within --consistency-bound or the input's noise, whichever is larger.
        consistency_bound: the largest root mean square of that difference, as a part of the input's intensity range. By
            default 0.001.
        noise: the standard deviation of the input's noise in the input's units, if it is known, or 0 for none. By
            default it is estimated.
        output_format: nifti, or dicom to write an MR or CT series into the study of a DICOM input, marked as derived.
        max_memory: a limit for the main memory of the process, such as 4GiB or 500MiB. To stay below it, fewer slices
            are computed at a time, and then the output is made in slabs, through a file on the output's disk that is as
            large as the uncompressed output. It is for volumes on a CPU; several --jobs share it.
        trust_code: run TorchScript files, and bundles whose configuration holds code that no installed bundle has.
        adapt: with a bundle for thick slices, fit the network to each scan before it is super-resolved, for up to
            --minutes. Its own slices, which are sharp, are made coarse as the scanner does across them, and the network
            learns from these. Fitted weights are used only if they do better on slices that were held out. `--adapt
            protocol` fits one set of weights to all scans of a folder that were made alike.
        minutes: with --adapt, for how long the network is fitted at most. By default 5.
        steps: with --adapt, fit for so many steps instead, which repeats an earlier fit bit for bit.
        overwrite: replace existing outputs, also those that medsr has not written. In a folder all of them are made
            anew.
    """
    if bundle != AUTO_BUNDLE:
        bundle_folder(bundle)
    if output_format not in OUTPUT_FORMATS:
        raise ValueError(f"output_format is {output_format!r}, expected {' or '.join(OUTPUT_FORMATS)}")
    check_input(input)
    if output_format == "nifti" and input.lower().endswith(VOLUME_SUFFIXES) and not is_folder_name(output):
        output_file(output, overwrite, input)  # a name that may not be written is refused before anything is loaded
    if adapt is None and (minutes is not None or steps is not None):
        raise ValueError("--minutes and --steps are for --adapt: add that, or leave them out")
    from medsr_monai.upscaling.adaptation import Adaptation
    from medsr_monai.upscaling.cohort import upscale_files
    from medsr_monai.upscaling.upscaler import Options

    limits = {"steps": steps} | ({} if minutes is None else {"minutes": minutes})
    adaptation = None if adapt is None else Adaptation(to=adapt, **limits)
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
        scale=scale,
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
        adaptation=adaptation,
        series=series,
        all_series=all_series,
        descriptions=series_descriptions,
        jobs=jobs,
        picture=picture,
        dicom=output_format == "dicom",
        overwrite=overwrite,
    )
