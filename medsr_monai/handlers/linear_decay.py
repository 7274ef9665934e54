"""A learning rate that falls linearly to 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ignite.engine import Engine, Events
from monai.utils import ensure_tuple

__all__ = ["LinearDecay"]


class LinearDecay:
    """Lower the learning rates of optimisers linearly from iteration ``start`` on, to 0 after ``steps`` iterations.

    The rate follows from the iteration alone, so a resumed training has the rate of an uninterrupted one.

    Args:
        optimizers: one optimiser, or several.
        steps: number of iterations of the whole training.
        start: number of iterations at the full rate; None never lowers it.

    Raises:
        ValueError: ``start`` is not within the training.
    """

    def __init__(
        self, optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer], steps: int, start: int | None = None
    ) -> None:
        if start is not None and not 0 <= start < steps:
            raise ValueError(f"the rates fall from step {start}: expected 0 to {steps - 1} in a training of {steps}")
        self.optimizers = ensure_tuple(optimizers)
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.steps = steps
        self.start = start

    def attach(self, engine: Engine) -> None:
        """Set the rates before each iteration."""
        if self.start is not None:
            engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        done = engine.state.iteration - 1
        factor = min(1.0, (self.steps - done) / (self.steps - self.start))
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = factor * rate
