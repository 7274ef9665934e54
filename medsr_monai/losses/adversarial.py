"""Wasserstein losses and the gradient penalty, in the form that MONAI's AdversarialTrainer calls (arXiv 1704.00028)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WassersteinGeneratorLoss(nn.Module):
    """The generator's -mean(D(fake)), the ``g_loss_function`` of AdversarialTrainer.

    Args:
        weight: factor of the loss, relative to the reconstruction loss that the trainer adds.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, fake_logits: Tensor) -> Tensor:
        """Return the loss for the critic's values [B, ...] of the generated images."""
        return -self.weight * fake_logits.mean()


class WassersteinDiscriminatorLoss(nn.Module):
    """The critic's mean(D(fake)) - mean(D(real)), the ``d_loss_function`` of AdversarialTrainer."""

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Return the loss for the critic's values [B, ...] of the real and of the generated images."""
        return fake_logits.mean() - real_logits.mean()


class GradientPenaltyLoss(nn.Module):
    """The critic's weight * mean((|grad D(x)| - 1)^2) at points x between generated and real images (equation 3).

    |grad D(x)| is the Euclidean norm over all pixels and channels of one image. The critic must not mix the images of a
    batch, so it must not have batch normalisation.

    Args:
        weight: factor of the penalty, lambda of the paper and 10 there.
    """

    def __init__(self, weight: float = 10.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, network: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
        """Return the penalty of the critic ``network`` at (1 - mix) * fake + mix * real.

        Args:
            network: critic, images -> values [B, ...]; the values of an image are summed.
            real, fake: images [B, C, H, W]; gradients reach neither.
            mix: one number in [0, 1] for each image, [B].

        Raises:
            ValueError: the images differ in shape, or there is not one mix for each.
        """
        if real.shape != fake.shape or mix.shape != real.shape[:1]:
            shapes = ", ".join(f"{n} is {tuple(t.shape)}" for n, t in (("real", real), ("fake", fake), ("mix", mix)))
            raise ValueError(f"{shapes}: expected images of equal shapes and one mix for each.")
        mix = mix.view(-1, *[1] * (real.ndim - 1))
        between = torch.lerp(fake.detach(), real.detach(), mix).requires_grad_()
        (gradient,) = torch.autograd.grad(network(between).sum(), between, create_graph=True)
        return self.weight * (gradient.flatten(1).norm(dim=1) - 1).square().mean()
