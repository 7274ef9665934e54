"""What makes `upscale` faster: precision, compiling, slices at a time; and where its seconds go."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from medsr_monai.upscaling.bundles import BundleRunner

SLICE_BATCH = 4
"""Slices at a time on a CPU, where more are no faster."""


def fast_options(precision: str, compile: bool, device: str, weights: str | None) -> dict[str, Any]:
    """Ids of a bundle's inference.json for a precision and for compiling, checked; none where it is float32 anyway.

    Args:
        precision: auto or one of :data:`medsr_monai.inferers.fast_network.PRECISIONS`.
        compile: whether to compile.
        device: that is used.
        weights: file of these; a network that was exported as ONNX has a precision of its own.
    """
    from medsr_monai.inferers.fast_network import chosen_precision

    chosen = chosen_precision(precision, device)
    if precision == "auto" and weights is not None and weights.endswith(".onnx"):
        chosen = "float32"
    options: dict[str, Any] = {}
    if chosen != chosen_precision("auto", device) or chosen != "float32":
        options["precision"] = chosen
    if compile:
        options["compile"] = True
    return options


def recorded_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a sidecar has them: float32, which is so on every device, is not named."""
    return {name: value for name, value in options.items() if (name, value) != ("precision", "float32")}


def parse_slice_batch(text: str | int) -> int | None:
    """Of a command line: None for auto.

    Raises:
        ValueError: neither auto nor a number from 1.
    """
    if str(text) == "auto":
        return None
    if not str(text).isdecimal() or int(text) < 1:
        raise ValueError(f"slice_batch must be at least 1, or auto, not {text}")
    return int(text)


class FittingSlices:
    """As many slices at a time as a GPU has room for, as upscaling.estimate reckons; unmeasured there.

    Where the estimate was too bold, the inferer has taken fewer: later volumes get no more. A compiled network, which
    takes minutes for every number of slices, keeps to that of the first volume, as long as it fits; where a volume has
    fewer slices, its batch is filled up.
    """

    def __init__(self, runner: BundleRunner) -> None:
        self.runner = runner
        self.slices = runner["inferer"].slices
        self.chosen: int | None = None
        self.most: int | None = None

    def choose(self, image: MetaTensor) -> None:
        """Set the inferer's slice batch for a volume [C, X, Y, Z]."""
        from medsr_monai.upscaling.estimate import free_gpu_bytes, planned_work, slices_that_fit

        if hasattr(self.runner.network, "exchange_format"):
            return  # its activations are not to be seen
        if self.chosen is not None and (self.slices.compile or self.slices.sw_batch_size < self.chosen):
            self.most = self.slices.sw_batch_size
        work = planned_work(self.runner["inferer"], image.affine, image.shape[1:], self.runner.scale_factors)
        if self.slices.compile and self.most is not None:
            filled = tuple((max(count, self.most), rows, columns) for count, rows, columns in work.slices)
            work = dataclasses.replace(work, slices=filled)
        fit = slices_that_fit(self.runner.network, work, free_gpu_bytes(self.runner["device"]), image.shape[0])
        self.chosen = fit if self.most is None else min(fit, self.most)
        self.slices.sw_batch_size = self.chosen


class Laps:
    """Seconds of the parts of a work, one after the other."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def __call__(self, part: str) -> None:
        """What has passed since the last call belongs to this part."""
        now = time.perf_counter()
        self.seconds[part] = round(self.seconds.get(part, 0.0) + now - self.last, 3)
        self.last = now

    @property
    def total(self) -> float:
        """Seconds of all parts so far."""
        return round(self.last - self.start, 3)
