"""The gradient penalty that MONAI's AdversarialTrainer lacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from ignite.engine import Engine
from monai.utils.enums import AdversarialIterationEvents, AdversarialKeys
from torch import Tensor, nn

__all__ = ["GradientPenalty"]


class GradientPenalty:
    """Add a penalty on the discriminator's gradient to the discriminator's loss of an ``AdversarialTrainer``.

    Its value is kept in ``engine.state.output["gradient_penalty"]``. The points between the real and the generated
    images are drawn from the seed and the iteration, so that a resumed training draws the same ones as an uninterrupted
    one.

    Args:
        penalty: function of (discriminator, real [B, C, H, W], fake, mix [B] in [0, 1]), such as
            :class:`medsr_monai.losses.GradientPenaltyLoss`; it is computed in float32.
        seed: seed of the mixes.
    """

    def __init__(self, penalty: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor], seed: int = 0) -> None:
        self.penalty = penalty
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Add the penalty each time the discriminator's loss has been computed."""
        engine.register_events(*AdversarialIterationEvents)  # the trainer does so only after attaching its handlers
        engine.add_event_handler(AdversarialIterationEvents.DISCRIMINATOR_LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        output = engine.state.output
        real, fake = output[AdversarialKeys.REALS].float(), output[AdversarialKeys.FAKES].float()
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + engine.state.iteration) % 2**32)
        mix = torch.rand(len(real), generator=generator).to(real.device)
        with torch.autocast(real.device.type, enabled=False):
            penalty = self.penalty(engine.state.d_network, real, fake, mix)
        output["gradient_penalty"] = penalty.detach()
        output[AdversarialKeys.DISCRIMINATOR_LOSS] = output[AdversarialKeys.DISCRIMINATOR_LOSS] + penalty
