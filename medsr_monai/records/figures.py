"""What weights were trained on, as a machine reads it, and how an input differs from that.

A description, ``training_data.json``, holds no names of files or patients: what is known of the training data, the size
of the pixels that the network saw, and the ranges of some figures of their intensities (:func:`slice_figures`), in
groups by modality. An input is measured by the same functions.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from medsr_monai.data.datasets import SliceDataset
from medsr_monai.data.dicom.series import DicomSeries
from medsr_monai.data.find import volume_name
from medsr_monai.data.pictures import is_picture
from medsr_monai.records.training_data import FIGURES
from medsr_monai.transforms.geometry import plane_axis, spacing
from medsr_monai.transforms.intensity import intensity_range

__all__ = [
    "Known",
    "Seen",
    "differences",
    "is_hounsfield",
    "known_of",
    "measured",
    "seen_of_slices",
    "training_groups",
    "usable_slices",
]

SLICES = 32
"""Of a volume and plane that are measured, evenly spread."""
TISSUE = 0.15
"""Of the intensity range, below which pixels are background: air, what was masked, a lung in CT."""
BAND = 0.05
"""Of the intensity range: width within which tissue is alike."""
MARGIN = 0.25
"""By which an input may lie beyond the training data, as a part of the width of their range."""
LEAST_MARGIN = {"background": 0.15, "dark": 0.05, "median": 0.05, "bright": 0.05, "alike": 0.03, "edges": 0.05}
"""The same for the narrow range of few volumes. How much of a picture is background is a matter of the crop."""
PIXEL_MARGIN = 1.1
"""Factor by which pixels may be smaller or larger than any of the training data."""
THICKNESS_MARGIN = 1.5
"""The same for the thickness of slices in parts of the target."""
HOUNSFIELD_AIR = (-3100.0, -900.0)
"""Where the lower end of the intensities of a CT volume lies: air is -1000, what the scanner did not see is below."""
HOUNSFIELD_TISSUE = 100.0
"""The upper end is above this."""

CONTRASTS = {
    "FLAIR": ("flair", "tirm"),
    "T2*": ("t2s", "t2star", "t2*", "swi", "t2starw"),
    "DWI": ("dwi", "dti", "adc"),
    "BOLD": ("bold", "fmri"),
    "T1": ("t1", "t1w", "mprage", "memprage", "mp2rage", "spgr", "bravo", "t1ce", "t1gd", "t1c"),
    "T2": ("t2", "t2w"),
    "PD": ("pd", "pdw"),
}
"""MR contrasts and the words for them in names and descriptions; the first that fits, since a FLAIR is T2-weighted."""
BODY_PARTS = (
    {"brain", "head", "skull", "hippocampus"},
    {"heart", "cardiac"},
    {"chest", "thorax", "lung"},
    {"abdomen", "liver", "kidney", "pancreas"},
    {"spine", "cspine", "tspine", "lspine", "neck", "cord"},
    {"pelvis", "prostate"},
)
"""Words that mean the same region."""


@dataclass(frozen=True)
class Known:
    """What is known of an input besides its voxels; None for what is not.

    Attributes:
        modality: DICOM's, such as MR or CT.
        contrast: a name of CONTRASTS.
        body_part: a word.
        source: where this is from, for messages.
    """

    modality: str | None = None
    contrast: str | None = None
    body_part: str | None = None
    source: str = ""


@dataclass(frozen=True)
class Seen:
    """What the network sees of a volume in one plane, in figures.

    Attributes:
        edges: of the pixels along rows and columns in mm; None where the pixel size is not known.
        size: rows and columns.
        figures: see :func:`slice_figures`.
        thickness: of thick slices, in parts of the target; None for in-plane super-resolution.
    """

    edges: tuple[float, float] | None
    size: tuple[int, int]
    figures: Mapping[str, float]
    thickness: float | None = None


def slice_figures(slices: Sequence[torch.Tensor]) -> dict[str, float]:
    """Figures of the intensities of slices [C, H, W] that do not depend on units, matrix or position.

    Intensities are in parts of the slices' own range (percentiles 0.1 to 99.9), as networks see them. Tissue is what is
    above TISSUE of it.

    - ``background``: share of all other pixels;
    - ``dark``, ``median``, ``bright``: percentiles 10, 50 and 90 of the tissue;
    - ``alike``: largest share of the tissue within a band of BAND: large in CT, where soft tissues differ little
      compared with bone and air;
    - ``edges``: root mean square of the difference between neighbouring pixels over the standard deviation within
      slices: small for blurred or interpolated slices and fine pixels, large for noise.

    Raises:
        ValueError: slices of one value.
    """
    values = torch.cat([image.flatten() for image in slices])
    low, high = intensity_range(values[:: 1 + values.numel() // 2_000_000])
    scaled = ((values - low) / (high - low)).numpy()
    tissue = scaled[scaled >= TISSUE]
    dark, median, bright = np.percentile(tissue, (10, 50, 90))
    bins = round(1 / (BAND / 5))
    counts = np.histogram(np.clip(tissue, 0, 1), bins=bins, range=(0, 1))[0]
    alike = np.convolve(counts, np.ones(5), "valid").max() / len(tissue)
    steps = [(image.diff(dim=d).square().sum(), image.diff(dim=d).numel()) for image in slices for d in (-2, -1)]
    total, number = (sum(column) for column in zip(*steps, strict=True))
    variance = sum(image.var(dim=(-2, -1), correction=0).mean() for image in slices) / len(slices)
    edges = (total / max(number, 1) / variance) ** 0.5
    figures = {"background": 1 - len(tissue) / len(scaled), "dark": dark, "median": median, "bright": bright}
    return {name: float(value) for name, value in (figures | {"alike": alike, "edges": edges}).items()}


def usable_slices(image: torch.Tensor, axis: int, count: int = SLICES, min_std: float = 0.25) -> list[int]:
    """Positions of slices across an array axis of a volume [C, X, Y, Z] that are measured: not air, evenly spread."""
    others = [d for d in range(image.ndim) if d != axis + 1]
    stds = image.std(dim=others, correction=0)
    positions = torch.nonzero(stds > min_std * image.std(correction=0)).flatten().tolist()
    return _spread(positions or list(range(image.shape[axis + 1])), count)


def _spread(positions: list[int], count: int) -> list[int]:
    picks = np.linspace(0, len(positions) - 1, min(count, len(positions)))
    return [positions[round(pick)] for pick in picks]


def seen_of_slices(
    slices: Sequence[torch.Tensor], edges: Sequence[float] | None, thickness: float | None = None
) -> Seen:
    """Figures of slices [C, H, W] of one volume and plane, as the network gets them.

    Args:
        slices: of equal size.
        edges: of their pixels along rows and columns, in mm.
        thickness: see :class:`Seen`.
    """
    edges = None if edges is None else tuple(float(edge) for edge in edges)
    return Seen(edges, tuple(slices[0].shape[1:]), slice_figures(slices), thickness)


def measured(
    image: MetaTensor, plane: str, *, axis: int | None = None, size: int | None = None, resized: Callable | None = None
) -> Seen:
    """What a network sees of a volume [C, X, Y, Z] in the slices of a plane.

    Args:
        plane: of the slices.
        axis: array axis across thick slices, for a network that refines them; None for in-plane super-resolution.
        size: samples that there are to be along it.
        resized: (slice [C, H, W], sizes) -> slice, which brings the thick axis to this; None for a network that gets
            thick samples.
    """
    across = plane_axis(image.affine, plane)
    inside = [a for a in range(3) if a != across]
    volume = image.as_tensor()
    slices = [volume.select(across + 1, i) for i in usable_slices(volume, across)]
    known = image.meta.get("picture_spacing") != "none"
    edges, thickness = spacing(image.affine), None
    if axis is not None:
        thickness = size / image.shape[axis + 1]
        if resized is not None:
            edges[axis] /= thickness
            sizes = [size if a == axis else image.shape[a + 1] for a in inside]
            slices = [resized(one, sizes) for one in slices]
    return seen_of_slices(slices, edges[inside] if known else None, thickness)


def training_groups(
    dataset: SliceDataset,
    pairs: Callable,
    *,
    modality: str | None = None,
    body_part: str | None = None,
    thickness: float | None = None,
) -> list[dict[str, Any]]:
    """Describe training data, one group a modality.

    Args:
        dataset: of the training, whose volumes, planes and slices are taken.
        pairs: makes whole slices (``label``) and what the network gets of them (``image``), as the training does of
            patches, see :func:`medsr_monai.recipes.slice_pairs`.
        modality, body_part: of all items that do not state their own, as ``modality`` and ``body_part``; an MR
            contrast is what an item states as ``contrast``, else a word in its file's name.
        thickness: of thick slices, in parts of the target.

    Returns:
        ``modality``, ``body_parts``, ``contrasts`` (None or empty where not known), ``volumes``, ``images`` (2D),
        ``slices`` that were measured, and ranges over volumes and planes, [least, greatest]: ``pixel_mm`` and
        ``thickness`` (see :class:`Seen`; None where there is none), ``size_pixels``, ``figures``.
    """
    shown = copy.copy(dataset)
    shown.transform = pairs if isinstance(pairs, Compose) else Compose([pairs])
    views: dict[tuple, list[int]] = {}
    for index, (number, axis, plane, _) in enumerate(dataset.items):
        views.setdefault((number, axis, plane), []).append(index)
    groups: dict[str | None, dict] = {}
    for (number, axis, _), indices in views.items():
        item = dataset.data[number]
        name = item.get("modality", modality)
        group = groups.setdefault(name, {"items": {}, "seen": [], "slices": 0})
        group["items"][number] = item
        by_axis: dict[object, list[dict]] = {}
        for index in _spread(indices, SLICES):
            pair = shown[index]
            by_axis.setdefault(pair.get("thick_axis"), []).append(pair)
        volume = dataset.volumes[number]["image"]
        for thick, made in by_axis.items():
            group["slices"] += len(made)
            group["seen"].append(_seen_of_pairs(volume, axis, made, None if thick is None else thickness))
    return [_group(name, body_part, group) for name, group in groups.items()]


def _seen_of_pairs(volume: MetaTensor, axis: int, pairs: Sequence[Mapping], thickness: float | None) -> Seen:
    """Of training pairs; those of thick slices may be turned."""
    label, image = pairs[0]["label"], pairs[0]["image"]
    fine = np.delete(spacing(volume.affine), axis)
    fine = fine[::-1] if pairs[0].get("turned") else fine
    edges = [edge * a / b for edge, a, b in zip(fine, label.shape[1:], image.shape[1:], strict=True)]
    known = volume.meta.get("picture_spacing") != "none"
    return seen_of_slices([torch.as_tensor(pair["image"]) for pair in pairs], edges if known else None, thickness)


def _group(modality: str | None, body_part: str | None, group: Mapping) -> dict[str, Any]:
    items, seen = group["items"].values(), group["seen"]
    pictures = sum(is_picture(_file(item)) for item in items)
    parts = {part for item in items if (part := item.get("body_part", body_part))}
    contrasts = (item.get("contrast") or contrast_of(volume_name(_file(item))) for item in items)
    figures = {name: _range(one.figures[name] for one in seen) for name in FIGURES}
    return {
        "modality": modality,
        "body_parts": sorted(parts),
        "contrasts": list(dict.fromkeys(filter(None, contrasts))),
        "volumes": len(items) - pictures,
        "images": pictures,
        "slices": group["slices"],
        "pixel_mm": _range(edge for one in seen for edge in one.edges or ()),
        "size_pixels": [int(end) for end in _range(n for one in seen for n in one.size)],
        "thickness": _range(one.thickness for one in seen if one.thickness is not None),
        "figures": figures,
    }


def _file(item: Mapping) -> str:
    image = item["image"]
    return str(image[0] if isinstance(image, (list, tuple)) else image)


def _range(values: Iterable[float]) -> list[float] | None:
    values = list(values)
    return [float(f"{end:.4g}") for end in (min(values), max(values))] if values else None


def contrast_of(text: str) -> str | None:
    """MR contrast that a file's name or a series' description names."""
    words = set(re.split(r"[^a-z0-9*]+", text.lower()))
    return next((name for name, known in CONTRASTS.items() if words & set(known)), None)


def is_hounsfield(low: float, high: float) -> bool:
    """Whether intensities between these ends (percentiles 0.1 and 99.9) look like Hounsfield units with air.

    CT that was cropped to tissue, clipped to a window or scaled is not recognised; magnetic resonance, also
    standardised to mean 0, has no such ends.
    """
    return HOUNSFIELD_AIR[0] <= low <= HOUNSFIELD_AIR[1] and high >= HOUNSFIELD_TISSUE


def known_of(path: str | os.PathLike, series: DicomSeries | None = None) -> Known:
    """What a DICOM series, or the name and the BIDS sidecar of a volume (``Modality`` and so on), say of an input.

    Args:
        path: of the input.
        series: that it is, if it is one.
    """
    if series is not None:
        header = series.slices[0].header
        texts = (series.description, str(header.get("ProtocolName") or ""))
        words, source = (
            {"Modality": series.modality, "BodyPartExamined": header.get("BodyPartExamined")},
            "DICOM header",
        )
    else:
        words, source = _sidecar(path), "BIDS sidecar"
        texts = (volume_name(path), str(words.get("SeriesDescription") or ""), str(words.get("ProtocolName") or ""))
    contrast = next(filter(None, map(contrast_of, texts)), None)
    modality, part = (str(words.get(key) or "").strip() or None for key in ("Modality", "BodyPartExamined"))
    return Known(modality, contrast, part, source if modality or part else "name")


def _sidecar(path: str | os.PathLike) -> dict[str, Any]:
    """JSON beside a volume, as dcm2niix writes it."""
    file = Path(path).with_name(f"{volume_name(path)}.json")
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def differences(description: Mapping[str, Any], seen: Sequence[Seen], known: Known) -> list[str]:
    """How an input differs from the training data, one line each; none if it lies within it.

    It is compared with the groups of its modality, and of these with the one that it differs from least.

    Args:
        description: of the training data.
        seen: input, in every plane that the network gets.
        known: of the input.
    """
    groups = description["groups"]
    lines = []
    if known.modality:
        fitting = [g for g in groups if g["modality"] is None or known.modality in g["modality"].split()]
        if not fitting:
            trained = ", ".join(sorted({str(g["modality"]) for g in groups}))
            lines.append(f"modality {known.modality} ({known.source}): trained on {trained}")
        groups = fitting or groups
    return lines + min((_differences(group, seen, known) for group in groups), key=_weight)


def _weight(lines: Sequence[str]) -> int:
    return sum(1 + line.count(";") for line in lines)


def _differences(group: Mapping[str, Any], seen: Sequence[Seen], known: Known) -> list[str]:
    lines = []
    if known.body_part and group["body_parts"] and not _same_part(known.body_part, group["body_parts"]):
        trained = ", ".join(group["body_parts"])
        lines.append(f"body part {known.body_part} ({known.source}): trained on {trained}")
    if known.contrast and group["contrasts"] and known.contrast not in group["contrasts"]:
        lines.append(f"contrast {known.contrast} (by its name): trained on {', '.join(group['contrasts'])}")
    if known_edges := [edge for one in seen for edge in one.edges or ()]:
        lines += _outside(group["pixel_mm"], known_edges, PIXEL_MARGIN, "pixels of {} mm: trained on {} mm")
    if thick := [one.thickness for one in seen if one.thickness is not None]:
        words = "slices {} times as thick as the target: trained on {} times"
        lines += _outside(group["thickness"], thick, THICKNESS_MARGIN, words)
    unlike = {}
    for one in seen:
        for name, value in one.figures.items():
            low, high = group["figures"][name]
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


def _same_part(part: str, trained: Sequence[str]) -> bool:
    words = part.lower()
    for one in trained:
        same = next((names for names in BODY_PARTS if one in names), {one})
        if any(name in words for name in same):
            return True
    return False
