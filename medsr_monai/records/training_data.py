"""What weights were trained on, as a record beside them; light, for commands that only list models."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsr_monai.atomic import read_json
from medsr_monai.weights.stated import file_hash

__all__ = [
    "FIGURES",
    "FILE_NAME",
    "UNKNOWN",
    "TrainingData",
    "TrainingGroup",
    "find_training_data",
    "packed_training_data",
    "path_beside",
]

FILE_NAME = "training_data.json"
"""The record's name in a bundle's docs; beside weights elsewhere it is ``<name of the weights>.training_data.json``."""


FIGURES = {
    "background": "share of background",
    "dark": "darkest tenth of the tissue",
    "median": "median of the tissue",
    "bright": "brightest tenth of the tissue",
    "alike": "share of the tissue that is alike",
    "edges": "contrast between neighbouring pixels",
}
"""What :func:`medsr_monai.records.figures.slice_figures` measures, in words."""
UNKNOWN = "not known what the weights were trained on"
"""Said where there is no record."""


@dataclass(frozen=True)
class TrainingGroup:
    """Training data of one modality. Ranges are [least, greatest] over volumes and planes.

    Attributes:
        modality: DICOM's word, such as MR or CT; None where it is not known.
        body_parts: words such as brain; empty where they are not known.
        contrasts: of MR, such as T1; empty where they are not known.
        volumes, images: how many volumes and 2D images there are.
        pixel_mm: range of the pixels' edges that the network saw; None where no pixel size is known.
        thickness: range of the thickness of slices in parts of the target's; None for in-plane super-resolution.
        figures: ranges of :func:`medsr_monai.records.figures.slice_figures` by name.
        slices: how many were measured.
        size_pixels: range of the sides of the slices.
    """

    modality: str | None
    body_parts: list[str]
    contrasts: list[str]
    volumes: int
    images: int
    pixel_mm: list[float] | None
    thickness: list[float] | None
    figures: dict[str, list[float]]
    slices: int = 0
    size_pixels: list[int] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        """Such as: 13 brain MR volumes (T1, T2, FLAIR)."""
        words = " ".join(filter(None, ("/".join(self.body_parts), self.modality)))
        counts = [
            " ".join(filter(None, (str(number), words, kind + "s" * (number > 1))))
            for number, kind in ((self.volumes, "volume"), (self.images, "image"))
            if number
        ]
        return " and ".join(counts) + (f" ({', '.join(self.contrasts)})" if self.contrasts else "")


@dataclass(frozen=True)
class TrainingData:
    """What weights were trained on. It names no file and no patient.

    Attributes:
        groups: one a modality, at least one.
        degradation: ``method``, one or several, and ``scale`` of the training.
        weights_sha256: of the weights that it is about; None where it does not say.
        generated_by: the software that wrote it.
    """

    groups: tuple[TrainingGroup, ...]
    degradation: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights_sha256: str | None = None
    generated_by: str | None = None

    @classmethod
    def from_content(cls, content: Any, path: str | os.PathLike, remedy: str) -> TrainingData:
        """The record of what JSON has brought.

        Args:
            content: from :meth:`content`.
            path: that it came from, for the message.
            remedy: what to do if it is another thing, for the message.

        Raises:
            ValueError: it is no such record.
        """
        try:
            known = {field.name for field in dataclasses.fields(cls)}
            groups = tuple(TrainingGroup(**group) for group in content["groups"])
            record = cls(**{name: value for name, value in content.items() if name in known} | {"groups": groups})
            method = (record.degradation or {}).get("method") or ""
            words = [method] if isinstance(method, str) else method
            fits = bool(groups) and all(map(_fits, groups)) and all(isinstance(word, str) for word in words)
        except (TypeError, LookupError, AttributeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(f"{path}: no description of training data, {remedy}")
        return record

    @classmethod
    def read(cls, path: str | os.PathLike) -> TrainingData:
        """Read a file.

        Raises:
            ValueError: it holds something else; one line that names it.
        """
        try:
            content = read_json(path)
        except ValueError:
            content = None
        return cls.from_content(content, path, "make it by `medsr describe` or remove it")

    def content(self) -> dict[str, Any]:
        """What is written as JSON."""
        return dataclasses.asdict(self)

    @property
    def sentence(self) -> str:
        """Such as: trained on 3 brain MR volumes (T1, T2) and 1 chest CT volume, bicubic degradation."""
        parts = [str(group) for group in self.groups]
        data = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
        method = (self.degradation or {}).get("method")
        words = method if isinstance(method, str) else " or ".join(method or ())
        return f"trained on {data}{f', {words} degradation' if words else ''}"


def _fits(group: TrainingGroup) -> bool:
    """Whether the values of a group, which may come from anywhere, are of the types that they should be."""
    words = [*group.body_parts, *group.contrasts, group.modality or ""]
    ranges = [group.figures[name] for name in FIGURES]
    ranges += [part for part in (group.pixel_mm, group.thickness) if part is not None]
    numbers = [number for low, high in ranges for number in (low, high)]
    return all(isinstance(word, str) for word in words) and all(
        isinstance(number, (int, float)) for number in (*numbers, group.volumes, group.images)
    )


def find_training_data(bundle: str | os.PathLike, weights: str | os.PathLike, sha256: str) -> TrainingData | None:
    """Record of the data behind weights; None if there is none.

    It lies beside the weights or in the bundle's ``docs``. One that states the sum of other weights is passed over; one
    beside the weights may state none.

    Args:
        bundle: folder.
        weights: file that is used.
        sha256: its sum.
    """
    beside = path_beside(weights)
    for path in (beside, Path(bundle) / "docs" / FILE_NAME):
        if path.is_file():
            found = TrainingData.read(path)
            if found.weights_sha256 == sha256 or (found.weights_sha256 is None and path == beside):
                return found
    return None


def path_beside(weights: str | os.PathLike) -> Path:
    """Of the record beside a weights file: ``model.pt`` has ``model.training_data.json``."""
    path = Path(weights)
    return path.with_name(f"{path.stem}.{FILE_NAME}")


def packed_training_data(weights: str | os.PathLike) -> bytes | None:
    """The record beside a weights file as it goes into a package, with their sum; None if none lies there."""
    path = path_beside(weights)
    if not path.is_file():
        return None
    record = dataclasses.replace(TrainingData.read(path), weights_sha256=file_hash(Path(weights)))
    return (json.dumps(record.content(), indent=2) + "\n").encode()
