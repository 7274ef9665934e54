"""The losses of StyleSwin's generator and discriminator (arXiv 2112.10762, section 4.1; R1: arXiv 1801.04406)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NonSaturatingGeneratorLoss(nn.Module):
    """The generator's mean softplus(-D(fake)), minus the log of the probability that a fake is taken for real."""

    def forward(self, fake_logits: Tensor) -> Tensor:
        """Return the loss for the discriminator's logits [B, ...] of the generated images."""
        return F.softplus(-fake_logits).mean()


class NonSaturatingDiscriminatorLoss(nn.Module):
    """The discriminator's mean softplus(-D(real)) + mean softplus(D(fake)): its binary cross entropy."""

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Return the loss for the discriminator's logits [B, ...] of the real and of the generated images."""
        return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


class R1Penalty(nn.Module):
    """The discriminator's gamma / 2 * mean |grad D(x)|^2 at real images x.

    Args:
        gamma: strength of the penalty; the authors take 10, and 5 for churches and aligned faces of celebrities.
    """

    def __init__(self, gamma: float = 10.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, network: nn.Module, real: Tensor) -> Tensor:
        """Return the penalty of the discriminator ``network`` at ``real``; every weight gets a gradient, if only 0.

        Args:
            network: discriminator, images -> logits [B, ...]. Their sum is differentiated, so that a channel of batch
                statistics counts as the authors count it.
            real: images [B, C, H, W], which get no gradient themselves.
        """
        real = real.detach().requires_grad_()
        logits = network(real)
        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        # biases behind the last activation have no part in the gradient, and an optimiser skips what has none
        return self.gamma / 2 * gradient.flatten(1).square().sum(dim=1).mean() + 0 * logits.sum()


class BalancedConsistencyLoss(nn.Module):
    """The discriminator's weight * MSE(D(T(x)), D(x)): its logits should not depend on how x is augmented.

    It is called balanced since the trainer takes it of the real and of the generated images alike (bCR, arXiv
    2002.04724).

    Args:
        transform: T, a function of images [B, C, H, W] and of random numbers [B, transform.count] in [0, 1), such as
            :class:`medsr_monai.transforms.AugmentImages`.
        weight: factor of the mean squared difference.
    """

    def __init__(self, transform: Callable[[Tensor, Tensor], Tensor], weight: float = 10.0) -> None:
        super().__init__()
        self.transform = transform
        self.weight = weight

    @property
    def count(self) -> int:
        """How many random numbers an image needs."""
        return self.transform.count

    def forward(self, network: nn.Module, images: Tensor, logits: Tensor, numbers: Tensor) -> Tensor:
        """Return the loss of the discriminator ``network`` for ``images``, their ``logits`` and random ``numbers``."""
        return self.weight * F.mse_loss(network(self.transform(images, numbers)), logits)
