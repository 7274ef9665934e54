"""Figures of a mixed validation set, modality by modality."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils import CommonKeys

__all__ = ["ModalityMetric"]


class ModalityMetric:
    """A figure of slices as one number in which modalities weigh the same, whatever the number of their slices.

    Takes the place of a metric in an evaluator's ``key_val_metric`` or ``additional_metrics``. Under its name comes the
    mean over modalities of the mean over slices; where there are several modalities, each one's mean comes under
    ``<name>_<modality>``. Modalities are those of :class:`medsr_monai.data.SliceDataset`. Gathers over processes.

    Args:
        metric_fn: figure of ``pred`` and ``label`` [C, H, W], such as :func:`medsr_monai.metrics.psnr`.
    """

    def __init__(self, metric_fn: Callable[[torch.Tensor, torch.Tensor], float]) -> None:
        self.metric_fn = metric_fn
        self.figures: list[tuple[str, float]] = []

    def attach(self, engine: Engine, name: str) -> None:
        """Measure after every batch; write to ``engine.state.metrics`` at the end of the epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.figures.clear)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.measure)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write, name)

    def measure(self, engine: Engine) -> None:
        """Figures of one batch, decollated."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            figure = self.metric_fn(output[CommonKeys.PRED], output[CommonKeys.LABEL])
            self.figures.append((item["modality"], float(figure)))

    def write(self, engine: Engine, name: str) -> None:
        """Means over the slices of all processes."""
        figures = self.figures
        if dist.is_available() and dist.is_initialized():
            parts: list = [None] * dist.get_world_size()
            dist.all_gather_object(parts, figures)
            figures = [figure for part in parts for figure in part]
        groups: dict[str, list[float]] = {}
        for modality, figure in sorted(figures):
            groups.setdefault(modality, []).append(figure)
        means = {modality: statistics.fmean(values) for modality, values in groups.items()}
        engine.state.metrics[name] = statistics.fmean(means.values())
        if len(means) > 1:
            named = {re.sub(r"\W+", "_", f"{name}_{modality}"): mean for modality, mean in means.items()}
            engine.state.metrics.update(named)
