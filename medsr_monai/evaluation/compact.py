"""Weights stored in half the bytes, once the validation volumes show that nothing is lost."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from medsr_monai.atomic import check_output, read_json
from medsr_monai.upscaling.bundles import bundle_folder
from medsr_monai.weights.load import read_weights, save_atomically
from medsr_monai.weights.stated import MAIN_WEIGHTS

__all__ = ["LIMIT", "compact"]

LIMIT = 0.01
"""By less than this many dB the PSNR of every volume and plane may change."""
INTERPOLATIONS = ("bicubic", "spline")


def compact(
    bundle: str,
    output: str | Path,
    dataset_dir: str,
    datalist: str | None = None,
    *,
    weights: str | None = None,
    val_slices: int = 8,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Store a bundle's weights as float16, whose loading makes float32 of them again, if no validation volume is worse.

    The bundle's evaluation, ``evaluating`` in its evaluate.json, runs with both.

    Args:
        bundle: name or folder. Its configurations run as `python -m monai.bundle` runs them.
        output: file to write.
        dataset_dir, datalist: of the evaluation.
        weights: file to store in place of the bundle's own.
        val_slices: slices of each volume and plane that are measured.
        overwrite: replace an existing output.

    Returns:
        Rows with volume, plane, and PSNR in dB of float32, of float16 and their difference.

    Raises:
        ValueError: numbers too large for float16, or a difference of LIMIT or more; nothing is written then.
    """
    check_output(Path(output), overwrite)
    folder = bundle_folder(bundle)
    file, content = read_weights(Path(weights) if weights else folder / MAIN_WEIGHTS)
    half = {name: t.half() if t.is_floating_point() else t for name, t in content["model"].items()}
    if wrong := [name for name, t in half.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise ValueError(f"{file}: numbers of {', '.join(wrong[:3])} are too large for float16")
    stored = {"network": content["network"], "model": half}
    with tempfile.TemporaryDirectory() as scratch:
        figures = {}
        for name, one in (("float32", content), ("float16", stored)):
            save_atomically(one, Path(scratch) / name / "model.pt")
            figures[name] = _evaluated(folder, Path(scratch) / name, dataset_dir, datalist, val_slices)
    rows = [
        {"volume": case, "plane": plane, **{name: found[case, plane] for name, found in figures.items()}}
        for case, plane in figures["float32"]
    ]
    for row in rows:
        row["difference"] = row["float16"] - row["float32"]
    worst = max(rows, key=lambda row: abs(row["difference"]))
    if not abs(worst["difference"]) < LIMIT:
        place = f"{worst['volume']} ({worst['plane']})"
        raise ValueError(
            f"{file}: float16 changes {place} by {worst['difference']:+.4f} dB, {LIMIT} or more: keep float32"
        )
    save_atomically(stored, output)
    return rows


def _evaluated(folder: Path, place: Path, dataset_dir: str, datalist: str | None, slices: int) -> dict[tuple, float]:
    """PSNR by volume and plane of the weights in a folder."""
    from monai.bundle import run

    given = {} if datalist is None else {"datalist": datalist}
    run(
        run_id="evaluating",
        config_file=[str(folder / "configs" / f"{name}.json") for name in ("train", "evaluate")],
        bundle_root=str(folder),
        ckpt_dir=str(place),
        output_dir=str(place / "evaluation"),
        dataset_dir=dataset_dir,
        val_slices=slices,
        failures=0,
        **given,
    )
    groups = read_json(place / "evaluation" / "summary.json")["groups"]
    return {(row["case"], row["plane"]): row["psnr"] for row in groups if row["method"] not in INTERPOLATIONS}
