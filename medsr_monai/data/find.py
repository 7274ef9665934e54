"""Volumes and pictures below a folder, and what they are called."""

from __future__ import annotations

import os
from pathlib import Path

from medsr_monai.data.dicom.images import is_dicom_folder, is_flat_image
from medsr_monai.data.dicom.series import find_series
from medsr_monai.data.pictures import find_pictures
from medsr_monai.suffixes import PAIR_SUFFIX, PICTURE_SUFFIXES, VOLUME_SUFFIXES

__all__ = ["find_volumes", "holds_volumes", "list_volumes", "sample_volume", "volume_name"]


def volume_name(path: str | os.PathLike) -> str:
    """Give a file's name without its image suffix: ``sub-1_T1w.nii.gz`` gives ``sub-1_T1w``."""
    name = Path(path).name
    suffixes = sorted((*VOLUME_SUFFIXES, PAIR_SUFFIX, *PICTURE_SUFFIXES, ".dcm"), key=len, reverse=True)
    suffix = next((s for s in suffixes if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def find_volumes(folder: str | os.PathLike, pictures: bool = False) -> list[str]:
    """List the NIfTI and FreeSurfer volumes below a folder, sorted; hidden files are left out.

    Args:
        folder: searched with the folders below it.
        pictures: find pictures too, see :func:`medsr_monai.data.find_pictures`.

    Raises:
        FileNotFoundError: no such folder, or no volume in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    found = _volumes_below(root)
    if pictures:
        found = sorted([*found, *find_pictures(root)])
    if not found:
        also = f" and no picture ({', '.join(PICTURE_SUFFIXES)})" if pictures else ""
        raise FileNotFoundError(f"{root}: no volume ({', '.join(VOLUME_SUFFIXES)}){also} in this folder")
    return found


def _volumes_below(root: Path) -> list[str]:
    return sorted(
        str(p)
        for p in root.rglob("*")
        if p.name.lower().endswith(VOLUME_SUFFIXES)
        and not any(part.startswith(".") for part in p.relative_to(root).parts)
        and not p.is_fifo()  # whoever opened a pipe would wait for ever
    )


def holds_volumes(folder: str | os.PathLike) -> bool:
    """Say whether volumes other than DICOM lie below a folder, see :func:`find_volumes`."""
    return bool(_volumes_below(Path(folder)))


def list_volumes(dataset_dir: str | os.PathLike) -> list[dict[str, str]]:
    """Make a MONAI data list with the key ``image`` of a folder: of itself if it is a DICOM study, else of its files.

    These are the volumes below it or, where there is none, the pictures (see
    :func:`medsr_monai.data.find_pictures`). Pictures beside volumes are taken for figures of them, and left alone.

    Raises:
        FileNotFoundError: no such folder, or neither volume nor picture in it.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    if is_dicom_folder(root) and not is_flat_image(root):
        return [{"image": str(dataset_dir)}]
    found = _volumes_below(root)
    if not found and any(series.has_positions for series in find_series(root)):
        return [{"image": str(dataset_dir)}]
    found = found or find_pictures(root)
    if not found:
        remedy = ", give its zip file itself" if any(root.glob("*.zip")) else ""
        volumes, pictures = ", ".join((*VOLUME_SUFFIXES, "DICOM")), ", ".join(PICTURE_SUFFIXES)
        raise FileNotFoundError(f"{root}: no volume ({volumes}) and no picture ({pictures}) in this folder{remedy}")
    return [{"image": path} for path in found]


def sample_volume() -> Path:
    """Give the path of the small real volume that ships with the package (see ``sample/LICENSE.md``)."""
    return Path(__file__).parent / "sample" / "brain_t1w.nii.gz"
