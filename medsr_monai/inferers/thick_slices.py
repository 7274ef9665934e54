"""What :class:`ThroughPlaneInferer` does to volumes, for batches of slices: any ratio by one network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from monai.inferers import Inferer
from monai.utils import ensure_tuple_rep

from medsr_monai.transforms.interpolation import resample

__all__ = ["ThickSliceInferer"]


class ThickSliceInferer(Inferer):
    """Make slices [B, C, H, W], coarse along their last axis, fine along it, as :class:`ThroughPlaneInferer` would.

    A network of scale [1, k] makes k columns of each, then cubic B-splines bring these to the target's; one of scale 1
    gets what B-splines have made. Gradients pass through both, so that a training's loss is that of the final grid.

    Args:
        ratio: how many fine columns one coarse one makes, at least 1; it need not be whole.
        scale: scale of the network, 1 or [1, k].

    Raises:
        ValueError: a ratio below 1, or another scale.
    """

    def __init__(self, ratio: float, scale: int | Sequence[int] = 1) -> None:
        super().__init__()
        rows, factor = ensure_tuple_rep(scale, 2)
        if not 1 <= ratio < math.inf or rows != 1 or factor < 1:
            raise ValueError(f"ratio is {ratio}, scale {scale}: expected a ratio of at least 1, and 1 or [1, k]")
        self.ratio = ratio
        self.factor = factor

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: object, **kwargs: object
    ) -> torch.Tensor:
        """Make [B, C', H, round(W * ratio)] of [B, C, H, W]."""
        sizes = inputs.shape[2], round(inputs.shape[3] * self.ratio)
        images = resample(inputs, sizes) if self.factor == 1 else inputs
        return resample(network(images, *args, **kwargs), sizes)
