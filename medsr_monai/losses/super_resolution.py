"""The loss of a super-resolution network: a pixel loss plus a weighted perceptual loss."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class SuperResolutionLoss(nn.Module):
    """``alpha`` times the mean absolute difference plus ``lambda_`` times a perceptual loss (RDST, arXiv 2302.11184).

    Args:
        perceptual: loss of (pred, label), such as :class:`SegmentationPerceptualLoss`; None for the pixel loss alone.
        alpha: weight of the pixel loss, 1 in the paper.
        lambda_: weight of the perceptual loss, 10 in the paper.

    Raises:
        ValueError: a weight is negative.
    """

    def __init__(
        self,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        alpha: float = 1.0,
        lambda_: float = 10.0,
    ) -> None:
        super().__init__()
        if alpha < 0 or lambda_ < 0:
            raise ValueError(f"alpha is {alpha} and lambda_ {lambda_}: expected weights of 0 or more.")
        self.perceptual = perceptual
        self.alpha = alpha
        self.lambda_ = lambda_

    def forward(self, pred: Tensor, label: Tensor) -> Tensor:
        """Compare ``pred`` with ``label``, both [B, C, H, W]."""
        loss = self.alpha * F.l1_loss(pred, label)
        if self.perceptual is not None:
            loss = loss + self.lambda_ * self.perceptual(pred, label)
        return loss
