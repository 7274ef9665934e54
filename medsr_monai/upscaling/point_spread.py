"""The point spread of the scan at hand: from its header where that states it, and measured on its voxels.

Across slices. The volume is degraded along an axis of its slices, too, to the distance of its slices, by a candidate
profile. If that is the scan's own, what is left has been blurred and sampled alike along both axes, and looks alike
along both, as far as the anatomy does. How alike is judged by the differences of the orders 1 to 6 between neighbouring
samples: their mean squares along one axis over those along the other, each over the same ratio of order 1, which is
left out of account: it tells how many edges run in which direction, the higher orders how sharp these are. The
candidates' probabilities follow from how far these ratios stray in real volumes under their true profiles
(:data:`ANATOMY`), and from how far the two axes of the slices disagree.

A Gaussian and a box of equal second moment, one 1.4 times as wide as the other, leave nearly the same; which of them it
is can only be told where the other would be implausibly narrow or wide. Where it cannot, the Gaussian of equal second
moment is told: it errs less than "unknown" does. That was measured on linear reconstructions, to which it is worth
nearly what the true profile is (``pytest -m slow -s tests/upscaling/test_point_spread.py``), not on networks.

In the plane. The end of the spectrum tells the acquired pixel (:func:`medsr_monai.metrics.axis_spectrum`), and how the
spectrum falls off before it the window: a power law times each window is fitted to it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medsr_monai.metrics.spectrum import AxisSpectrum, axis_spectrum
from medsr_monai.transforms.geometry import spacing
from medsr_monai.transforms.intensity import LOW
from medsr_monai.transforms.point_spread import PointSpread, sampling_matrices, window_of

__all__ = ["FoundPointSpread", "SliceProfile", "find_point_spread", "measure_point_spread", "measure_slice_profile"]

logger = logging.getLogger(__name__)

ORDERS = 6
"""Differences between neighbouring samples are taken up to this order."""
ANATOMY = (
    (0.0063, 0.0094, 0.0105, 0.0105, 0.0099),
    (0.0094, 0.0157, 0.0192, 0.0208, 0.0212),
    (0.0105, 0.0192, 0.0248, 0.0281, 0.0299),
    (0.0105, 0.0208, 0.0281, 0.0331, 0.0363),
    (0.0099, 0.0212, 0.0299, 0.0363, 0.0409),
)
"""The covariance of the logarithms of the ratios of orders 2 to 6 under the true profile.

It was measured along all axes of six volumes (five T1 brains and a cardiac CT angiography) that were made coarse by
Gaussians and boxes of 0.7, 1 and 1.3 of the spacing, with 3 and 5 fine samples in a slice.
"""
WIDTHS = np.round(np.arange(0.5, 1.401, 0.025), 3)
"""The widths that are tried, as multiples of the spacing; beforehand all are equally probable."""
NARROWEST = 0.65
"""Scanners make no narrower profiles; a Gaussian below it stands for a box of equal second moment only."""
KINDS = ("gaussian", "box")
"""The profiles that are tried."""
EQUAL = 1.4
"""A box leaves nearly what a Gaussian does that is narrower by this factor: their second moments are equal."""
SURE = 0.8
"""A kind is known if its probability is at least this."""
DOUBTFUL = 0.15
"""A width is known if its standard deviation is at most this part of it."""
TELLING = 0.2
"""Up to here it is told, and said to be in doubt: on made scans that gained more than telling nothing (the table)."""
AGREES = 0.15
"""A header and a measurement agree if they differ by at most this part of the width, or by its standard deviation."""
UNLIKE = 0.6
"""Logarithm of the ratio of order 1 from which on the anatomy is too different across slices and in their plane."""
FITS = 11.0
"""The squared distance from likeness, in units of ANATOMY, up to which a profile is believed: 95 of 100 lie below."""
LEAST_SAMPLES = 12
"""At least this many slices, and samples at the same distance within them, are needed for a measurement."""
LEAST_RATIO = 2.0
"""Slices are measured if they lie this many times as far apart as the pixels in them."""
LINES = 64
"""About this many layers at most are used along the axis that is not compared."""
WINDOWS = ("kspace", "kspace_hamming", "kspace_fermi")
"""The kinds that are told apart in the plane of the slices."""
FITTED = (0.2, 0.95)
"""Between these parts of the largest acquired frequency, a power law and a window are fitted to the spectrum."""
STEEPEST = 4.5
"""The largest exponent of this power law, for the power spectrum."""
MISFIT = 2.0
"""A window fits if the root mean square of what remains is at most this, in dB."""
CLEARLY = 1.6
"""A window is only told if what remains with the next best one is at least this many times larger."""
HOUNSFIELD_AIR = -900.0
"""A volume that goes down to this is CT, whose kernels are no windows in k-space."""


@dataclass(frozen=True)
class SliceProfile:
    """The profile that was measured across slices, with widths as parts of the slices' distance.

    Attributes:
        gaussian, box: width of the profile if it is of this kind, and its standard deviation.
        equal: the same of a Gaussian of equal second moment, whatever the kind.
        probability: of the Gaussian; 1 minus it of the box.
        asymmetry: logarithm of the ratio of order 1, of the axis of the slices where it is larger; see :data:`UNLIKE`.
        misfit: squared distance from likeness under the best profile, see :data:`FITS`.
    """

    gaussian: tuple[float, float]
    box: tuple[float, float]
    equal: tuple[float, float]
    probability: float
    asymmetry: float
    misfit: float

    @property
    def kind(self) -> str:
        """The more probable kind."""
        return "gaussian" if self.probability >= 0.5 else "box"

    @property
    def is_sure(self) -> bool:
        """Whether the kind is known."""
        return max(self.probability, 1 - self.probability) >= SURE

    def __str__(self) -> str:
        if self.is_sure:
            return "{} of {:.2f} +- {:.2f}".format(self.kind, *getattr(self, self.kind))
        width, deviation = self.equal
        return f"gaussian of {width:.2f} +- {deviation:.2f}, or a box of equal second moment, {EQUAL * width:.2f}"


@dataclass(frozen=True)
class FoundPointSpread:
    """The point spread that was found, by what, and how sure it is.

    Attributes:
        point_spread: what the network is told; None, unknown, if that is in doubt.
        source: ``header``, ``measured``, ``header and measured`` or ``nothing``.
        doubt: the standard deviation of the width as a part of the width; None where it was not estimated.
        kind_is_known: False where the point spread that is told has only the right second moment.
        reason: what was seen, in words.
    """

    point_spread: PointSpread | None
    source: str
    doubt: float | None
    kind_is_known: bool
    reason: str

    def __str__(self) -> str:
        told = "unknown" if self.point_spread is None else f"{_rounded(self.point_spread)}"
        return f"{told} ({self.source}): {self.reason}"

    def record(self) -> dict[str, Any]:
        """Describe it for a sidecar."""
        return {
            "Source": self.source,
            "Doubt": None if self.doubt is None else round(self.doubt, 3),
            "KindIsKnown": self.kind_is_known,
            "Reason": self.reason,
        }


def find_point_spread(
    volume: MetaTensor, axes: Sequence[int], stated: Mapping[str, Any] | None = None
) -> FoundPointSpread:
    """Find the point spread of a volume along the axes that a network enlarges.

    Args:
        volume: the volume [C, X, Y, Z] with its affine; of several channels the mean is used.
        axes: the array axis across thick slices, or both axes of the slices, 0 to 2.
        stated: what the header says, in the words of BIDS: SliceThickness and SpacingBetweenSlices in mm,
            MRAcquisitionType, Modality, ConvolutionKernel, AcquisitionShares (see
            :func:`medsr_monai.upscaling.cases.header_of`).
    """
    stated = stated or {}
    image = volume.as_tensor().float().mean(0)
    edges = spacing(volume.affine)
    if len(axes) == 1:
        return _across_slices(image, edges, axes[0], stated)
    return _in_plane(image, volume, axes, stated)


def measure_point_spread(volume: MetaTensor, axes: Sequence[int]) -> PointSpread | None:
    """Measure the point spread of a volume without a header, and log it, for inferers whose ``psf`` is auto.

    Args:
        volume, axes: see :func:`find_point_spread`.
    """
    found = find_point_spread(volume, axes)
    logger.info("point spread %s", found)
    return found.point_spread


def measure_slice_profile(image: torch.Tensor, edges: Sequence[float], axis: int) -> SliceProfile | str:
    """Measure the profile of slices by comparing them with what lies in their plane (see the module's text).

    Args:
        image: voxels [X, Y, Z].
        edges: the edges of a voxel in mm.
        axis: the axis across the slices.

    Returns:
        The profile, or in words the reason why there is none.
    """
    if image.shape[axis] < LEAST_SAMPLES:
        return f"{image.shape[axis]} slices are too few to be measured"
    ratios, low, high = [], *_ends(image)
    if not high > low:
        return "nothing to be seen"
    scaled = (image.clamp(low, high) - low) / (high - low)
    for other in range(3):
        samples = round(image.shape[other] * edges[other] / edges[axis])
        if other != axis and samples >= LEAST_SAMPLES and edges[axis] >= LEAST_RATIO * edges[other]:
            ratios.append(_ratios(scaled, axis, other, samples))
    if not ratios:
        return "the pixels are not fine enough, or too few, to be compared with the slices"
    return _profile(np.stack(ratios))


def _candidates() -> list[PointSpread]:
    return [PointSpread(kind, float(width)) for kind in KINDS for width in WIDTHS]


def _ends(image: torch.Tensor) -> tuple[float, float]:
    """Percentiles 0.1 and 99.9."""
    values = image.flatten()[:: max(1, image.numel() // 200_000)].numpy()
    low, high = np.percentile(values, [0.1, 99.9])
    return float(low), float(high)


def _ratios(image: torch.Tensor, axis: int, other: int, samples: int) -> np.ndarray:
    """Logarithms [candidates, ORDERS] of squared differences across slices over those along another axis.

    Of squares only the matrix of the products of all pairs of samples along the other axis is needed, which is
    degraded on both sides instead of the volume.
    """
    third = 3 - axis - other
    lines = image.movedim((third, axis, other), (0, 1, 2))[:: max(1, image.shape[third] // LINES)]
    matrices = sampling_matrices(lines.shape[-1], samples, _candidates())

    def degraded(values: torch.Tensor) -> torch.Tensor:
        flat = values.reshape(-1, values.shape[-1])
        return matrices @ (flat.T @ flat / len(flat)).double() @ matrices.mT

    products, along, across = degraded(lines), [], []
    steps = torch.eye(samples, dtype=torch.float64)
    for _ in range(ORDERS):
        steps, lines = steps.diff(dim=0), lines.diff(dim=1)
        along.append((steps @ products @ steps.T).diagonal(dim1=1, dim2=2).mean(1))
        across.append(degraded(lines).diagonal(dim1=1, dim2=2).mean(1))
    tiny = torch.finfo(torch.float64).tiny
    return (torch.stack(across, 1).clamp(min=tiny).log() - torch.stack(along, 1).clamp(min=tiny).log()).numpy()


def _profile(ratios: np.ndarray) -> SliceProfile:
    """From logarithms [axes of the slices, candidates, ORDERS] to the probabilities of the candidates."""
    shapes = ratios[..., 1:] - ratios[..., :1]
    mean = shapes.mean(0)
    apart = (shapes[0] - shapes[-1]) / 2
    likelihood, misfits = np.empty(len(mean)), np.empty(len(mean))
    for candidate, (shape, half) in enumerate(zip(mean, apart, strict=True)):
        covariance = np.array(ANATOMY) + np.outer(half, half) + 1e-4 * np.eye(len(shape))
        misfits[candidate] = shape @ np.linalg.solve(covariance, shape)
        likelihood[candidate] = -(misfits[candidate] + np.linalg.slogdet(covariance)[1]) / 2
    shares = np.exp(np.maximum(likelihood - likelihood.max(), -600)).reshape(len(KINDS), len(WIDTHS))
    plausible = shares * (WIDTHS >= NARROWEST)
    widths = [_mean(share) for share in (*plausible, shares[0])]
    best = np.unravel_index(shares.argmax(), shares.shape)
    edges = ratios.reshape(len(ratios), *shares.shape, -1)[:, *best, 0]
    asymmetry = float(edges[np.abs(edges).argmax()])
    probability = float(plausible[0].sum() / plausible.sum())
    return SliceProfile(*widths, probability, asymmetry, float(misfits[likelihood.argmax()]))


def _mean(shares: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the widths."""
    shares = shares / shares.sum()
    width = float(shares @ WIDTHS)
    return width, math.sqrt(shares @ (WIDTHS - width) ** 2)


def _across_slices(
    image: torch.Tensor, edges: Sequence[float], axis: int, stated: Mapping[str, Any]
) -> FoundPointSpread:
    distance = float(edges[axis])
    if stated.get("MRAcquisitionType") == "3D":
        reason = "partitions of a 3D acquisition have no slice profile"
        return FoundPointSpread(None, "header", None, False, reason)
    profile = measure_slice_profile(image, edges, axis)
    header, thickness = _stated_thickness(distance, stated)
    if isinstance(profile, str):
        known = "" if thickness is None else f"{header}, its kind is not known; "
        return FoundPointSpread(None, "header" if known else "nothing", None, False, known + profile)
    seen = f"measured {profile} of the spacing"
    if abs(profile.asymmetry) > UNLIKE or profile.misfit > FITS:
        reason = f"{seen}, but the volume is too different across the slices and in them"
        return FoundPointSpread(None, "measured", None, False, reason)
    if thickness is not None:
        return _agreed(profile, thickness, distance, f"{header}, {seen}")
    kind, (width, deviation) = "gaussian", profile.equal
    if profile.is_sure:
        kind, (width, deviation) = profile.kind, getattr(profile, profile.kind)
    else:
        seen += ": which kind is not known"
    doubt = deviation / width
    if doubt > DOUBTFUL:
        seen += "; the width is in doubt"
    told = PointSpread(kind, width) if doubt <= TELLING else None
    return FoundPointSpread(told, "measured", doubt, profile.is_sure, seen)


def _agreed(profile: SliceProfile, thickness: float, distance: float, reason: str) -> FoundPointSpread:
    """Of the kinds whose measured width the header's thickness agrees with, the one that comes closest."""
    stated = thickness / distance
    apart = {}
    for kind, factor in zip(KINDS, (1, EQUAL), strict=True):
        width, deviation = (factor * value for value in profile.equal)
        if abs(stated - width) <= max(AGREES * width, deviation):
            apart[kind] = abs(math.log(stated / width))
    source = "header and measured"
    if not apart:
        return FoundPointSpread(None, source, None, False, f"{reason}: they do not agree")
    told = PointSpread(min(apart, key=apart.__getitem__), gap=1 - stated)
    if len(apart) > 1:
        reason += ": which kind is not sure"
    return FoundPointSpread(told, source, AGREES, len(apart) == 1, reason)


def _stated_thickness(distance: float, stated: Mapping[str, Any]) -> tuple[str, float | None]:
    """A header's thickness of slices in words and in mm; None if there is none, or it is of another grid."""
    thickness, between = (stated.get(name) for name in ("SliceThickness", "SpacingBetweenSlices"))
    if not _is_length(thickness):
        return "", None
    if _is_length(between) and abs(between / distance - 1) > 0.05:
        return "", None  # resampled since
    gap = distance - thickness
    words = "without gap" if abs(gap) < 0.02 * distance else f"{'gap' if gap > 0 else 'overlap'} {abs(gap):.3g} mm"
    return f"header: slices of {thickness:.3g} mm every {distance:.3g} mm, {words}", float(thickness)


def _is_length(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 < value < math.inf


def _in_plane(
    image: torch.Tensor, volume: MetaTensor, axes: Sequence[int], stated: Mapping[str, Any]
) -> FoundPointSpread:
    modality = stated.get("Modality")
    if modality == "CT" or (modality is None and _goes_down_to(volume) <= HOUNSFIELD_AIR):
        reason = f"CT: how sharp the kernel{_kernel(stated)} is, in terms of the kind ct, is not known"
        return FoundPointSpread(None, "header" if modality else "measured", None, False, reason)
    seen = [_window(axis_spectrum(image.numpy(), axis)) for axis in axes]
    if None in seen:
        return FoundPointSpread(None, "nothing", None, False, "too few pixels of tissue in a row to be measured")
    words = " and ".join(f"{kind or 'no clear window'} with pixels of {width:.2f}" for kind, width in seen)
    reason = f"measured {words} of the spacing"
    kinds, widths = zip(*seen, strict=True)
    doubt = float(np.ptp(widths) / np.mean(widths))
    source = "measured"
    if shares := stated.get("AcquisitionShares"):
        source = "header and measured"
        reason = f"header: {' and '.join(f'{share:.2f}' for share in shares)} of the matrix acquired, {reason}"
        if any(min(abs(share * width - 1) for width in widths) > AGREES for share in shares):
            return FoundPointSpread(None, source, doubt, False, f"{reason}: they do not agree")
    if kinds[0] != kinds[1] or kinds[0] is None or doubt > DOUBTFUL:
        return FoundPointSpread(None, source, doubt, False, f"{reason}, which is in doubt")
    if kinds[0] == "kspace" and max(widths) == 1 and modality != "MR":
        reason += ", or another one: without an end within the spectrum it looks as those of other kinds do"
        return FoundPointSpread(None, source, doubt, False, reason)
    return FoundPointSpread(PointSpread(kinds[0], float(np.mean(widths))), source, doubt, True, reason)


def _kernel(stated: Mapping[str, Any]) -> str:
    """A CT kernel's name for a sentence; empty if it is none, or some text that a record must not hold."""
    name = stated.get("ConvolutionKernel")
    name = name if isinstance(name, str) or not isinstance(name, Sequence) else next(iter(name), "")
    return f" {name}" if re.fullmatch(r"[A-Za-z]{1,8}\d{0,3}[a-z]?", str(name)) and isinstance(name, str) else ""


def _goes_down_to(volume: MetaTensor) -> float:
    """The low end of a volume's intensities, before they were scaled for a network."""
    low = volume.meta.get(LOW)
    return float(volume.min()) if low is None else float(torch.as_tensor(low).min())


def _window(spectrum: AxisSpectrum) -> tuple[str | None, float] | None:
    """The kind whose window fits a spectrum, None if none does clearly, and the acquired pixel over the spacing."""
    if not spectrum.judged:
        return None
    part = spectrum.frequency / (0.5 * spectrum.share)
    inside = (part >= FITTED[0]) & (part <= FITTED[1])
    part, level = part[inside], spectrum.power[inside]
    steepness = -10 * np.log10(part)
    misfits = {}
    for kind in WINDOWS:
        rest = level - 20 * np.log10(window_of(kind, torch.from_numpy(part)).numpy())
        centred = steepness - steepness.mean()
        exponent = float(np.clip(centred @ rest / (centred @ centred), 0, STEEPEST))
        misfits[kind] = float(np.std(rest - exponent * steepness))
    best, second, _ = sorted(misfits, key=misfits.__getitem__)
    clear = misfits[best] <= MISFIT and misfits[second] >= CLEARLY * misfits[best]
    return best if clear else None, 1 / spectrum.share


def _rounded(point_spread: PointSpread) -> str:
    """As in a log line."""
    kind, width = point_spread.kind, point_spread.width_over_spacing
    return f"{kind} of {width:.2f} of the spacing"
