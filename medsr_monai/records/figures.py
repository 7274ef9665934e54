"""Figures of what a network sees of volumes, by which training data are described and inputs are compared with them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from medsr_monai.data.datasets import SliceDataset
from medsr_monai.data.find import volume_name
from medsr_monai.data.pictures import is_picture
from medsr_monai.records.training_data import FIGURES, TrainingGroup
from medsr_monai.transforms.geometry import plane_axis, spacing
from medsr_monai.transforms.intensity import intensity_range

__all__ = [
    "Seen",
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


@dataclass(frozen=True)
class Seen:
    """What the network sees of a volume in one plane, in figures.

    Attributes:
        edges: of the pixels along rows and columns in mm, of thick slices those of the target; None where the pixel
            size is not known.
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
        edges[axis] /= thickness
        if resized is not None:
            sizes = [size if a == axis else image.shape[a + 1] for a in inside]
            slices = [resized(one, sizes) for one in slices]
    return seen_of_slices(slices, edges[inside] if known else None, thickness)


def training_groups(
    dataset: SliceDataset,
    pairs: Callable,
    *,
    modality: str | None = None,
    body_part: str | None = None,
    factor: float = 1,
) -> tuple[TrainingGroup, ...]:
    """Describe training data, one group a modality.

    Args:
        dataset: of the training, whose volumes, planes and slices are taken.
        pairs: makes whole slices (``label``) and what the network gets of them (``image``), as the training does of
            patches, see :func:`medsr_monai.recipes.slice_pairs`.
        modality, body_part: of all items that do not state their own, as ``modality`` and ``body_part``; an MR
            contrast is what an item states as ``contrast``, else a word in its file's name.
        factor: by which slices are thicker than the target, where pairs are interpolated to it already; where the
            network enlarges slices along one axis, the pairs show it.
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
            group["seen"].append(_seen_of_pairs(volume, axis, made, 1 if thick is None else factor))
    return tuple(_group(name, body_part, group) for name, group in groups.items())


def _seen_of_pairs(volume: MetaTensor, axis: int, pairs: Sequence[Mapping], factor: float) -> Seen:
    """Of training pairs; those of thick slices may be turned."""
    label, image = pairs[0]["label"], pairs[0]["image"]
    fine = np.delete(spacing(volume.affine), axis)
    fine = fine[::-1] if pairs[0].get("turned") else fine
    ratios = [a / b for a, b in zip(label.shape[1:], image.shape[1:], strict=True)]
    if factor == 1 and ratios[0] == 1 < ratios[1]:  # the network makes several slices of a thick one
        factor = ratios[1]
    thick = factor > 1
    edges = fine if thick else [edge * ratio for edge, ratio in zip(fine, ratios, strict=True)]
    known = volume.meta.get("picture_spacing") != "none"
    slices = [torch.as_tensor(pair["image"]) for pair in pairs]
    return seen_of_slices(slices, edges if known else None, float(factor) if thick else None)


def _group(name: str | None, body_part: str | None, group: Mapping) -> TrainingGroup:
    items, seen = group["items"].values(), group["seen"]
    pictures = sum(is_picture(_file(item)) for item in items)
    contrasts = (item.get("contrast") or contrast_of(volume_name(_file(item))) for item in items)
    return TrainingGroup(
        modality=name,
        body_parts=sorted({part for item in items if (part := item.get("body_part", body_part))}),
        contrasts=list(dict.fromkeys(filter(None, contrasts))),
        volumes=len(items) - pictures,
        images=pictures,
        slices=group["slices"],
        pixel_mm=_range(edge for one in seen for edge in one.edges or ()),
        size_pixels=[int(end) for end in _range(n for one in seen for n in one.size)],
        thickness=_range(one.thickness for one in seen if one.thickness is not None),
        figures={figure: _range(one.figures[figure] for one in seen) for figure in FIGURES},
    )


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
