"""Pictures of slices side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

__all__ = ["comparison_picture"]

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
    from scipy.ndimage import uniform_filter

    rows, columns = shape
    side = int(BOX * min(shape))
    finest = np.asarray(list(slices.values())[-1], dtype=float)
    energy = uniform_filter(np.hypot(*np.gradient(finest)), side)
    margin = side // 2 + 1
    inner = energy[margin : rows - margin, margin : columns - margin]
    top, left = (int(i) + margin - side // 2 for i in np.unravel_index(inner.argmax(), inner.shape))
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
