"""Pictures of slices side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["busiest_crop", "comparison_grid", "comparison_picture"]

BOX = 0.3
"""Side of the enlarged detail as a fraction of the slice's shorter side."""


def comparison_picture(
    path: str | Path,
    slices: Mapping[str, np.ndarray],
    shape: tuple[int, int],
    window: tuple[float, float],
    spacing: Sequence[float] = (1.0, 1.0),
) -> None:
    """Write a PNG: one column per slice with its title, the whole slice above, an enlarged detail below.

    Slices of different grids are shown over the same extent with square pixels drawn as they are (no smoothing).

    Args:
        path: of the PNG.
        slices: title to slice [H, W], rows from top to bottom of the picture; the last one chooses the detail (where
            its gradients are strongest).
        shape: grid of the finest slice.
        window: intensities shown as black and white, the same for all.
        spacing: pixel edges (rows, columns) of the finest grid, for the aspect.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows, columns = shape
    side = int(BOX * min(shape))
    top, left, _, _ = busiest_crop(list(slices.values())[-1], (side, side))
    aspect = spacing[0] / spacing[1]
    width = 3.2
    figure = Figure(figsize=(width * len(slices), width * (rows * aspect / columns + 1) + 0.4), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(slices), squeeze=False, gridspec_kw={"height_ratios": [rows * aspect / columns, 1]})
    for column, (title, image) in enumerate(slices.items()):
        for row in range(2):
            ax = axes[row][column]
            ax.imshow(
                np.asarray(image, dtype=float),
                cmap="gray",
                vmin=window[0],
                vmax=window[1],
                extent=(0, columns, rows, 0),
                interpolation="nearest",
                aspect=aspect,
            )
            ax.set_axis_off()
        axes[0][column].set_title(title, fontsize=11)
        axes[0][column].add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="gold", linewidth=1.2))
        axes[1][column].set_xlim(left, left + side)
        axes[1][column].set_ylim(top + side, top)
    figure.tight_layout(pad=0.4)
    figure.savefig(path)


PANEL, GAP, LEGEND = 2.0, 0.05, 0.48
"""Inches: width of a panel of `comparison_grid`, between panels, below them."""
SHAPES = (0.6, 1.6)
"""Height of a panel over its width, at least and at most: other slices leave some of it empty."""


def busiest_crop(image: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Window (top, left, height, width) of an image [H, W] in which the gradients are strongest.

    Not the highest variance, which is that of a window half in air.

    Args:
        size: (height, width) of the window, in pixels.
    """
    from scipy.ndimage import uniform_filter

    gradient = np.hypot(*np.gradient(np.asarray(image, dtype=float)))
    # the filter's window begins size // 2 before the pixel it is written to
    starts = tuple(slice(n // 2, n // 2 + side - n + 1) for side, n in zip(gradient.shape, size, strict=True))
    energy = uniform_filter(gradient, size)[starts]
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
    """Draw one slice as several systems see it, for a paper: a column each, between the input and the reference.

    Above the whole slice with a box around the crop, then the crop, enlarged; below the absolute error in percent of
    the data range, on one scale for all, whose end is the 99.5th percentile (rounded up) of the first system's errors.
    Pixels are drawn as they are, without smoothing.

    Args:
        input: low-resolution slice [h, w], of the same extent as the others.
        results: name to slice [H, W], rows from top to bottom of the picture.
        reference: [H, W].
        crop: (top, left, height, width) in pixels of the reference.
        window: intensities shown as black and white.
        data_range: of the reference's volume.
        figures: name to what is written under its column, such as its PSNR.
        spacing: pixel edges (rows, columns), for the aspect.
        note: what the picture shows, written in the empty panel under the input.
        left_edge: letter for where the slice's left edge points to.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    errors = {name: 100 * np.abs(image - reference) / data_range for name, image in results.items()}
    end = _round_up(float(np.percentile(next(iter(errors.values())), 99.5)))
    images = {"input": input, **results, "reference": reference}
    aspect = spacing[0] / spacing[1]
    top, left, height, width = crop
    rows, columns = reference.shape
    whole, part = (PANEL * float(np.clip(aspect * h / w, *SHAPES)) for h, w in ((rows, columns), (height, width)))
    bottoms = np.cumsum([LEGEND, whole + GAP, part + GAP])[::-1]
    size = (len(images) * (PANEL + GAP) + GAP, bottoms[0] + whole + GAP)
    figure = Figure(figsize=size, dpi=300, facecolor="white")
    FigureCanvasAgg(figure)

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


def _round_up(value: float) -> float:
    """To two digits, at least 0.1."""
    value = max(value, 0.1)
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / step - 1e-9) * step
