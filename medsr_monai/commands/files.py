"""Inputs and outputs of commands: checked before any work, named in errors, never half written."""

from __future__ import annotations

import contextlib
import json as jsonlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from medsr_monai.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from medsr_monai.data import DicomSeries, StoredVolume

NIFTI_SUFFIXES = (".nii", ".nii.gz")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".mgz", ".mgh")
ERRORS = (ValueError, OSError, RuntimeError, MemoryError)
"""What a user can mend: told in one line. Anything else is a bug of ours and shows its traceback."""


class Case(NamedTuple):
    """What a command reads and the file that it makes of it."""

    source: str
    """What messages call it; the path, unless it is one series of several."""
    output: Path
    series: DicomSeries | None = None
    """Of what was found as a DICOM series."""

    @property
    def input(self) -> str | DicomSeries:
        """What a bundle reads."""
        return self.source if self.series is None else self.series

    @property
    def files(self) -> list[Path]:
        """Paths on disk of what is read; of a series in a zip, the zip."""
        from medsr_monai.provenance import source_files

        return source_files(self.source) if self.series is None else [Path(f) for f in self.series.disk_files]


def nifti_output(path: str, overwrite: bool, source: str) -> Path:
    out = Path(path)
    if not out.name.endswith(NIFTI_SUFFIXES):
        raise ValueError(f"{out}: the output is written as NIfTI, give a name that ends in .nii.gz")
    check_output(out, overwrite, source)
    return out


def output_file(path: str, overwrite: bool, source: str) -> Path:
    """Output file of an input file: NIfTI for a volume, a picture for a picture."""
    # whether it is one is asked where the names do not say it, since that imports monai
    if Path(source).name.lower().endswith(VOLUME_SUFFIXES) or not Path(source).is_file():
        return nifti_output(path, overwrite, source)
    from medsr_monai.data import PICTURE_SUFFIXES, is_dicom_file, is_picture

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


def check_output(path: Path, overwrite: bool, source: str | None = None) -> None:
    """Refuse an output file before any work: it is the input, is there already, or has no folder to be written to."""
    if source is not None and path.resolve() == Path(source).resolve():
        raise ValueError(f"{path}: is the input, which is never overwritten, choose another name")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, give the name of a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists, choose another name or add --overwrite")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: nothing can be written to {parent}, choose another output")


def check_input(path: str) -> None:
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not Path(path).is_file() and not Path(path).is_dir():
        raise ValueError(f"{path}: neither a file nor a folder (a pipe?), save what it holds to a file first")


def write_volume(volume: MetaTensor, path: Path) -> None:
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_voxels(volume, path)


def write_voxels(volume: MetaTensor | StoredVolume, path: Path) -> None:
    """Write a volume as the path's suffix says; errors do not name the file, which may be a temporary one."""
    import numpy as np

    from medsr_monai.data import NiftiWriter, StoredVolume, write_picture, write_stored

    if isinstance(volume, StoredVolume):
        write_stored(volume, path)
        return
    if not path.name.endswith(NIFTI_SUFFIXES):
        write_picture(volume, path)
        return
    writer = NiftiWriter(output_dtype=np.float32)
    writer.set_data_array(volume, channel_dim=0)
    writer.set_metadata(volume.meta, resample=False)
    writer.write(path)


def describe(volume: MetaTensor | StoredVolume) -> str:
    from medsr_monai.transforms import describe_grid, format_edges, spacing

    if "picture" in volume.meta:
        size = f" of {format_edges(spacing(volume.affine)[:2])} mm" if volume.meta["picture_spacing"] == "file" else ""
        return f"{volume.shape[1]}x{volume.shape[2]} pixels{size}"
    return describe_grid(volume.affine, volume.shape[1:])


def find_cases(
    source: str, target: str, overwrite: bool, series: str | None = None, all_series: bool = False
) -> list[Case]:
    """A file, what a folder holds, or the series of a DICOM study; outputs are checked, no voxels are read.

    Args:
        source: file, folder, or zip with DICOM files.
        target: file, or folder for several.
        overwrite: accept outputs that exist.
        series: of a DICOM study, see :func:`medsr_monai.commands.studies.choose_series`.
        all_series: likewise.
    """
    check_input(source)
    path, out = Path(source), Path(target)
    if path.is_dir() or path.name.lower().endswith(".zip") or zipfile.is_zipfile(path):
        from medsr_monai.commands.studies import find_study

        if (study := find_study(source, series, all_series)) is not None:
            return _series_cases(path, out, overwrite, study)
    if series is not None or all_series:
        raise ValueError(f"{path}: has no DICOM series to choose from, leave --series and --all-series out")
    # a file is refused by its output's name before monai is imported
    if path.is_file() and not out.is_dir():
        return [Case(source, output_file(target, overwrite, source))]
    from medsr_monai.data import list_volumes, volume_name
    from medsr_monai.provenance import is_ours

    found = [source] if path.is_file() else [item["image"] for item in list_volumes(source)]
    single = found == [source]
    if single and not out.is_dir():
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


def _check_folder(path: Path, out: Path, what: str) -> None:
    if out.is_file() or (not out.is_dir() and out.name.endswith(NIFTI_SUFFIXES)):
        raise ValueError(f"{path}: is {what}, give an output folder, {out} is the name of a file")


def _series_cases(path: Path, out: Path, overwrite: bool, study: list[tuple[DicomSeries, str]]) -> list[Case]:
    """A case for each series, named in the output folder by its string."""
    plain = study[0][1] == path.name
    if len(study) == 1 and not out.is_dir() and (plain or out.name.endswith(NIFTI_SUFFIXES)):
        return [Case(study[0][0].source, nifti_output(str(out), overwrite, str(path)), study[0][0])]
    _check_folder(path, out, f"a study of {len(study)} DICOM series (--series chooses one)")
    cases = [Case(series.source, out / f"{name}_sr.nii.gz", series) for series, name in study]
    from medsr_monai.provenance import is_ours

    for case in cases:
        check_output(case.output, overwrite or (path.is_dir() and is_ours(case.output)))
    return cases


def _suffix(source: str) -> str:
    """Of the output that is made of ``source`` in a folder."""
    from medsr_monai.data import is_picture, output_suffix

    return output_suffix(source) if is_picture(source) else ".nii.gz"


def reason_of(error: BaseException) -> str:
    """The innermost cause in one line: MONAI's Compose wraps what a transform raises.

    Of memory that has run out, which libraries tell in their own words, it says what to do.
    """
    while error.__cause__ is not None and isinstance(error, RuntimeError):
        error = error.__cause__
    reason = " ".join(str(error).split()) or type(error).__name__
    if is_out_of_memory(error) and "--tile" not in reason:
        return f"out of memory ({reason}): end other programs, or take a smaller volume, or a computer with more memory"
    return reason


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Errors raised inside name the file, as checks of voxels cannot do."""
    try:
        yield
    except ERRORS as error:
        reason = reason_of(error)
        raise ValueError(reason if str(path) in reason else f"{path}: {reason}") from error


def json_text(value: dict[str, Any]) -> str:
    """JSON, which has no infinite numbers: they become null."""
    from medsr_monai.metrics import json_values

    return jsonlib.dumps(json_values(value), allow_nan=False)
