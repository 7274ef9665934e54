"""Pictures of slices side by side: a network's result, what it is compared with and where they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BOX",
    "PlaneRow",
    "Story",
    "busiest_crop",
    "comparison_grid",
    "comparison_picture",
    "quality_grid",
    "round_up",
    "strongest_window",
]

BOX = 0.3
"""Side of the enlarged detail, as a share of the slice's shorter side."""
DETAIL = 0.45
"""The same of `comparison_picture`, whose readers have not seen such slices before."""


@dataclass(frozen=True)
class Story:
    """What was done to a volume, shown in one of its slices.

    Attributes:
        title, note: what was done, in a line and in some more.
        input: slice [h, w] of what was made finer, rows from top to bottom of the picture.
        results: slices [H, W] by the name of the method, interpolation first.
        truth: what the input was made of [H, W].
        figures: by name, what is written below a result.
    """

    title: str
    note: str
    input: np.ndarray
    results: Mapping[str, np.ndarray]
    truth: np.ndarray
    figures: Mapping[str, str]


def comparison_picture(path: str | Path, stories: Sequence[Story], window: tuple[float, float]) -> None:
    """Write a PNG with a block for each story: a detail of input, results and truth, and below it the results' errors.

    The detail is the part of the truth whose gradients are strongest, DETAIL of the shorter side wide; the whole slice
    shows where it lies. Slices on different grids are shown over the same extent, without smoothing. The errors of a
    block have one scale, which ends at the 99.5th percentile of the first result's in the detail, rounded up.

    Args:
        path: the file.
        stories: one below the other, with equally many results.
        window: intensities shown as black and white, the same for all.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    side, gap, head, foot = 3.0, 0.06, 0.66, 0.34
    columns = len(stories[0].results) + 2
    block = head + 2 * side + gap + foot
    size = (columns * (side + gap) + gap, len(stories) * block)
    figure = Figure(figsize=size, dpi=100, facecolor="white")

    def panel(x: float, y: float) -> Axes:
        ax = figure.add_axes((x / size[0], 1 - (y + side) / size[1], side / size[0], side / size[1]))
        ax.set_axis_off()
        return ax

    def write(x: float, y: float, text: str, **options: object) -> None:
        figure.text(x / size[0], 1 - y / size[1], text, va="center", **options)

    for number, story in enumerate(stories):
        top, low = number * block + head, number * block + head + side + gap
        rows, width = story.truth.shape
        edge = int(DETAIL * min(rows, width))
        up, left, _, _ = busiest_crop(story.truth, (edge, edge))
        detail = {"xlim": (left, left + edge), "ylim": (up + edge, up)}
        shown = {"interpolation": "nearest", "extent": (0, width, rows, 0)}
        grey = shown | {"cmap": "gray", "vmin": window[0], "vmax": window[1]}
        inside = slice(up, up + edge), slice(left, left + edge)
        errors = {name: np.abs(np.asarray(image, dtype=float) - story.truth) for name, image in story.results.items()}
        end = round_up(float(np.percentile(next(iter(errors.values()))[inside], 99.5)))
        write(gap, number * block + 0.2, story.title, size=14, weight="bold")
        for column, (name, image) in enumerate({"input": story.input, **story.results, "truth": story.truth}.items()):
            x = gap + column * (side + gap)
            write(x + side / 2, top - 0.17, name, size=12, ha="center")
            ax = panel(x, top)
            ax.imshow(image, **grey)
            ax.set(**detail)
            below = panel(x, low)
            if name in errors:
                below.imshow(errors[name], cmap="inferno", vmin=0, vmax=end, **shown)
                below.set(**detail)
                write(x + side / 2, low + side + 0.16, story.figures[name], size=12, ha="center")
            elif name == "input":
                below.imshow(image, **grey)
                below.add_patch(Rectangle((left, up), edge, edge, fill=False, edgecolor="gold", linewidth=1.5))
                write(x + side / 2, low + side + 0.16, "where the detail lies", size=12, ha="center")
            else:
                below.text(0.06, 0.5, story.note, size=11, va="center", linespacing=1.6, transform=below.transAxes)
    figure.savefig(path)


PANEL, GAP, LEGEND = 2.0, 0.05, 0.48
"""Lengths in inches: the width of a panel of `comparison_grid`, the gap between panels, the text below them."""
SHAPES = (0.6, 1.6)
"""Smallest and largest height of a panel divided by its width; slices of other shapes leave some of it empty."""


def busiest_crop(image: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the window (top, left, height, width) of an image [H, W] in which the gradients are strongest.

    The variance would not do: it is highest in a window that lies half in air.

    Args:
        image: the image [H, W].
        size: (height, width) of the window, in pixels.
    """
    return strongest_window(np.hypot(*np.gradient(np.asarray(image, dtype=float))), size)


def strongest_window(values: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the window (top, left, height, width) of ``size`` (height, width) with the largest mean of ``values``."""
    from scipy.ndimage import uniform_filter

    # the filter's window begins size // 2 before the pixel it is written to
    starts = tuple(slice(n // 2, n // 2 + side - n + 1) for side, n in zip(values.shape, size, strict=True))
    energy = uniform_filter(values, size)[starts]
    top, left = np.unravel_index(energy.argmax(), energy.shape)
    return int(top), int(left), *size


def comparison_grid(
    input: np.ndarray,
    results: Mapping[str, np.ndarray],
    reference: np.ndarray,
    crop: tuple[int, int, int, int],
    window: tuple[float, float],
    data_range: float,
    figures: Mapping[str, str],
    *,
    spacing: Sequence[float] = (1.0, 1.0),
    note: str = "",
    left_edge: str = "",
) -> Figure:
    """Draw one slice as several systems show it, for a paper: a column for each, between the input and the reference.

    The upper row has the whole slice with a box around the crop, the middle row the enlarged crop, and the lower row
    the absolute error in percent of the data range. All errors have one scale, which ends at the 99.5th percentile
    (rounded up) of the first system's. Pixels are drawn without smoothing.

    Args:
        input: low-resolution slice [h, w] of the same extent as the others.
        results: slices [H, W] by the name of the system, with rows from top to bottom of the picture.
        reference: the reference [H, W].
        crop: (top, left, height, width) in pixels of the reference.
        window: intensities shown as black and white.
        data_range: range of the intensities of the reference's volume.
        figures: by name, the text below a column, such as a PSNR.
        spacing: edges (rows, columns) of the reference's pixels, for the aspect.
        note: text in the empty panel below the input, which says what the picture shows.
        left_edge: letter of the direction that the slice's left edge points to.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    errors = {name: 100 * np.abs(image - reference) / data_range for name, image in results.items()}
    end = round_up(float(np.percentile(next(iter(errors.values())), 99.5)))
    images = {"input": input, **results, "reference": reference}
    aspect = spacing[0] / spacing[1]
    top, left, height, width = crop
    rows, columns = reference.shape
    whole, part = (PANEL * float(np.clip(aspect * h / w, *SHAPES)) for h, w in ((rows, columns), (height, width)))
    bottoms = np.cumsum([LEGEND, whole + GAP, part + GAP])[::-1]
    size = (len(images) * (PANEL + GAP) + GAP, bottoms[0] + whole + GAP)
    figure = Figure(figsize=size, dpi=300, facecolor="white")

    def panel(row: int, column: int) -> Axes:
        x, y, h = GAP + column * (PANEL + GAP), bottoms[row], (whole, part, whole)[row]
        ax = figure.add_axes((x / size[0], y / size[1], PANEL / size[0], h / size[1]))
        ax.set_axis_off()
        return ax

    def draw(ax: Axes, image: np.ndarray, cmap: str, limits: tuple[float, float], box: str | None) -> None:
        extent = (0, columns, rows, 0)
        vmin, vmax = limits
        ax.imshow(image, cmap=cmap, vmin=vmin, vmax=vmax, extent=extent, interpolation="nearest", aspect=aspect)
        if box:
            ax.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=box, linewidth=1.0))

    for column, (name, image) in enumerate(images.items()):
        draw(panel(0, column), image, "gray", window, "gold")
        detail = panel(1, column)
        draw(detail, image, "gray", window, None)
        detail.set(xlim=(left, left + width), ylim=(top + height, top))
        below = panel(2, column)
        if name in errors:
            draw(below, errors[name], "inferno", (0, end), "white")
        centre = (GAP + column * (PANEL + GAP) + PANEL / 2) / size[0]
        fitting = 9 * min(1, 24 / len(name))
        figure.text(centre, 0.68 * LEGEND / size[1], name, ha="center", va="center", size=fitting, weight="bold")
        figure.text(centre, 0.28 * LEGEND / size[1], figures.get(name, ""), ha="center", va="center", size=9)
    axes = figure.axes
    if left_edge:
        outline = [withStroke(linewidth=1.5, foreground="black")]
        place = {"va": "center", "transform": axes[0].transAxes}
        axes[0].text(0.03, 0.5, left_edge, color="white", size=8, path_effects=outline, **place)
    axes[2].text(0.5, 0.5, note, size=8, ha="center", va="center", linespacing=1.5, transform=axes[2].transAxes)
    shown = axes[5].images[0]  # of the first result
    x, y, w, h = axes[-1].get_position().bounds
    bar = figure.add_axes((x + 0.12 * w, y + 0.08 * h, 0.09 * w, 0.84 * h))
    beyond = max(float(error.max()) for error in errors.values()) > end
    figure.colorbar(shown, cax=bar, extend="max" if beyond else "neither")
    bar.set_ylabel("absolute error,\n% of range", size=8)
    bar.tick_params(labelsize=8)
    return figure


def round_up(value: float, least: float = 0.1) -> float:
    """Return the end of a scale: the value rounded up to two digits, and not below ``least``."""
    value = max(value, least)
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / step - 1e-9) * step


SIDE, HEAD, FOOT, MARGIN, BAR = 3.6, 1.05, 0.4, 0.35, 1.15
"""Lengths in inches: the longest side of a panel of `quality_grid`, the margins above, below, left and right of all."""
THINNEST, LOWEST = 0.3, 0.95
"""Lengths in inches: letters stand inside an image that is more than twice as thick as the first; no row is lower than
the second, which leaves room for its name."""
LEAST_DIFFERENCE = 0.01
"""Least end of the scale of differences, as a share of the window. It keeps small differences from looking like errors,
and makes the pictures of a cohort comparable."""


@dataclass(frozen=True)
class PlaneRow:
    """One plane of `quality_grid`, whose images show the same extent on grids of their own.

    Attributes:
        name: name of the plane.
        input, output: slices [H, W] or [H, W, 3], with rows from top to bottom of the picture.
        difference: the output, degraded again, less the input, [H, W]; None if it is not known.
        size: height and width of the extent, in mm.
        letters: letters of the directions that the left, right, upper and lower edges point to; empty if unknown.
    """

    name: str
    input: np.ndarray
    output: np.ndarray
    difference: np.ndarray | None
    size: tuple[float, float]
    letters: str = ""


def quality_grid(
    rows: Sequence[PlaneRow],
    window: tuple[float, float],
    title: str,
    notes: Sequence[str],
    foot: str,
    *,
    unit: str = "mm",
) -> Figure:
    """Draw planes of a volume, one a row: the input, the output, and the output degraded again less the input.

    All panels have one scale of length, so that voxels have their true proportions. The scale of differences ends at
    their 99.5th percentile over all rows, rounded up, and not below `LEAST_DIFFERENCE` of the window.

    Args:
        rows: one plane or more.
        window: intensities shown as black and white.
        title: title of the picture, which may hold any characters.
        notes: lines below the title.
        foot: line below all panels.
        unit: unit of the rows' sizes.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    inch = SIDE / max(max(row.size) for row in rows)
    heights = [max(LOWEST, row.size[0] * inch) for row in rows]
    width = max(row.size[1] for row in rows) * inch
    cell = max(width, 2.4)  # a volume of narrow slices, too, has room for its title
    size = (MARGIN + 3 * (cell + GAP) + BAR, HEAD + sum(heights) + GAP * len(rows) + FOOT)
    figure = Figure(figsize=size, dpi=150, facecolor="white")
    known = [np.abs(row.difference).ravel() for row in rows if row.difference is not None]
    values = np.concatenate(known) if known else np.zeros(1)
    span = window[1] - window[0]
    end = round_up(float(np.percentile(values, 99.5)), LEAST_DIFFERENCE * span)
    outline = [withStroke(linewidth=1.8, foreground="black")]

    def write(x: float, y: float, text: str, points: float, **options: object) -> None:
        """Write text at a place in inches from the upper left corner, smaller if it is too long for the picture."""
        fitting = points * min(1, 1.75 * 72 * (size[0] - x - 0.1) / (points * max(1, len(text))))
        figure.text(x / size[0], 1 - y / size[1], text, size=fitting, va="center", parse_math=False, **options)

    def mark(ax: Axes, letter: str, edge: int, length: float) -> None:
        """Write a letter at an edge (left, right, upper, lower): inside, or beside a thin image, but never below it."""
        inside = length > 2 * THINNEST
        if not inside and edge >= 2:
            return
        u, v = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))[edge] if inside else ((-0.1, 0.5), (1.1, 0.5))[edge]
        ha = ("left", "right", "center", "center")[edge] if inside else ("right", "left")[edge]
        style = {"color": "white", "path_effects": outline} if inside else {"color": "black"}
        va = ("center", "center", "top", "bottom")[edge]
        ax.text(u, v, letter, size=8, ha=ha, va=va, transform=ax.transAxes, **style)

    write(MARGIN, 0.17, title, 12, weight="bold")
    for number, note in enumerate(notes):
        write(MARGIN, 0.38 + 0.17 * number, note, 8.5)
    write(MARGIN, size[1] - 0.17, foot, 8.5)
    titles = ("input, cubic", "output", "output degraded again - input")
    for column, name in enumerate(titles):
        x = MARGIN + column * (cell + GAP) + cell / 2
        write(x, HEAD - 0.1, name, 9, ha="center", weight="bold")
    top, shown, widest = HEAD, None, max(rows, key=lambda row: row.size[1])
    for row, height in zip(rows, heights, strict=True):
        write(0.17, top + height / 2, row.name, 9, ha="center", rotation="vertical")
        h, w = (length * inch for length in row.size)
        extent = (0, row.size[1], row.size[0], 0)
        for column, image in enumerate((row.input, row.output, row.difference)):
            x = MARGIN + column * (cell + GAP) + (cell - w) / 2
            y = top + (height - h) / 2
            ax = figure.add_axes((x / size[0], 1 - (y + h) / size[1], w / size[0], h / size[1]))
            ax.set_axis_off()
            if image is None:
                ax.text(0.5, 0.5, "not known", size=8, ha="center", va="center", transform=ax.transAxes)
                continue
            options = {"extent": extent, "aspect": "auto"}
            if column == 2:
                shown = ax.imshow(image, cmap="RdBu_r", vmin=-end, vmax=end, interpolation="nearest", **options)
                continue
            grey = np.clip((np.asarray(image, dtype=float) - window[0]) / span, 0, 1)
            ax.imshow(grey, cmap="gray", vmin=0, vmax=1, **options)
            if column == 0:
                for letter, edge in zip(row.letters, range(4), strict=False):
                    mark(ax, letter, edge, (w, h)[edge // 2])
            if column == 1 and row is widest:
                length = _bar_length(row.size[1])
                place, level = 0.96 * row.size[1], 0.95 * row.size[0]
                options = {"path_effects": outline, "solid_capstyle": "butt"}
                ax.plot([place - length, place], [level, level], color="white", linewidth=2, **options)
                text = f"{length:g} {unit}"
                position = (place - length / 2, level - 0.03 * row.size[0])
                ax.text(*position, text, color="white", size=8, ha="center", va="bottom", path_effects=outline)
                ax.set(xlim=extent[:2], ylim=extent[2:])
        top += height + GAP
    if shown is not None:
        total = sum(heights) + GAP * (len(rows) - 1)
        x, length = size[0] - BAR + 0.1, min(total, max(1.2, 0.8 * total))
        y = HEAD + (total - length) / 2
        bar = figure.add_axes((x / size[0], 1 - (y + length) / size[1], 0.16 / size[0], length / size[1]))
        figure.colorbar(shown, cax=bar, extend="both" if float(values.max()) > end else "neither")
        bar.set_ylabel(f"difference (end: {100 * end / span:.2g} % of the window)", size=8)
        bar.tick_params(labelsize=8)
    return figure


def _bar_length(width: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is at most a third of a width."""
    power = 10.0 ** math.floor(math.log10(width / 3))
    return max(step * power for step in (1, 2, 5) if step * power <= width / 3)
