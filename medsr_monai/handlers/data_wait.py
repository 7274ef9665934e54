"""How much of a training's time is spent waiting for data."""

from __future__ import annotations

import logging

from ignite.engine import Engine, Events
from ignite.handlers import Timer

from medsr_monai.handlers.process_group import process_number

__all__ = ["ReportDataWait"]

logger = logging.getLogger(__name__)


class ReportDataWait:
    """Log after every epoch the share of the time that the trainer waited for data, and its steps per second.

    The time is that of the steps alone, from asking for a batch to the end of the iteration; validation and saving do
    not count. Kernels of a GPU run on while data are fetched, unless something, such as the logging of the loss, waits
    for them in every step. If it does, the share is the one that the GPU is idle; if not, it is an upper bound of that.

    Every process measures its own time. The first one reports it; all of them warn.

    Args:
        limit: share, 0 to 1, above which there is a warning.

    Attributes:
        share: share of the last epoch, 0 to 1.
        steps_per_second: steps of the last epoch by its seconds.
    """

    def __init__(self, limit: float = 0.05) -> None:
        self.limit = limit
        self.share = self.steps_per_second = float("nan")
        self.waiting, self.total = Timer(), Timer()

    def attach(self, engine: Engine) -> None:
        """Time the steps. Attach it after other handlers of iterations, so that their time counts as the step's."""
        for timer, end in ((self.waiting, Events.GET_BATCH_COMPLETED), (self.total, Events.ITERATION_COMPLETED)):
            timer.attach(
                engine, start=Events.EPOCH_STARTED, resume=Events.GET_BATCH_STARTED, pause=end,
                step=Events.ITERATION_COMPLETED,
            )  # fmt: skip
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        seconds = max(self.total.value(), 1e-9)
        self.share = self.waiting.value() / seconds
        self.steps_per_second = self.total.step_count / seconds
        number = process_number()
        said = f"{100 * self.share:.1f} % of the time waiting for data, {self.steps_per_second:.3g} steps/s"
        if self.share > self.limit:
            logger.warning(
                "epoch %d, process %d: %s. More than %g %%: let --num_workers processes make the patches (4, say), "
                "leave cores free for them, and take longer epochs if these have few steps",
                engine.state.epoch, number, said, 100 * self.limit,
            )  # fmt: skip
        elif number == 0:
            logger.info("epoch %d: %s", engine.state.epoch, said)
