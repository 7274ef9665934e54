"""Label maps told from images, by their headers, their names and their voxels."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from medsr_monai.suffixes import READ_PICTURE_SUFFIXES

__all__ = ["check_no_label_map", "is_label_map", "looks_like_labels"]

NAMED = re.compile(r"([_-](d?seg|mask|labels?|segmentation|parcellation)|^(aseg|wmparc|ribbon|aparc.*\+aseg))\.")
"""How names of label maps end in BIDS and elsewhere, and FreeSurfer's; an image may be called so, too."""
LABEL_INTENT = int(nibabel.nifti1.intent_codes["label"])
FEW = 8
"""Up to this many values are few: an image that counts, such as photons, may have no more either."""
ALIKE, ALIKE_OF_FEW = 0.5, 0.3
"""Voxels of many and of few values are labels if a larger share of neighbours than this are equal.

Neighbours that are both background are not counted. The share was 0.31 at most in 300 pictures and volumes of scanners,
and 0.69 at least in label maps of more than two values.
"""
REMEDY = (
    "put it on the result's grid by nearest neighbour (antsApplyTransforms -n GenericLabel, or SimpleITK's "
    "sitkNearestNeighbor); if it is an image after all, multiply it by 1.001 and save it as float32"
)


def looks_like_labels(voxels: np.ndarray | nibabel.arrayproxy.ArrayLike) -> bool:
    """Say whether voxels of any number of axes are labels: whole numbers, two of them or in regions of equal ones.

    They may lie in a file, of which only the slices in the middle are read if they are none.
    """
    middle = voxels.shape[-1] // 2
    if len(voxels.shape) > 2 and not _are_labels(
        np.asanyarray(voxels[..., max(0, middle - 1) : middle + 2]), hint=True
    ):
        return False
    return _are_labels(np.asanyarray(voxels))


def _are_labels(voxels: np.ndarray, hint: bool = False) -> bool:
    """Say the same of voxels in memory; with ``hint`` they are a part of what may be labels."""
    if not (np.isfinite(voxels).all() and (voxels == np.rint(voxels)).all()):
        return False
    values, counts = np.unique(voxels, return_counts=True)
    if len(values) <= 2:
        return len(values) == 2 or hint
    background = values[counts.argmax()]
    shares = []
    for axis in (axis for axis, size in enumerate(voxels.shape) if size > 1):
        one = np.moveaxis(voxels, axis, 0)
        counted = (one[1:] != background) | (one[:-1] != background)
        shares.append(((one[1:] == one[:-1]) & counted).sum() / max(1, counted.sum()))
    return max(shares) > (ALIKE_OF_FEW if hint or len(values) <= FEW else ALIKE)


def check_no_label_map(name: str | os.PathLike, voxels: np.ndarray, intent: int = 0) -> None:
    """Refuse a label map, of which a network would make numbers that are no labels.

    Args:
        name: the name of the file, for the error, and since names tell label maps too.
        voxels: the voxels, of any number of axes.
        intent: the intent code of a NIfTI header.

    Raises:
        ValueError: it is a label map; says what to do instead.
    """
    if intent == LABEL_INTENT or _is_called_one(name, voxels) or looks_like_labels(voxels):
        raise ValueError(f"{name}: a label map, which networks would interpolate like intensities: {REMEDY}")


def is_label_map(path: str | os.PathLike) -> bool:
    """Say whether a volume or picture is a label map; of what cannot be read it says no, and the reader says why.

    Few slices are read of most images, all of most label maps. The answer is kept until the file changes.
    """
    try:
        status = os.stat(path)
        return _is_label_map(os.fspath(path), status.st_mtime_ns, status.st_size)
    except Exception:  # nibabel, gzip, zlib and Pillow raise many kinds
        return False


@functools.lru_cache(maxsize=2**14)
def _is_label_map(path: str, changed: int, size: int) -> bool:
    if path.lower().endswith(READ_PICTURE_SUFFIXES):
        with Image.open(path) as picture:
            return len(picture.getbands()) == 1 and looks_like_labels(np.array(picture))
    image = nibabel.load(path)
    intent = int(image.header["intent_code"]) if isinstance(image.header, nibabel.Nifti1Header) else 0
    kind = image.get_data_dtype()
    if kind.names or kind.kind == "c" or len(image.shape) < 3:
        return False
    if intent == LABEL_INTENT:
        return True
    voxels = image.dataobj if len(image.shape) == 3 else image.dataobj[(..., *(0,) * (len(image.shape) - 3))]
    return _is_called_one(path, voxels) or looks_like_labels(voxels)


def _is_called_one(path: str | os.PathLike, voxels: np.ndarray | nibabel.arrayproxy.ArrayLike) -> bool:
    """Say whether a file is called a label map and has nothing but whole numbers."""
    if not NAMED.search(Path(path).name.lower()):
        return False
    voxels = np.asanyarray(voxels)
    return bool((voxels == np.rint(voxels)).all())
