"""Tables of figures: per-slice rows, summed up by group, as CSV and Markdown."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["SliceTable", "json_text", "json_values", "markdown_table", "write_rows"]


def json_values(value: object) -> object:
    """The same dictionaries and lists with None for numbers that are infinite or NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: json_values(one) for name, one in value.items()}
    if isinstance(value, list):
        return [json_values(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_rows(rows: Sequence[dict], path: str | Path, columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV, all digits; what a row does not have is empty.

    Args:
        rows: with any keys.
        path: of the file.
        columns: to be written; None for all, in the order in which they first appear.
    """
    names = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else list(columns)
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def markdown_table(rows: Sequence[dict], columns: Sequence[str] | None = None) -> str:
    """Rows as a Markdown table; where there is a column ``x_std`` beside ``x``, both are one: mean (std).

    Args:
        rows: with any keys; what is None or missing is a dash.
        columns: to be shown; None for all, in the order in which they first appear.
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
        return str(value)
    return f"{value:.2f}" if name.startswith(("psnr", "fid", "fps")) else f"{value:.4f}"


class SliceTable:
    """Per-slice rows, and their means and deviations per group.

    Args:
        group_by: columns that name a row of the summary.
        values: columns that are averaged, over the rows that have them.
    """

    def __init__(self, group_by: Sequence[str], values: Sequence[str]) -> None:
        self.group_by = tuple(group_by)
        self.values = tuple(values)
        self.rows: list[dict] = []

    def extend(self, rows: Iterable[dict]) -> None:
        """Add rows, one dictionary per slice."""
        self.rows.extend(rows)

    def groups(self, group_by: Sequence[str] | None = None) -> dict[tuple, list[dict]]:
        """Rows by what they have in the columns ``group_by`` (default: the table's), in order of first appearance.

        What a row does not have is None.
        """
        groups: dict[tuple, list[dict]] = {}
        for row in self.rows:
            groups.setdefault(tuple(row.get(k) for k in group_by or self.group_by), []).append(row)
        return groups

    def summary(self, group_by: Sequence[str] | None = None) -> list[dict]:
        """One row per group, in order of first appearance: the group, the number of slices, means and deviations.

        The deviation (of the population) is NaN where a value is infinite, as the PSNR of equal slices is. A column
        that no row of the group has is None.

        Args:
            group_by: other columns than the table's.
        """
        group_by = group_by or self.group_by
        out = []
        for group, rows in self.groups(group_by).items():
            entry = dict(zip(group_by, group, strict=True), slices=len(rows))
            for name in self.values:
                column = [row[name] for row in rows if row.get(name) is not None]
                finite = all(map(math.isfinite, column))
                entry[name] = statistics.fmean(column) if column else None
                entry[f"{name}_std"] = (statistics.pstdev(column) if finite else math.nan) if column else None
            out.append(entry)
        return out

    def markdown(self) -> str:
        """The summary as a Markdown table."""
        columns = [*self.group_by, "slices", *(n for name in self.values for n in (name, f"{name}_std"))]
        return markdown_table(self.summary(), columns)

    def write_csv(self, path: str | Path, columns: Sequence[str] | None = None) -> None:
        """Every slice's row; ``columns`` as in :func:`write_rows`."""
        write_rows(self.rows, path, columns if self.rows or columns else self.group_by)


def json_text(value: dict[str, Any]) -> str:
    """One line of JSON, which has no infinite numbers: they become null."""
    return json.dumps(json_values(value), allow_nan=False)
