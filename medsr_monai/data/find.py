"""Volumes and pictures below a folder, and what is left out of a search for them."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel

from medsr_monai.atomic import check_named
from medsr_monai.data.dicom.images import is_dicom_file, is_dicom_folder, is_flat_image
from medsr_monai.data.dicom.series import read_study
from medsr_monai.data.folder import files_below
from medsr_monai.data.label_detection import is_label_map
from medsr_monai.suffixes import PAIR_SUFFIXES, QUALITY_SUFFIX, READ_PICTURE_SUFFIXES, UNREAD_SUFFIXES, VOLUME_SUFFIXES

__all__ = [
    "find_pictures",
    "find_volumes",
    "holds_volumes",
    "list_volumes",
    "pair_of",
    "sample_volume",
    "volume_name",
]

logger = logging.getLogger(__name__)

NAMED = 10
"""Of the files that a search leaves out for one reason, this many are named and the others are counted."""


def volume_name(path: str | os.PathLike) -> str:
    """Give a file's name without its image suffix: ``sub-1_T1w.nii.gz`` gives ``sub-1_T1w``."""
    name = Path(path).name
    suffixes = sorted((*VOLUME_SUFFIXES, *READ_PICTURE_SUFFIXES, ".dcm"), key=len, reverse=True)
    suffix = next((s for s in suffixes if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def pair_of(path: str | os.PathLike) -> list[Path]:
    """Give the two names of an Analyze or NIfTI pair, header and voxels, by either of them; of other files the one."""
    path = Path(path)
    suffix = next((s for s in sorted(PAIR_SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s)), None)
    if suffix is None:
        return [path]
    stem, given = path.name[: -len(suffix)], path.name[-len(suffix) :]
    upper = given[1:4].isupper()
    names = (word.upper() if upper else word for word in ("hdr", "img"))
    return [path.with_name(f"{stem}.{name}{given[4:]}") for name in names]


@dataclass
class _Search:
    """What lies below a folder; DICOM files may be pictures or slices of volumes."""

    volumes: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    dicom: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Files that may be images and are left out, by the reason."""

    def all_pictures(self) -> list[str]:
        """Give the pictures with the DICOM files that are some, which are no longer listed as DICOM."""
        flat = [path for path in self.dicom if is_flat_image(path)]
        self.dicom = [path for path in self.dicom if path not in flat]
        return sorted([*self.pictures, *flat])


def _search(root: Path, label_maps: bool = False) -> _Search:
    found = _Search()
    for path in sorted(files_below(root), key=str):
        kind = _kind(path)
        if kind in ("volumes", "pictures") and not label_maps and is_label_map(path):
            kind = "a label map, which is never interpolated"
        if kind in ("volumes", "pictures", "dicom"):
            getattr(found, kind).append(str(path))
        elif kind is not None:
            found.left_out.setdefault(kind, []).append(str(path))
    return found


def _kind(path: Path) -> str | None:
    """Name the list of a search that a file belongs to, or why it is left out; None for what is no image."""
    name = path.name.lower()
    if path.is_dir():
        return "a link to a folder above it, or a folder that cannot be opened"
    image = name.endswith((*VOLUME_SUFFIXES, *READ_PICTURE_SUFFIXES, *UNREAD_SUFFIXES))
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link to what is not there" if image else None
    if not stat.S_ISREG(mode):  # whoever opened a pipe would wait for ever
        return "no regular file" if image else None
    if name.endswith(PAIR_SUFFIXES):
        return _kind_of_pair(path)
    if name.endswith(VOLUME_SUFFIXES):
        return "volumes"
    if name.endswith(READ_PICTURE_SUFFIXES):
        return None if name.endswith(QUALITY_SUFFIX) else "pictures"
    if name.endswith(".mgh.gz"):
        return "a compressed .mgh, rename it to .mgz"
    if name.endswith(".zip"):
        return "a zip, give it itself"
    if name.endswith(UNREAD_SUFFIXES):
        return "a format that is not read, convert it to NIfTI"
    return "dicom" if is_dicom_file(path) else None


def _kind_of_pair(path: Path) -> str | None:
    """Name the list that half a pair belongs to; a whole pair goes by the name of its voxels."""
    header, voxels = pair_of(path)
    if not (header.is_file() and voxels.is_file()):
        return "half a pair of .hdr and .img"
    if path != voxels:
        return None
    try:
        image = nibabel.load(path)
    except Exception:  # nibabel raises many kinds
        return "no pair of .hdr and .img that can be read"
    if not isinstance(image.header, nibabel.Nifti1Header):
        return "Analyze, whose orientation only a datalist can state"
    return "volumes"


def _tell(root: Path, left_out: dict[str, Sequence[str]]) -> None:
    for reason, paths in left_out.items():
        if paths:
            names = [os.path.relpath(path, root) for path in paths[:NAMED]]
            more = [f"and {len(paths) - NAMED} more"] if len(paths) > NAMED else []
            logger.warning("%s: %d left out, %s: %s", root, len(paths), reason, ", ".join([*names, *more]))


def find_volumes(folder: str | os.PathLike, pictures: bool = False, label_maps: bool = False) -> list[str]:
    """List the volumes below a folder, sorted: NIfTI, also as pairs of ``.hdr`` and ``.img``, and FreeSurfer's.

    Links are followed. Hidden files are passed over; what else may be an image and is left out is logged as a warning,
    with its number and names.

    Args:
        folder: searched with the folders below it.
        pictures: find pictures too, see :func:`medsr_monai.data.find_pictures`.
        label_maps: find label maps too, which are left out otherwise.

    Raises:
        FileNotFoundError: no such folder, or no volume in it.
        ValueError: an empty path.
    """
    check_named(folder, "folder of volumes")
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    found = _search(root, label_maps)
    volumes = sorted([*found.volumes, *found.all_pictures()]) if pictures else found.volumes
    beside = {"DICOM beside other images, give its own folder": found.dicom}
    _tell(root, found.left_out | beside | ({} if pictures else {"pictures beside volumes": found.pictures}))
    if not volumes:
        also = f" and no picture ({', '.join(READ_PICTURE_SUFFIXES)})" if pictures else ""
        raise FileNotFoundError(f"{root}: no volume ({', '.join(VOLUME_SUFFIXES)}){also} in this folder")
    return volumes


def find_pictures(folder: str | os.PathLike) -> list[str]:
    """List the pictures below a folder, sorted.

    Links are followed. Hidden files, quality pictures, label maps and DICOM slices of a volume are not listed.
    """
    return _search(Path(folder)).all_pictures()


def holds_volumes(folder: str | os.PathLike) -> bool:
    """Say whether volumes other than DICOM lie below a folder, see :func:`find_volumes`."""
    named = (path for path in files_below(folder) if path.name.lower().endswith(VOLUME_SUFFIXES))
    return any(_kind(path) == "volumes" and not is_label_map(path) for path in named)


def list_volumes(dataset_dir: str | os.PathLike) -> list[dict[str, str]]:
    """Make a MONAI data list with the key ``image`` of a folder: of itself if it is a DICOM study, else of its files.

    These are the volumes below it (see :func:`find_volumes`) or, where there is none, the pictures (see
    :func:`find_pictures`). Pictures beside volumes are taken for figures of them; DICOM beside volumes is left out.
    What is left out is logged.

    Raises:
        FileNotFoundError: no such folder, or neither volume nor picture in it.
        ValueError: an empty path.
    """
    check_named(dataset_dir, "folder of volumes")
    root = Path(dataset_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    found, study = _search(root), read_study(root)
    if not found.volumes and (
        any(series.has_positions for series in study.series) or (is_dicom_folder(root) and not is_flat_image(root))
    ):
        return [{"image": str(dataset_dir)}]  # whoever reads it tells what is left out
    paths = found.volumes or found.all_pictures()
    _tell(root, found.left_out | ({"pictures beside volumes": found.pictures} if found.volumes else {}))
    if found.volumes and study.beside_volumes_line:
        logger.warning(study.beside_volumes_line)
    elif not study.series:
        _tell(root, {"DICOM without a series that can be read": found.dicom})
    if not paths:
        remedy = ", give its zip file itself" if any(root.glob("*.zip")) else ""
        volumes, pictures = ", ".join((*VOLUME_SUFFIXES, "DICOM")), ", ".join(READ_PICTURE_SUFFIXES)
        raise FileNotFoundError(f"{root}: no volume ({volumes}) and no picture ({pictures}) in this folder{remedy}")
    return [{"image": path} for path in paths]


def sample_volume() -> Path:
    """Give the path of the small real volume that ships with the package (see ``sample/LICENSE.md``)."""
    return Path(__file__).parent / "sample" / "brain_t1w.nii.gz"
