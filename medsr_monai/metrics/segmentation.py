"""Dice of label maps, for single slices and with the pixels of several slices pooled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.metrics import CumulativeIterationMetric, compute_dice
from monai.networks import one_hot

__all__ = ["PooledDice", "count_pixels", "dice_of_slice", "pooled_dice", "regions"]


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


def pooled_dice(rows: Sequence[dict], region: str) -> float:
    """Return the Dice of a region with the pixels of all slices summed; NaN if no label map has the region.

    Args:
        rows: what :func:`dice_of_slice` returned for each slice.
        region: a class, or "all" for the RDST paper's Dice-T.
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
