"""Training on a scan itself, ended and judged by what is held out of it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

__all__ = ["HeldOutGuard"]

logger = logging.getLogger(__name__)


class HeldOutGuard:
    """Keep of a training the weights that do best on held-out slices, and none that do not beat those it began with.

    The evaluator runs before the first step, after every ``interval`` steps and at the end. Training ends when
    ``patience`` evaluations in a row have brought nothing better, or after ``steps``, or when the time is up, which
    includes that of the last evaluation. What is trained depends on the steps only, never on the clock.

    Attach it last, after what loads weights.

    Args:
        evaluator: its key metric, in dB, the higher the better, is that of ``best_network``.
        best_network: the network that is judged and kept, such as the moving average.
        interval: steps between two evaluations, at least 1.
        patience: evaluations in a row without a gain after which training ends.
        minutes: of wall clock, after which it ends; None for no limit.
        steps: after which it ends; None for no limit.
        min_gain: how many dB better than at the beginning the weights have to be, or they are not kept.
        progress: show a bar with the gain and the time left; None where stderr is a terminal.
        finished: called at the end with this handler, whose result is complete then.

    Attributes:
        before, after: the metric at the beginning, and the best one; None before there is one.
        kept: parameters and buffers of the best weights, on the CPU; None where none are better than the first.
        steps_done: how many steps the training took.
        steps_kept: after how many of these the weights were those that are kept.
        seconds: that it took.
        ended_by: steps, minutes or patience.

    Raises:
        ValueError: neither a limit of time nor of steps, or one that is not positive.
    """

    def __init__(
        self,
        evaluator: Engine,
        best_network: torch.nn.Module,
        *,
        interval: int = 25,
        patience: int = 4,
        minutes: float | None = 5.0,
        steps: int | None = None,
        min_gain: float = 0.02,
        progress: bool | None = None,
        finished: Callable[[HeldOutGuard], object] | None = None,
    ) -> None:
        limits = [limit for limit in (minutes, steps) if limit is not None]
        if not limits or min(limits) <= 0:
            raise ValueError(f"minutes are {minutes}, steps {steps}: expected one of them, above 0")
        if interval < 1 or patience < 1:
            raise ValueError(f"interval is {interval}, patience {patience}: expected at least 1")
        self.evaluator = evaluator
        self.best_network = best_network
        self.interval = interval
        self.patience = patience
        self.minutes = minutes
        self.steps = steps
        self.min_gain = min_gain
        self.progress = progress
        self.finished = finished
        self.before: float | None = None
        self.after: float | None = None
        self.kept: Mapping[str, torch.Tensor] | None = None
        self.steps_done = self.steps_kept = 0
        self.seconds = 0.0
        self.ended_by: str | None = None

    def attach(self, engine: Engine) -> None:
        """Judge at the start, after steps and at the end."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._end)

    @property
    def gain(self) -> float:
        """How many dB the best weights are above the first ones, 0 at least."""
        return 0.0 if self.before is None or self.after is None else self.after - self.before

    def record(self) -> dict[str, Any]:
        """Describe the result for a sidecar."""
        return {
            "Steps": self.steps_done,
            "StepsKept": self.steps_kept,
            "Seconds": round(self.seconds, 1),
            "EndedBy": self.ended_by,
            "HeldOut": {"Before": _rounded(self.before), "After": _rounded(self.after)},
        }

    def _start(self, engine: Engine) -> None:
        self.began = time.monotonic()
        self.stale, self.longest = 0, 0.0
        self.bar = tqdm(
            total=self.steps, unit="step", file=sys.stderr, disable=None if self.progress is None else not self.progress
        )
        self.before = self.after = self._judged()
        self.last_judged = 0

    def _step(self, engine: Engine) -> None:
        self.steps_done = engine.state.iteration
        self.bar.update()
        if self.steps_done % self.interval == 0:
            self._judge()
        passed = time.monotonic() - self.began
        if self.minutes is not None:
            self.bar.set_postfix_str(f"held out {self.gain:+.2f} dB, {max(0, self.minutes * 60 - passed):.0f} s left")
        if self.stale >= self.patience:
            self.ended_by = "patience"
        elif self.steps is not None and self.steps_done >= self.steps:
            self.ended_by = "steps"
        elif self.minutes is not None and passed + self.longest >= self.minutes * 60:
            self.ended_by = "minutes"
        if self.ended_by is not None:
            engine.terminate()

    def _judge(self) -> None:
        """Evaluate, and keep the weights if they are the best so far."""
        value = self._judged()
        self.last_judged = self.steps_done
        self.stale += 1
        if value > max(self.after, self.before + self.min_gain - 1e-12):
            self.after, self.stale, self.steps_kept = value, 0, self.steps_done
            state = self.best_network.state_dict()
            self.kept = {name: tensor.detach().clone().cpu() for name, tensor in state.items()}

    def _judged(self) -> float:
        began = time.monotonic()
        self.evaluator.run()
        self.longest = max(self.longest, time.monotonic() - began)
        return float(self.evaluator.state.metrics[self.evaluator.state.key_metric_name])

    def _end(self, engine: Engine, error: BaseException | None = None) -> None:
        self.bar.close()
        if error is not None:
            raise error
        if self.steps_done > self.last_judged:
            self._judge()
        self.seconds = time.monotonic() - self.began
        if self.kept is None:
            logger.warning(
                "held-out slices did not gain %g dB in %d steps (%.2f dB before): the weights stay as they were",
                self.min_gain, self.steps_done, self.before,
            )  # fmt: skip
        if self.finished is not None:
            self.finished(self)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
