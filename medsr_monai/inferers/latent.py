"""Images generated from latents, with truncation."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

__all__ = ["TruncationInferer"]


class TruncationInferer(Inferer):
    """Generate images whose style latents are drawn towards their mean: fewer odd images, less variety.

    Args:
        psi: from 0, which gives the image of the mean latent for all, to 1, which leaves the latents as they are.
        mean_latents: number of random latents of which the mean is taken.
        seed: seed of these random latents.

    Raises:
        ValueError: psi is not in [0, 1].
    """

    def __init__(self, psi: float = 1.0, mean_latents: int = 4096, seed: int = 0) -> None:
        if not 0 <= psi <= 1:
            raise ValueError(f"psi is {psi}: expected 0 (no variety) to 1 (no truncation)")
        self.psi = psi
        self.mean_latents = mean_latents
        self.seed = seed

    def __call__(self, inputs: Tensor, network: Any, *args: object, **kwargs: object) -> Tensor:
        """Generate images from latents z [B, style_dim].

        Args:
            inputs: latents drawn from N(0, I).
            network: a generator with ``forward(z, psi, centre)`` and ``mean_latent(count, generator)``, such as
                :class:`medsr_monai.networks.StyleSwinGenerator`.
        """
        if self.psi == 1:
            return network(inputs)
        generator = torch.Generator(inputs.device).manual_seed(self.seed)
        return network(inputs, self.psi, network.mean_latent(self.mean_latents, generator))
