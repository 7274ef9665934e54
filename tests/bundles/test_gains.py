"""The gains by which `medsr upscale` chooses a bundle are those that the cards' tables state."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADER = "| volume | split |"
FILES = sorted(ROOT.glob("bundles/*/docs/gains.json"))
KINDS = {
    "brain_t1_d": {"modality": "MR", "body_part": "brain", "contrast": "T1"},
    "brain_t1_labelled": {"modality": "MR", "body_part": "brain", "contrast": "T1"},
    "brain_flair_ms26": {"modality": "MR", "body_part": "brain", "contrast": "FLAIR"},
    "spine_mr t2s_axial": {"modality": "MR", "body_part": "spine", "contrast": "T2*"},
    "chest_ct_1mm": {"modality": "CT", "body_part": "chest", "contrast": None},
    "abdomen_ct_3mm": {"modality": "CT", "body_part": "abdomen", "contrast": None},
    "cine MR": {"modality": "cine MR", "body_part": "heart", "contrast": None, "images": True},
    "ultrasound": {"modality": "US", "body_part": "neck", "contrast": None, "images": True},
    "endoscopy": {"modality": "ES", "body_part": None, "contrast": None, "images": True},
    "head_ct_phantom": None,  # a phantom is made of straight edges
}
"""What the volumes of the tables show."""


def number(cell):
    return float(re.search(r"[\d.]+", cell)[0])


def gains(card):
    """What docs/gains.json should hold: the mean over the slices of each kind, of the last network of the table."""
    lines = card[card.index(HEADER) :].split("\n\n")[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    ours = [name for name in header if name.startswith("PSNR ")][-1]
    found = {}
    for row in (dict(zip(header, cells, strict=True)) for cells in rows):
        kind = KINDS[row["volume"]]
        if kind is None:
            continue
        best = max(number(row[name]) for name in ("PSNR bicubic", "PSNR B-spline") if name in row)
        one = found.setdefault(json.dumps(kind), kind | {"volumes": [], "slices": 0, "gain": 0.0})
        one["volumes"] = sorted({*one["volumes"], row["volume"]})
        one["slices"] += int(row["slices"])
        one["gain"] += int(row["slices"]) * (number(row[ours]) - best)
    return [one | {"gain": round(one["gain"] / one["slices"], 2)} for one in found.values()]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parents[1].name)
def test_gains_are_those_of_the_card(path):
    """Where a card has new figures, this shows what the file has to hold."""
    expected = gains((path.parent / "README.md").read_text())
    assert json.loads(path.read_text())["kinds"] == expected, json.dumps(expected, indent=2)


def test_every_bundle_with_such_a_table_has_them():
    cards = {p.parents[1].name for p in ROOT.glob("bundles/*/docs/README.md") if HEADER in p.read_text()}
    assert cards == {p.parents[1].name for p in FILES}
