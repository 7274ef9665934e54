"""Which bundle fits an input: by its grid, by what it shows, and by the gains that the bundles' cards state."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor

from medsr_monai.atomic import read_json
from medsr_monai.data import is_picture, read_grid
from medsr_monai.errors import is_out_of_memory
from medsr_monai.records.training_data import FILE_NAME, TrainingData, TrainingGroup
from medsr_monai.suffixes import VOLUME_SUFFIXES
from medsr_monai.transforms import format_edges, spacing, thick_axis
from medsr_monai.upscaling.bundles import AUTO_BUNDLE, bundle_folder, bundle_folders
from medsr_monai.upscaling.cases import Case
from medsr_monai.upscaling.kinds import to_volume
from medsr_monai.upscaling.trained_on import Known, known_of, same_part, series_of
from medsr_monai.weights.stated import MAIN_WEIGHTS, METADATA, examine

__all__ = ["Candidate", "Choice", "Narrowing", "Scan", "candidates", "choose", "scan_of", "scan_of_volume"]

GAINS = "docs/gains.json"
"""A bundle's measured gains by kind of scan, from the tables of its card; one without this file is never chosen."""
IN_PLANE, THROUGH_PLANE = "in-plane", "through-plane"
USABLE = ("verified", "own", "unverified")
"""States of weights that are loaded, see :func:`medsr_monai.weights.stated.examine`."""
PLAIN_WORDS = {"US": "ultrasound", "ES": "endoscopy"}
"""For DICOM's words that few readers know."""
OTHERWISE = "--bundle NAME takes another, `medsr models` lists them"


@dataclass(frozen=True)
class Scan:
    """What is known of an input before its voxels are read.

    Attributes:
        affine: 4x4, from voxel indices to millimetres in RAS+.
        shape: number of voxels (X, Y, Z).
        picture: whether it is a 2D image.
        known: modality, contrast and body part, as far as a header or a name tells.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    picture: bool = False
    known: Known = dataclasses.field(default_factory=Known)

    @property
    def thick(self) -> float | None:
        """How many times as thick as its pixels its slices are, from 1.5 on; None for other volumes."""
        if self.picture or 1 in self.shape:
            return None
        try:
            thick_axis(self.affine)
        except ValueError:  # none, or two
            return None
        edges = spacing(self.affine)
        return float(edges.max() / edges.min())


@dataclass(frozen=True)
class Narrowing:
    """The options of ``medsr upscale`` that leave some bundles only; their defaults leave all.

    Attributes:
        scale: by which the sides of slices grow.
        plane: of the slices that are enlarged, by name.
        thick: names of given options that are for thick slices only.
    """

    scale: int | None = None
    plane: str = "auto"
    thick: tuple[str, ...] = ()

    @property
    def in_plane(self) -> list[str]:
        """Given options that are for slices enlarged in their own plane."""
        given = {f"--scale {self.scale}": self.scale is not None, f"--plane {self.plane}": self.plane != "auto"}
        return [name for name, is_given in given.items() if is_given]

    def check(self, bundle: str) -> None:
        """Refuse options that contradict one another, or a scale that a bundle, chosen by name, has not.

        Raises:
            ValueError: one line.
        """
        if self.scale is not None and self.scale < 2:
            raise ValueError(f"scale is {self.scale}, expected at least 2")
        if bundle == AUTO_BUNDLE:
            if self.thick and self.in_plane:
                raise ValueError(f"{self.in_plane[0]} is for the plane of the slices, {self.thick[0]} for thick "
                                 "slices: leave one out")  # fmt: skip
            return
        if self.scale is None:
            return
        scale = read_json(bundle_folder(bundle) / "configs" / "inference.json", "a configuration").get("scale")
        if scale != self.scale:
            raise ValueError(f"scale is {self.scale}, bundle {bundle} has scale {scale}: leave --scale or --bundle out")


@dataclass(frozen=True)
class Kind:
    """A kind of scan on which a bundle was measured.

    Attributes:
        modality: DICOM's word, which may have others before it, such as MR or cine MR.
        body_part: a word such as brain; None where it says nothing.
        contrast: of MR; None where it says nothing.
        volumes, slices: as the card's table names them, and how many slices of them.
        gain: PSNR in dB over the better of bicubic and cubic B-spline interpolation, mean over slices.
        images: whether they are 2D images.
    """

    modality: str
    body_part: str | None
    contrast: str | None
    volumes: list[str]
    slices: int
    gain: float
    images: bool = False

    def unlike(self, scan: Scan) -> bool:
        """Whether anything that is known of a scan says that it is of another kind."""
        known = scan.known
        return (
            (scan.picture and not self.images)
            or bool(known.modality and known.modality not in self.modality.split())
            or bool(known.contrast and self.contrast and known.contrast != self.contrast)
            or bool(known.body_part and self.body_part and not same_part(known.body_part, [self.body_part]))
        )

    def __str__(self) -> str:
        return _words(self.body_part, self.modality, self.contrast)


@dataclass(frozen=True)
class Candidate:
    """A bundle that may be chosen.

    Attributes:
        name, folder: of the bundle.
        direction: in-plane or through-plane.
        scale: by which its network makes finer.
        kinds: on which it was measured; empty where its weights are not those that were.
        groups: what it was trained on.
        usable: whether its weights are here.
    """

    name: str
    folder: Path
    direction: str
    scale: int
    kinds: tuple[Kind, ...]
    groups: tuple[TrainingGroup, ...]
    usable: bool

    @classmethod
    def of(cls, name: str, folder: Path) -> Candidate:
        """Read a bundle's files."""
        degradation = read_json(folder / METADATA, "a bundle's metadata")["degradation"]
        scale = degradation["scale"]
        state = examine(folder / MAIN_WEIGHTS).state
        kinds = tuple(Kind(**kind) for kind in read_json(folder / GAINS, "a bundle's gains")["kinds"])
        return cls(
            *(name, folder, degradation["direction"], max(scale) if isinstance(scale, list) else scale),
            kinds if state in ("verified", "missing") else (),
            TrainingData.read(folder / "docs" / FILE_NAME).groups,
            state in USABLE,
        )

    def fitting(self, scan: Scan) -> list[Kind]:
        """Kinds that a scan may be of, as far as it is known."""
        return [kind for kind in self.kinds if not kind.unlike(scan)]

    def rank(self, scan: Scan) -> tuple:
        """Sort first: measured on such scans, by the gain; else trained on what is least unlike them."""
        fitting = self.fitting(scan)
        gain = _mean(fitting or self.kinds)
        return (not fitting, 0 if fitting else min(_unlike(group, scan.known) for group in self.groups), -gain)


@dataclass(frozen=True)
class Choice:
    """A bundle and why it was chosen.

    Attributes:
        bundle: its name.
        reason: why, in words.
        measured: what was measured on such scans, in words.
        gains: the least and the greatest gain in dB that were measured on kinds that the scan may be of; None if none.
        usable: whether its weights are here.
    """

    bundle: str
    reason: str
    measured: str
    gains: tuple[float, float] | None
    usable: bool

    def __str__(self) -> str:
        return f"bundle {self.bundle}, since {self.reason}; {self.measured}; {OTHERWISE}"

    def record(self) -> dict[str, Any]:
        """Describe it for a sidecar."""
        return {"Reason": self.reason, "Measured": self.measured, "GainDb": self.gains and list(self.gains)}


def scan_of(case: Case, frame: int | None = None, pictures: bool = True) -> Scan:
    """Find what the header and the name of a case tell; voxels are read only where a header tells nothing.

    Args:
        case: the case.
        frame: of a file with four axes, counted from 0.
        pictures: read a single DICOM image as a picture, not as a volume of one slice.

    Raises:
        MedsrError, ValueError, OSError: it cannot be read as a volume or picture; one line.
    """
    known = _known(case)
    if case.series is not None:
        return Scan(np.asarray(case.series.affine), tuple(map(int, case.series.shape)), known=known)
    if case.source.lower().endswith(VOLUME_SUFFIXES):
        try:
            shape, affine = read_grid(case.source)
            if np.isfinite(affine).all() and np.linalg.det(affine):
                return Scan(affine, shape, known=known)
        except Exception as error:  # of damaged files; reading says what is wrong
            if is_out_of_memory(error):
                raise
    elif pictures and is_picture(case.source):
        return Scan(np.eye(4), (1, 1, 1), True, known)
    return scan_of_volume(to_volume(case.source, frame, pictures=pictures, nan_value=0), case)


def scan_of_volume(image: MetaTensor, case: Case | None = None) -> Scan:
    """Describe a volume [C, X, Y, Z] that has been read, from a case or, where that is None, from the memory."""
    shape = tuple(int(n) for n in image.shape[1:])
    return Scan(image.affine.numpy(), shape, "picture" in image.meta, Known() if case is None else _known(case))


def _known(case: Case) -> Known:
    known = known_of(case.source, series_of(case))
    return dataclasses.replace(known, modality="MR") if known.contrast and not known.modality else known


def candidates() -> list[Candidate]:
    """Give the installed bundles that may be chosen, whose weights are read to check them."""
    return [Candidate.of(name, folder) for name, folder in bundle_folders().items() if (folder / GAINS).is_file()]


def choose(scan: Scan, narrowing: Narrowing = Narrowing(), among: Sequence[Candidate] | None = None) -> Choice:
    """Choose the bundle for an input.

    For slices at least 1.5 times as thick as their pixels one for thick slices, for other volumes one of the
    smallest scale that there is, for 2D images one that was trained on such; among these the one with the highest gain
    that was measured on scans of this kind or, where none was, the one that was trained on the least unlike ones.

    Args:
        scan: the input.
        narrowing: options that leave some bundles only.
        among: :func:`candidates` that were found before; None finds them.

    Raises:
        ValueError: there is no bundle for it; one line.
    """
    direction, reason = _direction(scan, narrowing)
    fitting = [one for one in (candidates() if among is None else among) if one.direction == direction]
    if scan.picture and direction == IN_PLANE:
        fitting = [one for one in fitting if any(group.images for group in one.groups)]
    fitting = [one for one in fitting if one.usable] or fitting
    if direction == IN_PLANE:
        scales = sorted({one.scale for one in fitting})
        if scales and narrowing.scale not in (None, *scales):
            what = "2D images" if scan.picture else "slices"
            raise ValueError(f"no bundle enlarges {what} {narrowing.scale} times: choose --scale "
                             f"{' or '.join(map(str, scales))}")  # fmt: skip
        fitting = [one for one in fitting if one.scale == (narrowing.scale or scales[0])]
        if narrowing.scale is None and len(scales) > 1:
            reason += f", and x{scales[0]} is the smallest scale there is"
    if not fitting:
        raise ValueError(f"no bundle for it ({direction}) is installed: name one, --bundle NAME")
    best = min(fitting, key=lambda one: (*one.rank(scan), one.name))
    measured, gains = _measured(best, scan)
    return Choice(best.name, reason, measured, gains, best.usable)


def _direction(scan: Scan, narrowing: Narrowing) -> tuple[str, str]:
    """In which direction it is made finer, and why."""
    edges = spacing(scan.affine)
    if given := narrowing.thick or narrowing.in_plane:
        return THROUGH_PLANE if narrowing.thick else IN_PLANE, f"{' and '.join(given)} asks for it"
    if scan.picture:
        return IN_PLANE, "it is a 2D image"
    if 1 in scan.shape:
        return IN_PLANE, "it is a single slice"
    if scan.thick is None:
        return IN_PLANE, f"voxels of {format_edges(edges)} mm are no thick slices"
    return THROUGH_PLANE, f"slices of {edges.max():.3g} mm are {scan.thick:.2g} times as thick as the pixels"


def _words(part: str | None, modality: str | None, contrast: str | None) -> str:
    return " ".join(filter(None, (part, PLAIN_WORDS.get(modality, modality), contrast)))


def _mean(kinds: Sequence[Kind]) -> float:
    return sum(kind.gain for kind in kinds) / len(kinds) if kinds else -np.inf


def _unlike(group: TrainingGroup, known: Known) -> int:
    """In how many ways a scan is unlike training data."""
    return (
        bool(known.modality and group.modality and known.modality not in group.modality.split())
        + bool(known.contrast and group.contrasts and known.contrast not in group.contrasts)
        + bool(known.body_part and group.body_parts and not same_part(known.body_part, group.body_parts))
    )


def _measured(best: Candidate, scan: Scan) -> tuple[str, tuple[float, float] | None]:
    """What was measured of a bundle on scans of a kind, in words and in dB."""
    known, fitting = scan.known, best.fitting(scan)
    what = _words((known.body_part or "").lower(), known.modality, known.contrast)
    if not best.kinds:
        return "nothing is measured with these weights, which are your own", None
    if not fitting:
        others = ", ".join(sorted({str(kind) for kind in best.kinds}))
        return f"nothing is measured on {what or 'such images'}, only on {others}", None
    low, high = (end(kind.gain for kind in fitting) for end in (min, max))
    text = f"{low:+.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:+.1f} to {high:+.1f}"
    text = f"measured {text} dB over interpolation on {', '.join(sorted({str(kind) for kind in fitting}))}"
    if known.modality and known.body_part:
        return text, (low, high)
    return f"{text} (nothing states {'which body part' if known.modality else 'what'} this is)", (low, high)
