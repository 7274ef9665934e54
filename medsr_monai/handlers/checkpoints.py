"""A training's weights and state on disk, written atomically; nothing is overwritten unasked."""

from __future__ import annotations

import filecmp
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.handlers import EarlyStopHandler

from medsr_monai.atomic import written_atomically
from medsr_monai.handlers.process_group import process_number
from medsr_monai.handlers.training_record import TrainingRecord
from medsr_monai.networks.arguments import NetworkArguments
from medsr_monai.records.sidecar import sidecar_path
from medsr_monai.weights.load import load_weights, save_atomically, transfer_weights

__all__ = ["EarlyStop", "TrainingCheckpoints", "WeightsLoader"]

logger = logging.getLogger(__name__)

LAST, BEST = "last.pt", "model.pt"
"""Names of the file from which a training resumes, and of the best weights."""


class WeightsLoader:
    """Load a bundle's weights when its engine starts, see :func:`medsr_monai.weights.load.load_weights`.

    Args:
        path: weights file, or None to load nothing (a network without weights, or training from scratch).
        network: the network that gets the weights, or several where a moving average starts from the same ones.
        transfer: load what fits from weights for another scale or fewer blocks, see
            :func:`medsr_monai.weights.load.transfer_weights`.
    """

    def __init__(
        self, path: str | None, network: torch.nn.Module | Sequence[torch.nn.Module], transfer: bool = False
    ) -> None:
        self.path = path
        self.transfer = transfer
        # TorchScript modules look iterable
        self.networks = (network,) if isinstance(network, torch.nn.Module) else tuple(network)

    def attach(self, engine: Engine) -> None:
        """Load the weights at the engine's start, if there is a path."""
        if self.path is not None:
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        for network in self.networks:
            if self.transfer:
                kept = transfer_weights(network, self.path)
                logger.info("of %s everything fits but %s", self.path, ", ".join(kept) or "nothing")
            else:
                load_weights(network, self.path)
        logger.info("loaded weights %s", self.path)


class EarlyStop(EarlyStopHandler):
    """MONAI's early stopping, attached to the trainer that it stops.

    Args:
        patience: number of validations without a better score after which training ends; None never ends it.
        evaluator: the engine whose key metric, the higher the better, is the score.
        min_gain: by how much a score must exceed the last better one to count as better.
    """

    def __init__(self, patience: int | None, evaluator: Engine, min_gain: float = 0.0) -> None:
        super().__init__(
            patience or 1,
            lambda engine: evaluator.state.metrics[evaluator.state.key_metric_name],
            min_delta=min_gain,
            cumulative_delta=True,  # small gains add up
        )
        self.enabled = patience is not None
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        """Count at the end of every epoch in which a validation ran. Attach it after the validation."""
        self.set_trainer(engine)
        if self.enabled:
            super().attach(engine)

    def __call__(self, engine: Engine) -> None:
        # the metrics of an epoch without a validation are those of an earlier one
        if self.evaluator.state.epoch == engine.state.epoch:
            super().__call__(engine)

    def state_dict(self) -> dict:
        """Return the counter and the best score."""
        return dict(self._handler.state_dict())

    def load_state_dict(self, state: Mapping) -> None:
        """Restore :meth:`state_dict`."""
        self._handler.load_state_dict(state)


class TrainingCheckpoints:
    """Write ``last.pt`` (all that an exact resume needs) and ``model.pt`` (the best weights), and resume from them.

    Without an evaluator there are no best weights, and ``model.pt`` holds the latest ones. ``last.pt`` is a weights
    file of the latest ``best_network`` too, since MONAI Label offers every .pt file of the folder.

    A training that is started anew in a folder with such files sets them aside first (``model.1.pt``, ``last.1.pt``
    and so on). An earlier ``model.pt`` is copied and keeps its name until the first weights of the new training
    replace it: MONAI Label's server, which may read it meanwhile, would take untrained weights if there were none.

    Attach it last, after validation and early stopping. Only the first process writes.

    Args:
        ckpt_dir: folder of the files; it is made if missing.
        network: the trained network, whose arguments are written beside the weights.
        state: objects with ``state_dict`` and ``load_state_dict`` that make up the training state besides the trainer:
            network, optimiser, moving average, early stopping.
        best_network: the network that is written to ``model.pt``, such as the moving average.
        evaluator: the engine whose key metric, the higher the better, chooses ``model.pt``; None takes the latest.
        resume: go on from ``last.pt`` if there is one.
        interval: epochs between two savings; the last epoch of a training is saved in any case.
        record: content of ``model.pt.json`` and ``last.pt.json`` beside the files; None writes neither.

    Raises:
        ValueError: when the engine starts: ``last.pt`` is of another configuration, or its training has ended.
    """

    def __init__(
        self,
        ckpt_dir: str,
        network: torch.nn.Module,
        state: Mapping[str, object],
        best_network: torch.nn.Module,
        evaluator: Engine | None = None,
        resume: bool = False,
        interval: int = 1,
        record: TrainingRecord | None = None,
    ) -> None:
        self.folder = Path(ckpt_dir)
        self.record = record
        self.network = network
        self.state = dict(state)
        self.best_network = best_network
        self.evaluator = evaluator
        self.resume = resume
        self.interval = interval
        self.best = float("-inf")

    def attach(self, engine: Engine) -> None:
        """Resume or set old files aside at the start; save after every ``interval``-th epoch and at the end."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)
        engine.add_event_handler(Events.COMPLETED, self.save_rest)

    def start(self, engine: Engine) -> None:
        """Resume, or set the files of an earlier training aside."""
        resumed = self.folder / LAST if self.resume and (self.folder / LAST).is_file() else None
        if resumed:
            self._load(engine)
        elif process_number() == 0:
            _set_aside(self.folder / LAST)
            _set_aside(self.folder / BEST, keep=True)
        if self.record is not None and process_number() == 0:
            self.record.start(engine, resumed)

    def _load(self, engine: Engine) -> None:
        path = self.folder / LAST
        content = torch.load(path, map_location="cpu", weights_only=True)
        NetworkArguments(self.network).load_state_dict(content["network"])
        missing = set(self.state) ^ set(content["state"])
        if missing:
            raise ValueError(f"{path}: written by another configuration, differs in {', '.join(sorted(missing))}")
        for name, target in self.state.items():
            target.load_state_dict(content["state"][name])
        max_epochs = engine.state.max_epochs
        engine.load_state_dict(_with_steps_of(engine, content["trainer"], path))
        if max_epochs is not None and engine.state.epoch >= max_epochs:
            raise ValueError(f"{path}: epoch {engine.state.epoch} of {max_epochs} is done, ask for more --epochs")
        engine.state.max_epochs = max_epochs
        self.best = content["best"]
        logger.info("resumed after epoch %d from %s", engine.state.epoch, path)

    def save_rest(self, engine: Engine) -> None:
        """Save at the end of a training whose last epoch has not been saved."""
        if engine.state.epoch % self.interval:
            self.save(engine)

    def save(self, engine: Engine) -> None:
        """Write ``last.pt``, and ``model.pt`` if the weights are the best so far."""
        if process_number() > 0:
            return
        if self._improved():
            model = {name: tensor.detach().cpu() for name, tensor in self.best_network.state_dict().items()}
            content = {"network": NetworkArguments(self.best_network).state_dict(), "model": model}
            self._write(content, self.folder / BEST, engine)
        content = {
            "network": NetworkArguments(self.network).state_dict(),
            "model": self.best_network.state_dict(),  # in the state, too, and stored once
            "state": {name: target.state_dict() for name, target in self.state.items()},
            "trainer": dict(engine.state_dict()),
            "best": self.best,
        }
        self._write(content, self.folder / LAST, engine)

    def _write(self, content: object, path: Path, engine: Engine) -> None:
        if self.record is None:
            save_atomically(content, path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        optimizers = {name: one for name, one in self.state.items() if isinstance(one, torch.optim.Optimizer)}
        optimizers = {name: _optimizer_record(one) for name, one in optimizers.items()}
        facts: dict[str, object] = {"Optimizers": optimizers, "Network": NetworkArguments(self.network).state_dict()}
        if self.evaluator is not None:
            metrics = {name: float(value) for name, value in self.evaluator.state.metrics.items()}
            name = getattr(self.evaluator.state, "key_metric_name", None)
            facts |= {"Validation": metrics, "Best": {name: self.best}}
        with self.record.written(path, engine, facts) as partial:
            torch.save(content, partial)

    def _improved(self) -> bool:
        """Whether the weights are to become ``model.pt``."""
        if self.evaluator is None:
            return True
        # without a validation in this epoch the metrics are older, and their score is no better than the best
        score = float(self.evaluator.state.metrics.get(self.evaluator.state.key_metric_name, float("-inf")))
        improved = score > self.best  # never of a NaN
        if improved:
            self.best = score
            logger.info("best %s so far: %.4f, saving %s", self.evaluator.state.key_metric_name, score, BEST)
        return improved


def _with_steps_of(engine: Engine, trainer: Mapping, path: Path) -> Mapping:
    """A trainer's state after the same epoch, if its epochs now have another number of steps."""
    steps, had = len(engine.state.dataloader), trainer["epoch_length"]
    if steps == had:
        return trainer
    logger.warning(
        "%s: its epochs had %d steps, now they have %d (another batch size, number of processes or data): the training "
        "goes on after the same epoch, but not as an uninterrupted one would",
        path, had, steps,
    )  # fmt: skip
    return {**trainer, "epoch_length": steps, "iteration": trainer["iteration"] // had * steps}


def _optimizer_record(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """The class of an optimiser and, for each parameter group, its learning rate and other options as they are now."""
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    return {"Class": type(optimizer).__name__, "Groups": groups}


def _set_aside(path: Path, keep: bool = False) -> None:
    """Give a file a numbered name, or with ``keep`` a numbered copy, unless there is one already."""
    if not path.exists():
        return
    number = 1
    while (aside := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        if keep and filecmp.cmp(path, aside, shallow=False):  # of a training that ended before its first weights
            return
        number += 1
    # the JSON beside it first: a file without one is told apart, one of another file is not
    for old, new in ((sidecar_path(path), sidecar_path(aside)), (path, aside)):
        if not old.is_file():
            continue
        if keep:
            with written_atomically(new) as partial:
                shutil.copy2(old, partial)
        else:
            old.rename(new)
    logger.warning("%s is of an earlier training: %s to %s", path, "copied" if keep else "moved", aside.name)
