"""One case after the other through a bundle's network, each output with its sidecar."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from medsr_monai.errors import naming
from medsr_monai.upscaling.bundles import BundleRunner, choose_device
from medsr_monai.upscaling.cases import Case
from medsr_monai.upscaling.dicom_output import source_headers
from medsr_monai.upscaling.fast_path import SLICE_BATCH, FittingSlices, Laps, recorded_options
from medsr_monai.upscaling.memory import Memory
from medsr_monai.upscaling.quality_options import QualityOptions, checked_quality, quality_path
from medsr_monai.upscaling.trained_on import TrainedOn

if TYPE_CHECKING:
    import torch
    from monai.data import MetaTensor

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What a command line asks for, checked: the same in all processes."""

    cases: list[Case]
    source: Path
    folder: Path | None
    """Of a cohort's outputs; None for a single case."""
    bundle: str
    weights: str | None
    device: str
    slice_batch: int | None
    """None for what a device takes."""
    options: dict[str, Any]
    """Ids of the bundle's inference.json that the result depends on, and their values."""
    quality: QualityOptions
    output_format: str
    overwrite: bool
    max_memory: int | None = None
    """Bytes of main memory for a process."""

    def row(self, case: Case) -> dict[str, str]:
        """Start of a case's row in the status table: paths below the folders that were given."""
        from medsr_monai.data import volume_name

        output = case.output.relative_to(self.folder).as_posix()
        if case.series is not None:  # named as the output, which leaves the patient's name out
            return {
                "case": output.removesuffix(".nii.gz").removesuffix("_sr"),
                "input": self.source.name,
                "output": output,
            }
        source = Path(os.path.relpath(case.source, self.source)).as_posix()
        source = self.source.name if source in (".", "..") or source.startswith("../") else source
        name = source.removesuffix(Path(source).name) + volume_name(source)
        return {"case": name, "input": source, "output": output}


class Upscaler:
    """A bundle's network, loaded once, and what the sidecars of all its outputs say."""

    def __init__(self, plan: Plan, local_rank: int = 0) -> None:
        from medsr_monai.records.sidecar import INTENDED_USE, bundle_record, versions

        device = choose_device(plan.device, local_rank)
        overrides = plan.options | {
            "sw_batch_size": plan.slice_batch or SLICE_BATCH,
            "device": f"$torch.device('{device}')",
        }
        if plan.folder is not None:
            overrides["inferer#progress"] = False  # there is a bar of the cases
        self.quality, self.to_dicom = plan.quality, plan.output_format == "dicom"
        self.runner = BundleRunner(plan.bundle, plan.weights, **overrides)
        self.inferer = self.runner["inferer"]  # checks its options
        self.device = self.runner["device"]
        automatic = plan.slice_batch is None and self.device.type == "cuda"
        self.fitting = FittingSlices(self.runner) if automatic else None
        self.memory = Memory(
            self.runner,
            plan.max_memory,
            plan.slice_batch or SLICE_BATCH,
            picture=plan.quality.picture,
            enforced=plan.quality.bound is not None,
            dicom=self.to_dicom,
        )
        self.inferer.prepare(self.runner.network, self.device)
        made_of = self.runner.exported.get("weights_sha256")
        bundle, self.warnings = bundle_record(self.runner.folder, self.runner.weights, made_of)
        self.trained_on = TrainedOn(self.runner, bundle["Weights"])
        self.identity = {
            "GeneratedBy": [{"Name": "medsr_monai", "Version": versions()["medsr_monai"], "Command": "upscale"}],
            "Bundle": bundle,
            "Options": recorded_options(plan.options) | plan.quality.settings(),
        }
        self.record = {
            "Description": f"Super-resolved by bundle {bundle['Name']} of medsr_monai",
            "IntendedUse": INTENDED_USE,
            **self.identity,
            "TrainedOn": self.trained_on.record(),
            "Versions": versions(),
            "Device": _device_name(self.device),
        }

    def warn(self) -> None:
        """Tell what every sidecar of this run will say."""
        say(self.trained_on.sentence)
        for warning in self.warnings:
            logger.warning(warning)

    def upscale(self, case: Case, inputs: list[dict] | None = None) -> None:
        """Read a case, super-resolve it, and write the output with its sidecar.

        Args:
            case: source and output.
            inputs: the source's entry in the sidecar, if its sums are known already.

        Raises:
            ValueError: one line that names the file.
        """
        from medsr_monai.data import describe_volume, save_dicom_slices, write_voxels
        from medsr_monai.records.sidecar import (
            Warnings,
            grid_record,
            intensity_record,
            recorded,
            source_record,
        )
        from medsr_monai.upscaling.quality import sentence

        lap = Laps()
        path, out = case.source, case.output
        with naming(path), Warnings(self.warnings) as warnings, contextlib.ExitStack() as stack:
            if inputs is None:
                inputs = [source_record(path, case.files)]
            headers = source_headers(case) if self.to_dicom else []
            way = self.memory.choose(case)
            item = self.runner.read(case.input)
            image = item["image"]
            lap("Reading")
            record = self.record | {"Sources": [one["Name"] for one in inputs], "Inputs": inputs}
            record["InputGrid"] = grid_record(image)
            what = describe_volume(image)
            if "picture" in image.meta:
                _check_picture(self.runner, image, out, self.identity["Options"].get("plane", "auto"))
                record["Plan"], record["Planes"] = "the picture's only slice", ["axial"]
            else:
                record["Plan"], record["Planes"] = self.inferer.describe(image), self.inferer.planes(image)
                what += f", {record['Plan']}"
            if self.fitting is not None:
                self.fitting.choose(image)
            way = way or self.memory.of(image)
            say(f"{path}: {what}; {way}")
            self.trained_on.warn(image, case)
            result = stack.enter_context(self.memory.run(way, item, out))
            lap("Network")
            result, figures, write_picture = checked_quality(self.runner, item, result, out, self.quality)
            record["DataConsistency"] = figures
            slices = self.inferer.slices  # smaller ones where memory was short
            record["SliceBatch"], record["Tile"] = slices.sw_batch_size, _tile(slices.orig_roi_size)
            record["Memory"] = self.memory.record(way)
            record["OutputGrid"] = grid_record(result)
            record["Scale"] = [round(b / a, 6) for a, b in zip(image.shape[1:], result.shape[1:], strict=True)]
            record["IntensityRange"] = intensity_record(image, result)
            record["Warnings"] = warnings
            lap("Quality")
            pictures = [] if write_picture is None else [quality_path(out)]
            with naming(out), recorded(out, record, *pictures, folder=self.to_dicom) as (partial, *partial_pictures):
                if self.to_dicom:
                    save_dicom_slices(result, partial, headers, description=f"{record['Description']}, {what}")
                else:
                    write_voxels(result, partial)
                lap("Writing")
                for picture in partial_pictures:
                    write_picture(picture)
                    lap("Quality")
                record["Seconds"], record["SecondsBy"] = lap.total, lap.seconds
            say(f"{out}: {describe_volume(result)}, {sentence(figures)}")


def _check_picture(runner: BundleRunner, image: MetaTensor, out: Path, plane: str) -> None:
    """Refuse a picture that was asked for as if it were a volume, or that the output's format cannot hold."""
    from medsr_monai.data import check_format

    if "plane" not in runner.parser or plane not in ("auto", "axial"):
        asked = f"plane is {plane!r}" if "plane" in runner.parser else f"{Path(runner.folder).name} is for thick slices"
        raise ValueError(f"{asked}, but a picture has one slice, which is enlarged in its own plane")
    check_format(out, image)


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _tile(roi_size: Sequence[int]) -> list[int] | None:
    """Side lengths of tiles; None for whole slices."""
    return None if min(roi_size) < 1 else [int(n) for n in roi_size]


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line, above a progress bar if there is one."""
    from tqdm import tqdm

    file = sys.stdout if file is None else file
    with tqdm.external_write_mode(file=file):
        print(text, file=file, flush=True)


def complain(reason: str) -> None:
    """Print an error as the command line does."""
    say(f"medsr: error: {reason}", sys.stderr)
