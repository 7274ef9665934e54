"""Outputs as derived DICOM series: where they go, and what they are derived from."""

from __future__ import annotations

from pathlib import Path

import pydicom

from medsr_monai.atomic import check_input
from medsr_monai.data import check_series_folder, check_sources, is_dicom_file, is_zip
from medsr_monai.data.dicom.studies import find_study
from medsr_monai.records.sidecar import is_ours
from medsr_monai.suffixes import NIFTI_SUFFIXES
from medsr_monai.upscaling.cases import Case


def find_dicom_cases(
    source: str,
    target: str,
    overwrite: bool,
    series: str | None = None,
    all_series: bool = False,
    descriptions: bool = False,
) -> list[Case]:
    """Find the series of a DICOM study that are taken, and the folder that each is written to. No voxels are read.

    A single series is written to the folder ``target`` itself, and of several each to a folder in it.

    Args:
        source: a file, folder or zip with DICOM images.
        target: the output folder, see :func:`medsr_monai.data.check_series_folder`.
        overwrite: replace series that were written before.
        series, all_series: which series are taken, see :func:`medsr_monai.data.dicom.studies.choose_series`.
        descriptions: how folders are named, see :func:`medsr_monai.data.dicom.studies.output_names`.

    Raises:
        ValueError: the source is no DICOM study, which a derived series has to belong to, or an output folder may not
            be written; one line.
    """
    check_input(source)
    path, out = Path(source), Path(target)
    if out.name.endswith(NIFTI_SUFFIXES):
        raise ValueError(f"{out}: a DICOM series is written to a folder, give its name, or leave --output-format out")
    dicom = path.is_dir() or is_zip(path) or is_dicom_file(path)
    study = None
    if dicom:
        study = find_study(source, series, all_series, only_dicom=True, descriptions=descriptions)
    if study is None:
        raise ValueError(
            f"{path}: is no DICOM series, which a derived series would share patient, study and frame of reference "
            "with: leave --output-format dicom out, or give the DICOM folder that the volume was converted from"
        )
    cases = [Case(one.source, out if len(study) == 1 else out / f"{name}_sr", one) for one, name in study]
    for case in cases:
        # several go on where they stopped
        check_series_folder(case.output, overwrite or (len(cases) > 1 and is_ours(case.output)), source)
    return cases


def source_headers(case: Case) -> list[pydicom.Dataset]:
    """The headers of the slices that a case's output is derived from, checked before any work is put into it."""
    headers = case.series.headers()
    check_sources(headers)
    return headers
