"""DICOM studies on the command line: which of their series are taken, and what the outputs are called."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medsr_monai.data import DicomSeries

LONGEST_NAME = 60
"""Characters of a series description that go into a file name."""
SHORTEST_NAME = 3
"""Letters that a part of a patient's name has at least, to be looked for in other names."""


def find_study(
    source: str, series: str | None = None, all_series: bool = False, *, only_dicom: bool = False
) -> list[tuple[DicomSeries, str]] | None:
    """Series to take of a folder or zip, each with the name of its output, or None for a folder of other images.

    A folder with volumes of other kinds is one of those, unless series are asked for, and so is one whose DICOM images
    do not state their place, such as ultrasound; those are pictures. What is left out is printed, a line each.

    Args:
        source: folder or zip.
        series, all_series: see :func:`choose_series`.
        only_dicom: take DICOM series also where volumes of other kinds lie in the folder.

    Raises:
        ValueError: no series, none that is taken, or no such series.
    """
    from medsr_monai.data import holds_volumes, is_dicom_folder, one_series
    from medsr_monai.data.dicom.series import read_study

    path = Path(source)
    if path.is_dir() and holds_volumes(path) and not (series or all_series or only_dicom):
        return None  # and list_volumes names the series
    study = read_study(path)
    found = study.series
    if path.is_dir() and not any(one.has_positions for one in found):
        return None
    if not found:
        one_series(path)  # says why
    if study.left_out_line:
        print(study.left_out_line, flush=True)
    names = [Path(path.name)] if len(found) == 1 and is_dicom_folder(path) else output_names(found)
    chosen = choose_series(found, series, all_series)
    return [(one, str(name)) for one, name in zip(found, names, strict=True) if one in chosen]


def choose_series(found: list[DicomSeries], series: str | None = None, all_series: bool = False) -> list[DicomSeries]:
    """Series to take; the others are printed, a line each.

    Args:
        found: of a study, at least one. One alone is taken whatever it is.
        series: number or SeriesInstanceUID, several behind commas; None for all but localisers, derived series and
            secondary captures.
        all_series: take those too.

    Raises:
        ValueError: nothing to take.
    """
    root = found[0].root
    if series is not None:
        if all_series:
            raise ValueError("--series names what to take, leave --all-series out")
        wanted = [word.strip() for word in series.split(",") if word.strip()]
        known = {word for one in found for word in (one.uid, str(one.number))}
        if missing := [word for word in wanted if word not in known] or ([] if wanted else [series]):
            raise ValueError(f"{root}: no series {', '.join(missing)}, it has {'; '.join(one.label for one in found)}")
        return [one for one in found if one.uid in wanted or str(one.number) in wanted]
    if all_series or len(found) == 1:
        return found
    chosen = [one for one in found if not one.left_out]
    if not chosen:
        labels = "; ".join(f"{one.label} ({one.left_out})" for one in found)
        raise ValueError(f"{root}: nothing but {labels}: choose one with --series, or add --all-series")
    for one in found:
        if one.left_out:
            print(f"{one.source}: {one.left_out}, left out (--all-series takes it)", flush=True)
    return chosen


def output_names(found: list[DicomSeries]) -> list[Path]:
    """Of each series ``003_t1_sag`` by number and description, unique, without the patient's name.

    Where there are several studies, each has a folder: the input's below the root if it holds one study only and is
    not called after the patient, else a hash of the study's UID.
    """
    studies: dict[str, list[DicomSeries]] = {}
    for one in found:
        studies.setdefault(one.study, []).append(one)
    folders = {study: _common_folder(members) for study, members in studies.items()}
    names: dict[DicomSeries, Path] = {}
    for study, members in studies.items():
        folder = Path()
        if len(studies) > 1:
            folder = folders[study]
            shared = [f for s, f in folders.items() if s != study and (f == folder or folder in f.parents)]
            if shared or folder == Path() or any(_names_patient(part, members[0]) for part in folder.parts):
                folder = Path(f"study-{hashlib.sha256(study.encode()).hexdigest()[:8]}")
        for one in members:
            name = _name(one)
            twins = sum(
                folder / n in names.values() for n in (name, *(f"{name}_{k}" for k in range(2, len(found) + 1)))
            )
            names[one] = folder / (f"{name}_{twins + 1}" if twins else name)
    return [names[one] for one in found]


def _common_folder(members: list[DicomSeries]) -> Path:
    """Below the root, of all files of a study."""
    return Path(os.path.commonpath([Path("/", item.file).parent for one in members for item in one.slices])[1:])


def _name(series: DicomSeries) -> str:
    description = re.sub(r"[^\w+-]+", "-", series.description).strip("-_")[:LONGEST_NAME]
    if not description or _names_patient(series.description, series):
        description = series.modality or "series"
    part = re.sub(r"[^\w+.-]+", "-", series.part).strip("-")
    number = "" if series.number is None else f"{series.number:03}"
    return "_".join(word for word in (number, description, part) if word)


def _names_patient(text: str, series: DicomSeries) -> bool:
    """Whether a part of the patient's name is in ``text``; a name that is the PatientID too is a pseudonym."""
    header = series.slices[0].header
    name = str(header.get("PatientName", ""))
    if header.get("PatientIdentityRemoved") == "YES" or name == str(header.get("PatientID", "")):
        return False
    words = re.findall(r"[^\W\d_]+", name.lower())
    return any(len(word) >= SHORTEST_NAME and word in text.lower() for word in words)
