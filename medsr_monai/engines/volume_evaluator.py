"""MONAI's evaluator for inference on folders: one bad volume does not cost the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ignite.engine import Engine
from monai.data import Dataset
from monai.engines import SupervisedEvaluator

from medsr_monai.errors import MedsrError, line_of

__all__ = ["VolumeDataset", "VolumeEvaluator"]

logger = logging.getLogger(__name__)

FAILURE = "failure"
"""The key of an item that could not be read; it holds the reason."""


class VolumeDataset(Dataset):
    """MONAI's ``Dataset`` for :class:`VolumeEvaluator`, to which it hands on what cannot be read.

    Args:
        data: MONAI data list, items with the key ``image``.
        transform: reads and prepares an item.
    """

    def __init__(self, data: Sequence[Mapping], transform: Callable) -> None:
        super().__init__(data, transform)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return super().__getitem__(index)
        except Exception as error:  # whatever it is, it is told
            if len(self) == 1:
                raise
            return {"image": str(self.data[index]["image"]), FAILURE: line_of(error)}


class VolumeEvaluator(SupervisedEvaluator):
    """MONAI's ``SupervisedEvaluator``, which goes on after a volume that fails, and tells of it at once and in the end.

    Its loader has batches of one item of a :class:`VolumeDataset`.

    Raises:
        MedsrError: when all are done: one or more have failed; the line names them. A single volume's own error.
    """

    def run(self) -> None:
        """Work on all volumes."""
        self.failures: dict[str, str] = {}
        self.first: Exception | None = None
        super().run()
        if self.failures:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.failures.items())
            raise MedsrError(
                f"{len(self.failures)} of {self.state.epoch_length} volumes failed: {reasons}"
            ) from self.first

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> dict:
        if FAILURE in batchdata:
            return self._failed(batchdata["image"][0], batchdata[FAILURE][0])
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:
            if engine.state.epoch_length == 1:
                raise
            self.first = self.first or error
            return self._failed(batchdata["image"].meta["filename_or_obj"][0], line_of(error))

    def _failed(self, name: str, reason: str) -> dict:
        reason = reason.removeprefix(f"{name}: ")
        self.failures[name] = reason
        logger.error("%s: failed, the others go on: %s", name, reason)
        return {}
