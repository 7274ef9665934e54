"""The consistency of an output with its input, in figures and in a picture: whether the output can be trusted."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from skimage.filters import threshold_otsu

from medsr_monai.atomic import check_output, written_atomically
from medsr_monai.data import stored_values, volume_name
from medsr_monai.inferers import DataConsistency, Residual
from medsr_monai.metrics import PlaneRow, estimate_noise, quality_grid
from medsr_monai.records.sidecar import is_ours
from medsr_monai.suffixes import QUALITY_SUFFIX
from medsr_monai.transforms import (
    EDGES,
    MergeChromad,
    PointSpread,
    RestoreIntensityd,
    describe_grid,
    displayed_slice,
    intensity_range,
    pixel_edges,
    plane_axis,
    resample,
    spline_matrix,
)
from medsr_monai.upscaling.bundles import BundleRunner
from medsr_monai.upscaling.cases import Case

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BOUND", "RESEARCH_USE", "QualityCheck", "check_pictures", "check_quality", "quality_path", "sentence"]

BOUND = 0.001
"""By default, enforced consistency leaves a residual of this RMS at most, as a part of the input's intensity range."""
RESEARCH_USE = "Research use only, not for clinical use."


class QualityCheck:
    """Compare outputs of one input with it, project them onto it, and draw them beside it.

    Args:
        image: the input [C, X, Y, Z] in its own units, with its affine.
        degradation: how the network's training made volumes coarse, see
            :func:`medsr_monai.transforms.sampling_matrix`; None if it is unknown. Then there is no residual, and
            nothing can be enforced.
        noise: the standard deviation of the input's noise in its units, 0 for none; None estimates it, see
            :func:`medsr_monai.metrics.estimate_noise`.

    Raises:
        ValueError: a noise that is negative or not finite.
    """

    def __init__(self, image: MetaTensor, degradation: str | PointSpread | None, *, noise: float | None = None) -> None:
        if noise is not None and not 0 <= noise < np.inf:
            raise ValueError(f"noise is {noise}, expected a standard deviation in the input's units, 0 for none")
        self.image = image
        self.degradation = degradation
        self.consistency = None if degradation is None else DataConsistency(degradation)
        self.window = intensity_range(image)
        self.noise_is_given = noise is not None
        self.noise = noise

    def check(self, pred: MetaTensor, bound: float | None = None) -> tuple[MetaTensor, dict[str, Any] | None]:
        """Measure the residual of an output, which is first made consistent with the input if a bound is given.

        The residual is the difference of the input from the output that is made coarse again.

        Args:
            pred: output [C, X, Y, Z] in the input's units. It may be on disk, with ``shape``, ``ndim``, ``numel``,
                ``narrow`` and slices as a tensor has them (:class:`medsr_monai.data.StoredVolume`), without a bound.
            bound: the largest RMS that the residual may have, as a part of the input's intensity range. Where the noise
                is larger, the noise is the bound. None leaves the output as it is.

        Returns:
            The output, ``pred`` itself where nothing had to be done, and its figures, ready for JSON: ``degradation``,
            ``intensity_range``, ``noise_sigma`` and ``noise_source`` (estimated or given), ``residual`` with ``rms``,
            ``max``, ``rms_per_noise`` and ``max_per_noise``, all in the input's units but for the last two, which are
            None where no noise is known; ``enforced``: None, or the ``bound`` in these units, ``limited_by`` (bound or
            noise), ``reached``, and the residual ``before``. None instead of the figures where the degradation is
            unknown.

        Raises:
            ValueError: a bound without a degradation, or below 0.
        """
        if bound is not None and not 0 <= bound < np.inf:
            raise ValueError(f"consistency bound is {bound}, expected a part of the intensity range such as {BOUND:g}")
        if self.consistency is None:
            if bound is not None:
                raise ValueError(
                    "the bundle does not name the degradation that it was trained for, so that consistency cannot be "
                    'enforced: add "degradation" to its inference.json'
                )
            return pred, None
        if self.noise is None and not self.noise_is_given:
            self.noise = estimate_noise(self.image[0].numpy(), self._across(pred))
        residual = self.consistency.residual(pred, self.image)
        span = self.window[1] - self.window[0]
        enforced = None
        if bound is not None:
            noise = self.noise or 0.0
            goal = max(bound * span, noise)
            enforced = {"bound": goal, "limited_by": "noise" if noise > bound * span else "bound", "reached": True}
            enforced["before"] = self._figures(residual)
            if residual.rms > goal:
                pred = self.consistency.project(pred, self.image, goal)
                residual = self.consistency.residual(pred, self.image)
                enforced["reached"] = residual.rms <= goal or goal <= 1e-6 * span  # float32 rounds
        figures = {
            "degradation": str(self.degradation),
            "intensity_range": span,
            "noise_sigma": self.noise,
            "noise_source": "given" if self.noise_is_given else "estimated",
            "residual": self._figures(residual),
            "enforced": enforced,
        }
        return pred, figures

    def _across(self, pred: MetaTensor) -> int:
        """Array axis across the acquired slices: the one that alone has grown, or alone has not."""
        grown = [axis - 1 for axis in self.consistency.grown(pred, self.image)]
        if len(grown) == 1:
            return grown[0]
        kept = [axis for axis in range(3) if axis not in grown]
        return min(kept, key=lambda axis: self.image.shape[axis + 1])

    def _figures(self, residual: Residual) -> dict[str, float | None]:
        shares = [value / self.noise if self.noise else None for value in (residual.rms, residual.max)]
        return {
            "rms": residual.rms,
            "max": residual.max,
            "rms_per_noise": shares[0],
            "max_per_noise": shares[1],
        }

    def draw(self, pred: MetaTensor, name: str, figures: dict[str, Any] | None, method: str = "") -> Figure:
        """Draw the quality picture: input, output and residual in three planes through the centre of the object.

        The input is interpolated to the output's grid by cubic B-splines; the difference is that of the output,
        degraded again, from the input, on the input's grid. Planes in which the input has a single sample are left
        out, so that a picture has one row.

        Args:
            pred: the output, see `check`.
            name: the name of the case.
            figures: the figures that `check` returned.
            method: what made the output, such as the bundle.
        """
        rows = [self._row(pred, plane) for plane in ("axial", "coronal", "sagittal") if self._has(plane)]
        flat = "picture" in self.image.meta
        unknown = flat and self.image.meta.get("picture_spacing") == "none"
        before, after = (describe_grid(v.affine, v.shape[1:]) for v in (self.image, pred))
        if flat:
            before, after = (f"{v.shape[1]}x{v.shape[2]} pixels" for v in (self.image, pred))
        notes = [
            f"{method + ': ' if method else ''}{before} to {after}",
            "consistency with the input: " + sentence(figures),
            f"window {self.window[0]:.4g} to {self.window[1]:.4g}",
        ]
        unit = "px of the input" if unknown else "mm"
        return quality_grid(rows, self.window, name, notes, RESEARCH_USE, unit=unit)

    def write(
        self,
        path: str | os.PathLike,
        pred: MetaTensor,
        name: str,
        figures: dict[str, Any] | None,
        method: str = "",
    ) -> None:
        """Write the picture of `draw` as PNG; a file that is there is replaced."""
        png = self.png(pred, name, figures, method)
        with written_atomically(Path(path)) as partial:
            partial.write_bytes(png)

    def png(self, pred: MetaTensor, name: str, figures: dict[str, Any] | None, method: str = "") -> bytes:
        """Draw the picture of `draw` as the content of a PNG file."""
        buffer = io.BytesIO()
        self.draw(pred, name, figures, method).savefig(buffer, format="png", metadata={"Comment": RESEARCH_USE})
        return buffer.getvalue()

    def _has(self, plane: str) -> bool:
        """Whether a plane's slices have two samples or more along both of their axes."""
        across = plane_axis(self.image.affine, plane)
        sides = [n for axis, n in enumerate(self.image.shape[1:]) if axis != across]
        others = [n for n in self.image.shape[1:] if n > 1]
        return min(sides) > 1 or (len(others) < 2 and plane == "axial")

    def _row(self, pred: MetaTensor, plane: str) -> PlaneRow:
        axis = plane_axis(self.image.affine, plane) + 1
        size, new_size = self.image.shape[axis], pred.shape[axis]
        new_number = min(int((self._centre[axis - 1] + 0.5) * new_size / size), new_size - 1)
        number = min(int((new_number + 0.5) * size / new_size), size - 1)
        row = spline_matrix(size, new_size)[new_number].to(torch.float32)
        cubic = torch.tensordot(self.image.as_tensor(), row, dims=([axis], [0])).unsqueeze(axis)
        sizes = list(pred.shape[1:])
        sizes[axis - 1] = 1
        cubic = MetaTensor(resample(cubic, sizes), affine=self.image.affine)
        output = pred.narrow(axis, new_number, 1)
        output = MetaTensor(output.as_tensor() if isinstance(output, MetaTensor) else output, affine=self.image.affine)
        difference = None
        if self.consistency is not None:
            thin = self.consistency.residual_slice(pred, self.image, axis, number).float().mean(dim=0, keepdim=True)
            difference = displayed_slice(MetaTensor(thin, affine=self.image.affine), plane)
        shown = [displayed_slice(volume, plane) for volume in (cubic, output)]
        edges = pixel_edges(pred.affine, plane)
        extent = tuple(edge * count for edge, count in zip(edges, shown[1].shape[:2], strict=True))
        letters = "" if "picture" in self.image.meta else EDGES[plane]
        name = "" if "picture" in self.image.meta else f"{plane} {new_number}"
        return PlaneRow(name, *shown, difference, extent, letters)

    @functools.cached_property
    def _centre(self) -> list[float]:
        """Centre of mass, in voxels, of what is brighter than Otsu's threshold."""
        image = self.image.as_tensor()
        image = (image[0] if len(image) == 1 else image.mean(dim=0)).numpy()
        bright = image > threshold_otsu(image)
        centre = []
        for axis in range(3):
            profile = bright.sum(axis=tuple(a for a in range(3) if a != axis))
            centre.append(float((profile * np.arange(len(profile))).sum() / profile.sum()))
        return centre


def quality_path(output: str | os.PathLike) -> Path:
    """Name an output's picture: that of ``sr.nii.gz`` is ``sr.quality.png``, which no search takes for an input."""
    return Path(output).with_name(volume_name(output) + QUALITY_SUFFIX)


def check_pictures(cases: Iterable[Case], overwrite: bool) -> None:
    """Refuse to replace pictures, but for those of an output that exists or was ours, whose own check decides."""
    for case in cases:
        if not case.output.exists() and not is_ours(case.output):
            check_output(quality_path(case.output), overwrite, case.source)


def check_quality(
    runner: BundleRunner,
    item: Mapping[str, MetaTensor],
    result: MetaTensor,
    bound: float | None = None,
    noise: float | None = None,
    point_spread: PointSpread | None = None,
) -> tuple[MetaTensor, dict[str, Any] | None, QualityCheck]:
    """Check an output: return it, made consistent if a bound is given, its figures, and the check, which draws it.

    Args:
        runner: the bundle that made the output.
        item: the preprocessed input.
        result: the output.
        bound: see :meth:`QualityCheck.check`.
        noise: see :class:`QualityCheck`.
        point_spread: that of the input; None takes the degradation of the bundle's training in its place.
    """
    image = Compose([RestoreIntensityd("image"), MergeChromad("image")])(dict(item))["image"]
    check = QualityCheck(image, point_spread or runner.degradation, noise=noise)
    result, figures = check.check(result, bound)
    if "picture" in result.meta:  # rounding and clipping come last
        result = stored_values(result)
        measured = check.check(result)[1]
        if bound is not None:
            measured["enforced"] = figures["enforced"]
            measured["enforced"]["reached"] = measured["residual"]["rms"] <= figures["enforced"]["bound"]
        figures = measured
    return result, figures, check


def sentence(figures: dict[str, Any] | None) -> str:
    """Write the figures of `QualityCheck.check` as one line, for a log or a picture."""
    if figures is None:
        return "not known, the bundle does not name its degradation"
    span, noise = figures["intensity_range"], figures["noise_sigma"]
    text = (
        f"residual RMS {_amounts(figures['residual'], 'rms', span)}, max {_amounts(figures['residual'], 'max', span)}"
    )
    if noise:
        text += f" (noise {noise:.3g}, {figures['noise_source']})"
    enforced = figures["enforced"]
    if enforced is not None:
        before = enforced["before"]
        limit = "the noise" if enforced["limited_by"] == "noise" else "the bound"
        done = "enforced" if enforced["reached"] else "not reached"
        text += f"; {done}: {limit} of {enforced['bound']:.3g}, before RMS {before['rms']:.3g}, max {before['max']:.3g}"
    return text


def _amounts(residual: dict[str, float | None], name: str, span: float) -> str:
    share = residual[f"{name}_per_noise"]
    noise = "" if share is None else f", {share:.2g} x noise"
    return f"{residual[name]:.3g} ({100 * residual[name] / span:.2g} % of range{noise})"
