"""What is in a file or study, and what `medsr upscale` would do with it."""

from __future__ import annotations

import sys
from typing import Any

from medsr_monai.atomic import check_input
from medsr_monai.errors import printable

ZERO_FILLED = ("MR", "")
"""The DICOM modalities, and '' for files that state none, in which an empty border of k-space means zero filling."""


def inspect(
    path: str,
    json: bool = False,
    no_timing: bool = False,
    frame: int | None = None,
    slice_batch: int = 4,
) -> int:
    """Print what a file, folder or DICOM study holds, how finely it was really acquired, and what upscale would do.

    For each volume, DICOM series or picture it prints the shape, the voxel size, the orientation and the direction
    across thick slices. Along each axis within the slices it estimates which share of k-space holds signal, by which
    images show that were zero-filled or interpolated in another way. It names the bundle that fits, the grid of the
    output and the command to type, with estimates of the peak memory and of the time that the network takes on this
    CPU. Nothing is written.

    Args:
        path: a NIfTI or FreeSurfer file, a picture, a DICOM file, a zip with DICOM files, or a folder of any of these.
        json: print one JSON document instead, with the path and a list of items.
        no_timing: leave out the estimate of the time, for which the network runs on a small slice for a few seconds.
        frame: which frame of a 4D file to take, counted from 0.
        slice_batch: how many slices upscale would compute at a time, for the estimate of the memory.
    """
    check_input(path)
    if slice_batch < 1:
        raise ValueError(f"slice_batch is {slice_batch}, expected at least 1")
    from medsr_monai.upscaling.inspection import inspect as look_into

    items = []
    for item in look_into(path, frame=frame, slice_batch=slice_batch, timing=not no_timing):
        items.append(item)
        if not json:
            print("" if len(items) == 1 else "\n", _text(item), sep="", flush=True)
    if json:
        from medsr_monai.metrics import json_text

        print(json_text({"path": path, "items": items}))
    if all(item["problem"] is not None for item in items):
        for item in items:
            print(f"medsr: error: {item['problem']}", file=sys.stderr)
        return 1
    return 0


def _text(item: dict[str, Any]) -> str:
    """One block, a line a fact."""
    lines = [printable(item["name"])]
    rows: list[tuple[str, str]] = []
    if item["series"]:
        series = item["series"]
        rows.append(("series", f"{series['modality'] or 'DICOM'}, {series['files']} files"))
    if item["shape"]:
        rows.append(("shape", _shape_text(item)))
    if item["left_out"]:
        rows.append(("left out", item["left_out"]))
    if item["problem"]:
        rows.append(("problem", item["problem"]))
    if item["axes"] is not None:
        thick = item["thick_axis"]
        if item["kind"] != "picture":
            rows.append(("thick axis", "none" if thick is None else f"{thick}, {max(item['spacing_mm']):.3g} mm"))
        rows += [("" if n else "k-space", _axis_text(axis, item)) for n, axis in enumerate(item["axes"])]
    if item["plan"]:
        rows += _plan_rows(item)
    return "\n".join([*lines, *(f"  {name:<11} {printable(text)}" for name, text in rows)])


def _shape_text(item: dict[str, Any]) -> str:
    from medsr_monai.transforms import format_edges

    text = "x".join(map(str, item["shape"])) + (" pixels" if item["kind"] == "picture" else " voxels")
    text += f" of {format_edges(item['spacing_mm'])} mm" if item["spacing_mm"] else ""
    if item["orientation"]:
        text += f", {item['orientation']}"
        if item["oblique_degrees"] >= 0.5:
            text += f" (oblique by {item['oblique_degrees']:.1f} degrees)"
        text += f", {item['plane']} slices"
    return text


def _axis_text(axis: dict[str, Any], item: dict[str, Any]) -> str:
    edge = f" of {axis['spacing_mm']:.3g} mm" if axis["spacing_mm"] else ""
    unit = "pixels" if item["kind"] == "picture" else "voxels"
    text = f"{axis['direction']}: {axis['size']} {unit}{edge}"
    if axis["interpolated"] is None:
        text += ", too few in a row to be judged"
    elif not axis["interpolated"]:
        text += ", no interpolation detected"
    elif item["kind"] == "picture" or (item["series"] and item["series"]["modality"] not in ZERO_FILLED):
        text += f", smooth: signal in {100 * axis['share']:.0f} % of the band"
    else:
        text += f", interpolated: signal in {100 * axis['share']:.0f} %, about {axis['acquired']} acquired"
    if axis["interpolated"] and axis["resolution_mm"]:
        text += f", {axis['resolution_mm']:.3g} mm"
    if axis["acquisition_matrix"]:
        text += f" (DICOM AcquisitionMatrix {axis['acquisition_matrix']})"
    return text


def _plan_rows(item: dict[str, Any]) -> list[tuple[str, str]]:
    from medsr_monai.transforms import format_edges

    plan, estimate = item["plan"], item["estimate"]
    grid = "x".join(map(str, plan["output_shape"])) + (" pixels" if item["kind"] == "picture" else " voxels")
    grid += f" of {format_edges(plan['output_spacing_mm'])} mm" if plan["output_spacing_mm"] else ""
    rows = [("bundle", f"{plan['bundle']}, since {plan['reason']}"), ("", plan["measured"]), ("", plan["otherwise"])]
    rows += [("upscale", plan["what"]), ("output", grid)]
    if not plan["weights"]:
        rows.append(("weights", f"none of {plan['bundle']} here: train it, or put them where `medsr models` says"))
    rows.append(("command", plan["command"]))
    from medsr_monai.upscaling.memory import Way

    text = str(Way(estimate["memory_bytes"], estimate["slice_batch"]))
    if estimate["seconds"] is not None:
        threads = estimate["threads"]
        text += f"; network about {_duration(estimate['seconds'])} on {threads} thread{'s' * (threads > 1)}"
    return [*rows, ("estimate", text)]


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"
