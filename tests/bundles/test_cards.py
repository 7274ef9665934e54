"""The shipped weights give what their cards' first tables and metadata.json state; minutes a bundle.

`pytest -m slow tests/bundles/test_cards.py`
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
HEADER = "| volume | split |"
COLUMNS = {"bicubic": "bicubic", "B-spline": "spline"}
SPLITS = {"other_contrast": "test, other contrast"}
CARDS = [p for p in sorted(ROOT.glob("bundles/*/docs/README.md")) if HEADER in p.read_text()]


def commands(card, bundle):
    """Evaluations of this bundle's own weights behind the table, as the card has them, without further conditions."""
    lines = re.findall(rf"^python -m monai.bundle run evaluating .*--bundle_root bundles/{bundle} .*$", card, re.M)
    own = [line for line in lines if " --dataset_dir data " in line and "--unet_path" not in line]
    own = [line for line in own if "--val_slices 8" in line or "--evaluate_list other_contrast" in line]
    return [re.sub(r'--conditions ".*?" ', "", line) for line in own]


def table(card):
    """Rows of the table as dictionaries by its header."""
    lines = card[card.index(HEADER) :].split("\n\n")[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


def figures(summary):
    """{(volume or modality, plane, thick axis), as the card names them: {method: row}}."""
    found = {}
    for row in summary["groups"]:
        case = row["case"].replace("/", " ") if row["case"].startswith("spine") else row["case"].split("/")[0]
        found.setdefault((case, row["plane"], row.get("thick_axis")), {})[row["method"]] = row
    for row in summary.get("modalities", ()):
        found.setdefault((row["modality"], "-", None), {})[row["method"]] = row
    return found


def compare(got, stated, what):
    for figure, tolerance in (("psnr", 0.011), ("ssim", 0.0002)):
        assert got[figure] == pytest.approx(stated[figure], abs=tolerance), what


def test_bundles_with_weights_have_such_a_table():
    """The bundle of other networks has them in the cards of ours."""
    metadata = {p.parents[1].name: json.loads(p.read_text()) for p in ROOT.glob("bundles/*/configs/metadata.json")}
    named = sorted(name for name, content in metadata.items() if content.get("weights") and name != "comparison")
    assert named == sorted(p.parents[1].name for p in CARDS)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the volumes of the cards are not in ../shared/data")
@pytest.mark.parametrize("path", CARDS, ids=lambda p: p.parents[1].name)
def test_the_weights_give_the_figures_of_their_card(path, tmp_path):
    bundle, card = path.parents[1].name, path.read_text()
    metadata = json.loads((path.parents[1] / "configs" / "metadata.json").read_text())["eval_metrics"]
    found = {}
    for number, command in enumerate(commands(card, bundle)):
        out = tmp_path / str(number)
        words = [sys.executable, *shlex.split(command)[1:]]
        words[words.index("--dataset_dir") + 1] = str(DATA)
        words[words.index("--output_dir") + 1] = str(out)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        summary = json.loads((out / "summary.json").read_text())
        split = words[words.index("--evaluate_list") + 1] if "--evaluate_list" in words else "validation"
        found.setdefault(SPLITS.get(split, split), {}).update(figures(summary))
        if number == 0:
            pooled = next(row for row in summary["pooled"] if row["method"] not in COLUMNS.values())
            compare(pooled, {name: metadata[f"val_{name}"] for name in ("psnr", "ssim")}, "metadata.json")
    rows = table(card)
    assert rows
    for row in rows:
        methods = found[row["split"]][row["volume"], row["plane"], row.get("thick axis")]
        ours = next(iter(methods.keys() - set(COLUMNS.values())))
        for column, method in (*COLUMNS.items(), (list(row)[-1].removeprefix("SSIM "), ours)):
            if column == "bicubic" and f"PSNR {column}" not in row:  # not in cards of splines that are refined
                continue
            assert methods[method]["slices"] == int(row["slices"]), row
            numbers = {n: float(re.search(r"[\d.]+", row[f"{n.upper()} {column}"])[0]) for n in ("psnr", "ssim")}
            compare(methods[method], numbers, (row, column))
