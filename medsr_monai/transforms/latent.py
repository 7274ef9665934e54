"""Random latents for the training of a generator."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.transforms import RandomizableTransform

__all__ = ["RandLatentd"]


class RandLatentd(RandomizableTransform):
    """Add a latent [style_dim] from N(0, I) to each item, which is drawn anew at each call.

    Args:
        key: key under which the latent is put.
        style_dim: number of channels of the latent.
    """

    def __init__(self, key: str = "image", style_dim: int = 512) -> None:
        super().__init__()
        self.key = key
        self.style_dim = style_dim

    def randomize(self, data: object = None) -> None:
        """Draw the latent."""
        self.latent = torch.from_numpy(self.R.standard_normal(self.style_dim)).float()

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        self.randomize()
        return dict(data) | {self.key: self.latent}
