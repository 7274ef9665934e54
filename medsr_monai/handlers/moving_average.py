"""The start of ignite's moving average of weights."""

from __future__ import annotations

from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler

__all__ = ["StartMovingAverage", "warm_momentum"]


def warm_momentum(momentum: float, step: int) -> float:
    """Give the momentum of a moving average at a step, counted from 1: large at first, then what is asked for.

    A constant one of 0.001 keeps for some thousand steps to the weights that a training began with. This one is that of
    TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``: the average is over the last ninth of the steps or
    so, until that is as long as ``1 / momentum`` (at 0.001 after 8990 steps).
    """
    return max(momentum, 9 / (10 + step))


class StartMovingAverage:
    """Let a moving average start from the weights that its network has when training starts, and forget them soon.

    ignite's ``EMAHandler`` copies the network when it is built, before weights are loaded into the network. Attach this
    handler after everything that loads some (:class:`WeightsLoader`, or MONAI's ``CheckpointLoader``, which MONAI Label
    puts first) and before :class:`TrainingCheckpoints`, whose resumed state replaces the average.

    The average's momentum follows :func:`warm_momentum` by the number of the step, also in a resumed training.

    Args:
        ema: the handler of the moving average, attached under ignite's name ``ema_momentum``.
        off: take no average: after every step its weights are those of the network.
    """

    def __init__(self, ema: EMAHandler, off: bool = False) -> None:
        self.ema = ema
        self.off = off

    def attach(self, engine: Engine) -> None:
        """Copy the weights at the engine's start, and set the momentum before every step."""
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.ITERATION_STARTED, self.warm_up)

    def __call__(self, engine: Engine) -> None:
        self.ema.ema_model.load_state_dict(self.ema.model.state_dict())

    def warm_up(self, engine: Engine) -> None:
        """Set the momentum of this step's update, which ignite does at the step's end."""
        averaged = warm_momentum(self.ema.momentum, engine.state.iteration)
        engine.state.ema_momentum = 1.0 if self.off else averaged
