"""`medsr models` and `medsr demo` as a user types them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
from bundle_copies import copy_bundle
from typed_commands import assert_same_corners, refused

ROOT = Path(__file__).parents[2]


def test_models_lists_every_bundle(medsr):
    bundles = sorted(p.parent.parent.name for p in (ROOT / "bundles").glob("*/configs/metadata.json"))
    code, out, err = medsr("models", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "") and [row["bundle"] for row in rows] == bundles
    assert all(row["trained"] == Path(row["weights"]).is_file() == bool(row["sha256"]) for row in rows)
    code, out, _ = medsr("models")
    assert all(f"{row['bundle']} {row['version']}: {row['task']}" in out and row["weights"] in out for row in rows)


def test_models_says_where_missing_weights_belong(medsr, monkeypatch, tmp_path):
    bare = copy_bundle(tmp_path / "bare")
    monkeypatch.setattr("medsr_monai.commands.models.bundle_folders", lambda: {"bare": bare})
    code, out, _ = medsr("models")
    assert (
        code == 0 and f"no trained weights: train the bundle, or put model.pt at {bare / 'models' / 'model.pt'}" in out
    )
    assert json.loads(medsr("models", "--json")[1])[0]["trained"] is False


def test_demo(medsr):
    """The shipped weights are better than B-splines at both, by what README says; thick slices are the main thing."""
    from matplotlib.image import imread

    code, out, err = medsr("demo", "--device", "cpu")
    assert (code, err) == (0, "")
    written = {p.name.removesuffix(".nii.gz") for p in Path("demo_out").iterdir()}
    cases = {case + ending for case in ("thick", "coarse") for ending in ("", "_spline", "_sr")}
    assert written == cases | {"reference", "demo.png"}
    psnr = {(case, method): float(value) for case, method, value in
            re.findall(r"^(\w+), (B-spline|medsr upscale) ?\S*: PSNR ([\d.]+) dB", out, re.M)}  # fmt: skip
    for case, gain in (("thick", 2.0), ("coarse", 0.2)):
        assert psnr[case, "medsr upscale"] > psnr[case, "B-spline"] + gain
        assert_same_corners(Path("demo_out/reference.nii.gz"), Path(f"demo_out/{case}_sr.nii.gz"))
        assert_same_corners(Path("demo_out/reference.nii.gz"), Path(f"demo_out/{case}.nii.gz"))
    assert nib.load("demo_out/thick.nii.gz").header.get_zooms() == (1, 4, 1)
    picture = imread("demo_out/demo.png")
    assert min(picture.shape[:2]) > 1000 and np.ptp(picture[..., :3]) > 0.9
    before = {p.name: p.stat().st_mtime_ns for p in Path("demo_out").iterdir()}
    refused(medsr("demo"), "demo_out/.*: exists.*--overwrite")
    assert before == {p.name: p.stat().st_mtime_ns for p in Path("demo_out").iterdir()}
