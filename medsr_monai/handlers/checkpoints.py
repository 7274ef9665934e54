"""Weights and training state on disk: loaded with checks, written atomically, nothing overwritten unasked."""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.handlers import EarlyStopHandler
from monai.networks.utils import copy_model_state

from medsr_monai.atomic import written_atomically
from medsr_monai.handlers.process_group import process_number
from medsr_monai.handlers.training_record import TrainingRecord
from medsr_monai.networks.arguments import NetworkArguments, build_network
from medsr_monai.out_of_memory import is_out_of_memory
from medsr_monai.provenance import sidecar_path
from medsr_monai.weights import LARGE_FILES, OFFLINE_FOLDER, StatedFile, bundle_of, examine

__all__ = [
    "EarlyStop",
    "TrainingCheckpoints",
    "WeightsLoader",
    "fill_network",
    "load_network",
    "load_trained_part",
    "load_weights",
    "read_weights",
    "save_atomically",
    "transfer_weights",
]

logger = logging.getLogger(__name__)

LAST, BEST = "last.pt", "model.pt"


def save_atomically(content: object, path: str | os.PathLike) -> None:
    """``torch.save`` to a temporary name in the same folder, then rename: no reader ever sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as partial:
        torch.save(content, partial)


def load_weights(network: torch.nn.Module, path: str | os.PathLike) -> Path:
    """Load ``{"model": state dict, "network": constructor arguments}`` into ``network``, strictly.

    Switches without parameters (a bicubic residual, a scale of attention) would load strictly and give wrong pixels,
    so the arguments are compared too. A bundle's weights are compared with the checksum that it states, see
    :func:`medsr_monai.weights.examine`: damaged files are refused, own ones in its folder are used with a warning.

    Args:
        network: built with the arguments that the weights were trained with; may be wrapped for several processes.
        path: weights file. A file of a bundle without one means that the bundle ships no trained weights.

    Returns:
        The file that was read, which may lie in the offline folder.

    Raises:
        FileNotFoundError: no file.
        ValueError: a damaged file, no such dictionary in it, other arguments, or other parameters.
    """
    file, content = read_weights(Path(path))
    fill_network(network, file, content)
    return file


def transfer_weights(network: torch.nn.Module, path: str | os.PathLike) -> list[str]:
    """Load of the weights of a network for another scale, or of one with fewer blocks, what fits.

    Layers whose size the scale decides keep their initial values. Blocks beyond those of the weights start as identity
    (Net2Net, arXiv 1511.05641), so that the deeper network computes at first what the other did; for this they have a
    method ``start_as_identity``.

    Args:
        network: whose arguments differ from those of the weights in scale and, being more, num_blocks at most.
        path: weights file, as :func:`load_weights` reads it.

    Returns:
        Names of the parameters that were not in the weights, or of another size there.

    Raises:
        FileNotFoundError: no file.
        ValueError: a damaged file, or other arguments differ.
    """
    path, content = read_weights(Path(path))
    network = getattr(network, "module", network)
    ours, theirs = NetworkArguments(network), content["network"]
    may_differ = ["scale"]
    try:
        if theirs.get("num_blocks", 0) < ours.state_dict().get("num_blocks", 0):
            may_differ.append("num_blocks")
        ours.load_state_dict({**theirs, **{name: ours.state_dict().get(name) for name in may_differ}})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    kept = copy_model_state(network, content["model"])[2]
    for name, module in network.named_modules():
        if hasattr(module, "start_as_identity") and all(f"{name}.{key}" in kept for key in module.state_dict()):
            module.start_as_identity()
    return kept


def load_network(path: str | os.PathLike | None) -> torch.nn.Module:
    """Build the network that a weights file of this package describes and load its weights, for a frozen prior.

    Args:
        path: ``{"model", "network"}`` file, such as a bundle's ``models/model.pt``.

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        FileNotFoundError: no path, or no file there.
        ValueError: no such dictionary in it, no network of this package, or parameters that do not fit it.
    """
    if path is None:
        raise FileNotFoundError(
            'no weights file given: expected the path of a {"model", "network"} file, such as the models/model.pt of a '
            "trained bundle (a segmentation U-Net: --unet_path)"
        )
    path, content = read_weights(Path(path))
    try:
        network = build_network(content["network"])
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    fill_network(network, path, content)
    return network.eval()


def load_trained_part(network: torch.nn.Module, path: str | os.PathLike | None, part: str) -> torch.nn.Module:
    """Load a network that a training only needs itself, such as its discriminator, from the training's ``last.pt``.

    Args:
        network: to be filled, strictly.
        path: of the file that :class:`TrainingCheckpoints` wrote.
        part: its name in the ``state`` of :class:`TrainingCheckpoints`.

    Returns:
        ``network`` in eval mode.

    Raises:
        FileNotFoundError: no path, or no file there.
        ValueError: no state of a training, none with this part, or parameters that do not fit.
    """
    if path is None or not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected the {LAST} of a training with a {part}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise many kinds
        raise ValueError(f"{path}: not a PyTorch file, or a damaged one") from error
    if not isinstance(content, Mapping) or part not in content.get("state", {}):
        raise ValueError(f"{path}: no {part} in it, expected the {LAST} of a training with one")
    try:
        network.load_state_dict(content["state"][part])
    except RuntimeError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    return network.eval()


def read_weights(path: Path) -> tuple[Path, Mapping]:
    """Where a weights file was found, and its dictionary, with "model" and "network"; raises as load_weights."""
    found = examine(path)
    if found.file is None:
        raise FileNotFoundError(_missing(path, found.stated))
    if found.state == "mismatch":
        raise ValueError(f"{found.file}: {found.reason}")
    if found.state == "own":
        logger.warning("%s: %s", found.file, found.reason)
    path = found.file
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise many kinds
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{path}: not a PyTorch weights file, or a damaged one") from error
    if not isinstance(content, Mapping) or not {"model", "network"} <= set(content):
        raise ValueError(f'{path}: no {{"model", "network"}} dictionary; official weights: `medsr convert` first')
    return path, content


def _missing(path: Path, stated: StatedFile | None) -> str:
    bundle = bundle_of(path)
    if bundle is None:
        return f"{path}: no such weights file"
    name = bundle.resolve().name
    if stated is None:
        return f"bundle {name} has no trained weights: train it, or put them at {path}"
    checksum = f" ({stated.hash_type} {stated.hash_val})" if stated.hash_val else ""
    if stated.url:
        return (
            f"bundle {name} has no trained weights here: `medsr fetch {name}` (or `python -m monai.bundle "
            f"download_large_files --bundle_path {bundle}`) gets what {LARGE_FILES} lists, or put them at {path} or in "
            f"${OFFLINE_FOLDER}/{name}/models{checksum}"
        )
    return (
        f"bundle {name} has no trained weights here: put those it was published with at {path} or in "
        f"${OFFLINE_FOLDER}/{name}/models{checksum}, or train it"
    )


def fill_network(network: torch.nn.Module, path: Path, content: Mapping) -> None:
    """Load what :func:`read_weights` has read, as :func:`load_weights` does."""
    try:
        NetworkArguments(network).load_state_dict(content["network"])
        getattr(network, "module", network).load_state_dict(content["model"])
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


class WeightsLoader:
    """Load a bundle's weights when its engine starts, see :func:`load_weights`.

    Args:
        path: weights file, or None to load nothing (a network without weights, or training from scratch).
        network: to be filled; several where a moving average starts from the same weights.
        transfer: take of weights for another scale or fewer blocks what fits, see :func:`transfer_weights`.
    """

    def __init__(
        self, path: str | None, network: torch.nn.Module | Sequence[torch.nn.Module], transfer: bool = False
    ) -> None:
        self.path = path
        self.transfer = transfer
        # TorchScript modules look iterable
        self.networks = (network,) if isinstance(network, torch.nn.Module) else tuple(network)

    def attach(self, engine: Engine) -> None:
        """Load at the engine's start."""
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
    """MONAI's early stopping, attached to the trainer that it stops; ``patience=None`` never stops.

    Args:
        patience: validations without a better score before training ends.
        evaluator: whose key metric, the higher the better, is the score.
        min_gain: a score counts as better if it is higher by more than this than the last one that counted.
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
        """Count at the end of every epoch in which a validation ran; attach after the validation."""
        self.set_trainer(engine)
        if self.enabled:
            super().attach(engine)

    def __call__(self, engine: Engine) -> None:
        # the metrics of an epoch without a validation are those of an earlier one
        if self.evaluator.state.epoch == engine.state.epoch:
            super().__call__(engine)

    def state_dict(self) -> dict:
        """Counter and best score."""
        return dict(self._handler.state_dict())

    def load_state_dict(self, state: Mapping) -> None:
        """Restore :meth:`state_dict`."""
        self._handler.load_state_dict(state)


class TrainingCheckpoints:
    """Write ``last.pt`` (all that an exact resume needs) after an epoch and ``model.pt`` (the best weights); resume.

    Without an evaluator there is no best, and ``model.pt`` is always the latest.

    ``last.pt`` is a weights file, too, of the latest ``best_network``: MONAI Label offers every .pt file of the folder.

    A training that is started anew in a folder with such files sets them aside first (``model.1.pt``, ``last.1.pt``
    and so on). An earlier ``model.pt`` also keeps its name until the first weights of the new training replace it: a
    server that reads it meanwhile, MONAI Label's, would take untrained weights if there were none.

    Args:
        ckpt_dir: folder, made if missing.
        network: whose arguments are written beside the weights.
        state: objects with ``state_dict`` and ``load_state_dict`` that make up the training state besides the trainer:
            network, optimiser, moving average, early stopping.
        best_network: what is written to ``model.pt``, such as the moving average.
        evaluator: whose key metric, the higher the better, chooses ``model.pt``; None takes the latest.
        resume: go on from ``last.pt`` where there is one.
        interval: epochs between two savings; the last epoch of a training is saved in any case.
        record: what stands in ``model.pt.json`` and ``last.pt.json``, beside the files; None writes neither.

    Attach it last, after validation and early stopping. Only the first process writes.
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
        """Resume or set old files aside at the start, save at the end of every ``interval``-th epoch and at the end."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)
        engine.add_event_handler(Events.COMPLETED, self.save_rest)

    def start(self, engine: Engine) -> None:
        """Resume, or make room."""
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
        """Save the epochs since the last saving."""
        if engine.state.epoch % self.interval:
            self.save(engine)

    def save(self, engine: Engine) -> None:
        """Write both files."""
        if process_number() > 0:
            return
        if self._improved():
            content = {"network": NetworkArguments(self.best_network).state_dict(), "model": _cpu(self.best_network)}
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
    """The state of a trainer after the same epoch, where its epochs have another number of steps than they had."""
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
    """Class of an optimiser and, by parameter group, its learning rate and other numbers as they are now."""
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    return {"Class": type(optimizer).__name__, "Groups": groups}


def _cpu(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}


def _set_aside(path: Path, keep: bool = False) -> None:
    """Give a file a numbered name; ``keep`` copies it instead, unless there is such a copy."""
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
