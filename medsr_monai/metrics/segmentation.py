"""Dice of label maps, for single slices and with the pixels of several slices pooled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.metrics import CumulativeIterationMetric, compute_dice
from monai.networks import one_hot
from monai.utils import ensure_tuple

__all__ = [
    "DICE_REGIONS",
    "PooledDice",
    "count_pixels",
    "dice_of_regions",
    "dice_of_slice",
    "named_regions",
    "pooled_dice",
    "regions",
]

DICE_REGIONS: dict[str, dict[str, list]] = {
    "oasis": {"Dice-T": [[1], [2], [3]], "Dice-G": [2], "Dice-W": [3], "Dice-CSF": [1]},
    "brats": {"Dice-WT": [1, 2, 3], "Dice-ET": [3], "Dice-TC": [1, 3]},
    "acdc": {"Dice-T": [[1], [2], [3]], "Dice-LV": [3], "Dice-RV": [1], "Dice-MC": [2]},
    "covid_ct": {"Dice-T": [[1], [2], [3]], "Dice-LL": [1], "Dice-RL": [2], "Dice-Lesion": [3]},
}
"""The regions of the RDST paper (arXiv 2302.11184) by data set, with the labels of :mod:`medsr_monai.data`'s recipes.

The TransMRSR paper's (arXiv 2306.06669) are those of "oasis" without Dice-T.
"""
AVERAGE, WHOLE = "Dice-Avg", "Dice-T"
"""The mean of all named regions, and the region of a whole map, which it leaves out."""


def count_pixels(pred: torch.Tensor, label: torch.Tensor, classes: int) -> torch.Tensor:
    """Count each slice's pixels of every class: those in both label maps, in ``pred`` and in ``label``.

    Args:
        pred, label: label maps [B, 1, ...] with labels 0 to classes - 1.
        classes: number of classes, the background included.

    Returns:
        The counts [B, classes, 3], int64.

    Raises:
        ValueError: the label maps differ in shape or have several channels.
    """
    if pred.shape != label.shape or pred.shape[1] != 1:
        raise ValueError(
            f"pred is {tuple(pred.shape)} and label {tuple(label.shape)}: expected equal ones, [B, 1, ...]"
        )
    p, y = (F.one_hot(torch.as_tensor(m).long().flatten(1), classes) for m in (pred, label))
    return torch.stack([(p * y).sum(1), p.sum(1), y.sum(1)], dim=-1)


def regions(classes: int) -> list[str]:
    """Return the names of the regions that have a Dice: every class but the background, and "all" of these together."""
    return [*(str(c) for c in range(1, classes)), "all"]


def dice_of_slice(pred: torch.Tensor, label: torch.Tensor, classes: int) -> dict[str, float | int]:
    """Return the Dice of one slice for all :func:`regions`, and the pixels that make it.

    It is MONAI's Dice: a class that is in neither label map has 1, and one that is in only one of them 0.

    Args:
        pred, label: label maps [1, H, W] with labels 0 to classes - 1.
        classes: number of classes, the background included.

    Returns:
        ``dice_<region>`` and, in pixels, ``both_<region>``, ``pred_<region>`` and ``label_<region>``.
    """
    onehot = [one_hot(m[None], classes) for m in (pred, label)]
    dice = compute_dice(*onehot, include_background=False, ignore_empty=False)[0].tolist()
    counts = count_pixels(pred[None], label[None], classes)[0, 1:]
    counts = [*counts.tolist(), counts.sum(0).tolist()]
    names = regions(classes)
    row = dict(zip([f"dice_{name}" for name in names], [*dice, _dice(*counts[-1], empty=1.0)], strict=True))
    for name, (both, in_pred, in_label) in zip(names, counts, strict=True):
        row |= {f"both_{name}": both, f"pred_{name}": in_pred, f"label_{name}": in_label}
    return row


def named_regions(named: str | Mapping[str, Sequence] | None) -> dict[str, list[list[int]]]:
    """Return the unions of labels of each named region.

    Args:
        named: a data set of `DICE_REGIONS`; or regions by name, each a list of labels, whose union counts, such as
            ``{"Dice-WT": [1, 2, 3]}``, or a list of such lists, whose pixels are pooled as in the RDST paper's Dice-T;
            None for no region.

    Raises:
        ValueError: an unknown data set, an empty region or one that is named as the average, or no labels above 0.
    """
    if isinstance(named, str):
        if named not in DICE_REGIONS:
            raise ValueError(
                f"regions are {named!r}, expected one of {', '.join(DICE_REGIONS)}, or labels by name such as "
                '{"Dice-WT": [1, 2, 3]}'
            )
        named = DICE_REGIONS[named]
    found = {}
    for name, labels in dict(named or {}).items():
        unions = labels if isinstance(labels, (list, tuple)) and labels else [labels]
        unions = unions if isinstance(unions[0], (list, tuple)) else [unions]
        values = [label for union in unions for label in ensure_tuple(union)]
        if name == AVERAGE or not values or any(type(label) is not int or label < 1 for label in values):
            raise ValueError(
                f"region {name!r} has the labels {labels!r}: expected a list of labels above 0 such as [1, 3], under "
                f"another name than {AVERAGE}"
            )
        found[str(name)] = [list(ensure_tuple(union)) for union in unions]
    return found


def dice_of_regions(
    pred: torch.Tensor, label: torch.Tensor, named: Mapping[str, Sequence[Sequence[int]]]
) -> dict[str, float | int]:
    """Return the Dice of one slice for regions by name (`named_regions`), their mean, and the pixels that make them.

    A region that is in neither label map has 1, and one that is in only one of them 0.

    Args:
        pred, label: label maps [1, H, W].
        named: unions of labels by name.

    Returns:
        Each Dice under its name and ``Dice-Avg``, the mean of all but Dice-T, and, in pixels, ``both_<name>``,
        ``pred_<name>`` and ``label_<name>``.
    """
    row: dict[str, float | int] = {}
    for name, unions in named.items():
        counts = [0, 0, 0]
        for union in unions:
            p, y = (torch.isin(torch.as_tensor(m).long(), torch.tensor(union, device=m.device)) for m in (pred, label))
            counts = [count + int(mask.sum()) for count, mask in zip(counts, (p & y, p, y), strict=True)]
        row |= {name: _dice(*counts, empty=1.0)}
        row |= {f"{part}_{name}": count for part, count in zip(("both", "pred", "label"), counts, strict=True)}
    return row | average(row, named)


def average(row: Mapping, named: Sequence[str], suffix: str = "") -> dict[str, float]:
    """Return the mean of the Dice of all named regions that a row has, but Dice-T, which is the whole map."""
    values = [row[f"{name}{suffix}"] for name in named if name != WHOLE]
    return {f"{AVERAGE}{suffix}": sum(values) / len(values)} if values else {}


def pooled_dice(rows: Sequence[dict], region: str) -> float:
    """Return the Dice of a region with the pixels of all slices summed; NaN if no label map has the region.

    Args:
        rows: what :func:`dice_of_slice` returned for each slice.
        region: a class, "all" for the RDST paper's Dice-T, or the name of a region of `dice_of_regions`.
    """
    return _dice(*(sum(row[f"{name}_{region}"] for row in rows) for name in ("both", "pred", "label")), empty=math.nan)


def _dice(both: int, pred: int, label: int, empty: float) -> float:
    return 2 * both / (pred + label) if pred + label else empty


class PooledDice(CumulativeIterationMetric):
    """Dice of all classes but the background, their pixels pooled over classes and slices (the RDST paper's Dice-T).

    It is 2 sum |pred and label| / sum (|pred| + |label|), and NaN if no class is in any slice. The slices of all
    processes count.

    Args:
        classes: number of classes, the background included.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return count_pixels(y_pred, y, self.classes)

    def aggregate(self) -> torch.Tensor:
        """Return the Dice of all slices since the last reset."""
        both, pred, label = self.get_buffer()[:, 1:].sum(dim=(0, 1)).double()
        return 2 * both / (pred + label)
