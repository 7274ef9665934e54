"""What is in a file or study, how finely it was really acquired, and what upscale would do with it: the facts."""

from __future__ import annotations

import logging
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor

from medsr_monai.command_line import is_verbose, print_traceback
from medsr_monai.data import (
    DicomSeries,
    LoadVolumed,
    holds_volumes,
    is_dicom_file,
    is_picture,
    list_volumes,
    output_suffix,
    volume_name,
)
from medsr_monai.data.dicom.series import read_study
from medsr_monai.errors import line_of
from medsr_monai.inferers import InferencePlan
from medsr_monai.metrics import axis_spectrum
from medsr_monai.suffixes import NIFTI_SUFFIXES, VOLUME_SUFFIXES
from medsr_monai.transforms import (
    PLANE_ACROSS,
    intensity_range,
    plane_axis,
    resized_affine,
    sharp_plane,
    spacing,
    thick_axis,
)
from medsr_monai.upscaling.bundles import BundleRunner
from medsr_monai.upscaling.cases import Case, acquisition_matrix
from medsr_monai.upscaling.choice import OTHERWISE, choose, scan_of
from medsr_monai.upscaling.memory import Memory, load_libraries
from medsr_monai.upscaling.plan import resident_bytes, seconds_per_pixel

__all__ = ["inspect"]

logger = logging.getLogger(__name__)


def inspect(
    path: str, *, frame: int | None = None, slice_batch: int = 4, timing: bool = True
) -> Iterator[dict[str, Any]]:
    """What a file, folder or DICOM study holds, and what upscale would do with it; nothing is written.

    Args:
        path: NIfTI or FreeSurfer file, picture, DICOM file, zip with DICOM files, or a folder of any of these.
        frame: the frame of a file with four axes, counted from 0.
        slice_batch: slices computed at a time, for the memory estimate.
        timing: estimate the network's time, for which it runs on a small slice for a few seconds.

    Yields:
        One dictionary per volume, DICOM series or picture, as `medsr inspect --json` prints it: all have the same keys,
        with None for what is not known. ``problem`` says in one line why nothing can be done with it.

    Raises:
        ValueError, FileNotFoundError: nothing at all is found there; one line.
    """
    planner = _Planner(slice_batch, timing)
    for item, source in _found(path):
        if source is not None:
            try:
                _look_into(item, source, frame, planner)
            except Exception as error:
                if is_verbose():
                    print_traceback()
                item["problem"] = line_of(error)
        yield item


def _found(path: str) -> list[tuple[dict[str, Any], str | DicomSeries | None]]:
    """Entries to be filled, each with what to read, or None for what upscale leaves out."""
    root = Path(path)
    if root.is_file() and root.name.lower().endswith(VOLUME_SUFFIXES):
        return [(_entry(path, "volume"), path)]
    several = root.is_dir()
    if root.is_file() and not zipfile.is_zipfile(root) and not is_dicom_file(root):
        return [(_entry(path, "picture" if is_picture(path) else "volume"), path)]
    beside = several and holds_volumes(root)
    study = read_study(path)
    series = study.series
    if series and study.left_out_line and not beside:
        logger.warning(study.left_out_line)
    flat = not any(one.has_positions for one in series)
    found = []
    if beside or not series or (flat and not zipfile.is_zipfile(root)):
        names = [one["image"] for one in list_volumes(path)] if several else [path]
        found = [(_entry(name, "picture" if is_picture(name) else "volume"), name) for name in names]
        series = [] if flat else series
    for one in series:
        left_out = one.left_out if len(series) > 1 else None
        if beside:
            left_out = left_out or "beside volume files: give its own folder"
        name = one.source if one.source == one.root else f"{one.root}, series {one.label}"
        item = _entry(name, "dicom", left_out=left_out, problem=one.problem)
        item["series"] = {
            "number": one.number,
            "description": one.description,
            "part": one.part,
            "modality": one.modality,
            "uid": one.uid,
            "files": len(one.files),
        }
        item["shape"] = list(one.shape)
        skip = item["left_out"] is not None or one.problem is not None
        found.append((item, None if skip else one))
    if not found:
        raise ValueError(f"{path}: no DICOM image, volume or picture in it")
    return found


def _entry(name: str, kind: str, left_out: str | None = None, problem: str | None = None) -> dict[str, Any]:
    """All keys of an item, so that each is there whatever is known."""
    keys = "series shape spacing_mm orientation oblique_degrees plane thick_axis axes acquisition_matrix interpolated"
    item = {"name": name, "kind": kind, "left_out": left_out, "problem": problem}
    return item | dict.fromkeys(keys.split()) | {"plan": None, "estimate": None}


def _look_into(item: dict[str, Any], source: str | DicomSeries, frame: int | None, planner: _Planner) -> None:
    """Fill an entry from the volume's voxels."""
    volume = LoadVolumed("image", frame=frame, pictures=True)({"image": source})["image"]
    affine, shape = volume.affine.numpy(), tuple(volume.shape[1:])
    picture = "picture" in volume.meta
    item["shape"] = list(shape[:2] if picture else shape)
    if not picture or volume.meta["picture_spacing"] == "file":
        item["spacing_mm"] = [float(edge) for edge in spacing(affine)[: len(item["shape"])]]
    across = 2
    if not picture:
        item["orientation"] = "".join(nibabel.aff2axcodes(affine))
        directions = affine[:3, :3] / spacing(affine)
        item["oblique_degrees"] = float(np.degrees(np.arccos(np.clip(np.abs(directions).max(0), 0, 1)).max()))
        item["plane"] = sharp_plane(affine, shape)
        across = plane_axis(affine, item["plane"])
        try:
            item["thick_axis"] = thick_axis(affine) if 1 not in shape else None
        except ValueError:
            item["thick_axis"] = None
    thin = item["thick_axis"] is None and not picture and item["plane"] == "axial" and 1 not in shape
    # of nearly cubic voxels every axis may have been interpolated
    edges = spacing(affine)
    judged = [axis for axis in range(3) if axis != across or (thin and edges[axis] < 1.25 * edges.min())]
    item["axes"] = [_axis(volume, axis, item) for axis in judged]
    found = [axis["interpolated"] for axis in item["axes"] if axis["interpolated"] is not None]
    item["interpolated"] = any(found) if found else None
    if not isinstance(source, str):
        item["acquisition_matrix"] = acquisition_matrix(source.headers()[0])
        for axis in item["axes"]:
            if item["acquisition_matrix"] and axis["axis"] < 2:
                axis["acquisition_matrix"] = item["acquisition_matrix"][axis["axis"]]
    intensity_range(volume, "minmax")  # what holds nothing to super-resolve is not planned
    planner.plan(item, source, volume, frame)


def _axis(volume: MetaTensor, axis: int, item: dict[str, Any]) -> dict[str, Any]:
    image = volume.as_tensor().mean(0)
    spectrum = axis_spectrum(image[..., 0] if item["kind"] == "picture" else image, axis)
    size, edges = volume.shape[1 + axis], item["spacing_mm"]
    names = {plane_axis(volume.affine, plane): name for name, plane in PLANE_ACROSS.items()}
    return {
        "axis": axis,
        "direction": ("columns", "rows")[axis] if item["kind"] == "picture" else names[axis],
        "size": size,
        "spacing_mm": edges[axis] if edges else None,
        "interpolated": spectrum.interpolated if spectrum.judged else None,
        "share": spectrum.share if spectrum.judged else None,
        "acquired": spectrum.acquired(size) if spectrum.judged else None,
        "resolution_mm": edges[axis] / spectrum.share if spectrum.judged and edges else None,
        "drop_db": spectrum.drop if spectrum.judged else None,
        "acquisition_matrix": None,
    }


class _Planner:
    """What upscale would do; each bundle is loaded, and each network timed, once."""

    def __init__(self, slice_batch: int, timing: bool) -> None:
        self.slice_batch = slice_batch
        self.timing = timing
        self.runners: dict[str, BundleRunner] = {}
        self.memory: dict[str, Memory] = {}
        self.seconds: dict[str, float] = {}
        load_libraries(picture=True)
        self.resident = resident_bytes()  # before volumes are read

    def plan(self, item: dict[str, Any], source: str | DicomSeries, volume: MetaTensor, frame: int | None) -> None:
        """Fill in ``plan`` and ``estimate``."""
        case = Case(source, Path()) if isinstance(source, str) else Case(source.source, Path(), source)
        choice = choose(scan_of(case, frame))
        bundle, runner = choice.bundle, self._runner(choice.bundle, choice.usable)
        plan = runner.plan(volume.affine, volume.shape[1:])
        sides = 2 if item["kind"] == "picture" else 3
        edges = spacing(resized_affine(volume.affine, plan.shape, plan.new_shape))
        item["plan"] = {
            "bundle": bundle,
            "reason": choice.reason,
            "measured": choice.measured,
            "otherwise": OTHERWISE,
            "weights": choice.usable,
            "output_shape": list(plan.new_shape[:sides]),
            "output_spacing_mm": [float(edge) for edge in edges[:sides]] if item["spacing_mm"] else None,
            "what": _what(runner, plan, volume),
            "command": _command(source, frame),
        }
        item["estimate"] = self._estimate(bundle, runner, plan, len(volume))

    def _runner(self, bundle: str, trained: bool) -> BundleRunner:
        if bundle not in self.runners:
            runner = self.runners[bundle] = BundleRunner(
                bundle, trained=trained, device="$torch.device('cpu')", sw_batch_size=self.slice_batch
            )
            self.memory[bundle] = Memory(runner)
            if self.resident is not None:
                weights = sum(tensor.nbytes for tensor in runner.network.state_dict().values())
                self.memory[bundle].resident = self.resident + weights  # before heaps have grown
        return self.runners[bundle]

    def _estimate(self, bundle: str, runner: BundleRunner, plan: InferencePlan, channels: int) -> dict[str, Any]:
        network, memory = runner.network, self.memory[bundle]
        if self.timing and bundle not in self.seconds:
            self.seconds[bundle] = seconds_per_pixel(network)
        seconds = self.seconds.get(bundle)
        pixels = plan.pixels(getattr(network, "size_multiple", 1))
        return {
            "memory_bytes": memory.of(plan, channels).estimate,
            "activation_bytes": memory.activation_bytes(plan, self.slice_batch),
            "slice_batch": self.slice_batch,
            "seconds": None if seconds is None else seconds * pixels,
            "threads": torch.get_num_threads(),
        }


def _what(runner: BundleRunner, plan: InferencePlan, volume: MetaTensor) -> str:
    """What upscale will say that it does, and for slices that are enlarged, to what size."""
    if plan.thick_axis is not None:
        return plan.sentence
    first, (rows, columns) = plan.passes[0], runner.scale_factors
    enlarged = f"enlarges {first.rows}x{first.columns} to {first.rows * rows}x{first.columns * columns}"
    return enlarged if "picture" in volume.meta else f"{plan.sentence}: {enlarged}"


def _command(source: str | DicomSeries, frame: int | None) -> str:
    """Write the command to type; its output lies in the folder where it is typed."""
    words = ["medsr", "upscale"]
    if isinstance(source, str):
        suffix = output_suffix(source) if is_picture(source) else NIFTI_SUFFIXES[1]
        words += [source, f"{volume_name(source)}_sr{suffix}"]
    else:
        single = source.source == source.root
        words += [source.root, "sr.nii.gz"]
        if not single:
            words += ["--series", source.choice]
    words += [] if frame is None else ["--frame", str(frame)]
    return shlex.join(words)
