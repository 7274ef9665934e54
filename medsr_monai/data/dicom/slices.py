"""Headers of DICOM images, slice by slice: of files with one slice, and of the frames of enhanced multi-frame files."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_partial
from pydicom.filewriter import write_file_meta_info
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from medsr_monai.errors import first_line

__all__ = [
    "DicomFiles",
    "DicomSlice",
    "FoundSlices",
    "begins_as_dicom",
    "check_unpacked",
    "is_zip",
    "limit_unpacking",
    "read_slices",
]

PREAMBLE = 132
SLICE_SUFFIXES = (".dcm", ".dicom", ".ima")
"""Suffixes that claim a file to be DICOM: one that cannot be read may be a slice that is lost."""
HEAD = 1024
"""The transfer syntax is looked for in the first bytes of a file, this many."""
CHUNK = 2**20
"""The number of bytes that are inflated at a time while they are counted."""
HIDDEN = (".", "__MACOSX")
"""The beginnings of the names of hidden files and folders."""
FIRST_GROUPS = (0x0002, 0x0008)
"""The groups that the first data element of a DICOM file without preamble may have."""
LONGEST_FIRST = 128
"""The largest number of bytes that the first data element of a file without preamble may hold."""
LOCALISERS = ("LOCALIZER", "SCOUT", "SURVIEW", "SURVEY", "TOPOGRAM", "SCANOGRAM", "SCANOSCOPE")
"""Words in ImageType of images that were made to plan other scans."""
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
"""The tags of FloatPixelData, DoubleFloatPixelData and PixelData."""
NO_INTENSITIES = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG", "SM")
"""Modalities of objects that hold no intensities of a volume, whether or not they hold pixels."""
CLASSES_WITHOUT_INTENSITIES = ("RT Dose", "Segmentation", "Whole Slide Microscopy", "Presentation State")
"""Words in the names of the SOP classes of such objects."""
STUDY_TAGS = (
    "SOPClassUID SOPInstanceUID ImageType Modality SeriesDescription StudyInstanceUID SeriesInstanceUID SeriesNumber "
    "InstanceNumber SliceThickness SpacingBetweenSlices EchoTime EchoNumbers InversionTime TriggerTime RescaleType "
    "Units ConvolutionKernel TemporalPositionIdentifier AcquisitionNumber AcquisitionTime DiffusionBValue "
    "DiffusionGradientOrientation ImagePositionPatient ImageOrientationPatient SamplesPerPixel NumberOfFrames Rows "
    "PhotometricInterpretation Columns PixelSpacing BitsAllocated RescaleIntercept RescaleSlope ModalityLUTSequence "
    "BodyPartExamined ProtocolName PatientName PatientID PatientIdentityRemoved SharedFunctionalGroupsSequence "
    "PerFrameFunctionalGroupsSequence"
)
INTEGERS = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "SeriesNumber", "InstanceNumber")
UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
PRIVATE_MARKS = {
    "b-value": [
        {(0x0019, 0x100C): None},  # Siemens
        {(0x0043, 0x1039): None},  # GE
        {(0x2001, 0x1003): "f4"},  # Philips
    ],
    "gradient direction": [
        {(0x0019, 0x100E): "f8"},
        {(0x0019, 0x10BB): None, (0x0019, 0x10BC): None, (0x0019, 0x10BD): None},
        {(0x2005, 0x10B0): "f4", (0x2005, 0x10B1): "f4", (0x2005, 0x10B2): "f4"},
    ],
    "gradient number": [{(0x0043, 0x1030): "i2"}],  # GE
    "complex part": [{(0x0043, 0x102F): "i2"}],  # GE: 0 for magnitude, 1 phase, 2 real, 3 imaginary
    "phase": [{(0x2001, 0x1008): None}],  # Philips
    "label": [{(0x2005, 0x1429): None}],  # Philips: LABEL or CONTROL of arterial spin labelling
}
"""Private elements that tell slices apart where the standard's do not, by the mark, as dcm2niix reads them.

A mark has several choices, each of one or more elements that stand together. An element has the type of its bytes, for
files in which its VR is unknown, or None for text.
"""
GE_B_VALUE = 1e9
"""GE adds multiples of this number to b-values."""
PRIVATE_TAGS = [tag for choices in PRIVATE_MARKS.values() for choice in choices for tag in choice]
TAGS = [Tag(tag) for tag in (*STUDY_TAGS.split(), *PRIVATE_TAGS)]
STATED_BY_CLASS = ("MR Image", "CT Image", "Enhanced MR Image", "Enhanced CT Image", "Positron Emission")
"""The beginnings of the names of SOP classes whose images certainly hold intensities."""


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """One slice: a file, or a frame of an enhanced multi-frame file.

    Lengths are in mm, in the patient's LPS axes; None is what the header does not state.
    """

    file: str
    """The path below the folder or inside the zip; of a single file its name."""
    frame: int | None
    """The frame of a multi-frame file, counted from 0; None of other files."""
    header: pydicom.Dataset = field(repr=False)
    """The header, of which only some tags are kept, and no pixels."""
    rows: int
    columns: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    """The distance between rows and the distance between columns."""
    thickness: float | None
    gap: float | None
    """Its SpacingBetweenSlices."""
    slope: float
    intercept: float
    units: str
    image_type: tuple[str, ...]
    marks: dict[str, str] = field(repr=False)
    """What may tell slices at the same place apart, such as the echo."""

    @property
    def syntax(self) -> pydicom.uid.UID:
        """The transfer syntax, which says how the pixels are compressed."""
        return self.header.file_meta.get("TransferSyntaxUID", pydicom.uid.ImplicitVRLittleEndian)

    @property
    def localiser(self) -> bool:
        """Whether its image type says that it was made to plan other scans."""
        return any(word in part for part in self.image_type for word in LOCALISERS)

    @property
    def name(self) -> str:
        """The file and its frame, counted from 1 as viewers do."""
        return self.file if self.frame is None else f"{self.file} frame {self.frame + 1}"


def is_zip(path: str | os.PathLike) -> bool:
    """Say whether a path is a zip file by its content or its name."""
    return Path(path).is_file() and (str(path).lower().endswith(".zip") or zipfile.is_zipfile(path))


_limit: int | None = None


def limit_unpacking(size: int | None) -> None:
    """Say how many bytes a file may take in this process when it is unpacked; None for half of the machine's memory."""
    global _limit
    _limit = size


def unpacked_limit() -> int:
    """Give the bytes that one file may take when it is unpacked, see :func:`limit_unpacking`.

    It is 4 GiB where the system does not tell its memory, as Windows.
    """
    if _limit is not None:
        return _limit
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 2**32


class TooLargeError(ValueError):
    """A file would take more memory than it may when it is unpacked."""


def check_unpacked(size: int) -> None:
    """Refuse to unpack what takes too much memory.

    Raises:
        TooLargeError: ``size``, in bytes, is more than :func:`unpacked_limit`.
    """
    if size > unpacked_limit():
        raise TooLargeError(
            f"would take {size / 2**30:.1f} GiB or more when unpacked, {unpacked_limit() / 2**30:.1f} GiB are allowed "
            f"({'--max-memory' if _limit is not None else 'half of the memory of this machine'})"
        )


class UnreadableZipError(ValueError):
    """A zip is damaged, encrypted, or compressed in a way that Python cannot read."""


class DicomFiles:
    """Files of a folder with those below it, of a zip, or a single file.

    Links to files and folders are followed, a loop ends. A zip is read in memory, nothing is unpacked to disk.

    Raises:
        UnreadableZipError: a zip is damaged or encrypted, or holds members that lie outside of it or share a name.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        self.left_out: dict[str, str] = {}
        """Files and folders that :meth:`names` does not tell, and why."""
        try:
            self.archive = zipfile.ZipFile(self.root) if is_zip(self.root) else None
        except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
            raise UnreadableZipError(f"{self.root}: cannot be unpacked ({error}): a damaged zip?") from error

    def __enter__(self) -> DicomFiles:
        return self

    def __exit__(self, *error: object) -> None:
        if self.archive is not None:
            self.archive.close()

    def names(self) -> list[str]:
        """List the paths below the root, sorted, of all files but those in ``left_out``."""
        if self.archive is not None:
            found = self._members()
        elif self.root.is_dir():
            found = self._files()
        else:
            return [self.root.name]
        names = []
        for name in sorted(found):
            if any(part.startswith(HIDDEN) for part in Path(name).parts):
                self.left_out[name] = "hidden"
            else:
                names.append(name)
        return names

    def _members(self) -> list[str]:
        names = [info.filename for info in self.archive.infolist() if not info.is_dir()]
        for name in names:
            if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or name[1:2] == ":":
                raise UnreadableZipError(
                    f"{self.root}: its member {name!r} names a place outside of the zip: pack the study again"
                )
        if len(set(names)) < len(names):
            twice = next(name for number, name in enumerate(sorted(names)) if name == sorted(names)[number + 1])
            raise UnreadableZipError(f"{self.root}: has two members called {twice!r}: pack the study again")
        return names

    def _files(self) -> list[str]:
        found, seen = [], set()

        def unreadable(error: OSError) -> None:
            self.left_out[os.path.relpath(error.filename, self.root)] = f"folder, {error.strerror}"

        for folder, folders, files in os.walk(self.root, onerror=unreadable, followlinks=True):
            place = os.path.realpath(folder)
            if place in seen:  # a link to a folder above it, or to one that was read already
                folders.clear()
                continue
            seen.add(place)
            for path in (os.path.join(folder, name) for name in files):
                name = os.path.relpath(path, self.root)
                try:
                    # whoever opened a pipe would wait for ever
                    regular = stat.S_ISREG(os.stat(path).st_mode)
                except OSError as error:
                    self.left_out[name] = error.strerror or "cannot be opened"
                    continue
                if regular:
                    found.append(name)
                else:
                    self.left_out[name] = "no regular file"
        return found

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open a file to read from; one in a zip is decompressed only if it begins as DICOM files do.

        Of a file whose data set is deflated it is an uncompressed copy.

        Raises:
            TooLargeError: it takes too much memory when it is unpacked; nothing is unpacked then.
        """
        if self.archive is None:
            path = self.root / name if self.root.is_dir() else self.root
            with path.open("rb") as file:
                yield _inflated(file)
            return
        try:
            with self.archive.open(name) as member:
                content = member.read(PREAMBLE)
                if begins_as_dicom(content):
                    check_unpacked(self.archive.getinfo(name).file_size)
                    content += member.read()
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error, EOFError) as error:
            raise UnreadableZipError(
                f"{self.root}: {name} cannot be unpacked ({error}): a damaged or encrypted zip?"
            ) from error
        yield _inflated(io.BytesIO(content))


def _inflated(file: BinaryIO) -> BinaryIO:
    """Give the same file, or a copy whose data set is not deflated, since pydicom inflates without bounds."""
    head = file.read(HEAD)
    file.seek(0)
    if DeflatedExplicitVRLittleEndian.encode() not in head or head[128:PREAMBLE] != b"DICM":
        return file
    file.seek(PREAMBLE)
    meta = FileMetaDataset(read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 0x0002))
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        file.seek(0)
        return file
    packed = file.read()
    size, rest, stream = 0, packed, zlib.decompressobj(-zlib.MAX_WBITS)
    while not stream.eof:
        part = stream.decompress(rest, CHUNK)
        rest, size = stream.unconsumed_tail, size + len(part)
        if not part and not rest:
            raise ValueError("its deflated data set ends early")
        check_unpacked(size)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    copy = io.BytesIO()
    copy.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(copy, meta, enforce_standard=False)
    copy.write(zlib.decompress(packed, -zlib.MAX_WBITS))
    copy.seek(0)
    return copy


def begins_as_dicom(head: bytes) -> bool:
    """Say whether a file with these first 132 bytes is DICOM.

    Either DICM follows a preamble of 128 bytes, or, as some scanners and archives write it, there is no preamble and
    the file begins with a data element of group 0002 or 0008.
    """
    if head[128:PREAMBLE] == b"DICM":
        return True
    if len(head) < 8:
        return False
    vr = head[4:6]
    for order in "<>":
        group, _ = struct.unpack(order + "HH", head[:4])
        if group in FIRST_GROUPS and (
            (vr.isalpha() and vr.isupper()) or (order == "<" and int.from_bytes(head[4:8], "little") <= LONGEST_FIRST)
        ):
            return True
    return False


@dataclass(frozen=True)
class FoundSlices:
    """What a folder, a zip or a file holds. Each of its files is in one of these."""

    slices: list[DicomSlice]
    damaged: dict[str, str]
    """Why files cannot be read that may be slices of a series, by their names."""
    left_out: dict[str, str]
    """What the other files are, by their names."""


def read_slices(files: DicomFiles) -> FoundSlices:
    """Read the headers of all DICOM images among ``files``.

    Left out are a DICOMDIR and other objects that hold no intensities of a volume, such as reports and RT doses, and
    files that are no DICOM. Such a file is damaged instead if its suffix is that of DICOM files, or if its name is that
    of a slice in its folder but for the digits.
    """
    slices, damaged, left_out = [], {}, files.left_out
    with warnings.catch_warnings(action="ignore"):  # pydicom's, of values that no volume depends on
        for name in files.names():
            try:
                found = _of_file(files, name)
            except InvalidDicomError:
                found = "no DICOM"
            except OSError as error:
                damaged[name] = error.strerror or "cannot be opened"
                continue
            except UnreadableZipError:
                raise
            except TooLargeError as error:
                damaged[name] = str(error)
                continue
            except Exception as error:  # pydicom meets damaged headers with many kinds
                damaged[name] = f"has a damaged header ({first_line(error)})"
                continue
            if isinstance(found, str):
                left_out[name] = found
            else:
                slices += found
    series = {_without_digits(item.file) for item in slices}
    for name in [name for name, reason in left_out.items() if reason == "no DICOM"]:
        if name.lower().endswith(SLICE_SUFFIXES) or _without_digits(name) in series:
            del left_out[name]
            damaged[name] = "does not begin as DICOM files do"
    return FoundSlices(slices, damaged, left_out)


def _without_digits(name: str) -> str:
    return re.sub(r"\d+", "0", name)


def _of_file(files: DicomFiles, name: str) -> list[DicomSlice] | str:
    """The slices of a file, or what it is instead."""
    pixels = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag in PIXELS and length:
            pixels.append(tag)
        return tag in PIXELS

    with files.open(name) as file:
        if not begins_as_dicom(file.read(PREAMBLE)):
            raise InvalidDicomError
        file.seek(0)
        header = read_partial(file, at_pixels, force=True, specific_tags=TAGS)
    stated = header.get("SOPClassUID"), header.file_meta.get("MediaStorageSOPClassUID")
    classes = [UID(str(uid)) for uid in stated if uid]
    kinds = [uid.name for uid in classes]
    modality = str(header.get("Modality") or "")
    if MediaStorageDirectoryStorage in classes or Path(name).name.upper() == "DICOMDIR":
        return "DICOMDIR"
    if any(word in kind for kind in kinds for word in CLASSES_WITHOUT_INTENSITIES):
        return kinds[0]
    image = any("Image Storage" in kind for kind in kinds)
    if modality in NO_INTENSITIES:
        if any(kind.startswith(STATED_BY_CLASS) for kind in kinds):
            raise ValueError(f"of the modality {modality}, but {kinds[0]}")
        return kinds[0] if kinds else f"modality {modality}"
    lacks = [keyword for keyword in ("Rows", "Columns") if keyword not in header] + ([] if pixels else ["PixelData"])
    if not lacks:
        return _of_header(name, header)
    if not header.preamble and not kinds and len(lacks) == 3:
        raise InvalidDicomError
    # a class that nobody knows may be a damaged one, unless it is stated twice
    sure = len(set(kinds)) == 1 and (kinds[0] != classes[0] or len(kinds) == 2 or not header.file_meta)
    if image or not sure:
        raise ValueError(f"without an image: no {' and '.join(lacks)}, truncated?")
    return f"{kinds[0]}, no image"


def _of_header(name: str, header: pydicom.Dataset) -> list[DicomSlice]:
    for _ in header:  # values are converted when they are first asked for: a wrong one shows here, not later
        pass
    for keyword in INTEGERS:
        if header.get(keyword) not in (None, ""):
            int(header.get(keyword))
    for keyword in UIDS:
        if not isinstance(header.get(keyword, ""), str | None):
            raise ValueError(f"{keyword} is no single UID")
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
        """Find a value in the frame's functional groups, else in the shared ones, else in the header."""
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
    diffusion = ("MRDiffusionSequence", "DiffusionGradientDirectionSequence")
    units = str(value("RescaleType", "PixelValueTransformationSequence") or value("Units") or "")
    marks = {
        "echo": header.get("EchoNumbers"),
        "echo time": value("EffectiveEchoTime", "MREchoSequence") or header.get("EchoTime"),
        "b-value": _private(header, "b-value") if b_value is None else " ".join(_words(b_value, None)),
        "gradient direction": value("DiffusionGradientOrientation", *diffusion)
        or _private(header, "gradient direction"),
        "time": value("TemporalPositionIndex", "FrameContentSequence") or header.get("TemporalPositionIdentifier"),
        "trigger": value("NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence") or value("TriggerTime"),
        "inversion": value("InversionTimes", "MRModifierSequence") or header.get("InversionTime"),
        "kernel": value("ConvolutionKernel", "CTReconstructionSequence"),
        "type": "/".join(image_type[2:]),
        "units": units,
        "gradient number": _private(header, "gradient number"),
        "complex part": _private(header, "complex part"),
        "phase": _private(header, "phase"),
        "label": _private(header, "label"),
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
        units=units,
        image_type=tuple(str(part).upper() for part in image_type),
        marks={name: "" if mark is None else str(mark) for name, mark in marks.items()},
    )


def _private(header: pydicom.Dataset, mark: str) -> str | None:
    """What private elements say of a mark, numbers with spaces between them; None if there are none."""
    for choice in PRIVATE_MARKS[mark]:
        if all(tag in header for tag in choice):
            words = [word for tag, kind in choice.items() for word in _words(header[tag].value, kind)]
            if mark == "b-value":  # the other numbers of GE's are none
                words = [f"{float(word) % GE_B_VALUE:g}" for word in words[:1] if re.fullmatch(r"[\d.]+", word)]
            return " ".join(words)
    return None


def _words(value: object, kind: str | None) -> list[str]:
    """Values of a private element, whose VR may be unknown, so that they are bytes."""
    if isinstance(value, bytes):
        if kind is None:
            value = value.decode("ascii", "replace").strip("\0 ").split("\\")
        else:
            value = np.frombuffer(value[: len(value) // np.dtype(kind).itemsize * np.dtype(kind).itemsize], f"<{kind}")
    values = [value] if isinstance(value, str) or not isinstance(value, Iterable) else value
    return [_number(v) for v in values if v is not None]


def _number(value: object) -> str:
    """A number in its shortest form, of 0.0 as of 0; other text as it is."""
    try:
        return f"{float(value) + 0.0:.{7 if isinstance(value, np.float32) else 12}g}"  # and 0 of -0
    except (TypeError, ValueError):
        return str(value).strip()


_FRAME_TYPES = {
    "CT": ("CTImageFrameTypeSequence",),
    "MR": ("MRImageFrameTypeSequence",),
    "PT": ("PETFrameTypeSequence",),
}
