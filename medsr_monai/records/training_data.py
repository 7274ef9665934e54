"""Descriptions of the data that weights were trained on, as files; light, for commands that list models."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "DESCRIPTION",
    "FIGURES",
    "check_description",
    "description_path",
    "find_description",
    "read_description",
    "sentence",
]

DESCRIPTION = "training_data.json"
"""In a bundle's docs; beside weights of another place ``<name of the weights>.training_data.json``."""
FIGURES = {
    "background": "share of background",
    "dark": "darkest tenth of the tissue",
    "median": "median of the tissue",
    "bright": "brightest tenth of the tissue",
    "alike": "share of the tissue that is alike",
    "edges": "contrast between neighbouring pixels",
}
"""What :func:`medsr_monai.records.figures.slice_figures` measures, in words."""


def sentence(description: Mapping[str, Any] | None) -> str:
    """What weights were trained on, for a log line or a picture."""
    if description is None:
        return "not known what the weights were trained on"
    parts = [_group_words(group) for group in description["groups"]]
    data = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    method = (description.get("degradation") or {}).get("method")
    words = method if isinstance(method, str) else " or ".join(method or ())
    return f"trained on {data}{f', {words} degradation' if words else ''}"


def _group_words(group: Mapping[str, Any]) -> str:
    """Such as: 13 brain MR volumes (T1, T2, FLAIR)."""
    counts = [
        f"{n} {_of(group)}{kind}{'s' if n > 1 else ''}" for kind in ("volume", "image") if (n := group[kind + "s"])
    ]
    names = f" ({', '.join(group['contrasts'])})" if group["contrasts"] else ""
    return " and ".join(counts) + names


def _of(group: Mapping[str, Any]) -> str:
    words = [*(["/".join(group["body_parts"])] if group["body_parts"] else []), group["modality"] or ""]
    return "".join(f"{word} " for word in words if word)


def read_description(path: str | os.PathLike) -> dict[str, Any]:
    """Description of training data, see :func:`training_groups` for its ``groups``.

    Raises:
        ValueError: another file; names it.
    """
    try:
        content = json.loads(Path(path).read_text())
    except ValueError:
        content = None
    return check_description(content, path, "make it by `medsr describe` or remove it")


def check_description(content: Any, path: str | os.PathLike, remedy: str) -> dict[str, Any]:
    """The same of what has been read from a file, such as the record in an exported network.

    Raises:
        ValueError: no description; names the file and the remedy.
    """
    try:
        needed = {"modality", "body_parts", "contrasts", "volumes", "images", "pixel_mm", "thickness", "figures"}
        fits = bool(content["groups"]) and all(needed <= group.keys() for group in content["groups"])
        fits = fits and all(FIGURES.keys() <= group["figures"].keys() for group in content["groups"])
    except (TypeError, LookupError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(f"{path}: no description of training data, {remedy}")
    return content


def find_description(bundle: str | os.PathLike, weights: str | os.PathLike, sha256: str) -> dict[str, Any] | None:
    """Description of the data behind weights; None if there is none.

    It lies beside the weights, ``<name>.training_data.json``, or in the bundle's ``docs``. It states the sum of the
    weights that it is about; one that is about others is passed over, one beside the weights may state none.

    Args:
        bundle: folder.
        weights: file that is used.
        sha256: its sum.
    """
    beside = description_path(weights)
    for path in (beside, Path(bundle) / "docs" / DESCRIPTION):
        if path.is_file():
            content = read_description(path)
            about = content.get("weights_sha256")
            if about == sha256 or (about is None and path == beside):
                return content
    return None


def description_path(weights: str | os.PathLike) -> Path:
    """Of the description beside a weights file: ``model.pt`` has ``model.training_data.json``."""
    path = Path(weights)
    return path.with_name(f"{path.stem}.{DESCRIPTION}")
