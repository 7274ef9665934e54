"""`medsr models` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

from bundle_copies import copy_bundle

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
