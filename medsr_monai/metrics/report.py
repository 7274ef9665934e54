"""Tables of per-slice figures, summed up by volume and plane."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["SliceTable"]


class SliceTable:
    """Per-slice rows, written as CSV, and their means per group, written as Markdown.

    Args:
        group_by: columns that name a row of the summary.
        values: columns that are averaged.
    """

    def __init__(self, group_by: Sequence[str], values: Sequence[str]) -> None:
        self.group_by = tuple(group_by)
        self.values = tuple(values)
        self.rows: list[dict] = []

    def extend(self, rows: Iterable[dict]) -> None:
        """Add rows, one dictionary per slice."""
        self.rows.extend(rows)

    def summary(self) -> list[dict]:
        """One row per group, in order of first appearance: the group, the number of slices, means and deviations.

        The deviation is NaN where a value is infinite, as the PSNR of equal slices is.
        """
        groups: dict[tuple, list[dict]] = {}
        for row in self.rows:
            groups.setdefault(tuple(row[k] for k in self.group_by), []).append(row)
        out = []
        for group, rows in groups.items():
            entry = dict(zip(self.group_by, group, strict=True), slices=len(rows))
            for name in self.values:
                column = [row[name] for row in rows]
                entry[name] = statistics.fmean(column)
                entry[f"{name}_std"] = statistics.pstdev(column) if all(map(math.isfinite, column)) else math.nan
            out.append(entry)
        return out

    def markdown(self) -> str:
        """The summary's means as a Markdown table."""
        header = [*self.group_by, "slices", *self.values]
        lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        for entry in self.summary():
            means = (f"{entry[name]:.2f}" if "psnr" in name else f"{entry[name]:.4f}" for name in self.values)
            lines.append(f"| {' | '.join([*(str(entry[k]) for k in header[: -len(self.values)]), *means])} |")
        return "\n".join(lines)

    def write_csv(self, path: str | Path) -> None:
        """Every slice's row."""
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]) if self.rows else self.group_by)
            writer.writeheader()
            writer.writerows(self.rows)
