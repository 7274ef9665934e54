"""Volumes on disk: their headers checked, their grids and voxels read."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelReader
from monai.transforms import LoadImage, MapTransform
from monai.utils import SpaceKeys

from medsr_monai.atomic import check_named
from medsr_monai.data.dicom.images import holds_dicom, is_dicom_file
from medsr_monai.data.dicom.series import DicomSeries, one_series
from medsr_monai.data.dicom.slices import TooLargeError, check_unpacked, is_zip
from medsr_monai.data.find import pair_of
from medsr_monai.data.gzip_stream import check_gzip
from medsr_monai.data.label_detection import check_no_label_map
from medsr_monai.data.pictures import is_picture, load_picture
from medsr_monai.errors import first_line, is_out_of_memory
from medsr_monai.suffixes import GZIP_SUFFIXES, UNREAD_SUFFIXES, VOLUME_SUFFIXES
from medsr_monai.transforms.geometry import implausible_grid, outer_corners, spacing

__all__ = [
    "MAX_FORMS_APART",
    "LoadVolumed",
    "check_grid",
    "check_image",
    "check_nifti",
    "check_same_grid",
    "check_values",
    "forms_apart",
    "image_affine",
    "read_grid",
    "replace_nan",
]

logger = logging.getLogger(__name__)

MAX_FORMS_APART = 0.1
"""A volume whose corners by qform and by sform lie further apart than this, in voxels, is refused."""
QFORM_PRECISION = 5e-4
"""A qform may be off by this angle in radians, since it stores three numbers of its quaternion as float32."""
MAX_INFLATION = 1100
"""No gzip file grows by more than this factor when it is unpacked."""
MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""The length in mm of a NIfTI file's unit by its code in the header: unknown, metre, millimetre, micrometre."""
MAX_FORM_CODE = 5
"""The largest code of a qform or sform that the NIfTI standard defines."""
MAX_STEP = 0.02
"""The steps of float32, in which networks compute, may be this share of a volume's range at most.

From a tenth of it on they are told as a warning.
"""
EXACT = 2**24
"""Up to this one float32 holds all whole numbers."""
MAX_SHEAR = 0.01
"""Two voxel axes may have this cosine at most. Beyond it slices are skewed, and finer planes shift the anatomy."""


def check_nifti(path: str | os.PathLike, frame: int | None = None) -> None:
    """Refuse a file that is no 3D volume with a sound geometry; only its header is read.

    Args:
        path: a NIfTI or FreeSurfer file, or either file of an Analyze or NIfTI pair.
        frame: the frame that is taken from a 4D file, counted from 0; None for 3D files.

    Raises:
        FileNotFoundError, ValueError: one line that says what is wrong, where, and what to do. What is only doubtful
            (units other than mm, no stated orientation) is logged as a warning.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file() and not path.is_dir():
        raise ValueError(f"{path}: neither a file nor a folder (a pipe?), save what it holds to a file first")
    if path.is_dir():
        raise ValueError(f"{path}: a folder without DICOM images, give a volume file or the folder of a DICOM series")
    if not path.name.lower().endswith(VOLUME_SUFFIXES):
        remedy = ": convert it to NIfTI first" if path.name.lower().endswith(UNREAD_SUFFIXES) else ""
        remedy = ": rename it to .mgz" if path.name.lower().endswith(".mgh.gz") else remedy
        raise ValueError(f"{path}: not a volume file, expected {', '.join(VOLUME_SUFFIXES)} or a DICOM folder{remedy}")
    for part in pair_of(path):
        if not part.is_file():
            raise FileNotFoundError(f"{path}: a pair of two files, {part.name} is not there")
        if part.stat().st_size == 0:
            raise ValueError(f"{path}: the file is empty" if part == path else f"{path}: {part.name} is empty")
    try:
        image = nibabel.load(path)
        image.get_data_dtype()
    except Exception as error:  # nibabel, gzip and zlib raise many kinds
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{path}: cannot be read as a volume ({first_line(error)}): damaged or misnamed?") from error
    _check_size(path, image)
    _check_memory(path, image)
    check_image(image, path, frame, _stored_header(image))


def check_image(
    image: nibabel.spatialimages.SpatialImage,
    name: str | os.PathLike,
    frame: int | None = None,
    header: nibabel.Nifti1Header | None = None,
) -> None:
    """Refuse an image in memory that is no 3D volume with a sound geometry; its voxels are not looked at.

    Args:
        image: NIfTI or FreeSurfer image.
        name: what messages call it.
        frame: see :func:`check_nifti`.
        header: the header of a NIfTI file as it is on disk, before nibabel mends it; by default the image's.

    Raises:
        ValueError: see :func:`check_nifti`, which also says what is logged as a warning.
    """
    dtype = image.get_data_dtype()
    if dtype.names or dtype.kind == "c":
        raise ValueError(f"{name}: voxels are {dtype}: RGB and complex volumes cannot be super-resolved, convert first")
    sizes = tuple(int(n) for n in image.shape)
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    if not 3 <= len(sizes) <= 4:
        remedy = "save one of its volumes" if len(sizes) > 4 else "give it a third axis of one slice"
        raise ValueError(f"{name}: the image has {len(sizes)} dimensions {sizes}, a 3D volume is needed: {remedy}")
    frames = sizes[3] if len(sizes) == 4 else 1
    if frames > 1 and frame is None:
        raise ValueError(f"{name}: a series of {frames} frames {sizes}, choose one with --frame 0 to {frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise ValueError(f"{name}: frame {frame} asked for, it has frames 0 to {frames - 1}")
    if min(sizes) < 1:
        raise ValueError(f"{name}: a side of the volume {sizes} is empty")
    if isinstance(image.header, nibabel.Nifti1Header):
        _check_codes(name, header or image.header)
    check_grid(image_affine(image), sizes[:3], name)
    if isinstance(image.header, nibabel.Nifti1Header):
        _check_forms(name, image, sizes[:3])
        _warn_of_header(name, image.header)


def _check_size(path: Path, image: nibabel.spatialimages.SpatialImage) -> None:
    """Refuse a file that is shorter than its header says, before memory is taken for it."""
    voxels = image.dataobj
    promised = math.prod(map(int, voxels.shape)) * voxels.dtype.itemsize
    file = Path(image.file_map["image"].filename)
    held = file.stat().st_size * (MAX_INFLATION if file.name.lower().endswith(GZIP_SUFFIXES) else 1) - voxels.offset
    if held < promised:
        raise ValueError(
            f"{path}: cannot be read to its end ({tuple(voxels.shape)} voxels are {promised} bytes, the file holds "
            f"{max(held, 0)} at most): damaged file?"
        )


def _check_memory(path: Path, image: nibabel.spatialimages.SpatialImage) -> None:
    """Refuse a volume that takes too much memory as float32, of a 4D file one frame."""
    try:
        check_unpacked(math.prod(map(int, image.shape[:3])) * np.dtype(np.float32).itemsize)
    except TooLargeError as error:
        raise ValueError(f"{path}: {error}") from error


def _stored_header(image: nibabel.spatialimages.SpatialImage) -> nibabel.Nifti1Header | None:
    """A NIfTI header as it is in the file: nibabel mends silently what other programs read in another way."""
    if not isinstance(image.header, nibabel.Nifti1Header):
        return None
    with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb") as file:
        return type(image.header).from_fileobj(file, check=False)


def _check_codes(path: str | os.PathLike, header: nibabel.Nifti1Header) -> None:
    """Refuse a NIfTI header whose geometry other programs read in another way."""
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


def _warn_of_header(path: str | os.PathLike, header: nibabel.Nifti1Header) -> None:
    unit = MILLIMETRES[int(header["xyzt_units"]) & 7]
    if unit != 1:
        logger.warning("%s: lengths in the header are in units of %g mm, the output's in mm", path, unit)
    if not (header["qform_code"] or header["sform_code"]):
        logger.warning("%s: neither qform nor sform in the header: left and right are a guess", path)


def image_affine(image: nibabel.spatialimages.SpatialImage) -> np.ndarray:
    """Give a nibabel image's affine in mm, whatever the unit in a NIfTI header, which nibabel leaves alone."""
    affine = np.asarray(image.affine, dtype=float)
    if not isinstance(image.header, nibabel.Nifti1Header):
        return affine
    return np.diag([*[MILLIMETRES[int(image.header["xyzt_units"]) & 7]] * 3, 1]) @ affine


def check_grid(affine: np.ndarray, shape: Sequence[int], name: str | os.PathLike) -> None:
    """Refuse a grid in which voxels have no size, or are skewed, or lie where no patient is.

    Args:
        affine: 4x4, from voxel indices to RAS millimetres.
        shape: the numbers of voxels along the three spatial axes.
        name: what messages call the volume.

    Raises:
        ValueError: the grid is such a one; one line.
    """
    columns, edges = affine[:3, :3], spacing(affine)
    if not np.isfinite(affine).all() or edges.min() < 1e-9 or abs(np.linalg.det(columns / edges)) < 1e-6:
        raise ValueError(f"{name}: the affine {columns.tolist()} is singular or not finite, correct qform and sform")
    if reason := implausible_grid(affine, shape):
        raise ValueError(f"{name}: {reason}: correct voxel size, unit or origin")
    unit = columns / edges
    shear = np.abs(unit.T @ unit - np.eye(3)).max()
    if shear > MAX_SHEAR:
        raise ValueError(
            f"{name}: voxel axes are not perpendicular (cosine {shear:.3f}), as after gantry tilt or an affine "
            "registration: resample to a rectangular grid first"
        )


def _check_forms(name: str | os.PathLike, image: nibabel.Nifti1Pair, shape: tuple[int, ...]) -> None:
    """Refuse a qform and a sform that claim one space and place the volume differently.

    Of two spaces, such as the scanner's and that of a registration, the sform's is taken, and this is said.
    """
    header = image.header
    codes = {form: int(header[f"{form}_code"]) for form in ("qform", "sform")}
    if all(codes.values()):
        try:
            distance = forms_apart(header, shape)
        except (ValueError, nibabel.spatialimages.HeaderDataError) as error:
            raise ValueError(f"{name}: the qform cannot be read ({first_line(error)}): set its code to 0") from error
        apart = not distance <= MAX_FORMS_APART * spacing(image_affine(image)).min()
        spaces = [nibabel.nifti1.xform_codes.label[code] for code in codes.values()]
        if apart and codes["qform"] != codes["sform"]:
            _warn_once("%s: qform (%s) and sform (%s) are %.2f mm apart, the sform is used", name, *spaces, distance)
        elif apart:
            raise ValueError(
                f"{name}: qform and sform place the volume up to {distance:.2f} mm apart: "
                "set the code of the wrong one to 0"
            )


@functools.lru_cache(maxsize=2**14)
def _warn_once(text: str, *values: object) -> None:
    logger.warning(text, *values)


def forms_apart(header: nibabel.Nifti1Header, shape: tuple[int, ...]) -> float:
    """Measure how far apart, in mm, qform and sform place the corners at most, beyond a qform's precision."""
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
    """Read the shape and affine of a volume file that :func:`check_nifti` accepts; only the header is read.

    Args:
        path: the file.
        orientation: that of an Analyze file, which does not hold it, see :class:`LoadVolumed`.

    Raises:
        ValueError: an Analyze file without a valid orientation.
    """
    path = Path(path)
    image = nibabel.load(path)
    shape = tuple(int(n) for n in image.shape[:3])
    if _is_analyze(image):
        return shape, _oriented_affine(path, shape, image.header.get_zooms(), orientation)
    return shape, image_affine(image)


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


class LoadVolumed(MapTransform):
    """Read a volume, a NIfTI or FreeSurfer file or a DICOM series, as a float32 ``MetaTensor``.

    The result is [1, X, Y, Z] with the affine in RAS millimetres, also of files in metres or micrometres; integer files
    have their slope and intercept applied. A list of files, such as the modalities of one patient, gives a channel
    each, [C, X, Y, Z]. A DICOM series is a :class:`medsr_monai.data.DicomSeries`, or a folder or zip with one that is
    no localiser, derived series or secondary capture, see :func:`medsr_monai.data.one_series`. A ``MetaTensor``
    [C, X, Y, Z] is a volume that has been read already and is left as it is.

    An Analyze file (``.img`` beside its ``.hdr``) holds voxel sizes but neither orientation nor place. It is read only
    if the item states its ``orientation``, a letter an array axis for where that axis points to (``LAS``: left,
    anterior, superior); the affine then follows from this, with the centre of the volume at the origin.

    Args:
        keys: the keys, each of a path, a series or a list of paths.
        frame: the frame of a 4D file, counted from 0.
        pictures: read pictures too, as volumes of one slice (see :func:`medsr_monai.data.load_picture`); without it
            they are refused, since they hold no geometry, and a single DICOM file is read as a volume of one slice.
        label_maps: read label maps too, which are refused otherwise.
        nan_value: replaces voxels that are NaN, as registrations leave the background; None leaves them, which
            :func:`medsr_monai.transforms.intensity_range` refuses. Infinite voxels stay.

    Raises:
        FileNotFoundError, ValueError: see :func:`check_nifti` and :func:`medsr_monai.data.one_series`; also for
            files that are truncated or whose checksum is wrong, label maps, values whose offset leaves float32 too few
            steps for their range, Analyze files without a stated orientation, and files of a list that do not lie in
            the grid of its first.
    """

    labels = False

    def __init__(
        self,
        keys: KeysCollection,
        frame: int | None = None,
        allow_missing_keys: bool = False,
        *,
        pictures: bool = False,
        label_maps: bool = False,
        nan_value: float | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.nan_value = nan_value
        self.frame = frame
        self.label_maps = label_maps or self.labels
        self.pictures = pictures
        self.loader = LoadImage(ensure_channel_first=True, image_only=True, dtype=np.float32)

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.load(d[key], d.get("orientation"))
        return d

    def load(
        self,
        path: str | os.PathLike | DicomSeries | MetaTensor | Sequence[str | os.PathLike],
        orientation: str | None = None,
    ) -> MetaTensor:
        """Read one volume, of several channels if ``path`` is a list; ``orientation`` is that of Analyze files."""
        if isinstance(path, MetaTensor):
            return path
        if isinstance(path, DicomSeries):
            return self._load_series(path)
        if isinstance(path, (str, os.PathLike)):
            return self._load_file(path, orientation)
        if not path:
            raise ValueError(
                f"{path!r} in place of an image (an empty list of files?), expected a file, or one file per channel"
            )
        first, *others = (self._load_file(p, orientation) for p in path)
        grids = [(tuple(v.shape[1:]), v.affine) for v in (first, *others)]
        for name, grid in zip(path[1:], grids[1:], strict=True):
            check_same_grid(name, grid, path[0], grids[0])
        channels = torch.cat([v.as_tensor() for v in (first, *others)])
        return MetaTensor(channels, meta=first.meta, applied_operations=[])

    def _load_file(self, path: str | os.PathLike, orientation: str | None) -> MetaTensor:
        check_named(path, "image")
        if self.pictures and is_picture(path):
            if self.frame not in (None, 0):
                raise ValueError(f"{path}: frame {self.frame} asked for, a picture has frame 0 only")
            picture = load_picture(path, self.labels)
            if not self.label_maps and not is_dicom_file(path) and picture.shape[0] == 1:
                check_no_label_map(path, picture[0, ..., 0].numpy())
            return picture
        if _is_dicom(path):
            return self._load_series(one_series(path))
        check_nifti(path, self.frame)
        try:
            for part in pair_of(path):
                if part.name.lower().endswith(GZIP_SUFFIXES):
                    check_gzip(part)
            volume = self.loader(str(path), reader=NibabelReader(squeeze_non_spatial_dims=True))
        except Exception as error:  # gzip, zlib and nibabel raise many kinds
            if is_out_of_memory(error):
                raise
            raise ValueError(f"{path}: cannot be read to its end ({first_line(error)}): damaged file?") from error
        if self.frame is not None:
            volume = volume[self.frame : self.frame + 1]
        # of an Analyze file and of other units than mm the reader does not know it
        volume.affine = torch.as_tensor(read_grid(path, orientation)[1])
        volume.meta["original_affine"] = volume.affine.numpy().copy()
        volume = volume.to(torch.float32)
        if self.nan_value is not None:
            replace_nan(path, volume[0].numpy(), self.nan_value)
        if not self.label_maps:
            check_values(path, volume[0].numpy(), nibabel.load(path).header)
        return volume

    def _load_series(self, series: DicomSeries) -> MetaTensor:
        if self.frame not in (None, 0):
            raise ValueError(f"{series.source}: frame {self.frame} asked for, a DICOM series is read as frame 0 only")
        voxels = series.read()
        _check_steps(series.source, voxels)
        voxels = torch.from_numpy(voxels)[None]
        # the root, since outputs are named after it, and a series is called by the text of its headers
        meta = {"filename_or_obj": series.root, "spatial_shape": np.array(series.shape), "space": SpaceKeys.RAS}
        meta["original_affine"] = series.affine.copy()
        meta["original_channel_dim"] = float("nan")  # without it MONAI's writers take a single slice for 2D
        return MetaTensor(voxels, affine=torch.from_numpy(series.affine), meta=meta)


def replace_nan(path: str | os.PathLike, voxels: np.ndarray, value: float) -> None:
    """Replace, in place, voxels that are NaN by a value, and log how many they were.

    Raises:
        ValueError: the value is no finite number.
    """
    if not math.isfinite(value):
        raise ValueError(f"nan_value is {value}, expected a number such as 0")
    broken = np.isnan(voxels)
    if broken.any():
        voxels[broken] = value
        logger.warning("%s: %d of %d voxels were NaN and became %g", path, broken.sum(), broken.size, value)


def check_values(
    path: str | os.PathLike, voxels: np.ndarray, header: nibabel.spatialimages.SpatialHeader | None = None
) -> None:
    """Refuse values [X, Y, Z], float32, that no network can super-resolve: a label map's, or of too coarse steps.

    Args:
        path: what the error calls the volume; names such as ``sub-01_dseg.nii.gz`` are those of label maps.
        voxels: the volume.
        header: NIfTI's may state that it is a label map.

    Raises:
        ValueError: one line that says which it is and what to do.
    """
    intent = int(header["intent_code"]) if isinstance(header, nibabel.Nifti1Header) else 0
    _check_steps(path, voxels)  # first, since coarse steps look like labels
    check_no_label_map(path, voxels, intent)


def _check_steps(path: str | os.PathLike, voxels: np.ndarray) -> None:
    """Refuse values so far from zero that float32 holds too few of them; zeros, such as a mask's, are not counted."""
    counted = np.isfinite(voxels) & (voxels != 0)
    low, high = (float(f(voxels, where=counted, initial=start)) for f, start in ((np.min, np.inf), (np.max, -np.inf)))
    if low > high or (low == high and abs(low) < EXACT):
        return
    step = float(np.spacing(np.float32(max(abs(low), abs(high)))))
    told = f"{path}: values from {low:.9g} to {high:.9g}, where float32 has steps of {step:g}"
    if step > MAX_STEP * (high - low):
        raise ValueError(f"{told}, too coarse for their range: subtract an offset, and add it to the result in float64")
    if step > MAX_STEP / 10 * (high - low):
        logger.warning("%s, to which they are rounded: subtract the offset if this matters", told)


def _is_dicom(path: str | os.PathLike) -> bool:
    """Whether a path is a DICOM or zip file, or a folder with DICOM files."""
    if not Path(path).is_dir():
        return is_dicom_file(path) or is_zip(path)
    return holds_dicom(path)
