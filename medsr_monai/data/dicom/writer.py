"""A volume as a DICOM series that is derived from the series it was computed from."""

from __future__ import annotations

import copy
import datetime
import itertools
import math
import os
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from monai.data import MetaTensor
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from medsr_monai import __version__
from medsr_monai.atomic import written_together
from medsr_monai.data.dicom.attributes import (
    check_sources,
    compression_history,
    constant,
    derived_class,
    held_attributes,
    is_frame,
)
from medsr_monai.transforms.geometry import spacing

__all__ = ["check_series_folder", "save_dicom_slices", "write_dicom_series"]

SOFTWARE = "medsr_monai"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
MAX_SKEW = 1e-3
"""The largest cosine between the rows and columns of a volume that DICOM can hold."""
MAX_TILT = 0.01
"""The largest cosine between the stack's direction and rows or columns, which the slices' positions follow."""
SERIES_NUMBER_STEP = 1000
"""It is added to the source's series number, so that the series is recognised and stands behind the scanner's own."""
MAX_INTEGER = 2**31 - 1
RESAMPLED = ("113085", "DCM", "Spatial resampling")  # PS3.16 CID 7203
SOURCE_IMAGE = ("121322", "DCM", "Source image for image processing operation")  # PS3.16 CID 7202
PROCESSING_EQUIPMENT = ("109102", "DCM", "Processing Equipment")  # PS3.16 CID 7005
TEXT_LENGTH = {"LO": 64, "ST": 1024}
RESEARCH_ONLY = "research use only, not for clinical use"
WINDOW_PERCENTILES = (0.5, 99.5)


class _Stack(NamedTuple):
    """A volume as DICOM orders it: [slices, rows, columns], LPS affine of the index (column, row, slice)."""

    voxels: np.ndarray
    affine: np.ndarray
    source_shape: tuple[int, int, int]
    """The shape of the source, in the order of ``voxels``."""
    source_gap: float | None
    """The distance in mm between the source's slices, None for a single one."""

    @property
    def directions(self) -> np.ndarray:
        return self.affine[:3, :3] / spacing(self.affine)

    def position(self, number: int) -> np.ndarray:
        """Centre in mm of the first pixel of a slice."""
        return self.affine[:3, 3] + number * self.affine[:3, 2]


class _Encoding(NamedTuple):
    """Stored pixels times slope plus intercept are the volume's values; both as DICOM's decimal strings."""

    slope: str
    intercept: str
    signed: bool

    @property
    def limits(self) -> tuple[int, int]:
        return (-(2**15), 2**15 - 1) if self.signed else (0, 2**16 - 1)

    def store(self, values: np.ndarray) -> np.ndarray:
        stored = np.rint((values.astype(np.float64) - float(self.intercept)) / float(self.slope))
        return np.clip(stored, *self.limits).astype("<i2" if self.signed else "<u2")

    def holds(self, low: float, high: float) -> bool:
        stored = (np.array([low, high]) - float(self.intercept)) / float(self.slope)
        return bool(self.limits[0] - 0.5 <= stored.min() and stored.max() <= self.limits[1] + 0.5)


def write_dicom_series(
    volume: MetaTensor,
    folder: str | os.PathLike,
    sources: Sequence[Dataset],
    *,
    description: str = "",
    overwrite: bool = False,
) -> None:
    """Write a volume as a new DICOM series of the study that it was computed from, one single-frame file a slice.

    Readers get the same voxels, within half a quantisation step, at the same place, within a thousandth of a
    millimetre. The source is MR or CT, single-frame or enhanced; the files are MR Image Storage or CT Image Storage,
    Explicit VR Little Endian, uncompressed, named ``0001.dcm`` and so on by InstanceNumber.

    - **Identity.** New random SOP and Series Instance UIDs (2.25 and a UUID, as PS3.5 B.2 has it): a UID must never
      name two different files, and a second run differs from the first at least in its times. SeriesNumber is the
      source's plus 1000, SeriesDescription the source's and ``SR x4 RESEARCH ONLY``, within 64 characters. Patient,
      Study and FrameOfReference are the source's (the frame of reference is new where the source has not one).
    - **Derivation.** ImageType DERIVED, SECONDARY and the source's further values; DerivationDescription (the source's
      before ours) and DerivationCodeSequence (113085 DCM, Spatial resampling); ContributingEquipmentSequence with the
      software's version; SourceImageSequence: the one source image at a slice's place, or all where slices are new,
      or none if a source image has no SOPInstanceUID.
    - **Geometry.** Rows, columns and slice numbers run as the source's do, whatever the order of the volume's axes;
      position, orientation, spacing and SliceLocation (mm along the normal) follow from the volume's affine.
      SliceThickness is the source's where the slices are the source's, else their distance.
    - **Values.** 16 bits. CT keeps the source's slope and intercept, so that Hounsfield units stay whole numbers,
      where the values fit. Everything else spans the volume's range, zero included, by one slope: the error is at
      most range / 65535 / 2, and 0 is stored as 0 if nothing is below it. Signed if the source is, or if CT needs it.
      MR files thus have a slope and intercept, as Philips' have: a Standard Extended SOP Class.
    - **Window.** One for all slices: the source's, or the median of its slices' windows, or percentiles of the volume.
    - **The rest** holds if it is equal in all source files, see
      :func:`medsr_monai.data.dicom.attributes.held_attributes`. What was compressed with loss stays marked so. Dropped
      are private attributes, overlays, icons, padding and extreme pixel values, and references of the source's images.

    Args:
        volume: [1, X, Y, Z], RAS affine, finite.
        folder: the folder of the series, which is made whole under a temporary name beside it and then renamed.
        sources: headers of the source's slices, in any order, see :meth:`medsr_monai.data.DicomSeries.headers`.
        description: what was computed, such as the bundle and the plane, for DerivationDescription.
        overwrite: replace a folder of a series that this function wrote.

    Raises:
        ValueError: see :func:`medsr_monai.data.dicom.attributes.check_sources`; several channels, NaN or Inf, a sheared
            affine.
        FileExistsError: see :func:`check_series_folder`.
    """
    folder = Path(folder)
    check_series_folder(folder, overwrite)
    with written_together(folder) as (partial,):
        partial.mkdir(parents=True)
        save_dicom_slices(volume, partial, sources, description=description)


def save_dicom_slices(volume: MetaTensor, folder: Path, sources: Sequence[Dataset], *, description: str = "") -> None:
    """Save the files of :func:`write_dicom_series`, one by one, into an empty folder that the caller has made.

    Args:
        volume, sources, description: see :func:`write_dicom_series`.
        folder: the folder of the files; errors do not name it, since it may be a temporary one.

    Raises:
        ValueError: see :func:`write_dicom_series`; nothing has been saved then.
    """
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise ValueError(f"a volume [1, X, Y, Z] is written as DICOM, this has the shape {tuple(volume.shape)}")
    low, high = (float(value) for value in volume.as_tensor().aminmax())  # NaN of any NaN
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("the volume has NaN or Inf, which DICOM pixels cannot hold")
    # flaws of the source are not ours to report, with its patient's data
    with pydicom.config.disable_value_validation():
        check_sources(sources)
        shared = held_attributes(sources)
        shared.update(compression_history(sources))
        stack = _arrange(volume, sources)
        encoding = _choose_encoding(low, high, sources)
        _describe_derivation(shared, sources, stack, description)
        _describe_pixels(shared, sources, stack, encoding, volume)
        # of the frames of one file, the file
        files = {h.get("SOPInstanceUID"): h for h in sources}
        # some anonymisers drop it, and what has no UID cannot be referred to
        everything = [] if not all(files) else [_reference(h, whole=True) for h in files.values()]
        width = max(4, len(str(len(stack.voxels))))
        for number in range(len(stack.voxels)):
            dataset = Dataset()
            dataset.update(shared)
            _place(dataset, stack, number)
            same = _at_same_place(sources, stack, number)
            if everything:
                dataset.SourceImageSequence = everything if same is None else [_reference(same)]
            dataset.PixelData = encoding.store(stack.voxels[number]).tobytes()
            _save(dataset, folder / f"{number + 1:0{width}}.dcm")


def check_series_folder(
    folder: str | os.PathLike, overwrite: bool = False, source: str | os.PathLike | None = None
) -> None:
    """Refuse a folder that a series may not be written to, before any work.

    Args:
        folder: the folder that the series will have.
        overwrite: replace a folder of a series that was written by :func:`write_dicom_series`.
        source: what the series is made of: never replaced, nor is a folder that it lies in.

    Raises:
        ValueError: it is the source, lies in it or holds it.
        FileExistsError: it is there and not empty, or with ``overwrite``: it holds anything that
            :func:`write_dicom_series` did not write, since the folder is replaced as a whole.
        PermissionError: nothing can be written beside it.
    """
    folder = Path(folder)
    if source is not None:
        one, other = folder.resolve(), Path(source).resolve()
        if one == other or one in other.parents or other in one.parents:
            raise ValueError(f"{folder}: is, holds or lies in the input {source}, choose a folder elsewhere")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file, a DICOM series is written to a folder of its own: give a new name")
    found = sorted(folder.iterdir()) if folder.exists() else []
    if found and not overwrite:
        raise FileExistsError(f"{folder}: is not empty, choose another folder or add --overwrite")
    if strange := next((p for p in found if not _is_ours(p)), None):
        raise FileExistsError(
            f"{folder}: holds {strange.name}, which is no slice of a derived series, and would be lost: choose another "
            "folder"
        )
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: nothing can be written to {parent}, choose another output")


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["ContributingEquipmentSequence"])
    except (InvalidDicomError, OSError):
        return False
    equipment = header.get("ContributingEquipmentSequence") or []
    return any(item.get("ManufacturerModelName") == SOFTWARE for item in equipment)


def _arrange(volume: MetaTensor, headers: Sequence[Dataset]) -> _Stack:
    """Order and flip the volume's axes so that they run as the source's columns, rows and slice numbers do."""
    affine = LPS @ np.asarray(volume.affine, dtype=np.float64)
    columns = affine[:3, :3] / spacing(affine)
    orientation = np.array(headers[0].ImageOrientationPatient, dtype=float)
    normal = np.cross(orientation[:3], orientation[3:])
    places = np.array([h.ImagePositionPatient for h in headers], dtype=float) @ normal
    numbers = np.array([float(h.get("InstanceNumber") or 0) for h in headers])
    backwards = np.dot(places - places.mean(), numbers - numbers.mean()) < 0
    directions = np.stack([orientation[:3], orientation[3:], -normal if backwards else normal])
    cosines = directions @ columns  # source axis by array axis
    axes = max(itertools.permutations(range(3)), key=lambda p: sum(abs(cosines[s, a]) for s, a in enumerate(p)))
    order = np.eye(4)
    order[:3, :3] = 0
    voxels = volume[0].numpy()
    flips = []
    for source, axis in enumerate(axes):
        flip = cosines[source, axis] < 0
        order[axis, source] = -1 if flip else 1
        order[axis, 3] = voxels.shape[axis] - 1 if flip else 0
        flips.append(slice(None, None, -1 if flip else 1))
    unit = columns[:, axes]
    skew, tilt = abs(unit[:, 0] @ unit[:, 1]), float(np.abs(unit[:, :2].T @ unit[:, 2]).max())
    if skew > MAX_SKEW or tilt > MAX_TILT:
        cosine = max(skew, tilt)
        raise ValueError(f"voxel axes are not perpendicular (cosine {cosine:.4f}), DICOM cannot hold that: write NIfTI")
    arranged = voxels.transpose(axes)[tuple(flips)].transpose(2, 1, 0)
    gap = (places.max() - places.min()) / (len(headers) - 1) if len(headers) > 1 else None
    source_shape = (len(headers), int(headers[0].Rows), int(headers[0].Columns))
    return _Stack(arranged, affine @ order, source_shape, gap)


def _decimal(value: float) -> str:
    """A number as DICOM writes it, in 16 characters at most."""
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else format_number_as_ds(number)


def _rounded(value: float, rounding: str) -> str:
    """Write a number as a decimal string that loses at most the tenth digit, in a known direction."""
    digits = f"{Context(prec=10, rounding=rounding).create_decimal(Decimal(value)).normalize()}"
    return digits if len(digits) <= 16 else f"{float(digits):.9e}"


def _choose_encoding(low: float, high: float, headers: Sequence[Dataset]) -> _Encoding:
    signed = constant(headers, "PixelRepresentation") == 1
    if derived_class(headers[0]) == CTImageStorage:
        slope, intercept = constant(headers, "RescaleSlope"), constant(headers, "RescaleIntercept")
        slope, intercept = (1, -1024) if slope is None or intercept is None or slope <= 0 else (slope, intercept)
        # ringing may fall below the intercept of an unsigned source: stored as negative numbers then
        for choice in (signed, True):
            encoding = _Encoding(_decimal(slope), _decimal(intercept), choice)
            if encoding.holds(low, high):
                return encoding
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return _Encoding("1", "0", signed)
    if not signed:
        intercept = _rounded(low, ROUND_FLOOR)
        return _Encoding(_rounded((high - float(intercept)) / 65535, ROUND_CEILING), intercept, signed)
    slope = _rounded((high - low) / 65535, ROUND_CEILING)
    return _Encoding(slope, _rounded(low + 32768 * float(slope), ROUND_FLOOR), signed)


def _describe_derivation(dataset: Dataset, headers: Sequence[Dataset], stack: _Stack, description: str) -> None:
    """Identity of the series, and what was done to its source."""
    now = datetime.datetime.now(_timezone(dataset))
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    dataset.SOPClassUID = derived_class(headers[0])
    dataset.SeriesInstanceUID = generate_uid(prefix=None)
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if not dataset.get(name):
            setattr(dataset, name, generate_uid(prefix=None))
    dataset.Modality = "CT" if dataset.SOPClassUID == CTImageStorage else "MR"
    dataset.InstanceCreationDate = dataset.SeriesDate = dataset.ContentDate = date
    dataset.InstanceCreationTime = dataset.SeriesTime = dataset.ContentTime = time
    dataset.SeriesNumber = min(SERIES_NUMBER_STEP + int(constant(headers, "SeriesNumber") or 0), MAX_INTEGER)
    factor = max(new / old for new, old in zip(stack.voxels.shape, stack.source_shape, strict=True))
    suffix = f"SR x{factor:.3g} RESEARCH ONLY"
    name = _text(headers, "SeriesDescription", TEXT_LENGTH["LO"] - len(suffix) - 1)
    dataset.SeriesDescription = f"{name} {suffix}".strip()
    kinds = np.ravel(constant(headers, "ImageType") or []).tolist()
    dataset.ImageType = ["DERIVED", "SECONDARY", *(kinds[2:] or ["AXIAL" if dataset.Modality == "CT" else "OTHER"])]
    told = ", ".join(filter(None, (f"Super-resolution x{factor:.3g} by {SOFTWARE} {__version__}", description)))
    told = f"{told}; {RESEARCH_ONLY}"[: TEXT_LENGTH["ST"]]
    earlier = _text(headers, "DerivationDescription", TEXT_LENGTH["ST"] - len(told) - 2)
    dataset.DerivationDescription = f"{earlier}; {told}" if earlier else told
    dataset.DerivationCodeSequence = [*_items(headers, "DerivationCodeSequence"), _code(*RESAMPLED)]
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [_code(*PROCESSING_EQUIPMENT)]
    equipment.Manufacturer = equipment.ManufacturerModelName = SOFTWARE
    equipment.SoftwareVersions = __version__
    equipment.ContributionDateTime = date + time
    equipment.ContributionDescription = told
    dataset.ContributingEquipmentSequence = [*_items(headers, "ContributingEquipmentSequence"), equipment]


def _text(headers: Sequence[Dataset], name: str, length: int) -> str:
    """Text that all headers share, in at most so many characters; a backslash has made a list of it."""
    return " ".join(str(part) for part in np.ravel(constant(headers, name) or ""))[: max(0, length)].strip()


def _items(headers: Sequence[Dataset], name: str) -> list[Dataset]:
    """Copies of the items of a sequence that all headers share, without private elements."""
    items = copy.deepcopy(list(constant(headers, name) or []))
    for item in items:
        item.remove_private_tags()
    return items


def _timezone(dataset: Dataset) -> datetime.tzinfo | None:
    """Read the time zone of the source's times, if it is stated."""
    try:
        return datetime.datetime.strptime(str(dataset.get("TimezoneOffsetFromUTC")), "%z").tzinfo
    except ValueError:
        return None


def _describe_pixels(
    dataset: Dataset, headers: Sequence[Dataset], stack: _Stack, encoding: _Encoding, volume: MetaTensor
) -> None:
    """Everything on pixels that all slices share."""
    edges = spacing(stack.affine)
    kept = stack.source_gap is None or abs(edges[2] - stack.source_gap) < 1e-3 * stack.source_gap
    thickness = constant(headers, "SliceThickness") if kept else None
    dataset.SliceThickness = thickness or _decimal(edges[2])
    dataset.SpacingBetweenSlices = _decimal(edges[2])
    dataset.PixelSpacing = [_decimal(edges[1]), _decimal(edges[0])]
    dataset.ImageOrientationPatient = [_decimal(v) for v in stack.directions[:, :2].T.ravel()]
    dataset.Rows, dataset.Columns = stack.voxels.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, int(encoding.signed)
    dataset.RescaleSlope, dataset.RescaleIntercept = encoding.slope, encoding.intercept
    unit = constant(headers, "RescaleType") or ("HU" if dataset.Modality == "CT" else "US")
    dataset.RescaleType = unit
    if constant(headers, "WindowCenter") is not None and constant(headers, "WindowWidth") is not None:
        for name in ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction"):
            if (value := constant(headers, name)) is not None:
                setattr(dataset, name, value)
    elif all(h.get("WindowCenter") is not None and h.get("WindowWidth") is not None for h in headers):
        for name in ("WindowCenter", "WindowWidth"):
            setattr(dataset, name, _decimal(np.median([np.ravel(h[name].value)[0] for h in headers])))
    else:
        low, high = np.percentile(_sample(volume), WINDOW_PERCENTILES)
        dataset.WindowCenter, dataset.WindowWidth = _decimal((low + high) / 2), _decimal(high - low or 1.0)
        dataset.VOILUTFunction = "LINEAR_EXACT"  # LINEAR wants a width of at least 1


def _sample(volume: MetaTensor, most: int = 10**6) -> np.ndarray:
    """Some million voxels, evenly taken: enough for percentiles."""
    values = volume.as_tensor().reshape(-1)
    return values[:: max(1, math.ceil(len(values) / most))].numpy()


def _place(dataset: Dataset, stack: _Stack, number: int) -> None:
    dataset.SOPInstanceUID = generate_uid(prefix=None)
    dataset.InstanceNumber = number + 1
    position = stack.position(number)
    dataset.ImagePositionPatient = [_decimal(v) for v in position]
    row, column = stack.directions[:, :2].T
    dataset.SliceLocation = _decimal(float(np.cross(row, column) @ position))


def _at_same_place(headers: Sequence[Dataset], stack: _Stack, number: int) -> Dataset | None:
    """Header of the source slice that a slice was computed from; None where slices are new."""
    if len(stack.voxels) != len(headers):
        return None
    direction, edge = stack.directions[:, 2], spacing(stack.affine)[2]
    # dividing pixels moves the first one's centre, but only within the slice
    offsets = [np.array(h.ImagePositionPatient, dtype=float) - stack.position(number) for h in headers]
    distances = np.abs(np.array(offsets) @ direction)
    return headers[int(distances.argmin())] if distances.min() < 0.1 * edge else None


def _reference(header: Dataset, whole: bool = False) -> Dataset:
    """A source image; of a frame, its file with the frame's number or, if ``whole``, without it."""
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if is_frame(header) and not whole:
        item.ReferencedFrameNumber = int(header.InstanceNumber)
    item.PurposeOfReferenceCodeSequence = [_code(*SOURCE_IMAGE)]
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _save(dataset: Dataset, path: Path) -> None:
    meta = dataset.file_meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
