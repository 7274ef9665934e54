"""Tables of figures: rows of slices, their means by group, and how they are written as CSV, Markdown and JSON."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from medsr_monai.errors import printable

__all__ = ["group_rows", "json_text", "json_values", "markdown_table", "summarise_rows", "write_rows"]


FORMULA = ("=", "+", "-", "@", "'", "\t", "\r", "\n", "\0")
"""How cells begin that spreadsheets compute. An apostrophe is theirs for text, so one of a name's own gets another."""


def json_values(value: object) -> object:
    """Return the same dictionaries and lists with None for infinite numbers and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: json_values(one) for name, one in value.items()}
    if isinstance(value, list):
        return [json_values(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_rows(rows: Sequence[dict], path: str | Path, columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV with all digits; a value that a row does not have is empty.

    Text, such as names of files, is written so that no spreadsheet reads it as a formula, control characters escaped.

    Args:
        rows: dictionaries with any keys.
        path: the file.
        columns: keys to be written; None for all, in the order in which they first appear.
    """
    names = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else list(columns)
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: object) -> object:
    """A value as a spreadsheet shows it, too: text that it would compute as a formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.lstrip().startswith(FORMULA) else printable(value)


def markdown_table(rows: Sequence[dict], columns: Sequence[str] | None = None) -> str:
    """Return rows as a Markdown table, in which columns ``x`` and ``x_std`` become one: mean (deviation).

    Args:
        rows: dictionaries with any keys; a value that is None or missing is a dash.
        columns: keys to be shown; None for all, in the order in which they first appear.
    """
    names = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else list(columns)
    names = [name for name in names if not (name.endswith("_std") and name.removesuffix("_std") in names)]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in rows:
        cells = (_text(name, row.get(name)) for name in names)
        stds = (row.get(f"{name}_std") for name in names)
        both = (
            cell if std is None else f"{cell} ({_text(name, std)})"
            for name, cell, std in zip(names, cells, stds, strict=True)
        )
        lines.append(f"| {' | '.join(both)} |")
    return "\n".join(lines)


def _text(name: str, value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return printable(str(value))
    return f"{value:.2f}" if name.startswith(("psnr", "fid", "fps")) else f"{value:.4f}"


def group_rows(rows: Iterable[dict], group_by: Sequence[str]) -> dict[tuple, list[dict]]:
    """Return rows by their values in the columns ``group_by``, in order of appearance; a missing value is None."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in group_by), []).append(row)
    return groups


def summarise_rows(rows: Iterable[dict], group_by: Sequence[str], values: Sequence[str]) -> list[dict]:
    """Return one row for each group of rows of slices: the group, the number of slices, means and deviations.

    The deviation is that of the population. It is NaN if a value is infinite, as the PSNR of equal slices is. Of a
    column that no row of the group has both are None.

    Args:
        rows: one dictionary for each slice.
        group_by: columns that name a group, see :func:`group_rows`.
        values: columns that are averaged over the rows that have them.
    """
    out = []
    for group, members in group_rows(rows, group_by).items():
        entry = dict(zip(group_by, group, strict=True), slices=len(members))
        for name in values:
            column = [row[name] for row in members if row.get(name) is not None]
            finite = all(map(math.isfinite, column))
            entry[name] = statistics.fmean(column) if column else None
            entry[f"{name}_std"] = (statistics.pstdev(column) if finite else math.nan) if column else None
        out.append(entry)
    return out


def json_text(value: dict[str, Any]) -> str:
    """Return one line of JSON, in which numbers that are infinite or NaN become null."""
    return json.dumps(json_values(value), allow_nan=False)
