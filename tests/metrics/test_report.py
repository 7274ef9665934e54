"""Tables of figures."""

import csv
import math

import pytest

from medsr_monai.errors import printable
from medsr_monai.metrics import markdown_table, summarise_rows, write_rows
from medsr_monai.upscaling.status import StatusTable

ROWS = [
    {"case": "a", "plane": "axial", "slice": 0, "psnr": 20.0, "ssim": 0.5},
    {"case": "b", "plane": "axial", "slice": 0, "psnr": 31.0, "ssim": 0.9},
    {"case": "a", "plane": "axial", "slice": 1, "psnr": 24.0, "ssim": 0.7},
]


GROUP, VALUES = ("case", "plane"), ("psnr", "ssim")


def summary(*rows, by=GROUP):
    return summarise_rows(rows, by, VALUES)


def test_means_by_hand():
    first, second = summary(*ROWS)
    assert first == {
        "case": "a", "plane": "axial", "slices": 2, "psnr": 22.0, "psnr_std": 2.0,
        "ssim": pytest.approx(0.6), "ssim_std": pytest.approx(0.1),
    }  # fmt: skip
    assert (second["case"], second["slices"], second["psnr"], second["psnr_std"]) == ("b", 1, 31.0, 0.0)


def test_markdown():
    assert markdown_table(summary(*ROWS)).splitlines() == [
        "| case | plane | slices | psnr | ssim |",
        "|---|---|---|---|---|",
        "| a | axial | 2 | 22.00 (2.00) | 0.6000 (0.1000) |",
        "| b | axial | 1 | 31.00 (0.00) | 0.9000 (0.0000) |",
    ]


def test_equal_slices_have_an_infinite_mean():
    """A volume compared with itself; the standard deviation of infinities is undefined, not an error."""
    (row,) = summary(ROWS[0], ROWS[0] | {"psnr": math.inf})
    assert row["psnr"] == math.inf and math.isnan(row["psnr_std"]) and row["ssim_std"] == 0
    assert "| inf (nan) |" in markdown_table(summary(ROWS[0] | {"psnr": math.inf}))


def test_other_groups_and_rows_without_a_value():
    first, second = summary(*ROWS, ROWS[0] | {"psnr": None}, by=("slice",))
    assert (first["slice"], first["slices"], first["psnr"]) == (0, 3, 25.5)
    assert (second["slice"], second["slices"], second["psnr"]) == (1, 1, 24.0)
    (row,) = summary(ROWS[0] | {"psnr": None})
    assert row["psnr"] is None and row["psnr_std"] is None and row["ssim"] == 0.5
    assert "| 1 | - | 0.5000 (0.0000) |" in markdown_table(summary(ROWS[0] | {"psnr": None}))


def test_rows_of_different_columns(tmp_path):
    rows = [{"method": "a", "psnr": 31.256}, {"method": "b", "psnr": None, "macs": 12}]
    lines = markdown_table(rows).splitlines()
    assert lines == ["| method | psnr | macs |", "|---|---|---|", "| a | 31.26 | - |", "| b | - | 12 |"]
    write_rows(rows, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().split() == ["method,psnr,macs", "a,31.256,", "b,,12"]
    write_rows(rows, tmp_path / "a.csv", ("psnr",))
    assert (tmp_path / "a.csv").read_text().splitlines() == ["psnr", "31.256", '""']


def test_csv(tmp_path):
    write_rows(ROWS, tmp_path / "slices.csv")
    with (tmp_path / "slices.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [{k: str(v) for k, v in row.items()} for row in ROWS]


def test_empty_table(tmp_path):
    assert summary() == []
    assert markdown_table([], GROUP).count("\n") == 1
    write_rows([], tmp_path / "empty.csv", GROUP)
    assert (tmp_path / "empty.csv").read_text().strip() == "case,plane"


@pytest.mark.parametrize("name", ["=cmd|'/c calc'!A1", "+1", "-1+2", "@SUM(A1)", "\t=1", " =1", "'=1", "\r=1"])
def test_no_spreadsheet_reads_text_as_a_formula(tmp_path, name):
    """Numbers stay numbers, text is text, also to the table of a cohort, which reads it again."""
    write_rows([{"case": name, "value": -1.5}], tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["case"].startswith("'") and row["value"] == "-1.5"
    table = StatusTable(tmp_path)
    table.update([{"output": printable(name), "case": "a", "status": "done"}])
    assert list(table.read()) == [printable(name)]


def test_control_characters_are_escaped(tmp_path):
    write_rows([{"case": "a\x1b[2Jb\u202ec\nd"}], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "case\na\\x1b[2Jb\\u202ec\\nd\n"
    assert "\x1b" not in markdown_table([{"case": "a\x1b[2J"}])
