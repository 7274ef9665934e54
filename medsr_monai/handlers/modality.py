"""A metric of a validation set with several modalities, modality by modality."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils import CommonKeys

from medsr_monai.handlers.process_group import gathered

__all__ = ["ModalityMetric"]


class ModalityMetric:
    """A metric of slices in which all modalities weigh the same, whatever the number of their slices.

    It takes the place of a metric in an evaluator's ``key_val_metric`` or ``additional_metrics``. The mean over
    modalities of the mean over slices is written under its name; if there are several modalities, the mean of each is
    written under ``<name>_<modality>``. Modalities are those of :class:`medsr_monai.data.SliceDataset`. The slices of
    all processes count.

    Args:
        metric_fn: the metric of one slice, of ``pred`` and ``label`` [C, H, W], such as
            :func:`medsr_monai.metrics.psnr`.
    """

    def __init__(self, metric_fn: Callable[[torch.Tensor, torch.Tensor], float]) -> None:
        self.metric_fn = metric_fn
        self.figures: list[tuple[str, float]] = []

    def attach(self, engine: Engine, name: str) -> None:
        """Measure after every batch, and write to ``engine.state.metrics`` at the end of the epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.figures.clear)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.measure)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write, name)

    def measure(self, engine: Engine) -> None:
        """Measure the slices of one batch, which the engine has decollated."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            figure = self.metric_fn(output[CommonKeys.PRED], output[CommonKeys.LABEL])
            self.figures.append((item["modality"], float(figure)))

    def write(self, engine: Engine, name: str) -> None:
        """Write the means over the slices of all processes."""
        groups: dict[str, list[float]] = {}
        for modality, figure in sorted(figure for part in gathered(self.figures) for figure in part):
            groups.setdefault(modality, []).append(figure)
        means = {modality: statistics.fmean(values) for modality, values in groups.items()}
        engine.state.metrics[name] = statistics.fmean(means.values())
        if len(means) > 1:
            named = {re.sub(r"\W+", "_", f"{name}_{modality}"): mean for modality, mean in means.items()}
            engine.state.metrics.update(named)
