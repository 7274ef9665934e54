"""Systems side by side on one volume: figures by the papers' protocol, a table and a picture of them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import nn

from medsr_monai import __version__
from medsr_monai.atomic import written_together
from medsr_monai.metrics import (
    SliceEvaluation,
    busiest_crop,
    comparison_grid,
    count_parameters,
    json_values,
    psnr,
    write_rows,
)
from medsr_monai.networks import NETWORKS
from medsr_monai.transforms import (
    EDGES,
    axis_factors,
    describe_grid,
    displayed_slice,
    intensity_range,
    outer_corners,
    pixel_edges,
    plane_axis,
    resized_affine,
    sharp_plane,
    spacing,
)
from medsr_monai.upscaling.bundles import BundleRunner
from medsr_monai.weights.load import load_network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FILES", "Comparison", "NetworkRunner", "common_scale", "compare_volumes", "load_runner"]

FILES = ("compare.md", "compare.csv", "compare.json", "slices.csv", "compare.png")
"""The names of the files that `Comparison.write` writes."""

SLICE_COLUMNS = ("plane", "slice", "psnr", "ssim", "psnr_monai", "ssim_monai")

# A table's columns in Markdown: heading, and what prints a row's cell
COLUMNS = {
    "system": lambda row: row["system"],
    "PSNR, dB": lambda row: _mean_and_deviation(row, "psnr", 2),
    "SSIM": lambda row: _mean_and_deviation(row, "ssim", 4),
    "M weights": lambda row: f"{row['parameters'] / 1e6:.2f}",
    "seconds": lambda row: f"{row['seconds']:.2f}",
}


def _mean_and_deviation(row: dict, name: str, digits: int) -> str:
    deviation = row[f"{name}_std"]
    return f"{row[name]:.{digits}f}" + (f" ({deviation:.{digits}f})" if math.isfinite(deviation) else "")


class NetworkRunner(BundleRunner):
    """A network of one channel without a bundle, between the pre- and postprocessing of the bundle ``comparison``.

    Args:
        network: the network with its weights.
        weights: the file that they were loaded from, None for a network without weights.
        overrides: see :class:`medsr_monai.upscaling.bundles.BundleRunner`.

    Raises:
        ValueError: a network that does not enlarge images, or has several channels.
    """

    def __init__(self, network: nn.Module, weights: str | os.PathLike | None = None, **overrides: Any) -> None:
        name = type(network).__name__
        if not hasattr(network, "scale_factors"):
            raise ValueError(f"{name} does not super-resolve: give the weights of a network that does")
        channels = [network.arguments[side] for side in ("in_channels", "out_channels")]
        if channels != [1, 1]:
            raise ValueError(
                f"{name} takes {channels[0]} channels to {channels[1]}: a volume has one, choose another network"
            )
        scale = list(network.scale_factors)
        super().__init__("comparison", trained=False, scale=scale, precision="float32", **overrides)
        self.network = network.to(self["device"]).eval()
        self.weights = weights


def load_runner(path: str | os.PathLike, name: str | None = None, **overrides: Any) -> NetworkRunner:
    """Load the network that a weights file of this package holds.

    Args:
        path: a file with the dictionary {"model", "network"}.
        name: what the network is said to be. Where it is the name of a network in `NETWORKS`, the file must hold one of
            that class.
        overrides: see `NetworkRunner`.

    Raises:
        FileNotFoundError, ValueError: no weights file, another network than its name says, or what `NetworkRunner`
            refuses.
        RuntimeError: the network needs a library that is not installed.
    """
    try:
        network = load_network(path)
    except ImportError as error:
        raise RuntimeError(str(error)) from error
    registered = NETWORKS[name] if name in NETWORKS.names else type(network)
    if not isinstance(network, getattr(registered, "func", registered)):
        raise ValueError(f"{path}: the weights are of {type(network).__name__}, not of {name}: correct the name")
    return NetworkRunner(network, path, **overrides)


def common_scale(systems: Mapping[str, BundleRunner], scale: int | None = None) -> int:
    """Find the factor by which all systems enlarge both axes of a slice: ``scale``, or that of the systems, or 4.

    Raises:
        ValueError: a system has another scale, or two, or there is nothing to enlarge.
    """
    for name, runner in systems.items():
        rows, columns = runner.scale_factors
        if rows != columns or rows < 2:
            raise ValueError(f"{name} enlarges rows x{rows} and columns x{columns}: compare takes one scale for both")
        scale = rows if scale is None else scale
        if rows != scale:
            raise ValueError(f"{name} enlarges x{rows}, not x{scale}: compare systems of one scale")
    scale = 4 if scale is None else scale
    if scale < 2:
        raise ValueError(f"scale is {scale}, expected at least 2")
    return scale


def _covered(affine: torch.Tensor, shape: tuple[int, ...], ref: MetaTensor, what: str = "the result") -> MetaTensor:
    """The part of a reference that a result in this grid covers: `degrade` may have cropped its far end."""
    grids = f"{what} has {describe_grid(affine, shape)}, the reference {describe_grid(ref.affine, ref.shape[1:])}"
    if any(p > r for p, r in zip(shape, ref.shape[1:], strict=True)):
        raise ValueError(f"{grids}: only volumes in the same grid can be compared")
    distance = np.abs(outer_corners(affine, shape) - outer_corners(ref.affine, shape)).max()
    if distance > 0.1 * spacing(ref.affine).min():
        raise ValueError(
            f"{grids}, corners up to {distance:.2f} mm apart: only volumes in the same grid can be compared"
        )
    return ref[:, : shape[0], : shape[1], : shape[2]]


def _usable(label: torch.Tensor, plane: str) -> list[int]:
    """Slices [N, ...] that are compared: those whose standard deviation is above a quarter of the volume's."""
    threshold = float(label.std(correction=0)) / 4
    numbers = [number for number, image in enumerate(label) if float(image.std(correction=0)) > threshold]
    if not numbers:
        raise ValueError(f"the reference has no {plane} slice with any contrast: compare another plane")
    return numbers


def compare_volumes(
    pred: MetaTensor,
    ref: MetaTensor,
    evaluation: SliceEvaluation,
    plane: str = "auto",
    *,
    case: str = "",
    method: str = "pred",
    intensity: str = "minmax",
    segmentation: MetaTensor | None = None,
) -> dict[str, float]:
    """Add every slice of a result to an evaluation, and return ``psnr_volume``, the PSNR of the whole volume in dB.

    Both volumes are scaled by the reference's range, each channel by its own. Slices whose standard deviation is at
    most a quarter of the volume's (air) are left out.

    Args:
        pred: the result [C, X, Y, Z].
        ref: the reference in the same grid; where `degrade` has cropped its far end, the rest is compared.
        evaluation: the evaluation that the slices are added to.
        plane: the plane whose slices are compared; auto is the one with the finest pixels of the reference.
        case: the evaluation's name for the volume.
        method: the evaluation's name for what made the result.
        intensity: see :func:`medsr_monai.transforms.intensity_range`.
        segmentation: a label map [1, X, Y, Z] in the reference's grid, for Dice.

    Raises:
        ValueError: other grids or channels, a plane without contrast, slices smaller than the border and SSIM's window.
    """
    # the size of a picture's pixels is compared only where both state it
    stated = all(volume.meta.get("picture_spacing") != "none" for volume in (pred, ref))
    ref_part = _covered(pred.affine if stated else ref.affine, tuple(pred.shape[1:]), ref)
    if pred.shape[0] != ref.shape[0]:
        raise ValueError(
            f"the result has {pred.shape[0]} channels, the reference {ref.shape[0]}: compare images of one kind"
        )
    chosen = sharp_plane(ref.affine, ref.shape[1:]) if plane == "auto" else plane
    axis = plane_axis(ref.affine, chosen) + 1
    ranges = torch.tensor([intensity_range(channel, intensity) for channel in ref], dtype=torch.float64)
    low, high = ranges.T.reshape(2, -1, 1, 1, 1)
    image, label = (((v.as_tensor() - low.float()) / (high - low).float()).movedim(axis, 0) for v in (pred, ref_part))
    if segmentation is not None:
        shape = pred.shape[1:]
        segmentation = segmentation[:, : shape[0], : shape[1], : shape[2]].as_tensor().movedim(axis, 0)
    for number in _usable(label, chosen):
        key = {"case": case, "plane": chosen, "slice": number}
        label_map = None if segmentation is None else segmentation[number]
        evaluation.add(key, label[number], {method: image[number]}, label_map)
    error = float((image - label).double().square().mean())
    return {"psnr_volume": -10 * float(np.log10(error)) if error else float("inf")}


class Comparison:
    """Run systems on one low-resolution volume and measure them against its reference, one after the other.

    Only one slice of each result is kept, for the picture.

    Args:
        source: file or DICOM folder of the low-resolution volume, which every system reads by itself, first in `add`.
        image: the volume [1, X, Y, Z] that is there, or will be there.
        ref: the reference [1, X', Y', Z'], the same space at ``scale`` times the pixels. It may have up to
            ``scale - 1`` more at the far end, which `degrade` crops.
        plane: sagittal, coronal or axial, the plane whose slices are enlarged and compared.
        scale: the factor of the slices' two axes.
        border: pixels left out at each side of a slice.
        slice_number: the slice of the picture, counted from 0 along the array's axis as in `slices.csv`; by default the
            middle one of those that are compared.
        device: the device that the systems run on, for the table's caption.
        note: what the volume is and how it was made, for the table's caption and the picture.

    Raises:
        ValueError: volumes that do not belong together, a slice that is not compared, a reference that is constant or
            has voxels that are NaN.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        image: MetaTensor,
        ref: MetaTensor,
        plane: str,
        scale: int,
        *,
        border: int = 4,
        slice_number: int | None = None,
        device: str = "cpu",
        note: str = "",
    ) -> None:
        low, high = intensity_range(ref, "minmax")
        self.source, self.plane, self.scale, self.border, self.note = str(source), plane, scale, border, note
        self.full_ref, self.data_range = ref, high - low
        self.axis = plane_axis(ref.affine, plane)
        factors = axis_factors(self.axis, scale)
        shape = tuple(n * f for n, f in zip(image.shape[1:], factors, strict=True))
        affine = resized_affine(image.affine, image.shape[1:], shape)
        what = f"enlarged x{scale} in the {plane} plane, the input"
        self.ref = _covered(affine, shape, ref, what)
        if any(r - n >= f for r, n, f in zip(ref.shape[1:], shape, factors, strict=True)):
            raise ValueError(
                f"{what} has {describe_grid(affine, shape)}, the reference {describe_grid(ref.affine, ref.shape[1:])}: "
                "only volumes of the same space can be compared"
            )
        label = ((self.ref.as_tensor()[0] - low) / self.data_range).movedim(self.axis, 0)
        usable = _usable(label, plane)
        psnr(label[usable[0]], label[usable[0]], border)  # refuses slices that are too small, before any work
        self.slice_number = usable[len(usable) // 2] if slice_number is None else slice_number
        if self.slice_number not in usable:
            raise ValueError(f"slice {slice_number} is not among those compared: {', '.join(map(str, usable))}")
        self.window = intensity_range(ref)
        self.spacing = pixel_edges(self.ref.affine, plane)
        self.input_slice, self.ref_slice = (displayed_slice(v, plane, self.slice_number) for v in (image, self.ref))
        on_gpu = torch.device(device).type == "cuda"
        self.device = torch.cuda.get_device_name(device) if on_gpu else f"CPU (threads: {torch.get_num_threads()})"
        self.slices: dict[str, np.ndarray] = {}
        self.rows: list[dict[str, Any]] = []
        self.slice_rows: list[dict[str, Any]] = []

    def add(self, name: str, runner: BundleRunner) -> MetaTensor:
        """Run a system, measure it and return its result; its row is the last of `rows`.

        The seconds are those of the enlargement, without reading the file.
        """
        item = runner.read(self.source)
        start = time.perf_counter()
        result = runner.run(item)
        seconds = time.perf_counter() - start
        evaluation = SliceEvaluation(self.border)
        volume = compare_volumes(result, self.full_ref, evaluation, self.plane, method=name)
        self.slice_rows.extend({"system": name} | {k: row[k] for k in SLICE_COLUMNS} for row in evaluation.rows)
        summary = {k: v for k, v in evaluation.groups()[0].items() if k not in ("case", "method")}
        row = {"system": name} | summary | volume
        row |= {"parameters": count_parameters(runner.network), "seconds": seconds}
        checksum = runner.weights and hashlib.sha256(Path(runner.weights).read_bytes()).hexdigest()
        self.rows.append(row | {"weights_sha256": checksum})
        self.slices[name] = displayed_slice(result, self.plane, self.slice_number)
        return result

    def header(self) -> str:
        """Give the two lines of the Markdown table that stand above its rows."""
        return f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"

    def line(self, row: dict[str, Any]) -> str:
        """Write one of `rows` as a line of the Markdown table."""
        return f"| {' | '.join(cell(row) for cell in COLUMNS.values())} |"

    def caption(self) -> str:
        """Say what the table shows."""
        return (
            f"{self.note}, x{self.scale} in the {self.plane} plane. PSNR and SSIM by the reference's range: mean "
            f"(standard deviation) over {self.rows[0]['slices']} slices, {self.border} pixels left out at each side. "
            f"Seconds: {self.device}. Research use only, not for clinical use."
        )

    def report(self, crop: tuple[int, int, int, int]) -> dict[str, Any]:
        """Give all figures and choices for JSON, in which None stands for what is infinite or NaN."""
        choices = {name: getattr(self, name) for name in ("plane", "scale", "border", "device")}
        choices |= {"slice": self.slice_number, "crop": list(crop)}
        return {"medsr_monai": __version__, "caption": self.caption()} | choices | {"systems": json_values(self.rows)}

    def write(self, folder: str | os.PathLike, crop: tuple[int, int, int, int] | None = None) -> dict[str, Any]:
        """Write `FILES` to a folder, made if missing, and return what is in compare.json; for ``crop`` see `draw`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        report = self.report(self.checked_crop(crop))
        lines = [self.header(), *map(self.line, self.rows), "", self.caption()]
        paths = (folder / name for name in FILES)
        with written_together(*paths) as (markdown, table, content, slices, picture):
            markdown.write_text("\n".join(lines) + "\n")
            write_rows(self.rows, table)
            content.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
            write_rows(self.slice_rows, slices)
            self.draw(crop).savefig(picture, metadata={"Description": self.caption()})
        return report

    def draw(self, crop: tuple[int, int, int, int] | None = None) -> Figure:
        """Draw the picture: the slice of every system, a crop of it and its errors, with the slice's PSNR and SSIM.

        Args:
            crop: (top, left, height, width) in pixels of the reference's slice as the picture shows it; by default the
                window with the strongest gradients, a quarter of its sides.

        Raises:
            ValueError: a crop that does not lie inside the slice.
        """
        figures = {
            row["system"]: f"{row['psnr']:.2f} dB / {row['ssim']:.4f}"
            for row in self.slice_rows
            if row["slice"] == self.slice_number
        }
        note = f"{self.plane} slice {self.slice_number}\nx{self.scale} in both axes\nPSNR / SSIM of this slice"
        return comparison_grid(
            self.input_slice,
            self.slices,
            self.ref_slice,
            self.checked_crop(crop),
            self.window,
            self.data_range,
            figures,
            spacing=self.spacing,
            note=note,
            left_edge=EDGES[self.plane][0],
        )

    def checked_crop(self, crop: tuple[int, int, int, int] | None = None) -> tuple[int, int, int, int]:
        """Choose or check the crop of the picture, see `draw`."""
        rows, columns = self.ref_slice.shape
        if crop is None:
            return busiest_crop(self.ref_slice, (max(2, rows // 4), max(2, columns // 4)))
        top, left, height, width = crop
        if not (0 <= top < top + height <= rows and 0 <= left < left + width <= columns):
            raise ValueError(
                f"crop is {','.join(map(str, crop))}, expected top,left,height,width inside the slice of "
                f"{rows}x{columns} pixels"
            )
        return crop
