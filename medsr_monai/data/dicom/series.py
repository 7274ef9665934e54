"""DICOM studies sorted into series: what each holds, whether it is a volume, and if not, why."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import UID, SecondaryCaptureImageStorage

from medsr_monai.atomic import check_named
from medsr_monai.data.dicom.attributes import frame_header
from medsr_monai.data.dicom.pixels import codec_problem, read_stack
from medsr_monai.data.dicom.slices import DicomFiles, DicomSlice, is_zip, read_slices
from medsr_monai.errors import first_line
from medsr_monai.transforms.geometry import implausible_grid

__all__ = ["DicomSeries", "DicomStudy", "find_series", "one_series", "read_study"]

logger = logging.getLogger(__name__)

SAME_PLACE = 0.01
"""Slices nearer to each other than this, in mm, lie at one position."""
UNEVEN = 0.1
"""The largest deviation of a slice from an even stack, as a fraction of the distance between slices."""
SAME_DIRECTION = 1e-3
"""The largest difference between the direction cosines of the slices of one stack."""
MAX_SHEAR = 0.01
"""The largest cosine between a stack's direction and its slices; larger ones are refused, others go into the affine."""
THICKNESS_RANGE = 1.1
"""The largest ratio of the thickest to the thinnest slice of a stack."""
WIDE = 1.5
"""Slices that lie farther apart than this times their stated distance or thickness may not be all there are."""
SAME_SLICE = 0.6
"""Slices of two parts that lie farther apart than this share of their distance are not at one position."""
SAME_SPAN = 0.4
"""Two stacks take the same place if they overlap along more than this share of the shorter one."""
ACQUIRED_IN_TURNS = ("trigger", "acquisition", "acquisition time")
"""Marks that may differ between the slices of one volume that lie beside each other."""
LOCALISER_SLICES = 5
"""A localiser has at most this many slices of each plane; longer stacks are volumes."""
NAMED = 4
"""A message names at most this many files or positions."""


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """The slices of a series that make one volume, or that cannot and why.

    A DICOM series that holds several stacks, such as echoes, is several of these, told apart by ``part``.
    """

    root: str
    """The folder, zip or file that was searched."""
    source: str
    """What messages and sidecars call the series: ``root``, and of several its number and part, but no free text.

    Where several have one number, the UID takes its place.
    """
    uid: str
    number: int | None
    description: str
    part: str
    """Which stack of its DICOM series it is, such as ``echo 2`` or ``stack 2``; empty if that has only one."""
    modality: str
    study: str
    """Its StudyInstanceUID."""
    slices: tuple[DicomSlice, ...] = field(repr=False)
    """In the order of the volume's last axis, which follows the cross product of the rows' and columns' directions."""
    derived: bool
    """Whether its ImageType begins with DERIVED."""
    localiser: bool
    secondary_capture: bool
    problem: str | None
    """One line that says why it is no volume, where the fault is and what to do; None if it is one."""

    @property
    def files(self) -> list[str]:
        """The paths in the order of the slices, each once; in a zip they are ``study.zip/member``, no paths on disk."""
        root = Path(self.root)
        names = dict.fromkeys(item.file for item in self.slices)
        return [str(root)] if root.is_file() and list(names) == [root.name] else [str(root / name) for name in names]

    @property
    def disk_files(self) -> list[str]:
        """The files on disk, for checksums: those of the series, or the zip that holds them."""
        return [self.root] if Path(self.root).is_file() else self.files

    @property
    def syntax(self) -> UID:
        """The transfer syntax of the first slice."""
        return self.slices[0].syntax

    @property
    def label(self) -> str:
        """Its number, description and part, whichever there are, as in ``3 t1_sag, echo 2``."""
        name = " ".join(str(word) for word in (self.number, self.description) if word not in (None, ""))
        return ", ".join(word for word in (name or self.uid, self.part) if word)

    @property
    def choice(self) -> str:
        """The name by which `--series` chooses this series and no other."""
        return f"{self.uid}, {self.part}" if self.part else self.uid

    @property
    def left_out(self) -> str | None:
        """What it is, if it is only taken on request, such as a localiser; None for others."""
        kinds = {"localiser": self.localiser, "secondary capture": self.secondary_capture, "derived": self.derived}
        return next((kind for kind, holds in kinds.items() if holds), None)

    @property
    def kind(self) -> str:
        """The SOPClassUID, which says what kind of object its files are."""
        return str(self.slices[0].header.get("SOPClassUID"))

    @property
    def has_positions(self) -> bool:
        """Whether a slice states its place, unlike ultrasound, endoscopy and X-rays, which are pictures."""
        return any(item.position for item in self.slices)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of columns, rows and slices, which are the volume's axes."""
        return self.slices[0].columns, self.slices[0].rows, len(self.slices)

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """The voxel's edges in mm along the axes of ``shape``; None where no geometry is known."""
        if self.affine is None:
            return None
        return tuple(float(edge) for edge in np.linalg.norm(self.affine[:3, :3], axis=0))

    @cached_property
    def affine(self) -> np.ndarray | None:
        """The 4x4 affine from voxels to RAS mm, of the stack from its first to its last slice; None without geometry.

        Of a series with a ``problem`` it is what the headers say, and no volume follows it.
        """
        return _affine(self.slices)

    @property
    def doubt(self) -> str | None:
        """One line if its slices lie farther apart, or nearer together, than their headers state; None otherwise."""
        first = self.slices[0]
        stated, thickness = abs(first.gap or 0), first.thickness or 0
        expected = stated if stated >= (1 - UNEVEN) * thickness else thickness + stated
        if self.affine is None or len(self.slices) == 1 or not expected:
            return None
        gap = self.spacing[2]
        if gap > WIDE * expected or (stated == expected and gap * WIDE < expected):
            return (
                f"slices lie {gap:.2f} mm apart, their headers state a distance of {stated or 'unknown'} mm and a "
                f"thickness of {thickness or 'unknown'} mm: is the series complete, and one volume?"
            ).replace("unknown mm", "unknown length")
        return None

    def check(self) -> None:
        """Refuse a series with a problem.

        Raises:
            ValueError: names ``source`` and the problem.
        """
        if self.problem:
            raise ValueError(f"{self.source}: {self.problem}")
        if reason := implausible_grid(self.affine, self.shape):
            raise ValueError(f"{self.source}: {reason}: correct the headers")

    def read(self) -> np.ndarray:
        """Read the voxels [X, Y, Z] of ``shape``, float32, rescaled slice by slice.

        Raises:
            ValueError: the series has a problem, or its pixels are damaged.
        """
        self.check()
        if self.doubt:
            logger.warning("%s: %s", self.source, self.doubt)
        with DicomFiles(self.root) as files:
            try:
                return read_stack(files, self.slices)
            except ValueError as error:
                raise ValueError(f"{self.source}: {error}") from error

    def headers(self) -> list[pydicom.Dataset]:
        """Read the whole header of each slice, without pixels, in the order of the volume's last axis.

        Of a frame of a multi-frame file, see :func:`medsr_monai.data.dicom.attributes.frame_header`.

        Raises:
            ValueError: a header is damaged, also where no voxel depends on it.
        """
        whole, headers = {}, []
        with DicomFiles(self.root) as files:
            for item in self.slices:
                if item.file not in whole:
                    try:
                        with files.open(item.file) as file:
                            header = whole[item.file] = pydicom.dcmread(file, stop_before_pixels=True, force=True)
                        with pydicom.config.disable_value_validation():  # a source's odd values are not ours to report
                            header.walk(lambda dataset, element: None)  # converts the values, which may be damaged
                    except Exception as error:  # pydicom meets damaged headers with many kinds
                        reason = first_line(error)
                        raise ValueError(f"{self.source}: {item.file} has a damaged header ({reason})") from error
                headers.append(whole[item.file] if item.frame is None else frame_header(whole[item.file], item.frame))
        return headers


@dataclass(frozen=True)
class DicomStudy:
    """What a folder, a zip or a file holds. Each of its files is in a series, damaged or left out."""

    root: str
    series: list[DicomSeries]
    """The series, sorted by study, number and part."""
    damaged: dict[str, str]
    """The reasons why files cannot be read, by their names. All series in the folder of such a file are refused."""
    left_out: dict[str, str]
    """What the files are that belong to no series, by their names."""

    @property
    def left_out_line(self) -> str | None:
        """One line that counts and names what is left out; None if that is nothing."""
        if not self.left_out:
            return None
        kinds: dict[str, list[str]] = {}
        for name, kind in self.left_out.items():
            kinds.setdefault(kind, []).append(name)
        told = "; ".join(f"{printable(kind)}: {_some(names)}" for kind, names in kinds.items())
        read = len({item.file for one in self.series for item in one.slices})
        total = read + len(self.damaged) + len(self.left_out)
        damaged = f", {len(self.damaged)} damaged" if self.damaged else ""
        return f"{self.root}: of {_files(total)} {read} read{damaged}, {len(self.left_out)} left out ({told})"

    @property
    def beside_volumes_line(self) -> str | None:
        """One line that counts and names its series, for those who read volumes of other kinds in its folder."""
        count = len({item.file for one in self.series for item in one.slices}) + len(self.damaged)
        if not count:
            return None
        return (
            f"{self.root}: {_files(count)} of DICOM left out beside volumes of other kinds "
            f"({_some([one.label for one in self.series]) or 'damaged'}): give their own folder, or choose them with "
            "--series"
        )


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def find_series(path: str | os.PathLike) -> list[DicomSeries]:
    """Find the series that a folder, zip or file holds, see :func:`read_study`."""
    return read_study(path).series


def read_study(path: str | os.PathLike) -> DicomStudy:
    """Sort what a folder (with those below it), a zip or a file holds into series; only headers are read.

    They are sorted by SeriesInstanceUID and kind of object, then by geometry (orientation, rows, columns, pixel
    spacing). Where slices lie at the same positions, or volumes within each other, they are sorted by what tells them
    apart: echo, b-value,
    gradient direction, time, image type, units, acquisition, also by what Siemens, GE and Philips say of these in
    private elements; else by InstanceNumber where each position occurs equally often. A DICOMDIR, reports and files of
    other kinds are left out.

    Args:
        path: folder, zip file or DICOM file.

    Raises:
        FileNotFoundError: no such path.
        ValueError: a damaged or encrypted zip.
    """
    check_named(path)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    with DicomFiles(path) as files:
        found = read_slices(files)
        slices, twice, copies = _without_copies(files, found.slices)
    beside: dict[Path, list[str]] = {}
    for name in found.damaged:
        beside.setdefault(Path(name).parent, []).append(name)
    series = [
        one
        for group in _grouped(slices, _kind_of_object).values()
        for one in _series_of(str(path), group, twice | _damaged_beside(group, beside, found.damaged))
    ]
    series = [_without_split_off(one, series) for one in series]
    series.sort(key=lambda s: (s.study, s.number is None, s.number or 0, s.uid))
    if len(series) > 1:
        numbered = Counter((s.number, s.part) for s in series)
        for index, s in enumerate(series):
            several = s.number is None or numbered[s.number, s.part] > 1
            name = s.choice if several else ", ".join(filter(None, (str(s.number), s.part)))
            series[index] = replace(s, source=f"{path}, series {name}")
    folders = {Path(item.file).parent for item in slices}
    # without a slice beside it a damaged file makes no series wrong
    alone = {name: reason for name, reason in found.damaged.items() if slices and Path(name).parent not in folders}
    damaged = {name: reason for name, reason in found.damaged.items() if name not in alone}
    return DicomStudy(str(path), series, damaged, found.left_out | copies | alone)


def one_series(path: str | os.PathLike) -> DicomSeries:
    """Find the only series in a folder, zip or file, or the only one that is no localiser, derived or captured.

    What is left out is logged as a warning.

    Raises:
        FileNotFoundError, ValueError: none or several; the series has a problem; see :func:`read_study`.
    """
    study = read_study(path)
    series = study.series
    if not series:
        raise ValueError(_no_series(study))
    chosen = series if len(series) == 1 else [s for s in series if not s.left_out]
    if len(chosen) != 1:
        names = "; ".join(s.label + (f" ({s.left_out})" if s.left_out else "") for s in chosen or series)
        remedy = "" if Path(path).is_file() and not is_zip(path) else "put each in its own folder, or "
        raise ValueError(
            f"{path}: {len(chosen or series)} DICOM series mixed ({names}): {remedy}let `medsr upscale` sort them "
            "(--series chooses)"
        )
    chosen[0].check()
    for line in (study.left_out_line, *(f"{s.source}: {s.left_out}, left out" for s in series if s is not chosen[0])):
        if line:
            logger.warning(line)
    return chosen[0]


def _no_series(study: DicomStudy) -> str:
    if study.damaged:
        name, reason = next(iter(study.damaged.items()))
        return f"{study.root}: {name} {reason}: damaged file?"
    what = "DICOM files without an image"
    if is_zip(study.root):
        what = "a zip without a DICOM image"
    told = [f"{name} ({kind})" for name, kind in study.left_out.items() if kind not in ("no DICOM", "hidden")]
    return f"{study.root}: {what} ({_some(told) or 'a DICOMDIR or a report?'}), give the folder of a series"


def _grouped(slices: Iterable[DicomSlice], key: Callable[[DicomSlice], object]) -> dict[object, list[DicomSlice]]:
    groups: dict[object, list[DicomSlice]] = {}
    for item in slices:
        groups.setdefault(key(item), []).append(item)
    return groups


def _kind_of_object(item: DicomSlice) -> tuple:
    header = item.header
    kind = (str(header.get("SOPClassUID")), int(header.get("SamplesPerPixel") or 1) > 1)
    return (str(header.get("StudyInstanceUID", "")), str(header.get("SeriesInstanceUID", "")), *kind)


def _without_copies(
    files: DicomFiles, slices: list[DicomSlice]
) -> tuple[list[DicomSlice], dict[str, str], dict[str, str]]:
    """Slices without further copies of a file, the problems of files that only claim to be copies, and the copies."""
    kept, differing, copies, names = [], {}, {}, {}
    for item in slices:
        if item.file in copies:
            continue
        uid = item.header.get("SOPInstanceUID")
        first = names.setdefault((uid, item.frame), item.file) if uid else item.file
        if first != item.file:
            with files.open(first) as one, files.open(item.file) as other:
                if one.read() == other.read():
                    copies[item.file] = f"copy of {first}"
                    continue
            differing[item.file] = f"{first} and {item.file} have one SOPInstanceUID and differ, delete the wrong one"
        kept.append(item)
    return kept, differing, copies


def _damaged_beside(group: list[DicomSlice], beside: dict[Path, list[str]], damaged: dict[str, str]) -> dict[str, str]:
    """A damaged file may be a slice of any series that lies in its folder."""
    names = [name for folder in {Path(item.file).parent for item in group} for name in beside.get(folder, ())]
    if not names:
        return {}
    more = f" ({len(names)} such files)" if len(names) > 1 else ""
    reason = f"{names[0]} {damaged[names[0]]}{more}: a slice may be lost, replace the file or delete it"
    return {group[0].file: reason}


def _without_split_off(series: DicomSeries, others: list[DicomSeries]) -> DicomSeries:
    """A series with a problem if a single slice continues it under another UID, as a damaged header leaves it."""
    first, last = series.slices[0], series.slices[-1]
    if series.problem or len(series.slices) == 1 or series.localiser:
        return series
    step = (np.array(last.position) - first.position) / (len(series.slices) - 1)
    for other in others:
        item = other.slices[0]
        named_so = other.number == series.number or other.description == series.description
        if len(other.slices) > 1 or not named_so:
            continue
        if not _has_geometry(item) or Path(item.file).parent != Path(first.file).parent:
            continue
        if other.uid == series.uid and other.study == series.study and other.kind == series.kind:
            continue
        ends = np.array([np.subtract(first.position, item.position), np.subtract(item.position, last.position)])
        places = ends @ step / (step @ step)
        aside = np.linalg.norm(ends - np.round(places)[:, None] * step, axis=1)
        fits = (np.round(places) >= 1) & (np.round(places) <= NAMED) & (aside <= UNEVEN * np.linalg.norm(step))
        if fits.any() and _same_geometry(first, item):
            reason = f"{item.file} continues it, but is of another series by its UIDs: damaged, or not of this study?"
            return replace(series, problem=f"{reason} Delete it, or export the series again")
    return series


def _series_of(root: str, group: list[DicomSlice], problems: dict[str, str]) -> list[DicomSeries]:
    """Stacks of one SeriesInstanceUID and kind of object."""
    problem = next((problems[item.file] for item in group if item.file in problems), None)
    scouts = [item for item in group if item.localiser]
    if not problem and 0 < len(scouts) < len(group) and (reason := _problem_of_kind(scouts)):
        others = [item for item in group if not item.localiser]
        return [*_series_of(root, others, problems), _series(root, scouts, "localiser", reason)]
    problem = problem or _problem_of_kind(group)
    if problem:
        return [_series(root, group, "", problem)]
    stacks = _by_geometry(group)
    if _is_three_planes(stacks):
        reason = "slices in three planes (a localiser?), no volume: keep one stack"
        return [replace(_series(root, group, "", reason), localiser=True)]
    lone = [stack[0] for stack in stacks if len(stack) == 1] if len(stacks) > 1 else []
    lone = [item for item in lone if not item.localiser]
    stacks = [stack for stack in stacks if stack[0] not in lone]
    # a scout is of another plane and of another size than the stack that it belongs to
    scouts = [item for item in lone if stacks and all(_is_other_scan(item, stack) for stack in stacks)]
    lone = [item for item in lone if item not in scouts]
    several, found = len(stacks) + len(scouts) + bool(lone) > 1, []
    for number, stack in enumerate(stacks, start=1):
        here = f"stack {number}" if several else ""
        for name, part in _by_marks(stack):
            label = ", ".join(word for word in (here, name) if word)
            found.append(_series(root, part, label, _problem_of_stack(part, stack)))
    for number, item in enumerate(scouts, start=len(stacks) + 1):
        found.append(replace(_series(root, [item], f"stack {number}", None), localiser=True))
    if lone:
        reason = (
            f"{len(lone)} DICOM slices of different orientation, size or pixel spacing than the others of their series "
            f"({_some([item.name for item in lone])}): keep one stack"
        )
        found.append(_series(root, lone, "single slices" if several else "", reason))
    return found


def _is_three_planes(stacks: list[list[DicomSlice]]) -> bool:
    """Whether stacks are those of a localiser: few slices each, in three planes.

    Slices that are localisers by their image type, and single ones beside a stack, do not make a localiser of it.
    """
    stacks = [stack for stack in stacks if not stack[0].localiser] or stacks
    stacks = [stack for stack in stacks if len(stack) > 1] or stacks
    return len({_plane(stack) for stack in stacks}) == 3 and max(map(len, stacks)) <= LOCALISER_SLICES


def _is_other_scan(item: DicomSlice, stack: list[DicomSlice]) -> bool:
    same_size = (item.rows, item.columns, item.pixel_spacing) == (
        stack[0].rows,
        stack[0].columns,
        stack[0].pixel_spacing,
    )
    return _plane([item]) != _plane(stack) and not same_size


def _plane(slices: Sequence[DicomSlice]) -> int:
    """The patient's axis that is nearest to the normal."""
    return int(np.abs(_normal(slices)).argmax())


def _series(root: str, slices: list[DicomSlice], part: str, problem: str | None) -> DicomSeries:
    if all(_has_geometry(item) for item in slices):
        slices = [slices[i] for i in np.argsort(_distances(slices), kind="stable")]
    first = slices[0]
    header = first.header
    number = header.get("SeriesNumber")
    return DicomSeries(
        root=root,
        source=root,
        uid=str(header.get("SeriesInstanceUID", "")),
        number=None if number in (None, "") else int(number),
        description=printable(" ".join(str(header.get("SeriesDescription") or "").split())),
        part=printable(part),
        modality=printable(str(header.get("Modality") or "")),
        study=str(header.get("StudyInstanceUID", "")),
        slices=tuple(slices),
        derived=first.image_type[:1] == ("DERIVED",),
        localiser=all(item.localiser for item in slices),
        secondary_capture=str(header.get("SOPClassUID", "")).startswith(SecondaryCaptureImageStorage),
        problem=problem,
    )


def _problem_of_kind(group: list[DicomSlice]) -> str | None:
    """What no sorting mends."""
    headers = [item.header for item in group]
    if any(
        int(h.get("SamplesPerPixel") or 1) > 1 or h.get("PhotometricInterpretation") == "PALETTE COLOR" for h in headers
    ):
        return "DICOM in colour, only grey-scale volumes can be super-resolved"
    for item in group:
        frames = int(item.header.get("NumberOfFrames") or 1)
        if item.frame is None and frames > 1:
            return f"multi-frame DICOM without a position for each frame ({item.file}, {frames} frames): " + CONVERT
        if "MOSAIC" in item.image_type:
            return f"Siemens mosaic, all slices tiled in one image ({item.file}): " + CONVERT
        missing = [
            keyword
            for keyword, numbers in (
                ("ImagePositionPatient", item.position),
                ("ImageOrientationPatient", item.orientation),
                ("PixelSpacing", item.pixel_spacing),
            )
            if numbers is None
        ]
        if missing:
            return f"DICOM without {', '.join(missing)} in every file, no geometry can be known ({item.name})"
        if reason := _impossible_geometry(item):
            return f"{item.name}: {reason}: correct the header"
        if item.header.get("ModalityLUTSequence"):
            return f"DICOM whose values go through a lookup table ({item.name}, ModalityLUTSequence): " + CONVERT
        if reason := codec_problem(item.syntax):
            return f"{item.file}: {reason}"
    return None


CONVERT = "convert it to NIfTI first (dcm2niix)"


def _impossible_geometry(item: DicomSlice) -> str | None:
    row, column = np.array(item.orientation[:3]), np.array(item.orientation[3:])
    if not np.isfinite([*item.position, *item.orientation, *item.pixel_spacing, item.slope, item.intercept]).all():
        return "a position, orientation, spacing or rescale factor is not a number"
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if np.abs(np.subtract(lengths, 1)).max() > MAX_SHEAR or abs(row @ column) > MAX_SHEAR:
        return f"ImageOrientationPatient {list(item.orientation)} is not of two perpendicular unit vectors"
    if min(item.pixel_spacing) <= 0:
        return f"PixelSpacing {list(item.pixel_spacing)} mm"
    if item.rows < 1 or item.columns < 1:
        return f"{item.rows} rows and {item.columns} columns"
    if item.slope == 0:
        return "RescaleSlope 0"
    alone = _stack_affine([item])
    if not np.isfinite(alone).all():
        return "its thickness is not a number"
    return implausible_grid(alone, (item.columns, item.rows, 1))


def _has_geometry(item: DicomSlice) -> bool:
    stated = item.position is not None and item.orientation is not None and item.pixel_spacing is not None
    return stated and _impossible_geometry(item) is None


def _by_geometry(slices: list[DicomSlice]) -> list[list[DicomSlice]]:
    """Slices of one orientation, size and pixel spacing together."""
    stacks: list[list[DicomSlice]] = []
    for item in slices:
        for stack in stacks:
            if _same_geometry(stack[0], item):
                stack.append(item)
                break
        else:
            stacks.append([item])
    return stacks


def _same_geometry(one: DicomSlice, other: DicomSlice) -> bool:
    return (
        (one.rows, one.columns) == (other.rows, other.columns)
        and np.allclose(one.pixel_spacing, other.pixel_spacing, rtol=1e-4, atol=0)
        and np.abs(np.subtract(one.orientation, other.orientation)).max() <= SAME_DIRECTION
        and one.localiser == other.localiser
    )


def _normal(slices: Sequence[DicomSlice]) -> np.ndarray:
    orientation = slices[0].orientation
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / np.linalg.norm(normal)


def _distances(slices: Sequence[DicomSlice]) -> np.ndarray:
    """Measure the distance in mm of each slice from the patient's origin, along the first slice's normal."""
    return np.array([item.position for item in slices]) @ _normal(slices)


def _places(distances: np.ndarray) -> int:
    """How many different positions there are."""
    return int((np.diff(np.sort(distances)) > SAME_PLACE).sum()) + 1


def _by_marks(slices: list[DicomSlice]) -> list[tuple[str, list[DicomSlice]]]:
    """Slices of several volumes told apart: a name and the slices of each part.

    Where slices lie at the same positions, a mark tells them apart if each of its values occurs at half of the
    positions or more; so a slice that was sent twice is no part of its own. Where they lie between each other, it does
    if its values are volumes that take the same place.
    """
    count = _places(_distances(slices))
    for mark in slices[0].marks:
        groups = _grouped(slices, lambda item, mark=mark: item.marks[mark])
        if len(groups) > 1 and (
            (count < len(slices) and _covers(count, list(groups.values())))
            or _within_each_other(mark, slices, list(groups.values()))
        ):
            return [
                (", ".join(word for word in (f"{mark} {value or 'none'}", name) if word), part)
                for value, group in sorted(groups.items(), key=lambda pair: _natural(pair[0]))
                for name, part in _by_marks(group)
            ]
    volumes = _by_instance(slices) if count < len(slices) else []
    return [(f"volume {number}", part) for number, part in enumerate(volumes, start=1)] or [("", slices)]


def _by_instance(slices: list[DicomSlice]) -> list[list[DicomSlice]]:
    """Volumes by the order of InstanceNumber at each position, as dcm2niix takes them.

    None if a position occurs more often than another, or if a number does not stand for one slice.
    """
    distances = _distances(slices)
    order = np.argsort(distances, kind="stable")
    starts = np.flatnonzero(np.diff(distances[order]) > SAME_PLACE) + 1
    places = [sorted((slices[i] for i in place), key=_instance) for place in np.split(order, starts)]
    if len({len(place) for place in places}) > 1 or len({_instance(item) for item in slices}) < len(slices):
        return []
    return [list(volume) for volume in zip(*places, strict=True)]


def _instance(item: DicomSlice) -> tuple[int, int]:
    number = item.header.get("InstanceNumber")
    return -1 if number in (None, "") else int(number), item.frame or 0


def _covers(count: int, groups: list[list[DicomSlice]]) -> bool:
    """Whether groups of slices are volumes of so many positions, and not single slices of them."""
    places = [_places(_distances(group)) for group in groups]
    return 2 * min(places) >= count and (count == 1 or max(places) > 1)


def _within_each_other(mark: str, slices: list[DicomSlice], groups: list[list[DicomSlice]]) -> bool:
    """Whether groups of slices are volumes that take the same place."""
    edge = _stated_edge(slices[0])
    # slices of one volume may be acquired in turns, at their stated distance
    if mark in ACQUIRED_IN_TURNS and not 0 < np.median(np.diff(np.sort(_distances(slices)))) * WIDE < edge:
        return False
    longest = max(map(len, groups))
    spans = []
    for group in groups:
        if 2 * len(group) < longest:
            return False
        distances = _distances(group)
        spans.append((distances.min() - edge / 2, distances.max() + edge / 2))
    return all(
        min(high, other_high) - max(low, other_low) > SAME_SPAN * min(high - low, other_high - other_low)
        for number, (low, high) in enumerate(spans)
        for other_low, other_high in spans[:number]
    )


def _stated_edge(item: DicomSlice) -> float:
    """The distance of slices, in mm, by a header; 0 where it states none."""
    return abs(item.gap or 0) or item.thickness or 0


def _natural(value: str) -> tuple[int, list[float], str]:
    """Order of a mark's values: none, by number, by letter."""
    try:
        numbers = [float(word) for word in re.split(r"[\s,\[\]]+", value) if word]
    except ValueError:
        return 2, [], value
    return min(len(numbers), 1), numbers, value


def printable(text: str) -> str:
    """A name or header text for a message, with control characters and what is no Unicode escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:NAMED])) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _problem_of_stack(slices: list[DicomSlice], siblings: list[DicomSlice]) -> str | None:
    """Why slices of one size and orientation are no even, perpendicular stack.

    ``siblings`` are those of all parts of the stack, such as the other echoes, in which a missing slice shows.
    """
    units = Counter(item.units for item in slices)
    if len(units) > 1:
        return (
            f"DICOM slices in different units ({', '.join(name or 'none' for name in units)}): keep those of one unit"
        )
    if len(slices) > 1:
        slices = [slices[i] for i in np.argsort(_distances(slices), kind="stable")]
        distances, positions = _distances(slices), np.array([item.position for item in slices])
        gaps = np.diff(distances)
        gap = float(np.median(gaps))
        same = np.flatnonzero(gaps <= max(SAME_PLACE, UNEVEN * gap))
        if same.size:
            pairs = [f"{slices[i].name} and {slices[i + 1].name} at {distances[i]:.2f} mm" for i in same]
            return (
                f"several DICOM slices at one position, and nothing tells their volumes apart ({_some(pairs)}): keep "
                "one of each, or convert them to NIfTI (dcm2niix)"
            )
        problems = [_tilt(positions, _normal(slices)), _unevenness(slices, distances, gap) or _sparse(slices[0], gap)]
        if any(problems):
            return "; ".join(problem for problem in problems if problem)
    edge = float(np.median(np.diff(_distances(slices)))) if len(slices) > 1 else _stated_edge(slices[0])
    lost = _lost(_distances(slices), _distances(siblings), edge)
    if lost:
        return f"slices are missing that other parts of the series have, at {_some(lost)}"
    thicknesses = [item.thickness for item in slices if item.thickness]
    if thicknesses and max(thicknesses) > THICKNESS_RANGE * min(thicknesses):
        span = f"{min(thicknesses):g} to {max(thicknesses):g} mm"
        return f"DICOM slices of different thickness ({span}): keep those of one thickness"
    return None


def _tilt(positions: np.ndarray, normal: np.ndarray) -> str | None:
    along = positions[-1] - positions[0]
    sideways = np.linalg.norm(along - along @ normal * normal)
    if sideways <= MAX_SHEAR * np.linalg.norm(along):
        return None
    angle = np.degrees(np.arctan2(sideways, along @ normal))
    return f"DICOM slices are sheared by {angle:.1f} degrees (gantry tilt), correct it first (dcm2niix does)"


def _unevenness(slices: list[DicomSlice], distances: np.ndarray, gap: float) -> str | None:
    gaps = np.diff(distances)
    count = len(slices)
    even = np.linspace(distances[0], distances[-1], count)
    positions = np.array([item.position for item in slices])
    line = np.linspace(positions[0], positions[-1], count)
    if (
        np.abs(distances - even).max() <= UNEVEN * gap
        and np.linalg.norm(positions - line, axis=1).max() <= UNEVEN * gap
    ):
        return None
    if np.abs(gaps / gap - 1).max() <= UNEVEN and np.abs(distances - even).max() <= UNEVEN * gap:
        aside = int(np.linalg.norm(positions - line, axis=1).argmax())
        return f"DICOM slices do not lie above each other ({slices[aside].name} is shifted within its plane)"
    ratios = gaps / gap
    wide = np.flatnonzero(ratios > 1.5)
    message = f"DICOM slices are unevenly spaced ({gaps.min():.2f} to {gaps.max():.2f} mm)"
    if wide.size and np.abs(ratios - np.round(ratios)).max() <= UNEVEN:
        places = [
            f"{round(ratios[i]) - 1} between {distances[i]:.2f} and {distances[i + 1]:.2f} mm "
            f"({slices[i].name}, {slices[i + 1].name})"
            for i in wide
        ]
        return f"{message}: slices are missing, {_some(places)}: export the series again"
    worst = int(np.abs(ratios - 1).argmax())
    return (
        f"{message}, such as between {slices[worst].name} and {slices[worst + 1].name}: slices are missing, or "
        "resample to an even grid first"
    )


def _sparse(item: DicomSlice, gap: float) -> str | None:
    """Whether every second slice, or more, of an even stack is missing by what its headers say."""
    stated, thickness = abs(item.gap or 0), item.thickness or 0
    # some scanners state the gap between the slices only, which is less than their thickness
    if not stated or stated < (1 - UNEVEN) * thickness:
        return None
    ratio = gap / stated
    if ratio < WIDE or abs(ratio - round(ratio)) > UNEVEN:
        return None
    return (
        f"DICOM slices lie {gap:.2f} mm apart, their headers state a distance of {stated:g} mm"
        + (f" and a thickness of {thickness:g} mm" if thickness else "")
        + f": {round(ratio) - 1} of {round(ratio)} slices are missing, export the series again"
    )


def _lost(distances: np.ndarray, others: np.ndarray, edge: float) -> list[str]:
    """Positions of other parts, which may lie half a slice aside, at which there is no slice."""
    places = np.unique(np.round(others, 2))
    return [f"{p:.2f} mm" for p in places if np.abs(distances - p).min() > max(2 * SAME_PLACE, SAME_SLICE * edge)]


def _affine(slices: Sequence[DicomSlice]) -> np.ndarray | None:
    return _stack_affine(slices) if all(_has_geometry(item) for item in slices) else None


def _stack_affine(slices: Sequence[DicomSlice]) -> np.ndarray:
    """Compute the affine that the headers state, right or wrong."""
    first, last = slices[0], slices[-1]
    if len(slices) > 1:
        step = (np.array(last.position) - first.position) / (len(slices) - 1)
    else:
        step = _normal(slices) * abs(first.gap or first.thickness or 1.0)
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * first.pixel_spacing[1]  # along a row, from column to column
    affine[:3, 1] = np.array(first.orientation[3:]) * first.pixel_spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # LPS to RAS
