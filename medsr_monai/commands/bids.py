"""Super-resolve a BIDS data set."""

from __future__ import annotations

from medsr_monai.atomic import check_input
from medsr_monai.upscaling.bundles import AUTO_BUNDLE, bundle_folder

LEVELS = ("participant",)


def bids(
    bids_dir: str,
    output_dir: str,
    analysis_level: str,
    participant_label: list[str] | None = None,
    session_label: list[str] | None = None,
    modality: list[str] | None = None,
    bundle: str = AUTO_BUNDLE,
    device: str = "auto",
    plane: str = "auto",
    scale: int | None = None,
    target_spacing: float | None = None,
    jobs: int = 1,
    picture: bool = True,
    overwrite: bool = False,
) -> int:
    """Super-resolve the anatomical images of a BIDS data set, called as a BIDS App is.

    The output is a derivative data set, with names such as sub-01_res-fine_desc-sr_T1w.nii.gz, a sidecar beside each,
    and dataset_description.json. Derivatives and masks are left alone. The same command goes on where it has stopped,
    as `medsr upscale` of a folder does, whose exit codes it has.

    Args:
        bids_dir: the raw data set.
        output_dir: the folder of the derivative data set, such as BIDS_DIR/derivatives/medsr.
        analysis_level: participant.
        participant_label: one or several labels of participants, with blanks or commas between them, with or without
            sub-. By default all.
        session_label: likewise of sessions, with or without ses-.
        modality: suffixes of the images to take, such as T1w FLAIR. By default T1w, T2w, PDw, FLAIR, T2starw, UNIT1,
            inplaneT1 and inplaneT2.
        bundle: the name of a bundle or the path of its folder. auto takes the one that fits each image.
        device: where the network runs, such as cpu or cuda:0. auto takes a GPU where there is one.
        plane: axial, coronal or sagittal, the plane whose slices are enlarged. auto takes the one with the finest
            pixels.
        scale: the factor by which the sides of the slices grow. By default it is the smallest that there is.
        target_spacing: the thickness in mm that thick slices get. By default it is the shorter edge of the pixels.
        jobs: how many processes on this machine share the images.
        picture: write a quality picture beside each output, and index.html with all of them.
        overwrite: make existing outputs anew.
    """
    if analysis_level not in LEVELS:
        raise ValueError(f"analysis_level is {analysis_level!r}, expected {' or '.join(LEVELS)}")
    check_input(bids_dir)
    if bundle != AUTO_BUNDLE:
        bundle_folder(bundle)
    from pathlib import Path

    from medsr_monai import __version__
    from medsr_monai.data.bids import bids_images, describe_derivative
    from medsr_monai.upscaling.cases import Case
    from medsr_monai.upscaling.cohort import upscale_files
    from medsr_monai.upscaling.upscaler import Options

    images = bids_images(bids_dir, participant_label, session_label, modality)
    options = Options(bundle, device=device, plane=plane, scale=scale, target_spacing=target_spacing)
    out = Path(output_dir)
    cases = [Case(str(Path(bids_dir) / one.path), out / one.derived, facts=one.facts(bids_dir)) for one in images]
    describe_derivative(bids_dir, out, __version__)
    return upscale_files(bids_dir, output_dir, options, cases=cases, jobs=jobs, picture=picture, overwrite=overwrite)
