"""A cohort on one page: a static HTML file with all its pictures inside, which needs no network."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsr_monai.atomic import written_atomically
from medsr_monai.errors import naming
from medsr_monai.records.sidecar import read_sidecar
from medsr_monai.upscaling.quality import RESEARCH_USE, quality_path

__all__ = ["INDEX_NAME", "PageRow", "check_index", "write_index", "write_page"]

INDEX_NAME = "index.html"
PICTURE_WIDTH = 1000
"""Pixels of the pictures inside the page, at most; those beside the outputs are larger."""
JPEG_QUALITY = 85
MARK = '<meta name="generator" content="medsr_monai">'

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{{ mark|safe }}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #1c2430; background: #fff; }
h1 { font-size: 1.3rem; margin: 0 0 .2rem; }
p { margin: .2rem 0 .8rem; }
input, select { font: inherit; padding: .25rem .5rem; margin-right: .6rem; }
table { border-collapse: collapse; width: 100%; margin-top: .8rem; }
th, td { padding: .4rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #d5dbe3; }
th { position: sticky; top: 0; background: #eef2f6; white-space: nowrap; }
th button { font: inherit; font-weight: 600; border: 0; padding: 0; background: none; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { overflow-wrap: anywhere; min-width: 9rem; }
td.picture { width: 26rem; }
tr[data-status=failed] .status { color: #a11; font-weight: 600; }
img { width: 26rem; max-width: 100%; display: block; cursor: zoom-in; }
dialog { border: 0; padding: 0; max-width: 98vw; max-height: 98vh; }
dialog img { width: auto; max-width: 98vw; max-height: 98vh; cursor: zoom-out; }
@media print { input, select, label { display: none; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ note }}</p>
<label>Search <input id="search" type="search"></label>
<label>Status <select id="status"><option value="">all</option>
{%- for status in statuses %}<option>{{ status }}</option>{% endfor %}</select></label>
<span id="count" aria-live="polite"></span>
<table>
<thead><tr>
{%- for name in ("case", "status", "reason", "warnings", "residual RMS, % of range", "residual RMS / noise",
    "seconds") %}
<th><button type="button">{{ name }}</button></th>{% endfor %}
<th>picture</th></tr></thead>
<tbody>
{%- for row in rows %}
<tr data-status="{{ row.status }}">
<td class="text">{{ row.case }}</td><td class="status">{{ row.status }}</td><td class="text">{{ row.reason }}</td>
<td class="text">{{ row.warnings }}</td>
<td class="number">{{ row.percent|figure }}</td><td class="number">{{ row.per_noise|figure }}</td>
<td class="number">{{ row.seconds|figure }}</td>
<td class="picture">{% if row.picture %}<img src="{{ row|embedded }}" alt="quality picture of {{ row.case }}">
{%- endif %}</td></tr>
{%- endfor %}
</tbody>
</table>
<dialog><img alt=""></dialog>
<script>
"use strict";
const body = document.querySelector("tbody"), search = document.querySelector("#search");
const status_ = document.querySelector("#status"), dialog = document.querySelector("dialog");
const heads = [...document.querySelectorAll("th")].filter(head => head.querySelector("button"));
function filter() {
  let shown = 0;
  for (const row of body.rows) {
    const text = [...row.cells].map(cell => cell.textContent).join(" ").toLowerCase();
    row.hidden = !text.includes(search.value.toLowerCase()) ||
      (status_.value !== "" && row.dataset.status !== status_.value);
    shown += row.hidden ? 0 : 1;
  }
  document.querySelector("#count").textContent = shown + " of " + body.rows.length + " cases";
}
heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
  const down = head.getAttribute("aria-sort") === "ascending";
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[column].textContent.trim();
  const rows = [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if ((x === "") !== (y === "")) return x === "" ? 1 : -1;  // what is unknown stays last
    return (down ? -1 : 1) * (column > 3 ? Number(x) - Number(y) : x.localeCompare(y, "en", {numeric: true}));
  });
  body.append(...rows);
}));
body.addEventListener("click", event => {
  if (event.target.tagName !== "IMG") return;
  const image = dialog.querySelector("img");
  image.src = event.target.src;
  image.alt = event.target.alt;
  dialog.showModal();
});
dialog.addEventListener("click", () => dialog.close());
search.addEventListener("input", filter);
status_.addEventListener("change", filter);
filter();
</script>
</body>
</html>
"""


@dataclass(frozen=True)
class PageRow:
    """A case on the page; what is not known is None.

    Attributes:
        case: its name.
        status: a word, such as done or failed; failed is shown in red.
        reason: why it failed.
        warnings: of its sidecar, one after the other.
        seconds: that it took.
        residual: RMS of the re-degraded output's difference from the input, in parts of the input's intensity range.
        residual_per_noise: the same in parts of the input's noise.
        picture: file of its quality picture, copied into the page.
    """

    case: str
    status: str
    reason: str = ""
    seconds: float | None = None
    residual: float | None = None
    residual_per_noise: float | None = None
    picture: Path | None = None
    warnings: str = ""

    @property
    def percent(self) -> float | None:
        return None if self.residual is None else 100 * self.residual

    @property
    def per_noise(self) -> float | None:
        return self.residual_per_noise


def check_index(path: str | os.PathLike, overwrite: bool = False) -> None:
    """Refuse to replace a file that is no index page of ours; an index page is made anew whenever the cohort is run.

    Raises:
        FileExistsError: ``path`` is another file or a folder, and ``overwrite`` is False or cannot help.
    """
    path = Path(path)
    if path.is_dir():
        raise FileExistsError(f"{path}: is a folder, where the index page belongs: move it away")
    if path.is_file() and not overwrite and MARK.encode() not in path.read_bytes()[:2000]:
        raise FileExistsError(f"{path}: exists and is no index page of medsr, move it away or add --overwrite")


def write_index(path: str | os.PathLike, rows: Iterable[PageRow], title: str, note: str = "") -> None:
    """Write the page, sortable by each column, with a search; pictures are reduced to `PICTURE_WIDTH` pixels and JPEG.

    One picture is in memory at a time. Texts are shown as they are, whatever their characters.

    Args:
        path: of the file; see `check_index`.
        rows: cases, in the order of the page.
        title: of the page.
        note: sentence below the title, such as how many cases succeeded, and what the results are for.

    Raises:
        FileNotFoundError: a row's picture is not there.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"figure": _figure, "embedded": _embedded}
    rows = list(rows)
    for row in rows:
        if row.picture is not None and not row.picture.is_file():
            raise FileNotFoundError(f"{row.picture}: no such picture")
    content = {"mark": MARK, "title": title, "note": note, "rows": rows}
    content["statuses"] = sorted({row.status for row in rows})
    with written_atomically(path) as partial, partial.open("w", encoding="utf-8") as file:
        parts: Iterator[str] = environment.from_string(PAGE).generate(**content)
        for part in parts:
            # a file name of bytes that are no UTF-8
            file.write(part.encode("utf-8", "replace").decode())


def _figure(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _embedded(row: PageRow) -> str:
    from PIL import Image

    with Image.open(row.picture) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((PICTURE_WIDTH, 10 * PICTURE_WIDTH), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_page(folder: str | os.PathLike, rows: Sequence[Mapping[str, Any]], note: str) -> Path:
    """Write a cohort's page, ``index.html``, with every picture that is beside an output.

    Args:
        folder: of the outputs.
        rows: ``case``, ``output`` (below the folder), ``status``, ``reason`` and ``seconds``, as in the status table.
        note: sentence below the title.
    """
    page = []
    for row in rows:
        output = Path(folder) / row["output"]
        sidecar = read_sidecar(output) or {}
        figures = sidecar.get("DataConsistency") or {}
        residual, picture = figures.get("residual") or {}, quality_path(output)
        rms, seconds = residual.get("rms"), row.get("seconds")
        page.append(
            PageRow(
                row["case"],
                row["status"],
                row.get("reason") or "",
                None if seconds in (None, "") else float(seconds),
                None if rms is None else rms / figures["intensity_range"],
                residual.get("rms_per_noise"),
                picture if output.exists() and picture.is_file() else None,
                "; ".join(sidecar.get("Warnings") or ()),
            )
        )
    path = Path(folder) / INDEX_NAME
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_index(path, page, f"Super-resolution of {Path(folder).resolve().name}", f"{note} {RESEARCH_USE}")
    return path
