"""Headers of DICOM images, slice by slice: of files with one slice, and of the frames of enhanced multi-frame files."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.errors import InvalidDicomError

from medsr_monai.data.folder import files_below

__all__ = ["DicomFiles", "DicomSlice", "is_zip", "read_slices"]

PREAMBLE = 132
SLICE_SUFFIXES = (".dcm", ".dicom", ".ima")
"""Of files that claim to be DICOM: one that cannot be read is a slice lost, other files are passed over."""
STUDY_TAGS = (
    "SOPClassUID SOPInstanceUID ImageType Modality SeriesDescription StudyInstanceUID SeriesInstanceUID SeriesNumber "
    "InstanceNumber SliceThickness SpacingBetweenSlices EchoTime EchoNumbers InversionTime TriggerTime RescaleType "
    "Units ConvolutionKernel TemporalPositionIdentifier AcquisitionNumber AcquisitionTime DiffusionBValue "
    "DiffusionGradientOrientation ImagePositionPatient ImageOrientationPatient SamplesPerPixel NumberOfFrames Rows "
    "PhotometricInterpretation Columns PixelSpacing BitsAllocated RescaleIntercept RescaleSlope ModalityLUTSequence "
    "BodyPartExamined ProtocolName PatientName PatientID PatientIdentityRemoved SharedFunctionalGroupsSequence "
    "PerFrameFunctionalGroupsSequence"
)
INTEGERS = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "SeriesNumber")
PRIVATE_B_VALUES = ((0x0019, 0x100C), (0x0043, 0x1039), (0x2001, 0x1003))
"""Of Siemens, GE and Philips, where the standard's DiffusionBValue is missing."""


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """One slice: a file, or a frame of an enhanced multi-frame file.

    Lengths are in mm, in the patient's LPS axes; None is what the header does not state.
    """

    file: str
    """Path below the folder or inside the zip; of a single file its name."""
    frame: int | None
    """Of a multi-frame file, counted from 0."""
    header: pydicom.Dataset = field(repr=False)
    """Some of the file's tags, without its pixels."""
    rows: int
    columns: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    """Between rows, between columns."""
    thickness: float | None
    gap: float | None
    """SpacingBetweenSlices."""
    slope: float
    intercept: float
    units: str
    image_type: tuple[str, ...]
    marks: dict[str, str] = field(repr=False)
    """What may tell slices at the same place apart, such as the echo."""

    @property
    def syntax(self) -> pydicom.uid.UID:
        """Transfer syntax, which says how the pixels are compressed."""
        return self.header.file_meta.get("TransferSyntaxUID", pydicom.uid.ImplicitVRLittleEndian)

    @property
    def name(self) -> str:
        """File, with the frame counted from 1, as viewers do."""
        return self.file if self.frame is None else f"{self.file} frame {self.frame + 1}"


def is_zip(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a zip file by its content or its name."""
    return Path(path).is_file() and (str(path).lower().endswith(".zip") or zipfile.is_zipfile(path))


class UnreadableZipError(ValueError):
    """A zip is damaged, encrypted, or compressed in a way that Python cannot read."""


class DicomFiles:
    """Files of a folder with those below it, of a zip, or a single file; hidden ones are left out.

    A zip is read in memory, nothing is unpacked to disk.

    Raises:
        UnreadableZipError: a zip is damaged or encrypted.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        try:
            self.archive = zipfile.ZipFile(self.root) if is_zip(self.root) else None
        except zipfile.BadZipFile as error:
            raise UnreadableZipError(f"{self.root}: cannot be unpacked ({error}): a damaged zip?") from error

    def __enter__(self) -> DicomFiles:
        return self

    def __exit__(self, *error: object) -> None:
        if self.archive is not None:
            self.archive.close()

    def names(self) -> list[str]:
        """Paths below the root, sorted."""
        if self.archive is not None:
            names = [info.filename for info in self.archive.infolist() if not info.is_dir()]
        elif self.root.is_dir():
            names = [os.path.relpath(path, self.root) for path in files_below(self.root) if path.is_file()]
        else:
            return [self.root.name]
        hidden = (".", "__MACOSX")
        return sorted(n for n in names if not any(part.startswith(hidden) for part in Path(n).parts))

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A file to read from; a zip's is decompressed only if it begins as DICOM files do."""
        if self.archive is None:
            path = self.root / name if self.root.is_dir() else self.root
            with path.open("rb") as file:
                yield file
            return
        try:
            with self.archive.open(name) as member:
                content = member.read(PREAMBLE)
                if content[-4:] == b"DICM":
                    content += member.read()
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error, EOFError) as error:
            raise UnreadableZipError(
                f"{self.root}: {name} cannot be unpacked ({error}): a damaged or encrypted zip?"
            ) from error
        yield io.BytesIO(content)


def read_slices(files: DicomFiles) -> tuple[list[DicomSlice], dict[str, str]]:
    """Slices of all DICOM images among ``files``, and why others that claim to be DICOM cannot be read, by name.

    Whatever else lies there is passed over: a DICOMDIR, reports, files of other kinds.
    """
    slices, damaged = [], {}
    with warnings.catch_warnings(action="ignore"):  # pydicom's, of values that no volume depends on
        for name in files.names():
            try:
                slices += _of_file(files, name)
            except InvalidDicomError:
                if name.lower().endswith(SLICE_SUFFIXES):
                    damaged[name] = "does not begin as DICOM files do"
            except OSError as error:
                damaged[name] = error.strerror or "cannot be opened"
            except UnreadableZipError:
                raise
            except Exception as error:  # pydicom meets damaged headers with many kinds
                damaged[name] = f"has a damaged header ({_first_line(error)})"
    return slices, damaged


def _of_file(files: DicomFiles, name: str) -> list[DicomSlice]:
    tags = [*STUDY_TAGS.split(), *PRIVATE_B_VALUES]
    with files.open(name) as file:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
    if "Rows" in header and "Columns" in header:
        return _of_header(name, header)
    if "Image Storage" in getattr(header.get("SOPClassUID"), "name", ""):
        raise ValueError("without an image: no Rows and Columns, truncated?")
    return []


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _of_header(name: str, header: pydicom.Dataset) -> list[DicomSlice]:
    for _ in header:  # values are converted when they are first asked for: a wrong one shows here, not later
        pass
    for keyword in INTEGERS:
        if header.get(keyword) not in (None, ""):
            int(header.get(keyword))
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    if not per_frame:
        return [_slice(name, None, header, [])]
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    if len(per_frame) != int(header.get("NumberOfFrames") or 1):
        raise ValueError(f"{header.NumberOfFrames} frames, but functional groups of {len(per_frame)}")
    slices = [_slice(name, number, header, [group, *shared]) for number, group in enumerate(per_frame)]
    # what the slices were made of is not needed again, and large
    header.pop("PerFrameFunctionalGroupsSequence")
    return slices


def _slice(name: str, frame: int | None, header: pydicom.Dataset, groups: Sequence[pydicom.Dataset]) -> DicomSlice:
    def value(keyword: str, *sequences: str) -> Any:
        """Of the frame's functional groups, else of the shared ones, else of the header."""
        for group in groups:
            item = group
            for sequence in sequences:
                item = (item.get(sequence) or [None])[0]
                if item is None:
                    break
            else:
                if item.get(keyword) not in (None, ""):
                    return item.get(keyword)
        found = header.get(keyword)
        return None if found in ("", []) else found

    def numbers(keyword: str, sequence: str, count: int) -> tuple[float, ...] | None:
        found = value(keyword, sequence)
        if found is None:
            return None
        if not isinstance(found, Sequence) or len(found) != count:
            raise ValueError(f"{keyword} of other than {count} numbers")
        return tuple(float(n) for n in found)

    def number(keyword: str, sequence: str, default: float | None = None) -> float | None:
        found = value(keyword, sequence)
        return default if found is None else float(found)

    image_type = (
        value("FrameType", *_FRAME_TYPES.get(str(header.get("Modality")), _FRAME_TYPES["MR"])) if groups else None
    )
    image_type = image_type or header.get("ImageType") or ()
    image_type = (image_type,) if isinstance(image_type, str) else tuple(image_type)
    b_value = value("DiffusionBValue", "MRDiffusionSequence")
    if b_value is None:
        b_value = next((header[tag].value for tag in PRIVATE_B_VALUES if tag in header), None)
    diffusion = ("MRDiffusionSequence", "DiffusionGradientDirectionSequence")
    marks = {
        "echo": header.get("EchoNumbers"),
        "echo time": value("EffectiveEchoTime", "MREchoSequence") or header.get("EchoTime"),
        "b-value": b_value,
        "gradient direction": value("DiffusionGradientOrientation", *diffusion),
        "time": value("TemporalPositionIndex", "FrameContentSequence") or header.get("TemporalPositionIdentifier"),
        "trigger": value("NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence") or value("TriggerTime"),
        "inversion": value("InversionTimes", "MRModifierSequence") or header.get("InversionTime"),
        "kernel": value("ConvolutionKernel", "CTReconstructionSequence"),
        "type": "/".join(image_type[2:]),
        "acquisition": value("FrameAcquisitionNumber", "FrameContentSequence") or header.get("AcquisitionNumber"),
        "acquisition time": header.get("AcquisitionTime"),
    }
    return DicomSlice(
        file=name,
        frame=frame,
        header=header,
        rows=int(header.get("Rows") or 0),
        columns=int(header.get("Columns") or 0),
        position=numbers("ImagePositionPatient", "PlanePositionSequence", 3),
        orientation=numbers("ImageOrientationPatient", "PlaneOrientationSequence", 6),
        pixel_spacing=numbers("PixelSpacing", "PixelMeasuresSequence", 2),
        thickness=number("SliceThickness", "PixelMeasuresSequence"),
        gap=number("SpacingBetweenSlices", "PixelMeasuresSequence"),
        slope=number("RescaleSlope", "PixelValueTransformationSequence", 1.0),
        intercept=number("RescaleIntercept", "PixelValueTransformationSequence", 0.0),
        units=str(value("RescaleType", "PixelValueTransformationSequence") or value("Units") or ""),
        image_type=tuple(str(part).upper() for part in image_type),
        marks={name: "" if mark is None else str(mark) for name, mark in marks.items()},
    )


_FRAME_TYPES = {
    "CT": ("CTImageFrameTypeSequence",),
    "MR": ("MRImageFrameTypeSequence",),
    "PT": ("PETFrameTypeSequence",),
}
