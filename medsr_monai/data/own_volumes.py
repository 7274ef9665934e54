"""Datalists of one's own volumes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from medsr_monai.data.read import volumes_by_subject

__all__ = ["TEST_SHARE", "own_datalist"]

VALIDATION_SHARE = TEST_SHARE = 0.15
"""Of the subjects, at least one each."""


def own_datalist(root: str | os.PathLike, *, seed: int = 0) -> dict:
    """MONAI datalist of all volumes of a folder: ``training``, ``validation`` and ``test``, drawn by subject.

    Files are listed, not read. A subject is what :func:`medsr_monai.data.split_volumes` takes for one.

    Args:
        root: folder of NIfTI files and DICOM folders, at any depth.
        seed: of the split.

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
