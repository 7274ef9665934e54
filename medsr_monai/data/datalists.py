"""MONAI datalists: volumes, and images with label maps, split by subject."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from monai.data import load_decathlon_datalist

from medsr_monai.atomic import check_named, read_json, written_atomically
from medsr_monai.data.find import find_volumes, pair_of, volume_name
from medsr_monai.data.folder import files_below
from medsr_monai.data.pictures import is_picture, with_slices
from medsr_monai.suffixes import VOLUME_SUFFIXES

__all__ = [
    "DataLists",
    "check_subjects",
    "list_pairs",
    "own_datalist",
    "split_labelled",
    "split_subjects",
    "split_volumes",
    "subject_name",
    "volumes_by_subject",
    "write_datalist",
]

VALIDATION_SHARE = TEST_SHARE = 0.15
"""The share of the subjects that validation and test get each, one subject at least."""


def subject_name(path: Path, root: Path, base: Path) -> str:
    """Name a file's subject: a BIDS label (``sub-01``) below ``root``, else what lies directly below ``base``."""
    bids = re.search(r"sub-[A-Za-z0-9]+", str(path.relative_to(root)))
    if bids:
        return bids.group()
    return volume_name(path.relative_to(base).parts[0])


def check_subjects(split: Mapping[str, Sequence[Mapping]]) -> None:
    """Refuse a split with one ``subject`` in two of its lists. Items that name no subject are not looked at.

    Raises:
        ValueError: names the subject and the lists.
    """
    seen: dict[str, str] = {}
    for part, items in split.items():
        for subject in {str(item["subject"]) for item in items if "subject" in item}:
            if seen.setdefault(subject, part) != part:
                raise ValueError(
                    f"subject {subject} is in {seen[subject]} and in {part}: its results would be too good, move all "
                    "its volumes to one of them"
                )


class DataLists(dict):
    """Data lists by name. Asking for one that is not there raises an error that says which are."""

    def __missing__(self, name: str) -> list:
        raise ValueError(f"no list {name!r}: the data have {', '.join(self)}")


def split_volumes(
    dataset_dir: str | os.PathLike,
    datalist: str | os.PathLike | None = None,
    train_fraction: float = 0.8,
    seed: int = 0,
) -> dict[str, list[dict[str, str]]]:
    """Split volumes for training and validation, as MONAI data lists with the key ``image``.

    The items of a datalist keep their other keys, see :class:`medsr_monai.data.SliceDataset`.

    Args:
        dataset_dir: folder of volumes, or the base folder of the datalist's relative paths.
        datalist: MONAI datalist JSON with the lists ``training`` and ``validation``, also others such as ``test``
            and ``prior`` where it has them (see :func:`medsr_monai.data.prepare_datalist`). Without one, subjects
            (not volumes) are split at random. A subject is a BIDS label (``sub-01``) in the path, else what lies
            directly below the deepest folder that holds all volumes: a folder, or a file without its suffix.
        train_fraction: the fraction of the subjects that train; each part gets at least one.
        seed: the seed of the split.

    Returns:
        ``{"training": [{"image": path}, ...], "validation": [...]}``

    Raises:
        FileNotFoundError, ValueError: missing folder or file, fewer than two subjects, or a datalist with one
            ``subject`` in two lists.
    """
    check_named(dataset_dir, "dataset_dir")
    parts = ["training", "validation"]
    if datalist is not None:
        if not Path(datalist).is_file():
            raise FileNotFoundError(f"{datalist}: no such datalist")
        content = read_json(datalist, "a MONAI datalist")
        for part in parts:
            _check_list(datalist, part, content.get(part))
        others = [part for part, items in content.items() if part not in parts and _is_data_list(items)]
        for part in others:
            _check_list(datalist, part, content[part])
        parts += others
        lists = {part: load_decathlon_datalist(str(datalist), True, part, str(dataset_dir)) for part in parts}
        split = DataLists({part: [with_slices(_here(item)) for item in items] for part, items in lists.items()})
        try:
            check_subjects(split)
        except ValueError as error:
            raise ValueError(f"{datalist}: {error}") from error
        return split
    found = volumes_by_subject(dataset_dir)
    subjects = {name: [{"image": str(path)} for path in paths] for name, paths in found.items()}
    return split_subjects(subjects, dataset_dir, train_fraction, seed)


def _here(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item of a datalist that was written on Windows, the backslashes of its paths made slashes where that is a file."""
    return {key: _slashed(value) for key, value in item.items()}


def _slashed(value: Any) -> Any:
    if isinstance(value, list):
        return [_slashed(one) for one in value]
    if not isinstance(value, str) or "\\" not in value or os.path.exists(value):
        return value
    path = PureWindowsPath(value).as_posix()
    return path if os.path.exists(path) else value


def _check_list(datalist: str | os.PathLike, part: str, items: object) -> None:
    """Refuse a list of a datalist that is none, or whose items do not name their files as text."""
    if not isinstance(items, list):
        raise ValueError(f"{datalist}: {part} is {str(items)[:80]!r}, expected a list of items such as "
                         '{"image": "sub-1.nii.gz"}')  # fmt: skip
    for number, item in enumerate(items, 1):
        for key in ("image", "label"):
            if isinstance(item, dict) and key == "label" and key not in item:
                continue
            files = item.get(key) if isinstance(item, dict) else None
            files = files if isinstance(files, list) and files else [files]
            if not all(isinstance(f, str) and f and "\0" not in f for f in files):
                raise ValueError(
                    f"{datalist}: item {number} of {part} is {str(item)[:80]!r}, expected the name of a file or a list "
                    f"of some, as its {key}"
                )


def volumes_by_subject(root: str | os.PathLike, left_out: str | None = None) -> dict[str, list[Path]]:
    """Sort the volumes of a folder by subject, see :func:`split_volumes`.

    Args:
        root: the folder.
        left_out: the name of a folder in it whose volumes are not listed.

    Raises:
        FileNotFoundError: no such folder, or no volumes in it.
    """
    root = Path(root)
    paths = [p for p in map(Path, find_volumes(root)) if p.relative_to(root).parts[0] != left_out]
    if not paths:
        raise FileNotFoundError(f"{root}: no volume in this folder but in its {left_out}/")
    base = Path(os.path.commonpath([p.parent for p in paths]))
    subjects: dict[str, list[Path]] = {}
    for path in paths:
        subjects.setdefault(subject_name(path, root, base), []).append(path)
    return subjects


def _is_data_list(items: object) -> bool:
    """Whether an entry of a datalist lists images; official ones have other lists, too, such as of authors."""
    return isinstance(items, list) and bool(items) and all(isinstance(i, dict) and "image" in i for i in items)


def split_subjects(
    subjects: Mapping[str, Sequence[dict]], source: str | os.PathLike, train_fraction: float = 0.8, seed: int = 0
) -> dict[str, list[dict]]:
    """Draw subjects for ``training``, leave the others for ``validation``, and list the items of both.

    Raises:
        ValueError: fewer than two subjects; names ``source``.
    """
    if len(subjects) < 2:
        raise ValueError(
            f"{source}: volumes of one subject only ({next(iter(subjects))}), training and validation need at least "
            "two: add volumes or give a datalist"
        )
    names = np.random.default_rng(seed).permutation(sorted(subjects)).tolist()
    count = min(max(1, round(train_fraction * len(names))), len(names) - 1)
    split = {"training": names[:count], "validation": names[count:]}
    lists = {part: [item for name in sorted(chosen) for item in subjects[name]] for part, chosen in split.items()}
    return DataLists(lists)


def _files(folder: Path) -> dict[str, Path]:
    """Volumes and pictures by their path below a folder; hidden files are left out."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder: expected images/ and labels/ with equal file names, or give a datalist"
        )
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(files_below(folder), key=str)
        if path == pair_of(path)[-1] and (path.name.lower().endswith(VOLUME_SUFFIXES) or is_picture(path))
    }


def list_pairs(
    dataset_dir: str | os.PathLike,
    subject_pattern: str | None = None,
    label_map: Mapping[str, int] | None = None,
) -> list[dict]:
    r"""Pair the files below ``images/`` with those of the same names below ``labels/``, sorted by name.

    Args:
        dataset_dir: folder that holds both; the files are NIfTI or FreeSurfer volumes or pictures of slices.
        subject_pattern: regular expression whose match at the start of a file name is the subject (its first group
            if it has one), such as ``SC-[A-Z-]+\d+``. Without one, a subject is a BIDS label (``sub-01``) anywhere in
            the path, else a folder directly below ``images/``, else a file.
        label_map: replaced labels, such as ``{"255": 1}``, for :class:`medsr_monai.data.LoadLabeld`.

    Returns:
        ``{"image": path, "label": path, "subject": str}``; of a picture also ``slices``, its only one; also
        ``label_map`` if there is one.

    Raises:
        FileNotFoundError: no such folder, nothing in it, or a file without its partner.
        ValueError: a file name that the pattern does not match.
    """
    check_named(dataset_dir, "dataset_dir")
    root = Path(dataset_dir)
    images, labels = _files(root / "images"), _files(root / "labels")
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        here, there = ("images", "labels") if alone[0] in images else ("labels", "images")
        raise FileNotFoundError(
            f"{root}: {here}/{alone[0]} has no {there}/{alone[0]} ({len(alone)} such files): names must be equal"
        )
    if not images:
        raise FileNotFoundError(
            f"{root / 'images'}: no volume ({', '.join(VOLUME_SUFFIXES)}) and no picture in this folder"
        )
    items = []
    for name, path in images.items():
        item = {"image": str(path), "label": str(labels[name])}
        if subject_pattern is None:
            item["subject"] = subject_name(path, root, root / "images")
        elif match := re.match(subject_pattern, path.name):
            item["subject"] = match.group(1 if match.re.groups else 0)
        else:
            raise ValueError(f"{path}: subject_pattern {subject_pattern!r} does not match the start of this file name")
        items.append(_completed(item, label_map))
    return items


def _completed(item: dict, label_map: Mapping[str, int] | None) -> dict:
    if "label" not in item:
        raise ValueError(f"{item['image']}: the datalist names no label for it, which segmentation learns from")
    if label_map:
        item = {"label_map": dict(label_map)} | item
    return with_slices(item)


def split_labelled(
    dataset_dir: str | os.PathLike,
    datalist: str | os.PathLike | None = None,
    validation_dir: str | os.PathLike | None = None,
    *,
    subject_pattern: str | None = None,
    label_map: Mapping[str, int] | None = None,
    train_fraction: float = 0.8,
    seed: int = 0,
) -> dict[str, list[dict]]:
    """Split images and their label maps for training and validation, as MONAI data lists with ``image`` and ``label``.

    Args:
        dataset_dir: folder with ``images/`` and ``labels/`` (see :func:`list_pairs`), or the base folder of the
            datalist's relative paths.
        datalist: see :func:`medsr_monai.data.split_volumes`; every item has a ``label``.
        validation_dir: another folder with ``images/`` and ``labels/``; then all of ``dataset_dir`` is for training.
            Without one, subjects are split at random.
        subject_pattern, label_map: see :func:`list_pairs`; a ``label_map`` of a datalist's item goes first.
        train_fraction: the fraction of the subjects that train; each part gets at least one.
        seed: the seed of the split.

    Returns:
        ``{"training": [...], "validation": [...]}``, with the datalist's other lists.

    Raises:
        FileNotFoundError, ValueError: see :func:`list_pairs` and :func:`medsr_monai.data.split_volumes`; pictures to
            be split at random without a ``subject_pattern``; a subject on both sides.
    """
    if datalist is not None:
        split = split_volumes(dataset_dir, datalist)
        return DataLists({part: [_completed(item, label_map) for item in items] for part, items in split.items()})
    items = list_pairs(dataset_dir, subject_pattern, label_map)
    if validation_dir is not None:
        split = DataLists(training=items, validation=list_pairs(validation_dir, subject_pattern, label_map))
        check_subjects(split)
        return split
    if subject_pattern is None and any(is_picture(item["image"]) for item in items):
        raise ValueError(
            f"{dataset_dir}: pictures of one subject must not be on both sides of the split: give subject_pattern, "
            "a regular expression for the subject at the start of a file name, or a validation_dir"
        )
    subjects: dict[str, list[dict]] = {}
    for item in items:
        subjects.setdefault(item["subject"], []).append(item)
    return split_subjects(subjects, dataset_dir, train_fraction, seed)


def own_datalist(root: str | os.PathLike, *, seed: int = 0) -> dict:
    """Make a MONAI datalist of all volumes of a folder: ``training``, ``validation`` and ``test``, drawn by subject.

    Files are listed, not read. A subject is what :func:`medsr_monai.data.split_volumes` takes for one.

    Args:
        root: folder of NIfTI files and DICOM folders, at any depth.
        seed: the seed of the split.

    Returns:
        The lists beside ``name``, ``description`` and ``seed``; items hold ``image``, relative to ``root``, and
        ``subject``.

    Raises:
        FileNotFoundError, ValueError: no such folder, no volumes, or fewer than three subjects.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder, expected one of volumes")
    subjects = volumes_by_subject(root)
    if len(subjects) < 3:
        raise ValueError(
            f"{root}: volumes of {len(subjects)} subjects ({', '.join(sorted(subjects))}), training, validation and "
            "test need one each: add volumes, or name every subject's files or folder after it"
        )
    names = np.random.default_rng(seed).permutation(sorted(subjects)).tolist()
    validation, test = (max(1, round(share * len(names))) for share in (VALIDATION_SHARE, TEST_SHARE))
    parts = {
        "training": names[validation + test :],
        "validation": names[:validation],
        "test": names[validation : validation + test],
    }
    lists = {
        part: [
            {"image": str(path.relative_to(root)), "subject": name} for name in sorted(own) for path in subjects[name]
        ]
        for part, own in parts.items()
    }
    described = {"name": root.resolve().name, "description": "own volumes; image paths relative to this folder"}
    return described | {"seed": seed} | lists


def write_datalist(datalist: Mapping, path: str | os.PathLike) -> None:
    """Write a datalist as JSON, one line an item. The file is there whole or not at all."""
    fields = []
    for key, value in datalist.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"
        fields.append(f"  {json.dumps(key)}: {text}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as partial:
        partial.write_text("{\n" + ",\n".join(fields) + "\n}\n")
