"""Dice of label maps, of single slices and pooled over slices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.metrics import CumulativeIterationMetric, compute_dice
from monai.networks import one_hot

__all__ = ["PooledDice", "count_pixels", "dice_of_slice", "pooled_dice", "regions"]


def count_pixels(pred: torch.Tensor, label: torch.Tensor, classes: int) -> torch.Tensor:
    """Pixels [B, classes, 3] of every class in both label maps, in ``pred`` and in ``label``, of each slice, int64.

    Args:
        pred, label: label maps [B, 1, ...] with labels 0 to classes - 1.
        classes: background included.

    Raises:
        ValueError: label maps of different shapes or with several channels.
    """
    if pred.shape != label.shape or pred.shape[1] != 1:
        raise ValueError(
            f"pred is {tuple(pred.shape)} and label {tuple(label.shape)}: expected equal ones, [B, 1, ...]"
        )
    p, y = (F.one_hot(torch.as_tensor(m).long().flatten(1), classes) for m in (pred, label))
    return torch.stack([(p * y).sum(1), p.sum(1), y.sum(1)], dim=-1)


def regions(classes: int) -> list[str]:
    """Names of what Dice is computed of: every class but the background, and "all", the pixels of all of them."""
    return [*(str(c) for c in range(1, classes)), "all"]


def dice_of_slice(pred: torch.Tensor, label: torch.Tensor, classes: int) -> dict[str, float | int]:
    """Dice of one slice, ``dice_<region>``, and the pixels it is made of, ``both_``, ``pred_`` and ``label_<region>``.

    MONAI's Dice: a class that is in neither label map has 1, one in only one of them 0; see :func:`regions`.

    Args:
        pred, label: label maps [1, H, W] with labels 0 to classes - 1.
        classes: background included.
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
    """Dice of a region over all slices, their pixels summed: NaN where no label map has it.

    Args:
        rows: see :func:`dice_of_slice`.
        region: a class, or "all" (the RDST paper's Dice-T, if pixels of all slices are pooled).
    """
    return _dice(*(sum(row[f"{name}_{region}"] for row in rows) for name in ("both", "pred", "label")), empty=math.nan)


def _dice(both: int, pred: int, label: int, empty: float) -> float:
    return 2 * both / (pred + label) if pred + label else empty


class PooledDice(CumulativeIterationMetric):
    """Dice of all classes but the background, their pixels pooled over classes and slices (the RDST paper's Dice-T).

    2 sum |pred and label| / sum (|pred| + |label|); NaN where no class is in any slice. Gathers over processes.

    Args:
        classes: background included.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return count_pixels(y_pred, y, self.classes)

    def aggregate(self) -> torch.Tensor:
        """Of all slices since the last reset."""
        both, pred, label = self.get_buffer()[:, 1:].sum(dim=(0, 1)).double()
        return 2 * both / (pred + label)
