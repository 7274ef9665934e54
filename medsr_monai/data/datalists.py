"""Images with label maps in two folders, split by subject."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from medsr_monai.data.pictures import is_picture, with_slices
from medsr_monai.data.read import (
    SUFFIXES,
    DataLists,
    check_subjects,
    split_subjects,
    split_volumes,
    subject_name,
)

__all__ = ["list_pairs", "split_labelled"]


def _files(folder: Path) -> dict[str, Path]:
    """Volumes and pictures by their path below a folder; hidden files are left out."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder: expected images/ and labels/ with equal file names, or give a datalist"
        )
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        name: path
        for name, path in found.items()
        if (name.lower().endswith(SUFFIXES) or is_picture(path)) and not re.search(r"(^|/)\.", name)
    }


def list_pairs(
    dataset_dir: str | os.PathLike,
    subject_pattern: str | None = None,
    label_map: Mapping[str, int] | None = None,
) -> list[dict]:
    r"""Items of the files below ``images/`` and the files of the same names below ``labels/``, sorted by name.

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
    root = Path(dataset_dir)
    images, labels = _files(root / "images"), _files(root / "labels")
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        here, there = ("images", "labels") if alone[0] in images else ("labels", "images")
        raise FileNotFoundError(
            f"{root}: {here}/{alone[0]} has no {there}/{alone[0]} ({len(alone)} such files): names must be equal"
        )
    if not images:
        raise FileNotFoundError(f"{root / 'images'}: no volume ({', '.join(SUFFIXES)}) and no picture in this folder")
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
    """Training and validation images with their label maps, as MONAI data lists with ``image`` and ``label``.

    Args:
        dataset_dir: folder with ``images/`` and ``labels/`` (see :func:`list_pairs`), or the base folder of the
            datalist's relative paths.
        datalist: see :func:`medsr_monai.data.split_volumes`; every item has a ``label``.
        validation_dir: another folder with ``images/`` and ``labels/``; then all of ``dataset_dir`` is for training.
            Without one, subjects are split at random.
        subject_pattern, label_map: see :func:`list_pairs`; a ``label_map`` of a datalist's item goes first.
        train_fraction: of the subjects, at least one for each part.
        seed: of the split.

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
