"""The weights from which ignite's moving average starts."""

from __future__ import annotations

from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler

__all__ = ["StartMovingAverage"]


class StartMovingAverage:
    """Let a moving average start from the weights that its network has when training starts.

    ignite's ``EMAHandler`` copies the network when it is built, before weights are loaded into the network. Attach this
    handler after everything that loads some (:class:`WeightsLoader`, or MONAI's ``CheckpointLoader``, which MONAI Label
    puts first) and before :class:`TrainingCheckpoints`, whose resumed state replaces the average.

    Args:
        ema: the handler of the moving average.
    """

    def __init__(self, ema: EMAHandler) -> None:
        self.ema = ema

    def attach(self, engine: Engine) -> None:
        """Copy the weights at the engine's start."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        self.ema.ema_model.load_state_dict(self.ema.model.state_dict())
