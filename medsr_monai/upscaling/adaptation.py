"""A through-plane network fitted to the scans at hand: a bundle's train.json with its adapt.json on top, and a guard.

``medsr adapt``, ``medsr upscale --adapt``, :meth:`medsr_monai.Upscaler.adapt` and ``python -m monai.bundle run
training`` with both files are the same training: what is learnt from is
:class:`medsr_monai.upscaling.own_slices.OwnSlices`, and what is kept is decided by
:class:`medsr_monai.handlers.HeldOutGuard` and :class:`KeepAdapted`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medsr_monai.atomic import check_output
from medsr_monai.records.figures import training_groups
from medsr_monai.records.sidecar import INTENDED_USE, file_record, recorded, versions
from medsr_monai.records.training_data import TrainingData
from medsr_monai.upscaling.bundles import BundleRunner, bundle_folders
from medsr_monai.upscaling.own_slices import OwnSlices
from medsr_monai.upscaling.point_spread import FoundPointSpread

__all__ = [
    "Adaptation",
    "Adapted",
    "KeepAdapted",
    "check_adaptable",
    "fit",
    "load_adapted",
    "save_adapted",
    "without_data",
]

logger = logging.getLogger(__name__)

OVERLAY = "adapt.json"
"""The file of a bundle's configs that makes its training one on the scan at hand."""
CONFIGS = ("train.json", OVERLAY)
"""The configuration of the training."""
WORSE = 1.1
"""Adapted weights are refused if the difference of their output, made coarse again, from the scan grows by more.

It may be as large as the scan's noise, by which what a network without noise makes differs from a noisy scan.
"""
SETTINGS = ("learning_rate", "batch_size", "ema_momentum", "interval", "patience", "seed")
"""The settings of a training that are recorded: with the steps, they repeat it."""


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How a network is fitted.

    Attributes:
        to: ``scan`` for each scan by itself, ``protocol`` for all of a folder's scans of one protocol together.
        minutes: of wall clock after which training ends, at most; None for no limit.
        steps: after which it ends; None for no limit. Without one of both, nothing ends it but the guard.
        seed: of what is drawn. A seed and a number of steps give the same weights on a machine.

    Raises:
        ValueError: another word, or a limit that is not positive.
    """

    to: str = "scan"
    minutes: float | None = 5.0
    steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.to not in ("scan", "protocol"):
            raise ValueError(f"adapt is {self.to!r}, expected scan or protocol")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected at least 1")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ValueError(f"minutes is {self.minutes}, expected a positive number")

    def recorded(self) -> dict[str, Any]:
        """Give what an output depends on, for its sidecar's options."""
        limit = {"minutes": self.minutes} if self.steps is None else {"steps": self.steps}
        return {"adapt": self.to, **limit, "seed": self.seed}


@dataclass(frozen=True)
class Adapted:
    """What a training on scans has brought.

    Attributes:
        content: of a weights file, with ``model``, ``network`` and, as ``adapted``, the record; None where the weights
            it began with stay, since none were better.
        record: for sidecars: the parent's sum, the scans' sums, steps, seconds, point spread, seed, and the error on
            held-out slices and the inconsistency with the scan before and after.
        reason: why there is no content; empty if there is.
    """

    content: dict[str, Any] | None
    record: dict[str, Any]
    reason: str

    @property
    def summary(self) -> dict[str, Any]:
        """What a sidecar says of it."""
        return {"Kept": self.content is not None, "Reason": self.reason or None, **self.record}

    @property
    def sentence(self) -> str:
        """What became of it, for a log line."""
        held, steps = self.record["HeldOut"], self.record["Steps"]
        if self.content is None:
            return f"the weights stay as they were after {steps} steps: {self.reason}"
        return (
            f"fitted in {steps} steps and {self.record['Seconds']:.0f} s: "
            f"held-out slices {held['Before']:.2f} dB before, {held['After']:.2f} dB after"
        )


class KeepAdapted:
    """Judge a training on scans when it has ended, and save its weights if they are better; see :class:`Adapted`.

    Args:
        own: the scans.
        network: with the arguments of the weights; the weights to begin with are loaded into it from ``weights``.
        weights: file of these.
        settings: the configuration's ids and their values, as a bundle's ``$__local_refs`` holds them.
        bundle_root: folder of the bundle, for its name.
        pairs: makes whole slices and what the network gets of them, by which the scans are described.
        dataset: of the training.
        path: the file to write; None leaves saving to the caller.
        overwrite: replace it if it is there.
    """

    def __init__(
        self,
        own: OwnSlices,
        network: torch.nn.Module,
        weights: str,
        settings: Mapping[str, Any],
        *,
        bundle_root: str,
        pairs: Mapping[str, Any],
        dataset: Any,
        path: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self.own = own
        self.network = network
        self.weights = weights
        self.settings = settings
        self.bundle = Path(bundle_root).resolve().name
        self.pairs = pairs
        self.dataset = dataset
        self.path = path
        if path is not None:
            check_output(Path(path), overwrite)
        self.result: Adapted | None = None

    def __call__(self, guard: Any) -> None:
        """Judge what a :class:`medsr_monai.handlers.HeldOutGuard` has kept."""
        # exported networks are run without networks
        from medsr_monai.networks.arguments import NetworkArguments
        from medsr_monai.weights.load import load_weights

        record = self._record() | guard.record()
        content, reason = None, "the error on held-out slices did not fall"
        if guard.kept is not None:
            device = next(self.network.parameters()).device
            network = copy.deepcopy(self.network).to(device).eval()
            load_weights(network, self.weights)
            before = self.own.residual(network)
            network.load_state_dict(guard.kept)
            after = self.own.residual(network)
            record["Consistency"] = {"Before": before, "After": after}
            if after <= max(WORSE * before, self.own.noise):
                reason = ""
                adapted = record | {"Data": self._described().content()}
                content = {
                    "network": NetworkArguments(network).state_dict(),
                    "model": dict(guard.kept),
                    "adapted": adapted,
                }
            else:
                reason = f"the output fitted the measured slices worse than before ({after:.4f} to {before:.4f})"
        self.result = Adapted(content, record, reason)
        logger.info("%s", self.result.sentence)
        if self.path is not None and content is not None:
            save_adapted(self.result, self.path)

    def _record(self) -> dict[str, Any]:
        return {
            "Parent": file_record(self.weights) | {"Bundle": self.bundle},
            "Scans": self.own.digests,
            **self.own.record(),
            "Settings": {name: self.settings[name] for name in SETTINGS if name in self.settings},
        }

    def _described(self) -> TrainingData:
        spread = self.own.point_spread
        method = "gaussian or box" if spread is None else spread.kind
        groups = training_groups(self.dataset, self.pairs["columns"])
        return TrainingData(groups, {"method": method, "scale": self.own.scale}, generated_by="medsr_monai, adapt")


def fit(
    runner: BundleRunner,
    scans: Sequence[Mapping[str, Any]],
    adaptation: Adaptation,
    *,
    psf: str | FoundPointSpread = "auto",
    progress: bool | None = None,
    trust_code: bool = False,
    **overrides: Any,
) -> Adapted:
    """Fit a bundle's network to scans; the runner's own network is not changed.

    Args:
        runner: a bundle for thick slices, with the weights to begin with.
        scans: see :class:`medsr_monai.upscaling.own_slices.OwnSlices`; volumes [C, X, Y, Z] are taken as the bundle's
            preprocessing has left them.
        adaptation: limits and seed. With ``steps`` the clock ends nothing.
        psf: point spread across the slices, see :class:`medsr_monai.upscaling.own_slices.OwnSlices`.
        progress: show a bar; None where stderr is a terminal.
        trust_code: take a bundle that is not installed, whose train.json and adapt.json may hold any code.
        overrides: values that replace those of the configuration, by their ids there.

    Raises:
        ValueError: the bundle cannot be fitted, or nothing can be learnt from a scan; one line.
    """
    check_adaptable(runner, trust_code)
    own = OwnSlices(scans, runner["preprocessing"], runner["inferer"], psf=psf)
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([runner.folder / "configs" / name for name in CONFIGS])
    given = {
        "bundle_root": str(runner.folder),
        "weights": str(runner.weights),
        "device": runner["device"],
        "network_def": runner.parser["network_def"],
        "adapted": None,
        "own": own,
        "minutes": adaptation.minutes if adaptation.steps is None else None,
        "steps": adaptation.steps,
        "seed": adaptation.seed,
        "guard#progress": progress,
    }
    parser.update(given | overrides)
    parser.parse()
    parser.get_parsed_content("training")
    return parser.get_parsed_content("keep").result


def check_adaptable(runner: BundleRunner, trust_code: bool = False) -> None:
    """Check that a bundle's network can be fitted to scans.

    Raises:
        ValueError: it enlarges slices in their plane, has no such configuration, is exported, or is not trusted.
    """
    name = runner.folder.resolve().name
    if runner.takes_pictures:
        raise ValueError(
            f"bundle {name} enlarges slices in their own plane, where no axis of the scan is sharper than they are: "
            "only bundles for thick slices can be adapted, such as rdst_e_thick"
        )
    if not (runner.folder / "configs" / OVERLAY).is_file():
        raise ValueError(f"bundle {name} has no configs/{OVERLAY}: take an installed one, such as rdst_e_thick")
    if runner.exported is not None:
        raise ValueError(f"{runner.weights}: an exported network cannot be trained, give a weights file")
    used = [(runner.folder / "configs" / part).read_bytes() for part in CONFIGS]
    installed = (folder / "configs" for folder in bundle_folders().values())
    known = (
        [(configs / part).read_bytes() for part in CONFIGS] for configs in installed if (configs / OVERLAY).is_file()
    )
    if used not in known and not trust_code:
        raise ValueError(
            f"bundle {name}: its {' and '.join(CONFIGS)} are not those of an installed bundle: read them, and add "
            "--trust-code to run them"
        )


def save_adapted(adapted: Adapted, path: str | Path) -> None:
    """Write adapted weights and their sidecar, both atomically; they hold sums of the scans, and no names."""
    record = {
        "IntendedUse": INTENDED_USE,
        "GeneratedBy": [{"Name": "medsr_monai", "Version": versions()["medsr_monai"], "Command": "adapt"}],
        "Adaptation": adapted.record,
        "Versions": versions(),
    }
    with recorded(path, record) as (partial,):
        torch.save(adapted.content, partial)


def load_adapted(path: str | Path) -> Adapted:
    """Read what :func:`save_adapted` wrote.

    Raises:
        ValueError: the file is damaged, or holds other weights.
    """
    from medsr_monai.weights.load import read_weights

    _, content = read_weights(Path(path))
    record = content.get("adapted")
    if not isinstance(record, Mapping) or "Data" not in record:
        raise ValueError(f"{path}: not weights that `medsr adapt` wrote")
    return Adapted(dict(content), without_data(record), "")


def without_data(record: Mapping[str, Any]) -> dict[str, Any]:
    """Give what adapted weights say of themselves, without the figures of the scans that inputs are compared with."""
    return {name: value for name, value in record.items() if name != "Data"}
