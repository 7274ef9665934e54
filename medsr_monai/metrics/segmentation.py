"""Dice of label maps, pooled over slices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.metrics import CumulativeIterationMetric

__all__ = ["PooledDice", "count_pixels"]


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
