"""A bundle's network, loaded once, for volumes in memory and for files with their sidecars."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from medsr_monai.data import check_format, describe_volume, save_dicom_slices, write_voxels
from medsr_monai.errors import line_of, naming
from medsr_monai.inferers.fast_network import chosen_precision
from medsr_monai.inferers.plane import AUTO, UNKNOWN
from medsr_monai.metrics.report import json_values
from medsr_monai.records.sidecar import (
    INTENDED_USE,
    Laps,
    Warnings,
    bundle_record,
    grid_record,
    intensity_record,
    recorded,
    source_record,
    versions,
)
from medsr_monai.transforms import PLANES, format_edges, parse_point_spread
from medsr_monai.upscaling.adaptation import Adaptation, Adapted, check_adaptable, fit, load_adapted, without_data
from medsr_monai.upscaling.bundles import AUTO_BUNDLE, BundleRunner, bundle_folder, choose_device
from medsr_monai.upscaling.cases import Case, header_of
from medsr_monai.upscaling.choice import Candidate, Choice, Narrowing, Scan, candidates, choose, scan_of, scan_of_volume
from medsr_monai.upscaling.dicom_output import source_headers
from medsr_monai.upscaling.kinds import NAME, like, name_of, to_volume
from medsr_monai.upscaling.memory import Memory, Way, parse_size
from medsr_monai.upscaling.point_spread import FoundPointSpread, find_point_spread
from medsr_monai.upscaling.quality import BOUND, QualityCheck, check_quality, quality_path, sentence
from medsr_monai.upscaling.trained_on import TrainedOn

__all__ = ["Options", "Upscaler", "upscale"]

logger = logging.getLogger(__name__)

SLICE_BATCH = 4
"""The number of slices computed at a time on a CPU by default; more are no faster there."""
SMALLEST_TILE = 32
"""The shortest side of a tile in pixels; with smaller tiles the seams outweigh the memory that is saved."""


@dataclass(kw_only=True, eq=False)
class Options:
    """How volumes are super-resolved; the names are those of the options of ``medsr upscale``.

    Args:
        bundle: the name of a bundle (see ``medsr models``), the path of its folder, or auto for the one that fits the
            input best, see :mod:`medsr_monai.upscaling.choice`.
        weights: a weights file to use in place of the bundle's models/model.pt, or a network that ``medsr export``
            wrote.
        device: auto, cpu, or a GPU such as cuda:0; auto is a GPU where there is one.
        plane: axial, coronal or sagittal, the plane whose slices are enlarged; auto is the one with the finest pixels.
        thick_axis: the direction across thick slices: left-right, posterior-anterior or inferior-superior; auto is that
            of the longest voxel edge.
        target_spacing: the thickness in mm to which thick slices are refined; None for the shorter edge of the pixels.
        refine: the plane in which thick slices are refined, by name; both averages the two that contain the thick axis.
        force: refine voxels that are nearly isotropic, too, with a bundle for thick slices.
        psf: the point spread of the scanner, which some networks are told: unknown, KIND or KIND:FWHM_MM, see
            :func:`medsr_monai.transforms.parse_point_spread`; auto finds it in the header and in the volume, see
            :mod:`medsr_monai.upscaling.point_spread`.
        scale: by which the sides of slices grow; narrows the choice of a bundle. None for the smallest that there is.
        frame: the frame of a 4D volume, counted from 0.
        nan_value: a number to put in place of NaN, as registrations leave it outside of the scan; None refuses NaN.
        slice_batch: slices computed at a time; auto is 4 on a CPU, and on CUDA as many as fit into its free memory.
        precision: float32, bfloat16, float16 or auto, which is float32 on a CPU and float16 on CUDA.
        compile: compile the network with torch.compile.
        tile: side in pixels of tiles, at least 32, to save memory; None for whole slices.
        max_memory: limit of the process's main memory while files are written, such as 4GiB; None for none.
        enforce_consistency: change the output as little as possible so that, made coarse again, it equals the input.
        consistency_bound: the largest RMS of their difference, as a part of the input's intensity range; None for
            0.001.
        noise: standard deviation of the input's noise in its units, where it is known; None estimates it.
        pictures: read a single DICOM image as a 2D picture; False reads it as a volume of one slice.
        trust_code: run TorchScript files, and bundles whose configuration holds code that no installed bundle has.

    Raises:
        ValueError, FileNotFoundError: a wrong option, before anything is loaded; one line.
    """

    bundle: str = field(default=AUTO_BUNDLE, kw_only=False)
    weights: str | None = None
    device: str = "auto"
    plane: str = "auto"
    thick_axis: str = "auto"
    target_spacing: float | None = None
    refine: str = "both"
    force: bool = False
    psf: str = AUTO
    scale: int | None = None
    frame: int | None = None
    nan_value: float | None = None
    slice_batch: int | str = "auto"
    precision: str = "auto"
    compile: bool = False
    tile: int | None = None
    max_memory: str | None = None
    enforce_consistency: bool = False
    consistency_bound: float | None = None
    noise: float | None = None
    pictures: bool = True
    trust_code: bool = False

    def __post_init__(self) -> None:
        if self.bundle != AUTO_BUNDLE:
            bundle_folder(self.bundle)
        elif self.weights is not None:
            raise ValueError("weights belong to a bundle: name it with --bundle")
        self.narrowing.check(self.bundle)
        if self.plane not in ("auto", *PLANES):
            raise ValueError(f"plane is {self.plane!r}, expected auto, {', '.join(PLANES)}")
        batch = str(self.slice_batch)
        if batch != "auto" and not (batch.isdecimal() and int(batch) > 0):
            raise ValueError(f"slice_batch is {self.slice_batch}, expected auto or at least 1")
        if self.tile is not None and self.tile < SMALLEST_TILE:
            raise ValueError(f"tile is {self.tile}, expected at least {SMALLEST_TILE} pixels")
        bound = self.consistency_bound
        if bound is not None and not self.enforce_consistency:
            raise ValueError("consistency_bound is for --enforce-consistency: add that, or leave it out")
        if bound is not None and not 0 <= bound < 1:
            raise ValueError(f"consistency_bound is {bound}, expected a part of the intensity range such as 0.001")
        if self.noise is not None and not 0 <= self.noise < math.inf:
            raise ValueError(f"noise is {self.noise}, expected a standard deviation in the input's units, 0 for none")
        chosen_precision(self.precision, choose_device(self.device))
        if self.max_memory is not None:
            parse_size(self.max_memory)
        if self.psf not in (AUTO, UNKNOWN):
            parse_point_spread(self.psf, 1.0)

    @property
    def narrowing(self) -> Narrowing:
        """What the options say of the bundle that auto chooses."""
        thick = {
            f"--thick-axis {self.thick_axis}": self.thick_axis != "auto",
            f"--target-spacing {self.target_spacing}": self.target_spacing is not None,
            f"--refine {self.refine}": self.refine != "both",
            "--force": self.force,
        }
        return Narrowing(self.scale, self.plane, tuple(name for name, given in thick.items() if given))

    @property
    def bound(self) -> float | None:
        """The residual's largest RMS, as a part of the input's intensity range; None leaves the output as it is."""
        if not self.enforce_consistency:
            return None
        return BOUND if self.consistency_bound is None else self.consistency_bound

    def overrides(self, device: str) -> dict[str, Any]:
        """Give the ids of inference.json that the options replace, with their values; the bundle decides all others."""
        given = {
            "plane": (self.plane, "auto"),
            "thick_axis": (self.thick_axis, "auto"),
            "target_spacing": (self.target_spacing, None),
            "refine": (self.refine, "both"),
            "force": (self.force, False),
            "psf": (self.psf, AUTO),
            "compile": (self.compile, False),
            "inferer#roi_size": (None if self.tile is None else [self.tile, self.tile], None),
            "preprocessing#pictures": (self.pictures, True),
            "preprocessing#nan_value": (self.nan_value, None),
        }
        options = {"frame": self.frame} | {name: value for name, (value, default) in given.items() if value != default}
        chosen = chosen_precision(self.precision, device)
        if self.precision == "auto" and str(self.weights).endswith(".onnx"):
            chosen = "float32"  # an ONNX file computes in its own precision
        if chosen != "float32" or chosen_precision("auto", device) != "float32":
            options["precision"] = chosen
        return options

    def recorded(self, device: str) -> dict[str, Any]:
        """Give the options that the output depends on, for its sidecar; float32, alike on all devices, is not named."""
        options = {name: value for name, value in self.overrides(device).items() if (name, value) != FLOAT32}
        if self.bound is not None:
            options["consistency_bound"] = self.bound
            if self.noise is not None:
                options["noise"] = self.noise
        return options


FLOAT32 = ("precision", "float32")


@dataclass(kw_only=True, eq=False)
class Upscaler(Options):
    """A bundle's network, loaded once, that super-resolves one volume after the other.

    ``Upscaler("rdst_e_thick")(volume)`` gives the finer volume; options are those of :class:`Options`, as keywords.
    ``Upscaler()`` takes for each volume the bundle that fits it, each loaded once. One thread at a time is at work: a
    lock makes the others wait.

    Args:
        progress: called after every batch of slices, with how many slices are done and how many there are in all.
        local_rank: number of this process on its machine, by which ``device="auto"`` chooses a GPU.
        draws: whether quality pictures will be drawn, for the estimate of the memory.
        dicom: whether outputs are DICOM series.
        shows_progress: show a progress bar of the slices.
        adaptation: how the network is fitted to each scan that is written, before it is super-resolved; None leaves it
            as it is.

    Raises:
        MedsrError: a wrong option, or weights that are missing or damaged; one line.
    """

    progress: Callable[[int, int], object] | None = None
    local_rank: int = 0
    draws: bool = False
    dicom: bool = False
    shows_progress: bool = False
    adaptation: Adaptation | None = None

    def __post_init__(self) -> None:
        with naming():
            super().__post_init__()
            self._load()

    @property
    def narrowing(self) -> Narrowing:
        """What the options say of the bundle that auto chooses; only those for thick slices are fitted to scans."""
        found = super().narrowing
        return found if self.adaptation is None else replace(found, thick=(*found.thick, "--adapt"))

    def _load(self) -> None:
        device = choose_device(self.device, self.local_rank)
        self.place = torch.device(device)
        self._lock = threading.Lock()
        self._of_bundles: dict[str, Upscaler] = {}
        if self.bundle == AUTO_BUNDLE:
            self.warnings: list[str] = []
            return
        limit = None if self.max_memory is None else parse_size(self.max_memory)
        batch = SLICE_BATCH if self.slice_batch == "auto" else int(self.slice_batch)
        fixed = {
            "sw_batch_size": batch,
            "device": f"$torch.device('{device}')",
            "inferer#progress": self.shows_progress,
        }
        options = self.overrides(device) | fixed
        self.runner = BundleRunner(self.bundle, self.weights, trust_code=self.trust_code, **options)
        self.inferer = self.runner["inferer"]
        self.memory = Memory(
            self.runner,
            limit,
            automatic=self.slice_batch == "auto" and device.startswith("cuda"),
            picture=self.draws,
            enforced=self.bound is not None,
            dicom=self.dicom,
        )
        self.inferer.prepare(self.runner.network, self.runner["device"])
        bundle, self.warnings = bundle_record(self.runner.folder, self.runner.weights, self.runner.exported)
        self.trained_on = TrainedOn(self.runner, bundle["Weights"])
        if self.adaptation is not None:
            check_adaptable(self.runner, self.trust_code)
            if not self._is_told:
                self.inferer.slices.psf = UNKNOWN
        self._adapted: Adapted | None = None
        self._shipped: dict[str, torch.Tensor] | None = None
        self.identity = {
            "GeneratedBy": [{"Name": "medsr_monai", "Version": versions()["medsr_monai"], "Command": "upscale"}],
            "Bundle": bundle,
            "Options": self.recorded(device) | ({} if self.adaptation is None else self.adaptation.recorded()),
        }
        self.record = {
            "Description": f"Super-resolved by bundle {bundle['Name']} of medsr_monai",
            "IntendedUse": INTENDED_USE,
            **self.identity,
            "TrainedOn": self.trained_on.record(),
            "Adaptation": self._claimed_adaptation(),
            "Versions": versions(),
            "Device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        }

    def fitting(self, case: Case) -> tuple[Upscaler, Choice | None]:
        """Give the upscaler of a case, and why its bundle was chosen: this one and None where the bundle was named.

        Raises:
            MedsrError: the case cannot be read, or no bundle is for it; one line.
        """
        if self.bundle != AUTO_BUNDLE:
            return self, None
        with naming(case.source):
            return self._chosen(scan_of(case, self.frame, self.pictures))

    @cached_property
    def _candidates(self) -> list[Candidate]:
        """The bundles that auto chooses from, whose weights are hashed once, not for every case."""
        return candidates()

    def _chosen(self, scan: Scan) -> tuple[Upscaler, Choice]:
        choice = choose(scan, self.narrowing, self._candidates)
        if choice.bundle not in self._of_bundles:
            options = {one.name: getattr(self, one.name) for one in fields(self)}
            self._of_bundles[choice.bundle] = Upscaler(**options | {"bundle": choice.bundle, "scale": None})
        return self._of_bundles[choice.bundle], choice

    def __call__(self, volume: Any, frame: int | None = None) -> Any:
        """Super-resolve a volume; the result lies at the same place, in the input's units.

        Args:
            volume: path of a NIfTI or FreeSurfer file, a DICOM folder or zip; nibabel image; ``MetaTensor``
                [X, Y, Z] or [1, X, Y, Z]; or a pair (array [X, Y, Z], 4x4 affine to mm in RAS+).
            frame: the frame of a 4D volume, counted from 0; by default that of the options.

        Returns:
            A volume of the same kind; a path gives a nibabel image. Its attribute ``record`` is what a sidecar holds.

        Raises:
            MedsrError: the volume cannot be super-resolved rightly; one line.
        """
        with naming(), self._lock:
            if self.max_memory is not None:
                raise ValueError("max_memory is for files, which medsr upscale makes slab by slab: leave it out")
            lap = Laps()
            case = _case_of(volume)
            with naming(NAME if case is None else case.source), Warnings(self.warnings) as warnings:
                chosen = self.frame if frame is None else frame
                image = to_volume(volume, chosen, pictures=self.pictures, nan_value=self.nan_value)
                inputs = [_source_of(case, image)]
                one, choice = self, None
                if self.bundle == AUTO_BUNDLE:
                    one, choice = self._chosen(scan_of_volume(image, case))
                    logger.info("%s", choice)
                    warnings += one.warnings
                item = one.runner.read(image)
                lap("Reading")
                with one._made(item, case, inputs[0], lap) as (result, record, _):
                    made = like(result, volume)
                record = one.record | _sources(inputs) | record | {"Warnings": warnings} | lap.record()
                record["Choice"] = choice and choice.record()
            if isinstance(made, tuple):
                made = Pair(made)
            made.record = json_values(record)
            return made

    def adapt(
        self, *volumes: Any, minutes: float | None = 5.0, steps: int | None = None, seed: int = 0
    ) -> dict[str, Any]:
        """Fit the network to thick-slice scans; all volumes that follow are super-resolved by the fitted weights.

        In the plane of its slices a scan is sharp, across them it is not: slices that were acquired, made coarse along
        an axis as the scanner does across, are what the network learns from. The fitted weights are used only if they
        do better on slices that were held out of the training, see :mod:`medsr_monai.upscaling.adaptation`.

        Args:
            volumes: one or more scans of one protocol, of any kind that calling takes. None at all takes the weights
                of the bundle again.
            minutes: of wall clock after which training ends, at most; None for no limit.
            steps: after which it ends; the same number and seed give the same weights on a machine.
            seed: of what is drawn.

        Returns:
            What sidecars say of it under ``Adaptation``: ``Kept`` (whether the weights are used, if not with the
            ``Reason``), steps, seconds, and ``HeldOut`` with the error before and after in dB.

        Raises:
            MedsrError: nothing can be learnt from a scan, or the bundle is not for thick slices; one line.
        """
        with naming(), self._lock:
            if self.bundle == AUTO_BUNDLE:
                raise ValueError('name the bundle that is to be fitted, such as Upscaler("rdst_e_thick")')
            self._use(None)
            if not volumes:
                return {}
            scans = []
            for volume in volumes:
                case = _case_of(volume)
                with naming(NAME if case is None else case.source):
                    image = to_volume(volume, self.frame, nan_value=self.nan_value)
                    digest = _source_of(case, image)["SHA256"]
                    header = {} if case is None else header_of(case)
                    image = self.runner.read(image)["image"]
                    scans.append({"image": image, "header": header, "sha256": digest, "name": name_of(volume)})
            adaptation = Adaptation(minutes=minutes, steps=steps, seed=seed)
            adapted = fit(self.runner, scans, adaptation, psf=self.psf, trust_code=self.trust_code)
            self._use(adapted)
            return adapted.summary

    def use(self, weights: Path | None) -> None:
        """Use weights that :func:`medsr_monai.upscaling.adaptation.save_adapted` wrote; None for the bundle's again.

        Raises:
            MedsrError: the file is damaged.
        """
        with naming(), self._lock:
            self._use(None if weights is None else load_adapted(weights))

    def _use(self, adapted: Adapted | None) -> None:
        """Use adapted weights, or those of the bundle where there are none."""
        if adapted is self._adapted:
            return
        if self._shipped is None:
            self._shipped = {name: tensor.clone() for name, tensor in self.runner.network.state_dict().items()}
        content = None if adapted is None else adapted.content
        self.runner.network.load_state_dict(self._shipped if content is None else content["model"])
        self.inferer.prepare(self.runner.network, self.runner["device"])
        if not self._is_told:  # what is stated was for the training
            self.inferer.slices.psf = self.psf if adapted is None and self.adaptation is None else UNKNOWN
        self._adapted = adapted
        self.record["Adaptation"] = self._claimed_adaptation() if adapted is None else adapted.summary
        self.trained_on.use(None if content is None else content["adapted"])
        self.record["TrainedOn"] = self.trained_on.record()

    def _fit_in_words(self) -> str:
        """What became of an adaptation, for the picture."""
        if self._adapted is None:
            return "" if self.runner.adapted is None else ", adapted weights"
        held = self._adapted.record["HeldOut"]
        kept = self._adapted.content is not None
        return f", fitted: held out {held['Before']:.2f} to {held['After']:.2f} dB" if kept else ", fit not used"

    def _claimed_adaptation(self) -> dict[str, Any] | None:
        """What the weights' file says of its adaptation; None if it says nothing."""
        said = self.runner.adapted
        return said and {"Claimed": True} | without_data(said)

    def write(
        self,
        case: Case,
        inputs: list[dict] | None = None,
        *,
        choice: Choice | None = None,
        picture: bool = False,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        """Read a case, super-resolve it, and write the output with its sidecar, and a quality picture.

        Args:
            case: the source and the output.
            inputs: the source's entry in the sidecar, if its checksum is known already.
            choice: why this bundle was chosen, from :meth:`fitting`; None where it was named.
            picture: draw a quality picture beside the output.
            say: called with the lines that tell what is done.

        Raises:
            MedsrError: one line that names the file.
        """
        lap, out = Laps(), case.output
        with self._lock, naming(case.source), Warnings(self.warnings) as warnings:
            inputs = [source_record(case.source, case.files)] if inputs is None else inputs
            headers = source_headers(case) if self.dicom else []
            way = self.memory.before_reading(case)
            item = self.runner.read(case.input)
            lap("Reading")
            with self._made(item, case, inputs[0], lap, way, out, say) as (result, record, check):
                record = self.record | _sources(inputs) | record | {"Warnings": warnings}
                record["Choice"] = choice and choice.record()
                if case.facts:
                    edges = record["OutputGrid"]["VoxelSizeMm"]
                    record |= dict(case.facts) | {"Resolution": f"voxels of {format_edges(edges)} mm"}
                drawn = self._drawn(check, result, out, record["DataConsistency"]) if picture else None
                lap("Quality")
                pictures = [] if drawn is None else [quality_path(out)]
                with naming(out), recorded(out, record, *pictures, folder=self.dicom) as (partial, *drawings):
                    if self.dicom:
                        description = f"{record['Description']}, {describe_volume(item['image'])}, {record['Plan']}"
                        save_dicom_slices(result, partial, headers, description=description)
                    else:
                        write_voxels(result, partial)
                    lap("Writing")
                    for drawing in drawings:
                        drawing.write_bytes(drawn)
                    record |= lap.record()
                if picture and not pictures:
                    quality_path(out).unlink(missing_ok=True)  # that of an earlier output
                say(f"{out}: {describe_volume(result)}, {sentence(record['DataConsistency'])}")

    def _drawn(
        self, check: QualityCheck, result: MetaTensor, out: Path, figures: dict[str, Any] | None
    ) -> bytes | None:
        """The quality picture; None, and a warning, where it cannot be drawn, which does not cost the output."""
        try:
            method = f"bundle {self.record['Bundle']['Name']}{self._fit_in_words()}"
            return check.png(result, out.name, figures, method)
        except Exception as error:  # of libraries that draw
            logger.warning("%s: no quality picture, it could not be drawn: %s", out, line_of(error))
            return None

    @contextlib.contextmanager
    def _made(
        self,
        item: dict[str, MetaTensor],
        case: Case | None,
        source: Mapping[str, Any],
        lap: Laps,
        way: Way | None = None,
        out: Path | None = None,
        say: Callable[[str], object] = lambda text: None,
    ) -> Iterator[tuple[MetaTensor, dict[str, Any], QualityCheck]]:
        """The output of a preprocessed input, in memory or on disk, what is to be recorded of it, and its check."""
        image = item["image"]
        flat = "picture" in image.meta
        if flat:
            self._check_picture(image, out)
        with self._finding(image, case) as found, self._fitted(image, case, source, found, lap, say):
            plan = self.runner.plan(image.affine, image.shape[1:])
            record: dict[str, Any] = {"InputGrid": grid_record(image)}
            record["Plan"] = "the picture's only slice" if flat else plan.sentence
            record["Planes"] = list(plan.planes)
            record["PointSpread"] = UNKNOWN if plan.point_spread is None else str(plan.point_spread)
            record["PointSpreadFound"] = None if found is None else found.record()
            way = way or self.memory.of(plan, image.shape[0])
            what = describe_volume(image) if flat else f"{describe_volume(image)}, {plan.sentence}"
            if out is not None:
                say(f"{case.source}: {what}; {way}")
                if found is not None:
                    say(f"{case.source}: point spread {found}")
            self.trained_on.warn(image, plan, case, source["SHA256"])
            with self._counting(sum(one.count for one in plan.passes)), self.memory.run(way, item, out) as result:
                lap("Network")
                result, figures, check = check_quality(
                    self.runner, item, result, self.bound, self.noise, plan.point_spread
                )
                slices = self.inferer.slices  # smaller ones where memory was short
                record |= {
                    "DataConsistency": figures,
                    "SliceBatch": slices.sw_batch_size,
                    "Tile": _tile(slices.orig_roi_size),
                    "Memory": self.memory.record(way),
                    "OutputGrid": grid_record(result),
                    "Scale": [round(b / a, 6) for a, b in zip(image.shape[1:], result.shape[1:], strict=True)],
                    "IntensityRange": intensity_record(image, result),
                }
                lap("Quality")
                yield result, record, check

    @contextlib.contextmanager
    def _finding(self, image: MetaTensor, case: Case | None) -> Iterator[FoundPointSpread | None]:
        """Find the point spread of a volume, and have the inferer tell it to the network while this is entered.

        None where it is given, or the network is not told: nothing is computed then.
        """
        slices = self.inferer.slices
        if self.psf != AUTO or not (self._is_told or self._scan):
            yield None
            return
        axes = self.runner.plan(image.affine, image.shape[1:]).enlarged_axes
        found = find_point_spread(image, axes, None if case is None else header_of(case))
        if not self._is_told:
            yield found
            return
        slices.psf = found.point_spread or UNKNOWN
        try:
            yield found
        finally:
            slices.psf = AUTO

    @contextlib.contextmanager
    def _fitted(
        self,
        image: MetaTensor,
        case: Case | None,
        source: Mapping[str, Any],
        found: FoundPointSpread | None,
        lap: Laps,
        say: Callable[[str], object],
    ) -> Iterator[None]:
        """Have the network fitted to the scan while this is entered, if that is wanted of each."""
        if not self._scan or case is None:
            yield
            return
        scan = {"image": image, "sha256": source["SHA256"], "name": case.source}
        psf = self.psf if found is None else found
        adapted = fit(self.runner, [scan], self.adaptation, psf=psf, trust_code=self.trust_code)
        say(f"{case.source}: {adapted.sentence}")
        lap("Adaptation")
        self._use(adapted)
        try:
            yield
        finally:
            self._use(None)

    @property
    def _is_told(self) -> bool:
        """Whether the network can be told a point spread."""
        return bool(getattr(self.runner.network, "psf_channels", 0))

    @property
    def _scan(self) -> bool:
        """Whether the network is to be fitted to each scan."""
        return self.adaptation is not None and self.adaptation.to == "scan"

    @contextlib.contextmanager
    def _counting(self, slices: int) -> Iterator[None]:
        """Report progress by a hook of the network while it is entered."""
        if self.progress is None:
            yield
            return
        done = 0

        def count(module: object, images: tuple, output: object) -> None:
            nonlocal done
            done = min(slices, done + len(images[0]))
            self.progress(done, slices)

        hook = self.runner.network.register_forward_hook(count)
        try:
            yield
        finally:
            hook.remove()

    def _check_picture(self, image: MetaTensor, out: Path | None) -> None:
        """Refuse a picture that was asked for as if it were a volume, or that the output's format cannot hold."""
        thick, plane = not self.runner.takes_pictures, self.plane
        if thick or plane not in ("auto", "axial"):
            asked = f"{self.record['Bundle']['Name']} is for thick slices" if thick else f"plane is {plane!r}"
            raise ValueError(f"{asked}, but a picture has one slice, which is enlarged in its own plane")
        if out is not None:
            check_format(out, image)


def upscale(volume: Any, bundle: str = AUTO_BUNDLE, **options: Any) -> Any:
    """Super-resolve one volume: ``Upscaler(bundle, **options)(volume)``, which loads the network anew each time."""
    return Upscaler(bundle, **options)(volume)


class Pair(tuple):
    """(array, affine), with the ``record`` of how it was made."""


def _sources(inputs: list[dict]) -> dict[str, Any]:
    """What a sidecar says of its inputs."""
    return {"Sources": [one["Name"] for one in inputs], "Inputs": inputs}


def _case_of(volume: Any) -> Case | None:
    """The case of a path; None for volumes in memory."""
    return Case(os.fspath(volume), Path()) if isinstance(volume, (str, os.PathLike)) else None


def _source_of(case: Case | None, image: MetaTensor) -> dict[str, Any]:
    """The entry of an input in a sidecar."""
    return _digest(image) if case is None else source_record(case.source, case.files)


def _digest(image: MetaTensor) -> dict[str, Any]:
    """The entry of a volume that has no file: the sum is that of its float32 voxels, first axis slowest."""
    digest = hashlib.sha256(image.as_tensor().contiguous().numpy().tobytes()).hexdigest()
    return {"Name": NAME, "SHA256": digest, "Files": 0}


def _tile(roi_size: Sequence[int]) -> list[int] | None:
    """Side lengths of tiles; None for whole slices."""
    return None if min(roi_size) < 1 else [int(n) for n in roi_size]
