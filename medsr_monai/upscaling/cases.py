"""What is read, and what is written for it: checked before any work."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from medsr_monai.atomic import check_input, check_output, read_json
from medsr_monai.suffixes import NIFTI_SUFFIXES, PICTURE_SUFFIXES, VOLUME_SUFFIXES

if TYPE_CHECKING:
    import pydicom

    from medsr_monai.data import DicomSeries

STATED = ("SliceThickness", "SpacingBetweenSlices", "MRAcquisitionType", "ConvolutionKernel", "Modality")
"""The attributes that are taken from a header; DICOM and BIDS have the same names for them."""


class Case(NamedTuple):
    """An input of a command, and the file that it makes of it."""

    source: str
    """What messages call the input: its path, and of one series of several also the series."""
    output: Path
    """The file or, of a DICOM output, the folder to write."""
    series: DicomSeries | None = None
    """The DICOM series that is read; None for files of other kinds."""
    facts: tuple[tuple[str, Any], ...] = ()
    """Further entries of the sidecar, such as those of BIDS, with the resolution that these want."""

    @property
    def input(self) -> str | DicomSeries:
        """What a bundle reads."""
        return self.source if self.series is None else self.series

    @property
    def files(self) -> list[Path]:
        """The files on disk that are read; of a series in a zip it is the zip."""
        from medsr_monai.records.sidecar import source_files

        return source_files(self.source) if self.series is None else [Path(f) for f in self.series.disk_files]


def nifti_output(path: str, overwrite: bool, source: str) -> Path:
    """Check the name of a NIfTI file that is to be written, see :func:`medsr_monai.atomic.check_output`."""
    out = Path(path)
    if not out.name.endswith(NIFTI_SUFFIXES):
        raise ValueError(f"{out}: the output is written as NIfTI, give a name that ends in .nii.gz")
    check_output(out, overwrite, source)
    return out


def output_file(path: str, overwrite: bool, source: str) -> Path:
    """Check the name of the file that is made of one input file: NIfTI of a volume, a picture of a picture."""
    # whether it is one is asked where the names do not say it, since that imports monai
    if Path(source).name.lower().endswith(VOLUME_SUFFIXES) or not Path(source).is_file():
        return nifti_output(path, overwrite, source)
    from medsr_monai.data import is_dicom_file, is_picture

    if not is_picture(source) or (is_dicom_file(source) and path.endswith(NIFTI_SUFFIXES)):
        return nifti_output(path, overwrite, source)
    out = Path(path)
    if not out.name.lower().endswith(PICTURE_SUFFIXES):
        dicom = ", or .nii.gz; DICOM is not written" if is_dicom_file(source) else ""
        raise ValueError(
            f"{out}: of a picture a picture is written, give a name that ends in {', '.join(PICTURE_SUFFIXES)}{dicom}"
        )
    check_output(out, overwrite, source)
    return out


def is_folder_name(target: str) -> bool:
    """Say whether an output is a folder: one that is there, or is named without a suffix or with a / at its end."""
    out = Path(target)
    return out.is_dir() or (not out.exists() and (target.endswith(("/", os.sep)) or not out.suffix))


def find_cases(
    source: str,
    target: str,
    overwrite: bool,
    series: str | None = None,
    all_series: bool = False,
    descriptions: bool = False,
) -> list[Case]:
    """Find the inputs that a command line names, and the output of each. Outputs are checked; no voxels are read.

    Args:
        source: a file, a folder of volumes or pictures, or a DICOM study (a folder or zip).
        target: the output file, or the folder for several outputs, which may also be that of a single one.
        overwrite: accept outputs that exist.
        series, all_series: which series of a DICOM study are taken, see
            :func:`medsr_monai.data.dicom.studies.choose_series`.
        descriptions: name their outputs so, see :func:`medsr_monai.data.dicom.studies.output_names`.

    Raises:
        ValueError, OSError: nothing to read, an output that may not be written, or two inputs with one output; one
            line.
    """
    check_input(source)
    path, out = Path(source), Path(target)
    if path.is_dir() or path.name.lower().endswith(".zip") or zipfile.is_zipfile(path) or _is_dicom(path, target):
        from medsr_monai.data.dicom.studies import find_study

        if (study := find_study(source, series, all_series, descriptions=descriptions)) is not None:
            return _series_cases(path, target, overwrite, study)
    if series is not None or all_series:
        raise ValueError(f"{path}: has no DICOM series to choose from, leave --series and --all-series out")
    # a file is refused by its output's name before monai is imported
    if path.is_file() and not is_folder_name(target):
        return [Case(source, output_file(target, overwrite, source))]
    from medsr_monai.data import list_volumes, volume_name
    from medsr_monai.records.sidecar import is_ours

    found = [source] if path.is_file() else [item["image"] for item in list_volumes(source)]
    single = found == [source]
    if single and not is_folder_name(target):
        return [Case(source, nifti_output(target, overwrite, source))]
    # what an earlier run has written there is no input of this one
    found = [f for f in found if not Path(os.path.abspath(f)).is_relative_to(os.path.abspath(out)) or not is_ours(f)]
    if not found:
        raise FileNotFoundError(f"{path}: nothing but results of medsr, give the folder of their inputs")
    _check_folder(path, out, "a folder of volumes")
    if single:
        cases = [Case(source, out / f"{volume_name(path)}_sr{_suffix(source)}")]
    else:
        cases = [Case(f, out / Path(f).relative_to(path).parent / f"{volume_name(f)}_sr{_suffix(f)}") for f in found]
    inputs = {Path(case.source).resolve() for case in cases}
    written = {}
    for case in cases:
        name, file = case.source, case.output
        if file in written:
            raise ValueError(f"{file}: would be written for {written[file]} and for {name}, rename one of them")
        if file.resolve() in inputs:
            raise ValueError(f"{file}: is an input too, choose another output folder")
        written[file] = name
        # a cohort goes on where it stopped
        check_output(file, overwrite or (path.is_dir() and is_ours(file)))
    return cases


def scans_of(source: str) -> list[Case]:
    """Find the scans that a path names, of which nothing is written: a file, a folder, or a DICOM study.

    Raises:
        ValueError, OSError: nothing to read; one line.
    """
    check_input(source)
    from medsr_monai.data import list_volumes
    from medsr_monai.data.dicom.studies import find_study

    path = Path(source)
    study = find_study(source) if path.is_dir() or zipfile.is_zipfile(path) or _is_dicom(path, "") else None
    if study is not None:
        return [Case(series.source, Path(), series) for series, _ in study]
    found = [source] if path.is_file() else [item["image"] for item in list_volumes(source)]
    return [Case(file, Path()) for file in found]


def _is_dicom(path: Path, target: str) -> bool:
    """Whether a file is DICOM of which no picture is to be made."""
    if path.name.lower().endswith(VOLUME_SUFFIXES):
        return False
    from medsr_monai.data import PICTURE_SUFFIXES, is_dicom_file

    return is_dicom_file(path) and not target.lower().endswith(PICTURE_SUFFIXES)


def _check_folder(path: Path, out: Path, what: str) -> None:
    if out.is_file() or (not out.is_dir() and out.name.endswith(NIFTI_SUFFIXES)):
        raise ValueError(f"{path}: is {what}, give an output folder, {out} is the name of a file")


def _series_cases(path: Path, target: str, overwrite: bool, study: list[tuple[DicomSeries, str]]) -> list[Case]:
    """A case for each series, named in the output folder by its string."""
    from medsr_monai.data import volume_name

    out = Path(target)
    plain = study[0][1] in (path.name, volume_name(path))
    if len(study) == 1 and not is_folder_name(target) and (plain or out.name.endswith(NIFTI_SUFFIXES)):
        return [Case(study[0][0].source, nifti_output(str(out), overwrite, str(path)), study[0][0])]
    _check_folder(path, out, f"a study of {len(study)} DICOM series (--series chooses one)")
    cases = [Case(series.source, out / f"{name}_sr.nii.gz", series) for series, name in study]
    from medsr_monai.records.sidecar import is_ours

    for case in cases:
        check_output(case.output, overwrite or (path.is_dir() and is_ours(case.output)))
    return cases


def _suffix(source: str) -> str:
    """Give the suffix of the output that is made of ``source`` in a folder."""
    from medsr_monai.data import is_picture, output_suffix

    return output_suffix(source) if is_picture(source) else ".nii.gz"


def bids_sidecar(path: str | os.PathLike) -> dict[str, Any]:
    """Read the JSON file beside a volume, as dcm2niix writes it; an empty dictionary where there is none."""
    from medsr_monai.data import volume_name

    file = Path(path).with_name(f"{volume_name(path)}.json")
    try:
        return read_json(file)
    except (OSError, ValueError):
        return {}


def header_of(case: Case) -> dict[str, Any]:
    """Read what the DICOM header, or the BIDS sidecar, of a case states about how its slices were made.

    Returns:
        Entries of :data:`STATED`, lengths in mm, texts as they stand there; and ``AcquisitionShares``, the acquired
        part of the matrix along one axis of the slices or along both, where it is stated.
    """
    from medsr_monai.data import find_series, is_dicom_file, is_zip

    series, path = case.series, Path(case.source)
    if series is None and (path.is_dir() or is_zip(path) or is_dicom_file(path)):
        found = find_series(path)
        series = found[0] if len(found) == 1 else None
    if series is None:
        words = bids_sidecar(path)
        return _stated(words, [(words.get("AcquisitionMatrixPE"), words.get("ReconMatrixPE"))])
    header = series.headers()[0]
    words = {name: header.get(name) for name in STATED}
    for name in ("SliceThickness", "SpacingBetweenSlices"):
        words[name] = float(words[name]) if words[name] else None
    sides = [header.get("Columns"), header.get("Rows")]
    return _stated(words, list(zip(acquisition_matrix(header) or (), sides, strict=False)))


def acquisition_matrix(header: pydicom.Dataset) -> list[int] | None:
    """Give the samples acquired along the volume's first two axes (columns, rows), as a DICOM header states them."""
    numbers = [int(n) for n in header.get("AcquisitionMatrix") or []]
    if len(numbers) != 4 or header.get("InPlanePhaseEncodingDirection") not in ("ROW", "COL", "COLUMN"):
        return None
    frequency, phase = max(numbers[:2]), max(numbers[2:])
    if not frequency or not phase:
        return None
    # phase encoding in a row tells its columns apart
    return [phase, frequency] if header.InPlanePhaseEncodingDirection == "ROW" else [frequency, phase]


def _stated(words: dict[str, Any], matrices: list[tuple[Any, Any]]) -> dict[str, Any]:
    stated = {name: words[name] for name in STATED if words.get(name) not in (None, "")}
    shares = [acquired / stored for acquired, stored in matrices if _count(acquired) and _count(stored)]
    return stated | ({"AcquisitionShares": [min(share, 1.0) for share in shares]} if shares else {})


def _count(value: object) -> bool:
    return isinstance(value, (int, float)) and value > 0
