"""Volumes on disk: find them, read them with checks, write them atomically, split them by subject."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelReader, NibabelWriter, load_decathlon_datalist
from monai.data.folder_layout import default_name_formatter
from monai.transforms import LoadImage, MapLabelValue, MapTransform, SaveImage, SaveImaged
from monai.utils import SpaceKeys

from medsr_monai.atomic import written_atomically
from medsr_monai.data.dicom.images import holds_dicom, is_dicom_file, is_dicom_folder, is_flat_image
from medsr_monai.data.dicom.series import DicomSeries, one_series, read_study
from medsr_monai.data.dicom.slices import is_zip
from medsr_monai.data.gzip_stream import write_gzip
from medsr_monai.data.pictures import (
    PICTURE_SUFFIXES,
    find_pictures,
    is_picture,
    load_picture,
    output_suffix,
    with_slices,
    write_picture,
)
from medsr_monai.errors import is_out_of_memory
from medsr_monai.transforms.geometry import implausible_grid, outer_corners, spacing

__all__ = [
    "DataLists",
    "LoadLabeld",
    "LoadVolumed",
    "NiftiWriter",
    "SaveVolumed",
    "check_nifti",
    "check_same_grid",
    "check_subjects",
    "find_volumes",
    "holds_volumes",
    "list_volumes",
    "read_grid",
    "sample_volume",
    "split_subjects",
    "split_volumes",
    "subject_name",
    "volume_name",
    "volumes_by_subject",
]

logger = logging.getLogger(__name__)

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
PAIR_SUFFIX = ".img"
"""Of the voxels of an Analyze or NIfTI pair; read where it is named, never searched for."""
MAX_FORMS_APART = 0.1
"""Largest distance, in voxels, between a volume's corners by qform and by sform."""
QFORM_PRECISION = 5e-4
"""Radians by which a qform may be off unnoticed: of its quaternion, three numbers are stored, as float32."""
MAX_INFLATION = 1100
"""By how much gzip's files can grow at most when they are unpacked."""
MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""In a unit of length of a NIfTI file, by its code: unknown, metre, millimetre, micrometre."""
MAX_FORM_CODE = 5
NIFTI1_LONGEST = 32767
MAX_SHEAR = 0.01
"""Largest cosine between two voxel axes; above it slices are skewed and in-plane super-resolution shifts anatomy."""


def volume_name(path: str | os.PathLike) -> str:
    """File name without its image suffix: ``sub-1_T1w.nii.gz`` gives ``sub-1_T1w``."""
    name = Path(path).name
    suffixes = sorted((*SUFFIXES, PAIR_SUFFIX, *PICTURE_SUFFIXES, ".dcm"), key=len, reverse=True)
    suffix = next((s for s in suffixes if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def find_volumes(folder: str | os.PathLike, pictures: bool = False) -> list[str]:
    """NIfTI and FreeSurfer volumes below a folder, sorted; hidden files are left out.

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
        raise FileNotFoundError(f"{root}: no volume ({', '.join(SUFFIXES)}){also} in this folder")
    return found


def _volumes_below(root: Path) -> list[str]:
    return sorted(
        str(p)
        for p in root.rglob("*")
        if p.name.lower().endswith(SUFFIXES)
        and not any(part.startswith(".") for part in p.relative_to(root).parts)
        and not p.is_fifo()  # whoever opened a pipe would wait for ever
    )


def holds_volumes(folder: str | os.PathLike) -> bool:
    """Whether volumes other than DICOM lie below a folder, see :func:`find_volumes`."""
    return bool(_volumes_below(Path(folder)))


def list_volumes(dataset_dir: str | os.PathLike) -> list[dict[str, str]]:
    """MONAI data list with the key ``image``: the folder itself if it is a DICOM study, else what lies below it.

    These are its volumes; where there is none, its pictures (see :func:`medsr_monai.data.find_pictures`). Pictures
    beside volumes are taken for figures of them, and left alone; DICOM beside volumes is left out with a warning.

    Raises:
        FileNotFoundError: no such folder, or neither volume nor picture in it.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    found, study = _volumes_below(root), read_study(root)
    if found:
        if study.beside_volumes_line:
            logger.warning(study.beside_volumes_line)
    elif any(series.has_positions for series in study.series) or (is_dicom_folder(root) and not is_flat_image(root)):
        return [{"image": str(dataset_dir)}]
    else:
        found = find_pictures(root)
    if not found:
        remedy = ", give its zip file itself" if any(root.glob("*.zip")) else ""
        raise FileNotFoundError(
            f"{root}: no volume ({', '.join(SUFFIXES)}, DICOM) and no picture ({', '.join(PICTURE_SUFFIXES)}) in this "
            f"folder{remedy}"
        )
    return [{"image": path} for path in found]


def check_nifti(path: str | os.PathLike, frame: int | None = None) -> None:
    """Refuse a file that is no 3D volume with a sound geometry; only its header is read.

    Args:
        path: NIfTI or FreeSurfer file, or the ``.img`` of an Analyze or NIfTI pair.
        frame: taken from a 4D file, counted from 0; None for 3D files.

    Raises:
        FileNotFoundError, ValueError: one line: what is wrong, where, what to do. What is only doubtful (units other
            than mm, no stated orientation) is logged as a warning.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file() and not path.is_dir():
        raise ValueError(f"{path}: neither a file nor a folder (a pipe?), save what it holds to a file first")
    if path.is_dir():
        raise ValueError(f"{path}: a folder without DICOM images, give a volume file or the folder of a DICOM series")
    if not path.name.lower().endswith((*SUFFIXES, PAIR_SUFFIX)):
        raise ValueError(f"{path}: not a volume file, expected {', '.join(SUFFIXES)} or a DICOM folder")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    try:
        image = nibabel.load(path)
        dtype, shape = image.get_data_dtype(), image.shape
    except Exception as error:  # nibabel, gzip and zlib raise many kinds
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{path}: cannot be read as a volume ({_first_line(error)}): damaged or misnamed?") from error
    if dtype.names or dtype.kind == "c":
        raise ValueError(f"{path}: voxels are {dtype}: RGB and complex volumes cannot be super-resolved, convert first")
    sizes = tuple(int(n) for n in shape)
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    if not 3 <= len(sizes) <= 4:
        remedy = "save one of its volumes" if len(sizes) > 4 else "give it a third axis of one slice"
        raise ValueError(f"{path}: the image has {len(sizes)} dimensions {sizes}, a 3D volume is needed: {remedy}")
    frames = sizes[3] if len(sizes) == 4 else 1
    if frames > 1 and frame is None:
        raise ValueError(f"{path}: a series of {frames} frames {sizes}, choose one with --frame 0 to {frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise ValueError(f"{path}: frame {frame} asked for, it has frames 0 to {frames - 1}")
    if min(sizes) < 1:
        raise ValueError(f"{path}: a side of the volume {sizes} is empty")
    _check_size(path, image)
    _check_geometry(path, image, sizes[:3])
    if isinstance(image.header, nibabel.Nifti1Header):
        _warn_of_header(path, image.header)


def _check_size(path: Path, image: nibabel.spatialimages.SpatialImage) -> None:
    """Refuse a file that is shorter than its header says, before memory is taken for it."""
    voxels = image.dataobj
    promised = math.prod(map(int, voxels.shape)) * voxels.dtype.itemsize
    file = Path(image.file_map["image"].filename)
    held = file.stat().st_size * (MAX_INFLATION if file.name.lower().endswith((".gz", ".mgz")) else 1) - voxels.offset
    if held < promised:
        raise ValueError(
            f"{path}: cannot be read to its end ({tuple(voxels.shape)} voxels are {promised} bytes, the file holds "
            f"{max(held, 0)} at most): damaged file?"
        )


def _check_codes(path: Path, image: nibabel.spatialimages.SpatialImage) -> None:
    """Refuse a NIfTI header whose geometry other programs read in another way: nibabel mends it silently."""
    with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb") as file:
        header = type(image.header).from_fileobj(file, check=False)
    edges = np.asarray(header["pixdim"][1:4], dtype=float)
    if not (np.isfinite(edges).all() and (edges > 0).all()):
        raise ValueError(f"{path}: voxel size {edges.tolist()} mm in the header, correct pixdim before use")
    codes = {name: int(header[name]) for name in ("qform_code", "sform_code")}
    for name, code in codes.items():
        if not 0 <= code <= MAX_FORM_CODE:
            raise ValueError(f"{path}: {name} {code} in the header, expected 0 to {MAX_FORM_CODE}: correct it")
    if codes["qform_code"] and float(header["pixdim"][0]) not in (-1, 0, 1):
        raise ValueError(f"{path}: pixdim[0] {header['pixdim'][0]} in the header, expected 1 or -1: correct the qform")
    unit = int(header["xyzt_units"]) & 7
    if unit not in MILLIMETRES:
        raise ValueError(f"{path}: xyzt_units {unit} in the header, expected 2 for millimetres: correct it")


def _warn_of_header(path: Path, header: nibabel.Nifti1Header) -> None:
    unit = MILLIMETRES[int(header["xyzt_units"]) & 7]
    if unit != 1:
        logger.warning("%s: lengths in the header are in units of %g mm, the output's in mm", path, unit)
    if not (header["qform_code"] or header["sform_code"]):
        logger.warning("%s: neither qform nor sform in the header: left and right are a guess", path)


def _millimetre_affine(image: nibabel.spatialimages.SpatialImage) -> np.ndarray:
    """Affine in mm, whatever the unit of a NIfTI file; nibabel leaves units alone."""
    affine = np.asarray(image.affine, dtype=float)
    if not isinstance(image.header, nibabel.Nifti1Header):
        return affine
    return np.diag([*[MILLIMETRES[int(image.header["xyzt_units"]) & 7]] * 3, 1]) @ affine


def _check_geometry(path: Path, image: nibabel.spatialimages.SpatialImage, shape: tuple[int, ...]) -> None:
    header = image.header
    if isinstance(header, nibabel.Nifti1Header):
        _check_codes(path, image)
    affine = _millimetre_affine(image)
    columns, edges = affine[:3, :3], spacing(affine)
    if not np.isfinite(affine).all() or edges.min() < 1e-9 or abs(np.linalg.det(columns / edges)) < 1e-6:
        raise ValueError(f"{path}: the affine {columns.tolist()} is singular or not finite, correct qform and sform")
    if reason := implausible_grid(affine, shape):
        raise ValueError(f"{path}: {reason}: correct voxel size, unit or origin")
    unit = columns / edges
    shear = np.abs(unit.T @ unit - np.eye(3)).max()
    if shear > MAX_SHEAR:
        raise ValueError(
            f"{path}: voxel axes are not perpendicular (cosine {shear:.3f}), as after gantry tilt or an affine "
            "registration: resample to a rectangular grid first"
        )
    if isinstance(header, nibabel.Nifti1Header) and header["qform_code"] > 0 and header["sform_code"] > 0:
        try:
            distance = _forms_apart(header, shape)
        except (ValueError, nibabel.spatialimages.HeaderDataError) as error:
            raise ValueError(f"{path}: the qform cannot be read ({_first_line(error)}): set its code to 0") from error
        if not distance <= MAX_FORMS_APART * edges.min():
            raise ValueError(
                f"{path}: qform and sform place the volume up to {distance:.2f} mm apart: "
                "set the code of the wrong one to 0"
            )


def _forms_apart(header: nibabel.Nifti1Header, shape: tuple[int, ...]) -> float:
    """Largest distance in mm between the corners by qform and by sform, beyond a qform's precision."""
    by_qform, by_sform = (outer_corners(form, shape) for form in (header.get_qform(), header.get_sform()))
    diagonal = np.linalg.norm(by_sform[-1] - by_sform[0])
    apart = np.linalg.norm(by_qform - by_sform, axis=1).max() - QFORM_PRECISION * diagonal
    return float(apart) * MILLIMETRES[int(header["xyzt_units"]) & 7]


def _is_analyze(image: nibabel.spatialimages.SpatialImage) -> bool:
    header = image.header
    return isinstance(header, nibabel.AnalyzeHeader) and not isinstance(header, nibabel.Nifti1Header)


def _oriented_affine(path: Path, shape: Sequence[int], edges: Sequence[float], orientation: str | None) -> np.ndarray:
    """Affine along stated axes, the volume's centre at the origin, for a file that holds voxel sizes only."""
    if orientation is None:
        raise ValueError(
            f"{path}: an Analyze file does not hold its orientation: convert it to NIfTI with the right one, or state "
            'it in the datalist, such as "orientation": "LAS"'
        )
    try:
        worlds = nibabel.orientations.axcodes2ornt(tuple(orientation))
        if sorted(worlds[:, 0]) != [0, 1, 2]:
            raise ValueError
    except ValueError as error:
        raise ValueError(
            f"{path}: orientation {orientation!r} in the datalist, expected one letter an axis for where it points to, "
            "such as LAS or RAS"
        ) from error
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(worlds):
        affine[int(world), axis] = sign * edges[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def read_grid(path: str | os.PathLike, orientation: str | None = None) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of a volume file that :func:`check_nifti` accepts; only the header is read.

    Args:
        orientation: of an Analyze file, which does not hold it, see :class:`LoadVolumed`.

    Raises:
        ValueError: an Analyze file without a valid orientation.
    """
    path = Path(path)
    image = nibabel.load(path)
    shape = tuple(int(n) for n in image.shape[:3])
    if _is_analyze(image):
        return shape, _oriented_affine(path, shape, image.header.get_zooms(), orientation)
    return shape, _millimetre_affine(image)


def check_same_grid(path: str | os.PathLike, grid: tuple, ref_path: str | os.PathLike, ref_grid: tuple) -> None:
    """Refuse a file that does not lie in the grid of a reference; a grid is a shape and an affine.

    Raises:
        ValueError: names the file, the reference and what differs.
    """
    (shape, affine), (ref_shape, ref_affine) = grid, ref_grid
    remedy = "files that belong together share a grid, resample them to one"
    if tuple(shape) != tuple(ref_shape):
        raise ValueError(f"{path}: {tuple(shape)} voxels, but {ref_path} has {tuple(ref_shape)}: {remedy}")
    distance = np.abs(outer_corners(affine, shape) - outer_corners(ref_affine, ref_shape)).max()
    if distance > MAX_FORMS_APART * spacing(ref_affine).min():
        raise ValueError(f"{path}: corners up to {distance:.2f} mm from those of {ref_path}: {remedy}")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class LoadVolumed(MapTransform):
    """Read a volume, a NIfTI or FreeSurfer file or a DICOM series, as a float32 ``MetaTensor``.

    The result is [1, X, Y, Z] with the affine in RAS millimetres, also of files in metres or micrometres; integer files
    have their slope and intercept applied. A list of files, such as the modalities of one patient, gives a channel
    each, [C, X, Y, Z]. A DICOM series is a :class:`medsr_monai.data.DicomSeries`, or a folder or zip with one that is
    no localiser, derived series or secondary capture, see :func:`medsr_monai.data.one_series`.

    An Analyze file (``.img`` beside its ``.hdr``) holds voxel sizes but neither orientation nor place. It is read only
    if the item states its ``orientation``, a letter an array axis for where that axis points to (``LAS``: left,
    anterior, superior); the affine then follows from this, with the centre of the volume at the origin.

    Args:
        keys: hold a path or a series each, or a list of paths.
        frame: of a 4D file, counted from 0.
        pictures: read pictures too, as volumes of one slice (see :func:`medsr_monai.data.load_picture`); without it
            they are refused, since they hold no geometry, and a single DICOM file is read as a volume of one slice.

    Raises:
        FileNotFoundError, ValueError: see :func:`check_nifti` and :func:`medsr_monai.data.one_series`; also for
            truncated files, Analyze files without a stated orientation, and files of a list that do not lie in the
            grid of its first.
    """

    labels = False

    def __init__(
        self,
        keys: KeysCollection,
        frame: int | None = None,
        allow_missing_keys: bool = False,
        *,
        pictures: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.frame = frame
        self.pictures = pictures
        self.loader = LoadImage(ensure_channel_first=True, image_only=True, dtype=np.float32)

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.load(d[key], d.get("orientation"))
        return d

    def load(
        self, path: str | os.PathLike | DicomSeries | Sequence[str | os.PathLike], orientation: str | None = None
    ) -> MetaTensor:
        """One volume, or one of several channels; ``orientation`` is that of Analyze files."""
        if isinstance(path, DicomSeries):
            return self._load_series(path)
        if isinstance(path, (str, os.PathLike)):
            return self._load_file(path, orientation)
        if not path:
            raise ValueError("an empty list of files, expected one file per channel")
        first, *others = (self._load_file(p, orientation) for p in path)
        grids = [(tuple(v.shape[1:]), v.affine) for v in (first, *others)]
        for name, grid in zip(path[1:], grids[1:], strict=True):
            check_same_grid(name, grid, path[0], grids[0])
        channels = torch.cat([v.as_tensor() for v in (first, *others)])
        return MetaTensor(channels, meta=first.meta, applied_operations=[])

    def _load_file(self, path: str | os.PathLike, orientation: str | None) -> MetaTensor:
        if self.pictures and is_picture(path):
            if self.frame not in (None, 0):
                raise ValueError(f"{path}: frame {self.frame} asked for, a picture has frame 0 only")
            return load_picture(path, self.labels)
        if _is_dicom(path):
            return self._load_series(one_series(path))
        check_nifti(path, self.frame)
        try:
            volume = self.loader(str(path), reader=NibabelReader(squeeze_non_spatial_dims=True))
        except Exception as error:  # gzip, zlib and nibabel raise many kinds
            if is_out_of_memory(error):
                raise
            raise ValueError(f"{path}: cannot be read to its end ({_first_line(error)}): damaged file?") from error
        if self.frame is not None:
            volume = volume[self.frame : self.frame + 1]
        # of an Analyze file and of other units than mm the reader does not know it
        volume.affine = torch.as_tensor(read_grid(path, orientation)[1])
        volume.meta["original_affine"] = volume.affine.numpy().copy()
        return volume.to(torch.float32)

    def _load_series(self, series: DicomSeries) -> MetaTensor:
        if self.frame not in (None, 0):
            raise ValueError(f"{series.source}: frame {self.frame} asked for, a DICOM series is read as frame 0 only")
        voxels = torch.from_numpy(series.read())[None]
        # the root, since outputs are named after it, and a series is called by the text of its headers
        meta = {"filename_or_obj": series.root, "spatial_shape": np.array(series.shape), "space": SpaceKeys.RAS}
        meta["original_affine"] = series.affine.copy()
        meta["original_channel_dim"] = float("nan")  # without it MONAI's writers take a single slice for 2D
        return MetaTensor(voxels, affine=torch.from_numpy(series.affine), meta=meta)


def _is_dicom(path: str | os.PathLike) -> bool:
    """Whether a path is a DICOM or zip file, or a folder with DICOM files."""
    if not Path(path).is_dir():
        return is_dicom_file(path) or is_zip(path)
    return holds_dicom(path)


class LoadLabeld(LoadVolumed):
    """Read a label map [1, X, Y, Z], float32 with whole numbers, as :class:`LoadVolumed` does.

    An item's ``label_map``, a dictionary such as ``{"4": 3}`` (JSON has no other keys than strings), replaces its
    labels; labels that it does not name stay.

    Args:
        keys, pictures: see :class:`LoadVolumed`.
        classes: labels are 0 to classes - 1 after the replacement; None for any.

    Raises:
        FileNotFoundError, ValueError: as :class:`LoadVolumed`, for voxels that are not whole numbers, and for labels
            of other classes.
    """

    labels = True

    def __init__(
        self,
        keys: KeysCollection = "label",
        allow_missing_keys: bool = False,
        *,
        classes: int | None = None,
        pictures: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys, pictures=pictures)
        self.classes = classes

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        d = dict(data)
        replaced = {int(old): int(new) for old, new in (d.get("label_map") or {}).items()}
        for key in self.key_iterator(d):
            path = d[key]
            d[key] = self.load(path, d.get("orientation"))
            if not torch.equal(d[key].as_tensor(), d[key].as_tensor().round()):
                raise ValueError(f"{path}: has voxels that are not whole numbers, this is no label map")
            if replaced:
                d[key] = MapLabelValue(replaced.keys(), replaced.values(), dtype=np.float32)(d[key])
            if self.classes is not None:
                others = {int(v) for v in d[key].as_tensor().unique().tolist()} - set(range(self.classes))
                if others:
                    raise ValueError(
                        f"{path}: labels {', '.join(map(str, sorted(others)))}, expected 0 to {self.classes - 1}: give "
                        f'another number of classes, or a label_map such as {{"{max(others)}": 1}}'
                    )
        return d


class NiftiWriter(NibabelWriter):
    """NIfTI writer that never leaves half a file: it writes to a temporary name and renames it when all is on disk.

    A name that ends in ``.gz`` is compressed by several threads, see :func:`medsr_monai.data.gzip_stream.write_gzip`.

    sform, qform and units (mm) are set; the code of the qform is 0 where it cannot hold the affine, which is slightly
    sheared then. A side of more than 32767 voxels makes it NIfTI-2, since NIfTI-1 holds none.
    """

    def set_data_array(
        self, data_array: torch.Tensor, channel_dim: int | None = 0, squeeze_end_dims: bool = True, **kwargs: object
    ) -> None:
        """Take a volume; ``squeeze_end_dims`` drops a single channel, never a spatial axis of one voxel."""
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False, **kwargs)
        if squeeze_end_dims and channel_dim is not None and self.data_obj.shape[-1] == 1:
            self.data_obj = self.data_obj[..., 0]

    def image(self, **kwargs: object) -> nibabel.Nifti1Image:
        """What is written, with its header."""
        affine = np.eye(4) if self.affine is None else np.asarray(self.affine, dtype=float)
        kind = nibabel.Nifti2Image if max(self.data_obj.shape) > NIFTI1_LONGEST else nibabel.Nifti1Image
        image = kind(np.asarray(self.data_obj, dtype=self.output_dtype), affine, **kwargs)
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        if _forms_apart(image.header, image.shape[:3]) > MAX_FORMS_APART * min(image.header.get_zooms()[:3]):
            image.set_qform(affine, code=0)
        return image

    def write(self, filename: str | os.PathLike, verbose: bool = False, **kwargs: object) -> None:
        with written_nifti(filename) as stream:
            self.image(**kwargs).to_stream(stream)


@contextlib.contextmanager
def written_nifti(path: str | os.PathLike) -> Iterator[io.RawIOBase]:
    """Give a stream for the bytes of a NIfTI file, which gets its name when all are on disk; ``.gz`` is compressed."""
    with (
        written_atomically(path) as partial,
        write_gzip(partial) if partial.suffix == ".gz" else partial.open("wb") as stream,
    ):
        yield stream


def _name_parts(meta: dict, saver: SaveImage) -> dict:
    """MONAI takes what follows the last dot of a DICOM folder's name for a suffix, and its parent for its place."""
    parts = default_name_formatter(meta, saver)
    path = Path(str(parts["subject"]))
    name, root = f"{volume_name(path)}.nii.gz", saver.folder_layout.data_root_dir
    is_root = bool(root) and path.resolve() == Path(root).resolve()
    return parts | {"subject": str(path / name if is_root else path.with_name(name))}


class SaveVolumed(SaveImaged):
    """MONAI's ``SaveImaged`` for one NIfTI file per volume, in the grid that the volume has.

    ``<output_dir>/<folders below data_root_dir>/<name>_<postfix>.nii.gz``; what was read from a picture can be written
    as one, ``.png``, or ``.tif`` if it was TIFF.

    Args:
        keys: ``MetaTensor`` volumes [C, X, Y, Z].
        output_dir: made if missing.
        output_postfix: appended to the input's name.
        data_root_dir: folder below which the input's folders are kept in the output.
        overwrite: replace an existing file.
        output_dtype: of the voxels in the file.
        pictures: write pictures by :func:`medsr_monai.data.write_picture`, in the type that their pixels had.

    Raises:
        FileExistsError: the file is there and ``overwrite`` is False.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str,
        output_postfix: str = "sr",
        data_root_dir: str = "",
        overwrite: bool = False,
        output_dtype: type = np.float32,
        pictures: bool = False,
    ) -> None:
        super().__init__(
            keys,
            output_dir=output_dir,
            output_postfix=output_postfix,
            output_ext=".nii.gz",
            output_dtype=output_dtype,
            resample=False,
            separate_folder=False,
            data_root_dir=data_root_dir,
            output_name_formatter=_name_parts,
            writer=NiftiWriter,
            print_log=False,
        )
        self.overwrite = overwrite
        self.pictures = pictures

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        pictures = {}
        for key in self.key_iterator(data):
            meta = data[key].meta
            parts = self.saver.fname_formatter(meta, self.saver)
            path = Path(self.saver.folder_layout.filename(**parts))
            if self.pictures and "picture" in meta:
                name = path.name.removesuffix(".nii.gz") + output_suffix(meta["filename_or_obj"])
                path = pictures[key] = path.with_name(name)
            if path.exists() and not self.overwrite:
                raise FileExistsError(f"{path}: exists, choose another output_dir or set overwrite to true")
        d = dict(data)
        for key in self.key_iterator(d):
            if key in pictures:
                write_picture(d[key], pictures[key])
            else:
                d[key] = self.saver(d[key])
        return d


def subject_name(path: Path, root: Path, base: Path) -> str:
    """A BIDS label (``sub-01``) in the path below ``root``, else what lies directly below ``base``, without suffix."""
    bids = re.search(r"sub-[A-Za-z0-9]+", str(path.relative_to(root)))
    if bids:
        return bids.group()
    return volume_name(path.relative_to(base).parts[0])


def check_subjects(split: Mapping[str, Sequence[Mapping]]) -> None:
    """Refuse a split with one ``subject`` in two of its lists; items that name no subject are not looked at.

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
    """Data lists by name; asking for one that is not there says which are."""

    def __missing__(self, name: str) -> list:
        raise ValueError(f"no list {name!r}: the data have {', '.join(self)}")


def split_volumes(
    dataset_dir: str | os.PathLike,
    datalist: str | os.PathLike | None = None,
    train_fraction: float = 0.8,
    seed: int = 0,
) -> dict[str, list[dict[str, str]]]:
    """Training and validation volumes, as MONAI data lists with the key ``image``.

    The items of a datalist keep their other keys, see :class:`medsr_monai.data.SliceDataset`.

    Args:
        dataset_dir: folder of volumes, or the base folder of the datalist's relative paths.
        datalist: MONAI datalist JSON with the lists ``training`` and ``validation``, also others such as ``test``
            and ``prior`` where it has them (see :func:`medsr_monai.data.prepare_datalist`). Without one, subjects
            (not volumes) are split at random. A subject is a BIDS label (``sub-01``) in the path, else what lies
            directly below the deepest folder that holds all volumes: a folder, or a file without its suffix.
        train_fraction: of the subjects, at least one for each part.
        seed: of the split.

    Returns:
        ``{"training": [{"image": path}, ...], "validation": [...]}``

    Raises:
        FileNotFoundError, ValueError: missing folder or file, fewer than two subjects, or a datalist with one
            ``subject`` in two lists.
    """
    parts = ["training", "validation"]
    if datalist is not None:
        if not Path(datalist).is_file():
            raise FileNotFoundError(f"{datalist}: no such datalist")
        content = json.loads(Path(datalist).read_text())
        parts += [part for part, items in content.items() if part not in parts and _is_data_list(items)]
        lists = {part: load_decathlon_datalist(str(datalist), True, part, str(dataset_dir)) for part in parts}
        split = DataLists({part: [with_slices(item) for item in items] for part, items in lists.items()})
        try:
            check_subjects(split)
        except ValueError as error:
            raise ValueError(f"{datalist}: {error}") from error
        return split
    found = volumes_by_subject(dataset_dir)
    subjects = {name: [{"image": str(path)} for path in paths] for name, paths in found.items()}
    return split_subjects(subjects, dataset_dir, train_fraction, seed)


def volumes_by_subject(root: str | os.PathLike) -> dict[str, list[Path]]:
    """Volumes of a folder by subject, see :func:`split_volumes`.

    Raises:
        FileNotFoundError: no such folder, or no volumes in it.
    """
    root = Path(root)
    paths = [Path(p) for p in find_volumes(root)]
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
    """Items of the subjects that are drawn for ``training``, and of the others, for ``validation``.

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


def sample_volume() -> Path:
    """Path of the small real volume that ships with the package (see ``sample/LICENSE.md``)."""
    return Path(__file__).parent / "sample" / "brain_t1w.nii.gz"
