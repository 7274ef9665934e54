"""The slices on which a network is worst beside interpolation: how they are found and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from medsr_monai.metrics.picture import BOX, round_up, strongest_window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Failure", "WorstSlices", "failure_grid"]

DOWNWARDS = "LPI"
"""The directions that rows and columns of an upright picture may lead to: the patient's left, back and feet."""
UPRIGHT = ("SI", "AP", "RL")
"""The patient's axes in the order in which they are preferred from top to bottom of a picture."""
PANEL, GAP, TEXT, HEAD, FOOT, BAR = 2.1, 0.06, 0.42, 0.5, 0.3, 0.85
"""Lengths in inches: the side of a panel, the gap between panels, the text below a row, the margins above, below and
to the right of all panels."""


@dataclass(frozen=True)
class Failure:
    """One slice as the network and an interpolation of its input show it.

    Attributes:
        name: name of the slice, such as "t1w, axial slice 40".
        difference: PSNR of the network less that of the interpolation, in dB.
        interpolation: name of the interpolation.
        images: slices [H, W] by title, in this order: the input [h, w] of the same extent if it is smaller, the
            interpolation, the network and the reference.
        figures: by title, the text below the image.
        spacing: edges (rows, columns) of the reference's pixels, in any unit.
        towards: two of R, L, A, P, S and I, the sides that rows and columns lead to; empty if unknown.
    """

    name: str
    difference: float
    interpolation: str
    images: Mapping[str, np.ndarray]
    figures: Mapping[str, str] = field(default_factory=dict)
    spacing: tuple[float, float] = (1.0, 1.0)
    towards: str = ""

    def upright(self) -> Failure:
        """Return the slice as radiologists look at it: feet below, the patient's left or back on the right."""
        if len(self.towards) != 2:
            return self
        rank = [next(i for i, ends in enumerate(UPRIGHT) if letter in ends) for letter in self.towards]
        turned = rank[0] > rank[1]
        flips = [axis for axis, letter in enumerate(self.towards) if letter not in DOWNWARDS]
        images = {title: np.flip(image, flips) for title, image in self.images.items()}
        if turned:
            images = {title: image.T for title, image in images.items()}
        return replace(self, images=images, spacing=self.spacing[::-1] if turned else self.spacing, towards="")


class WorstSlices:
    """Keep the worst slice of each group, such as a volume's plane, for the ``count`` groups with the worst slices.

    Neighbours in a volume look alike, so one slice of each says more than ten of one. What comes first wins a tie.

    Args:
        count: number of groups, 0 or more.

    Raises:
        ValueError: the number is negative.
    """

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"{count} failures are to be shown, expected 0 or more")
        self.count = count
        self.kept: dict[tuple, Failure] = {}

    def is_worse(self, group: tuple, difference: float) -> bool:
        """Return whether a slice of this group with this difference in dB would be kept."""
        if group in self.kept:
            return difference < self.kept[group].difference
        return len(self.kept) < self.count or (
            self.count > 0 and difference < max(one.difference for one in self.kept.values())
        )

    def add(self, group: tuple, failure: Failure) -> None:
        """Keep a slice if it is among the worst."""
        if not self.is_worse(group, failure.difference):
            return
        self.kept[group] = failure
        if len(self.kept) > self.count:
            del self.kept[max(self.kept, key=lambda one: self.kept[one].difference)]

    def worst(self) -> list[Failure]:
        """Return the slices from the lowest difference on; those of equal ones by the names of their groups."""
        return [one for _, one in sorted(self.kept.items(), key=lambda item: (item[1].difference, item[0]))]


def failure_grid(failures: Sequence[Failure], title: str, foot: str) -> Figure:
    """Draw slices, one a row: the reference with a box, the images inside the box, and where the errors differ.

    The box is where the network's squared error exceeds the interpolation's most, summed over the pixels on which it
    does: the difference of the sums would choose air in a slice that the network improves everywhere. The last panel
    shows the network's absolute error less the interpolation's, red where the network is worse. One scale serves all
    rows and ends at their 99.5th percentile. Pixels are drawn without smoothing.

    Args:
        failures: one slice or more, all with the same number of images.
        title, foot: the lines above and below the panels.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    failures = [one.upright() for one in failures]
    differences = [_worse_by(one) for one in failures]
    end = round_up(float(np.percentile(np.abs(np.concatenate([d.ravel() for d in differences])), 99.5)), 1e-3)
    names = list(failures[0].images)
    columns = len(names) + 2
    size = (columns * (PANEL + GAP) + GAP + BAR, HEAD + len(failures) * (PANEL + TEXT) + FOOT)
    figure = Figure(figsize=size, dpi=150, facecolor="white")

    def write(x: float, y: float, text: str, points: float, room: float, **options: object) -> None:
        """Write text at a place in inches from the upper left corner, smaller if it is too long for its room."""
        fitting = points * min(1, 1.75 * 72 * room / (points * max(1, len(text))))
        place = (x / size[0], 1 - y / size[1])
        figure.text(*place, text, size=fitting, ha="center", va="center", parse_math=False, **options)

    def panel(row: int, column: int) -> Axes:
        x, y = GAP + column * (PANEL + GAP), HEAD + row * (PANEL + TEXT) + PANEL
        ax = figure.add_axes((x / size[0], 1 - y / size[1], PANEL / size[0], PANEL / size[1]))
        ax.set_axis_off()
        return ax

    def middle(column: int) -> float:
        return GAP + column * (PANEL + GAP) + PANEL / 2

    write(size[0] / 2, 0.14, title, 11, size[0], weight="bold")
    write(size[0] / 2, size[1] - 0.14, foot, 8.5, size[0])
    # each row has the best one of several interpolations
    heads = [*names[:-3], "interpolation", *names[-2:]]
    for column, name in enumerate([f"{names[-1]}, whole", *heads, "error: red, network's is larger"]):
        write(middle(column), HEAD - 0.12, name, 9, PANEL, weight="bold")
    for row, (one, difference) in enumerate(zip(failures, differences, strict=True)):
        images = list(one.images.values())
        height, width = images[-1].shape
        errors = [np.square(image - images[-1]) for image in images[-3:-1]]
        side = max(2, int(BOX * min(height, width)))
        top, left, *_ = strongest_window(np.maximum(errors[1] - errors[0], 0), (side, side))
        window = [float(np.percentile(images[-1], share)) for share in (0.5, 99.8)]
        grey = {"cmap": "gray", "vmin": window[0], "vmax": max(window[1], window[0] + 1e-6)}
        signed = {"cmap": "RdBu_r", "vmin": -end, "vmax": end}
        for column, image in enumerate([images[-1], *images, difference]):
            ax = panel(row, column)
            whole = column in (0, columns - 1)
            shown = ax.imshow(
                image,
                **(signed if column == columns - 1 else grey),
                extent=(0, width, height, 0),
                interpolation="nearest",
                aspect=one.spacing[0] / one.spacing[1],
            )
            if whole:
                ax.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="goldenrod", linewidth=1.2))
            else:
                ax.set(xlim=(left, left + side), ylim=(top + side, top))
        below = HEAD + row * (PANEL + TEXT) + PANEL
        write(middle(0), below + 0.1, one.name, 8, PANEL)
        write(middle(0), below + 0.25, f"{one.difference:+.2f} dB beside {one.interpolation}", 8, PANEL)
        for column, name in enumerate(one.images, start=1):
            text = one.figures.get(name, "")
            write(middle(column), below + 0.1, f"{name}, {text}" if name == one.interpolation else text, 8, PANEL)
    bar = figure.add_axes(((size[0] - BAR + 0.1) / size[0], 1 - (HEAD + PANEL) / size[1], 0.14 / size[0],
                           PANEL / size[1]))  # fmt: skip
    figure.colorbar(shown, cax=bar, extend="both")
    bar.tick_params(labelsize=7)
    return figure


def _worse_by(one: Failure) -> np.ndarray:
    """Return the network's absolute error less the interpolation's."""
    interpolated, network, reference = list(one.images.values())[-3:]
    return np.abs(network - reference) - np.abs(interpolated - reference)
