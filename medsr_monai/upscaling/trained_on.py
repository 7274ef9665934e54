"""What a bundle's weights were trained on, and how an input differs from it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.data import MetaTensor

from medsr_monai.data import DicomSeries, find_series, is_dicom_file, volume_name
from medsr_monai.inferers import InferencePlan
from medsr_monai.records.figures import Seen, contrast_of, measured
from medsr_monai.records.training_data import FIGURES, UNKNOWN, TrainingData, TrainingGroup, find_training_data
from medsr_monai.transforms import resample
from medsr_monai.transforms.intensity import HIGH, LOW
from medsr_monai.upscaling.bundles import BundleRunner
from medsr_monai.upscaling.cases import Case, bids_sidecar

__all__ = ["Known", "TrainedOn", "differences", "is_hounsfield", "known_of", "same_part", "series_of"]

logger = logging.getLogger(__name__)

MARGIN = 0.25
"""A figure of an input may lie outside of the training data's range by this part of the range's width."""
LEAST_MARGIN = {"background": 0.15, "dark": 0.05, "median": 0.05, "bright": 0.05, "alike": 0.03, "edges": 0.05}
"""By at least this much a figure may lie outside, since few training volumes have a narrow range.

It is more for the background, whose share depends on how an image was cropped.
"""
PIXEL_MARGIN = 1.1
"""Pixels may be smaller or larger than any of the training data by this factor."""
THICKNESS_MARGIN = 1.5
"""Slices may be thinner or thicker than in training by this factor, measured in multiples of the target's thickness."""
HOUNSFIELD_AIR = (-3100.0, -900.0)
"""The lowest intensity of a CT volume lies between these: air is -1000, and what the scanner did not see is below."""
HOUNSFIELD_TISSUE = 100.0
"""The highest intensities of a CT volume are above this, in Hounsfield units."""

BODY_PARTS = (
    {"brain", "head", "skull", "hippocampus"},
    {"heart", "cardiac"},
    {"chest", "thorax", "lung"},
    {"abdomen", "liver", "kidney", "pancreas"},
    {"spine", "cspine", "tspine", "lspine", "neck", "cord"},
    {"pelvis", "prostate"},
)
"""Sets of words that mean the same region of the body."""


@dataclass(frozen=True)
class Known:
    """What is known of an input besides its voxels; None for what is not known.

    Attributes:
        modality: DICOM's word for it, such as MR or CT.
        contrast: a name of CONTRASTS.
        body_part: a word, such as brain.
        source: where this was found, for messages.
    """

    modality: str | None = None
    contrast: str | None = None
    body_part: str | None = None
    source: str = ""


class TrainedOn:
    """The record of the data behind a bundle's weights, if there is one.

    Args:
        runner: the bundle with its weights.
        weights: the weights' entry in a sidecar, with their checksum; None for a network without weights.

    Attributes:
        data: the record; None where nothing is known.
        claimed: whether only the file of an exported network says so.
        sentence: what is known, or claimed, for a log line.
        scans: SHA-256 of the scans that the weights were fitted to, of which nothing is warned.
    """

    def __init__(self, runner: BundleRunner, weights: Mapping[str, Any] | None) -> None:
        self.name = Path(runner.folder).resolve().name
        self.data: TrainingData | None = None
        self.claimed = False
        self.scans: list[str] = []
        if weights is not None:
            self.data = find_training_data(runner.folder, runner.weights, weights["SHA256"])
        recorded = (runner.exported or {}).get("training_data")
        if self.data is None and recorded is not None:
            self.data = TrainingData.from_content(recorded, runner.weights, "export the network again")
            self.claimed = True
        known = UNKNOWN if self.data is None else self.data.sentence
        self.sentence = f"{self.name}: {f'{Path(runner.weights).name} claims: ' if self.claimed else ''}{known}"
        if runner.adapted is not None:
            self.use(runner.adapted, claimed=True)
        self.bundle = self.data, self.claimed, self.sentence, self.scans

    def use(self, adapted: Mapping[str, Any] | None, claimed: bool = False) -> None:
        """Compare inputs with the scans that weights were fitted to, or None, with the bundle's training data again.

        Args:
            adapted: what such weights say of themselves.
            claimed: whether only their file says so.

        Raises:
            ValueError: it is no such record.
        """
        if adapted is None:
            self.data, self.claimed, self.sentence, self.scans = self.bundle
            return
        self.data = TrainingData.from_content(adapted.get("Data"), "adapted weights", "adapt them again")
        self.claimed, self.scans = claimed, list(adapted.get("Scans") or ())
        scans = ", ".join(map(str, self.data.groups))
        self.sentence = f"{self.name}: {'the weights claim to be ' if claimed else ''}fitted to {scans}"

    def record(self) -> dict[str, Any] | None:
        """Give what is known for a sidecar, without the figures of the intensities; None if nothing is."""
        if self.data is None:
            return None
        groups = [
            {
                "Modality": group.modality,
                "BodyParts": group.body_parts,
                "Contrasts": group.contrasts,
                "Volumes": group.volumes,
                "Images": group.images,
                "PixelMm": group.pixel_mm,
                "Thickness": group.thickness,
            }
            for group in self.data.groups
        ]
        return {"Description": self.sentence, "Claimed": self.claimed, "Data": groups}

    def warn(self, image: MetaTensor, plan: InferencePlan, case: Case | None = None, digest: str | None = None) -> None:
        """Log how an input differs from the training data, one warning for each line of :meth:`differences`.

        Args:
            image, plan, case: see there.
            digest: SHA-256 of the input.
        """
        if digest in self.scans:
            return
        for line in self.differences(image, plan, case):
            was = "claims to be trained on" if self.claimed else "was trained on"
            logger.warning("unlike what %s %s: %s", self.name, was, line)

    def differences(self, image: MetaTensor, plan: InferencePlan, case: Case | None = None) -> list[str]:
        """Say how an input differs from the training data, one line each; none where nothing is known of these.

        Args:
            image: the preprocessed input.
            plan: the inferer's plan of it.
            case: the case that it was read from, if there is one.
        """
        if self.data is None:
            return []
        known = Known() if case is None else known_of(case.source, series_of(case))
        ends = float(image.meta[LOW].min()), float(image.meta[HIGH].max())
        if known.modality is None and is_hounsfield(*ends):
            known = Known("CT", None, known.body_part, "intensities like Hounsfield units")
        return differences(self.data, self.seen(image, plan), known)

    def seen(self, image: MetaTensor, plan: InferencePlan) -> list[Seen]:
        """Measure what the network gets of an input, in every plane."""
        if plan.thickness is None:
            return [measured(image, plane) for plane in plan.planes]
        resized = resample if plan.interpolated else None
        return [
            measured(image, plane, axis=plan.array_axis, size=plan.new_size, resized=resized) for plane in plan.planes
        ]


def series_of(case: Case) -> DicomSeries | None:
    """Give the DICOM series of a case, also of a single file that is read as a picture."""
    if case.series is None and Path(case.source).is_file() and is_dicom_file(case.source):
        return next(iter(find_series(case.source)), None)
    return case.series


def is_hounsfield(low: float, high: float) -> bool:
    """Say whether intensities between these ends (percentiles 0.1 and 99.9) look like Hounsfield units with air.

    CT that was cropped to tissue, clipped to a window or scaled is not recognised; magnetic resonance, also
    standardised to mean 0, has no such ends.
    """
    return HOUNSFIELD_AIR[0] <= low <= HOUNSFIELD_AIR[1] and high >= HOUNSFIELD_TISSUE


def known_of(path: str | os.PathLike, series: DicomSeries | None = None) -> Known:
    """Find what the DICOM header says of an input, or else its name and its BIDS sidecar (``Modality`` and so on).

    Args:
        path: the path of the input.
        series: the DICOM series that the input is, if it is one.
    """
    if series is not None:
        header = series.slices[0].header
        texts = (series.description, str(header.get("ProtocolName") or ""))
        words, source = (
            {"Modality": series.modality, "BodyPartExamined": header.get("BodyPartExamined")},
            "DICOM header",
        )
    else:
        words, source = bids_sidecar(path), "BIDS sidecar"
        texts = (volume_name(path), str(words.get("SeriesDescription") or ""), str(words.get("ProtocolName") or ""))
    contrast = next(filter(None, map(contrast_of, texts)), None)
    modality, part = (str(words.get(key) or "").strip() or None for key in ("Modality", "BodyPartExamined"))
    return Known(modality, contrast, part, source if modality or part else "name")


def differences(trained: TrainingData, seen: Sequence[Seen], known: Known) -> list[str]:
    """Say how an input differs from the training data, one line each; none if it lies within them.

    It is compared with the groups of its modality, and of these with the one that it differs from least.

    Args:
        trained: the training data.
        seen: the figures of the input in every plane that the network gets.
        known: what is known of the input besides.
    """
    groups = trained.groups
    lines = []
    if known.modality:
        fitting = [g for g in groups if g.modality is None or known.modality in g.modality.split()]
        if not fitting:
            trained = ", ".join(sorted({str(g.modality) for g in groups}))
            lines.append(f"modality {known.modality} ({known.source}): trained on {trained}")
        groups = fitting or groups
    return lines + min((_differences(group, seen, known) for group in groups), key=_weight)


def _weight(lines: Sequence[str]) -> int:
    return sum(1 + line.count(";") for line in lines)


def _differences(group: TrainingGroup, seen: Sequence[Seen], known: Known) -> list[str]:
    lines = []
    if known.body_part and group.body_parts and not same_part(known.body_part, group.body_parts):
        trained = ", ".join(group.body_parts)
        lines.append(f"body part {known.body_part} ({known.source}): trained on {trained}")
    if known.contrast and group.contrasts and known.contrast not in group.contrasts:
        lines.append(f"contrast {known.contrast} (by its name): trained on {', '.join(group.contrasts)}")
    if known_edges := [edge for one in seen for edge in one.edges or ()]:
        lines += _outside(group.pixel_mm, known_edges, PIXEL_MARGIN, "pixels of {} mm: trained on {} mm")
    if thick := [one.thickness for one in seen if one.thickness is not None]:
        words = "slices {} times as thick as the target: trained on {} times"
        lines += _outside(group.thickness, thick, THICKNESS_MARGIN, words)
    unlike = {}
    for one in seen:
        for name, value in one.figures.items():
            low, high = group.figures[name]
            margin = max(MARGIN * (high - low), LEAST_MARGIN[name])
            if not low - margin <= value <= high + margin:
                unlike.setdefault(name, f"{FIGURES[name]} {value:.2f}, in training {low:.2f} to {high:.2f}")
    if unlike:
        lines.append(f"intensities unlike the training data: {'; '.join(unlike.values())}")
    return lines


def _outside(trained: Sequence[float] | None, values: Sequence[float], margin: float, words: str) -> list[str]:
    if trained is None or (min(values) >= trained[0] / margin and max(values) <= trained[1] * margin):
        return []
    return [words.format(_span(values), _span(trained))]


def _span(values: Sequence[float]) -> str:
    low, high = (f"{end:.2g}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def same_part(part: str, trained: Sequence[str]) -> bool:
    """Say whether a word for a part of the body means one of those that were trained on."""
    words = part.lower()
    for one in trained:
        same = next((names for names in BODY_PARTS if one in names), {one})
        if any(name in words for name in same):
            return True
    return False
