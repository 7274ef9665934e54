"""DICOM studies on the command line: which of their series are taken, and what the outputs are called."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import Path

from medsr_monai.data.dicom.images import is_dicom_folder
from medsr_monai.data.dicom.series import DicomSeries, one_series, read_study
from medsr_monai.data.dicom.slices import is_zip
from medsr_monai.data.find import holds_volumes, volume_name

LONGEST_DESCRIPTION = 60
"""At most this many characters of a series description go into a file name."""
LONGEST_NAME = 150
"""A file name made of header text has at most this many bytes: file systems hold 255, and suffixes follow."""
SHORTEST_NAME = 3
"""Parts of a patient's name with fewer letters than this are not looked for in other names."""


def find_study(
    source: str,
    series: str | None = None,
    all_series: bool = False,
    *,
    only_dicom: bool = False,
    descriptions: bool = False,
) -> list[tuple[DicomSeries, str]] | None:
    """Find the series to take of a folder, zip or DICOM file, each with its output's name; None for other images.

    A folder with volumes of other kinds is one of those, unless series are asked for, and so are DICOM images that do
    not state their place, such as ultrasound; those are pictures. What is left out is printed, a line each.

    Args:
        source: folder, zip or DICOM file.
        series, all_series: see :func:`choose_series`.
        only_dicom: take DICOM series also where volumes of other kinds lie in the folder.
        descriptions: see :func:`output_names`.

    Raises:
        ValueError: no series, none that is taken, or no such series.
    """
    path = Path(source)
    if path.is_dir() and holds_volumes(path) and not (series or all_series or only_dicom):
        return None  # and list_volumes names the series
    study = read_study(path)
    found = study.series
    if not found and path.is_file():
        one_series(path)  # says why
    if not is_zip(path) and not any(one.has_positions for one in found):
        return None
    if study.left_out_line:
        print(study.left_out_line, flush=True)
    if len(found) == 1 and (is_dicom_folder(path) or not (path.is_dir() or is_zip(path))):
        names = [Path(path.name if path.is_dir() else volume_name(path))]
    else:
        names = output_names(found, descriptions)
    chosen = choose_series(found, series, all_series)
    return [(one, str(name)) for one, name in zip(found, names, strict=True) if one in chosen]


def choose_series(found: list[DicomSeries], series: str | None = None, all_series: bool = False) -> list[DicomSeries]:
    """Choose the series to take; the others are printed, one line each.

    Args:
        found: the series of a study, at least one. A single one is taken whatever it is.
        series: number, SeriesInstanceUID or the name that `medsr inspect` prints, which chooses a part too, such as
            ``701, time 2``; several behind commas; None for all but localisers, derived series and secondary captures.
        all_series: take those too.

    Raises:
        ValueError: nothing to take.
    """
    root = found[0].root
    if series is not None:
        if all_series:
            raise ValueError("--series names what to take, leave --all-series out")
        return _named(found, series)
    if all_series or len(found) == 1:
        return found
    chosen = [one for one in found if not one.left_out]
    if not chosen:
        labels = "; ".join(f"{one.label} ({one.left_out})" for one in found)
        raise ValueError(f"{root}: nothing but {labels}: choose one with --series, or add --all-series")
    for one in found:
        if one.left_out:
            print(f"{root}, series {one.label}: {one.left_out}, left out (--all-series takes it)", flush=True)
    return chosen


def _named(found: list[DicomSeries], wanted: str) -> list[DicomSeries]:
    """Series by their names, several behind commas; names may hold commas themselves, the longest is meant."""
    names: dict[str, list[DicomSeries]] = {}
    for one in found:
        number = () if one.number is None else (str(one.number),)
        for name in {one.uid, one.label, one.choice, *number}:
            names.setdefault(name, []).append(one)
    chosen, missing, rest = [], [], wanted
    while rest := rest.strip(" ,"):
        fitting = [name for name in names if rest == name or rest.startswith(f"{name},")]
        name = max(fitting, key=len) if fitting else rest.split(",")[0]
        chosen += names.get(name, [])
        missing += [] if fitting else [name]
        rest = rest[len(name) :]
    if missing or not chosen:
        labels = "; ".join(one.label for one in found)
        raise ValueError(f"{found[0].root}: no series {', '.join(missing) or wanted}, it has {labels}")
    return [one for one in found if one in chosen]


def output_names(found: list[DicomSeries], descriptions: bool = False) -> list[Path]:
    """Name the output of each series by its number and modality, such as ``003_MR``, without free text of headers.

    Where there are several studies, each has a folder: the input's below the root if it holds one study only and is
    not called after the patient, else a hash of the study's UID.

    Args:
        found: the series of an input.
        descriptions: take the description in place of the modality, such as ``003_t1_sag``, unless it holds a part of
            the patient's name. People write into descriptions what they like.
    """
    studies: dict[str, list[DicomSeries]] = {}
    for one in found:
        studies.setdefault(one.study, []).append(one)
    folders = {study: _common_folder(members) for study, members in studies.items()}
    names: dict[DicomSeries, Path] = {}
    taken: set[str] = set()
    for study, members in studies.items():
        folder = Path()
        if len(studies) > 1:
            folder = folders[study]
            shared = [f for s, f in folders.items() if s != study and (f == folder or folder in f.parents)]
            if shared or folder == Path() or any(_names_patient(part, members[0]) for part in folder.parts):
                folder = Path(f"study-{hashlib.sha256(study.encode()).hexdigest()[:8]}")
        for one in members:
            name, count = _name(one, descriptions), 1
            path = folder / name
            while str(path).casefold() in taken:  # some file systems take two names that differ in case for one
                count += 1
                path = folder / f"{name}_{count}"
            taken.add(str(path).casefold())
            names[one] = path
    return [names[one] for one in found]


def _common_folder(members: list[DicomSeries]) -> Path:
    """Below the root, of all files of a study; the names of a zip's folders are no better than header text."""
    folder = Path(os.path.commonpath([Path("/", item.file).parent for one in members for item in one.slices])[1:])
    return Path(*map(safe_name, folder.parts)) if Path(members[0].root).is_file() else folder


def safe_name(text: str) -> str:
    """Make of header text one component of a path that every file system holds, of at most 150 bytes; it may be empty.

    Letters, digits, ``_``, ``+``, ``-`` and single dots within it stay, whatever the alphabet; all else, such as
    separators, becomes a dash, and control characters and marks of direction vanish. It begins and ends with no dot and
    no dash, and is no name that Windows keeps for devices.
    """
    text = unicodedata.normalize("NFKC", text)
    text = "".join(letter for letter in text if letter.isspace() or unicodedata.category(letter)[0] != "C")
    name = re.sub(r"\.{2,}|[^\w+.-]+", "-", text)[:LONGEST_NAME].encode()[:LONGEST_NAME].decode(errors="ignore")
    name = name.strip("-._")
    return f"x-{name}" if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE) else name


def _name(series: DicomSeries, descriptions: bool) -> str:
    description = safe_name(series.description)[:LONGEST_DESCRIPTION] if descriptions else ""
    if not description or _names_patient(series.description, series):
        description = series.modality or "series"
    number = "" if series.number is None else f"{series.number:03}"
    words = map(safe_name, (number, description, series.part))
    return safe_name("_".join(word for word in words if word)) or "series"


def _names_patient(text: str, series: DicomSeries) -> bool:
    """Whether a part of the patient's name is in ``text``; a name that is the PatientID too is a pseudonym."""
    header = series.slices[0].header
    name = str(header.get("PatientName", ""))
    if header.get("PatientIdentityRemoved") == "YES" or name == str(header.get("PatientID", "")):
        return False
    words = re.findall(r"[^\W\d_]+", name.lower())
    return any(len(word) >= SHORTEST_NAME and word in text.lower() for word in words)
