"""The point spread of a scanner along one axis: how a coarse sample weighs the fine ones around it.

Every point spread is one matrix per axis, the same for a patch, a slice or a volume, since degradation is linear and
separable. Fine and coarse samples are centres of equal intervals with the same outer faces, so that coarse sample ``i``
of ``small`` lies at ``(i + 0.5) * size / small - 0.5`` of ``size`` fine ones; the ratio need not be whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import Randomizable
from monai.utils import ensure_tuple, ensure_tuple_rep
from torch import Tensor

__all__ = [
    "ENCODING",
    "METHODS",
    "PointSpread",
    "RandPointSpread",
    "encode_point_spread",
    "parse_point_spread",
    "point_spread_of",
    "sampling_matrices",
    "sampling_matrix",
]

METHODS = ("bicubic", "gaussian", "box", "kspace", "kspace_hamming", "kspace_fermi", "rounded", "ct")
"""The kinds of a :class:`PointSpread`. Their order is that of the entries of ENCODING and is never changed."""
SLICE_KINDS = ("gaussian", "box", "rounded", "ct")
"""The kinds that are profiles in space: between the slices of these there may be a gap."""
ENCODING = (*METHODS, "width", "gap", "sharpness")
"""The names of the entries of the vector that :func:`encode_point_spread` makes."""

FWHM_TO_SIGMA = 1 / math.sqrt(8 * math.log(2))
ROUNDING = 0.1
"""The standard deviation of the edges of the kind ``rounded``, as a fraction of its width."""
BAND = math.sqrt(2 * math.log(2)) / math.pi
"""The standard deviation of the narrower Gaussian of the kind ``ct``, as a fraction of its width.

With this value the band-pass is strongest at half a cycle per width.
"""
FERMI_RADIUS, FERMI_WIDTH = 0.9, 0.05
"""Where the window of ``kspace_fermi`` is one half, and how wide it falls, as fractions of the largest frequency."""


@dataclass(frozen=True)
class PointSpread:
    """A point spread along one axis, in units of the coarse samples' spacing, so that it fits any ratio.

    Kinds:
        - ``gaussian``: a Gaussian profile, sampled at the fine samples (cut at 4 standard deviations) and between them
          linearly;
        - ``box``: the mean over an interval, in which fine samples that lie in it partly count by their part;
        - ``rounded``: a box with rounded edges, that is, convolved with a Gaussian of a tenth of its width, which
          leaves its full width at half maximum as it is: the profile of a well-made slice-selective pulse;
        - ``ct``: a box and beside it a band-pass, whose share is the ``sharpness``. Its transfer function is
          ``sinc(f) * (1 + sharpness * 4 * g * (1 - g))`` at ``f`` cycles a width, with the Gaussian
          ``g = exp(-4 * log(2) * f**2)``, which is one half, and the band-pass 1, at half a cycle. Smooth kernels are
          below 0, sharp ones, with their overshoot at edges, above;
        - ``kspace``: the central part of the spectrum, as a smaller acquisition matrix (periodic), evaluated at the
          coarse samples' centres, which keeps the outer corners; ``kspace_hamming`` and ``kspace_fermi`` with the
          window that many protocols put on it. An even matrix's highest frequency is dropped: it has no partner;
        - ``bicubic``: the papers' cubic convolution (A = -0.75) without antialiasing, as the RDST authors' code
          (OpenCV) and ``torch.nn.functional.interpolate`` make it. It has no width.

    Args:
        kind: one of METHODS.
        width: full width at half maximum over a sample's thickness, which is the spacing where there is no gap. Of the
            k-space kinds it is the width of an acquired pixel over the spacing, by which the spectrum ends at half a
            cycle a width: below 1 the coarse samples alias, above 1 they are interpolated by zero filling. (The full
            width at half maximum of their point spread is 1.21, with the Hamming window 1.81 times this width.)
        gap: the part of the spacing that lies between two slices, 1 - thickness / spacing; below 0 slices overlap. Only
            SLICE_KINDS have it.
        sharpness: the sharpness of the kind ``ct``, from -1 to 1; 0 is the box.

    Raises:
        ValueError: an unknown kind, a value out of its range, or one that the kind does not have.
    """

    kind: str
    width: float = 1.0
    gap: float = 0.0
    sharpness: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in METHODS:
            raise ValueError(f"point spread is {self.kind!r}, expected one of {', '.join(METHODS)}")
        if not 0 < self.width < math.inf or (self.kind == "bicubic" and self.width != 1):
            expected = "1, since it has none" if self.kind == "bicubic" else "a positive number, in sample thicknesses"
            raise ValueError(f"width of {self.kind!r} is {self.width}: expected {expected}")
        if not -math.inf < self.gap < 1 or (self.gap and self.kind not in SLICE_KINDS):
            expected = "a number below 1, in spacings" if self.kind in SLICE_KINDS else "0, since it has no slices"
            raise ValueError(f"gap of {self.kind!r} is {self.gap}: expected {expected}")
        if not -1 <= self.sharpness <= 1 or (self.sharpness and self.kind != "ct"):
            raise ValueError(
                f"sharpness of {self.kind!r} is {self.sharpness}: expected -1 to 1 of 'ct', and 0 of all others"
            )

    @property
    def width_over_spacing(self) -> float:
        """The width in spacings of the coarse samples, gap or overlap included: all that a matrix depends on."""
        return self.width * (1 - self.gap)

    def __str__(self) -> str:
        """Such as "gaussian, width 1.2, gap 0.1"; a width of 1 and zeros are left out."""
        stated = {"width": self.width - 1 and self.width, "gap": self.gap, "sharpness": self.sharpness}
        return ", ".join([self.kind, *(f"{name} {value:g}" for name, value in stated.items() if value)])


def encode_point_spread(point_spread: PointSpread | None) -> Tensor:
    """Encode what a network is told of a point spread as a vector [len(ENCODING)], float32.

    First comes one entry for each of METHODS, 1 for the kind and 0 for all others, then ``width_over_spacing``, ``gap``
    and ``sharpness`` as they are. None, an unknown point spread, is all zeros.
    """
    if point_spread is None:
        return torch.zeros(len(ENCODING))
    kind = [float(kind == point_spread.kind) for kind in METHODS]
    return torch.tensor([*kind, point_spread.width_over_spacing, point_spread.gap, point_spread.sharpness])


def parse_point_spread(text: str, spacing: float) -> PointSpread:
    """Read a point spread as commands write it, ``KIND[:FWHM_MM[:SHARPNESS]]``, such as "box:4.5" or "ct:0.7:0.5".

    Args:
        text: the point spread. Where the width is left out or empty it is the spacing; only ``ct`` has a sharpness.
        spacing: the spacing of the coarse samples in mm.

    Raises:
        ValueError: anything else, see :class:`PointSpread`.
    """
    kind, *numbers = text.split(":")
    try:
        width, sharpness = ([float(number) if number else None for number in numbers] + [None, None])[:2]
        if len(numbers) > 2:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"point spread is {text!r}: expected KIND, KIND:FWHM_MM or ct:FWHM_MM:SHARPNESS, such as gaussian:4.5"
        ) from None
    if width is not None and (kind == "bicubic" or not 0 < width < math.inf):
        raise ValueError(f"point spread is {text!r}: expected a positive width in mm, and none of bicubic")
    return PointSpread(kind, 1.0 if width is None else width / spacing, sharpness=sharpness or 0.0)


def point_spread_of(method: str | PointSpread, fwhm: float | None, factor: float) -> PointSpread:
    """Make the point spread that a bundle's JSON names by its kind and, for a Gaussian, its width in fine samples.

    Args:
        method: a kind, or a point spread, which is returned as it is.
        fwhm: full width at half maximum of the Gaussian in fine samples; None for the factor.
        factor: how many fine samples make a coarse one.

    Raises:
        ValueError: unknown method, or ``fwhm`` not positive or given to a method other than ``gaussian``.
    """
    if not isinstance(method, PointSpread) and method not in METHODS:
        raise ValueError(f"degradation method is {method!r}, expected one of {', '.join(METHODS)}")
    if fwhm is not None and (method != "gaussian" or fwhm <= 0):
        raise ValueError(
            f"fwhm is {fwhm} for {str(method)!r}: expected a positive width, with the method 'gaussian' only"
        )
    if isinstance(method, PointSpread):
        return method
    return PointSpread(method, 1.0 if fwhm is None else fwhm / factor)


def sampling_matrix(size: int, small: int, method: str | PointSpread, fwhm: float | None = None) -> Tensor:
    """Make the matrix [small, size], float64, that turns ``size`` samples into ``small`` coarse ones.

    Both have the same outer faces, see :func:`sampling_matrices`.

    Args:
        size: number of fine samples.
        small: number of coarse samples.
        method, fwhm: see :func:`point_spread_of`, whose errors it raises.

    Raises:
        ValueError: ``small`` not in 1 to ``size``.
    """
    return _matrix_on(size, small, point_spread_of(method, fwhm, size / max(small, 1)), torch.device("cpu"))


def sampling_matrices(
    size: int, small: int, point_spreads: Sequence[PointSpread], device: torch.device | str = "cpu"
) -> Tensor:
    """Make the matrices of a batch: [B, small, size], float64; [1, small, size] if all point spreads are alike.

    Borders are mirrors (half-sample symmetric), but for the k-space kinds, which are periodic, and ``bicubic``, which
    repeats the outermost sample. Rows sum to one. They are made on the CPU, and are the same on every device.

    Raises:
        ValueError: see :func:`sampling_matrix`.
    """
    unique = list(dict.fromkeys(point_spreads))
    if len(unique) == 1:
        return _matrix_on(size, small, unique[0], torch.device(device))[None]
    matrices = torch.empty(len(unique), small, size, dtype=torch.float64)
    for kind in {one.kind for one in unique}:
        places = [b for b, one in enumerate(unique) if one.kind == kind]
        matrices[places] = _matrices(size, small, kind, [unique[b] for b in places])
    return matrices[[unique.index(one) for one in point_spreads]].to(device)


@lru_cache(maxsize=64)
def _matrix_on(size: int, small: int, point_spread: PointSpread, device: torch.device) -> Tensor:
    return _matrices(size, small, point_spread.kind, [point_spread])[0].to(device)


def _matrices(size: int, small: int, kind: str, point_spreads: Sequence[PointSpread]) -> Tensor:
    """Matrices [B, small, size] of point spreads of one kind."""
    if not 1 <= small <= size:
        raise ValueError(f"{size} samples cannot be degraded to {small}: expected 1 to {size}")
    if kind == "bicubic":
        identity = torch.eye(size, dtype=torch.float64)[None, None]
        return F.interpolate(identity, size=(small, size), mode="bicubic", align_corners=False)[0]
    widths = torch.tensor([one.width_over_spacing for one in point_spreads], dtype=torch.float64)
    if kind.startswith("kspace"):
        return _spectra(size, small, kind, small / widths)
    widths = widths * (size / small)
    if kind == "gaussian":
        return _gaussians(size, small, widths)
    if kind == "rounded":
        return _boxes(size, small, widths, ROUNDING * widths)
    boxes = _boxes(size, small, widths, 0 * widths)
    if kind == "ct":
        sharpness = torch.tensor([one.sharpness for one in point_spreads], dtype=torch.float64)[:, None, None]
        band = _boxes(size, small, widths, BAND * widths) - _boxes(size, small, widths, math.sqrt(2) * BAND * widths)
        boxes = boxes + 4 * sharpness * band
    return boxes


def _taps(size: int, small: int, reach: float) -> tuple[Tensor, Tensor, Tensor]:
    """Fine samples around each coarse one, at least ``reach`` to both sides, where there may be none.

    Returns:
        How many samples they lie after the last one that is not after the centre, [K]; their numbers, [small, K]; and
        how far their centres lie after the coarse one's, [small, K].
    """
    centres = (torch.arange(small, dtype=torch.float64) + 0.5) * (size / small) - 0.5
    steps = torch.arange(-math.ceil(reach) - 1, math.ceil(reach) + 3)
    numbers = centres.floor().long()[:, None] + steps
    return steps, numbers, numbers - centres[:, None]


def _mirrored(size: int, numbers: Tensor, weights: Tensor) -> Tensor:
    """Rows [B, small, size] of weights [B, small, K] at samples [small, K], those beyond the ends seen in mirrors."""
    numbers = numbers % (2 * size)
    numbers = torch.where(numbers < size, numbers, 2 * size - 1 - numbers)
    rows = weights.new_zeros(*weights.shape[:2], size)
    return rows.scatter_add_(2, numbers.expand_as(weights), weights)


def _gaussians(size: int, small: int, fwhms: Tensor) -> Tensor:
    """Sampled Gaussians [B, small, size] of the widths [B] in fine samples, linear between two samples."""
    sigma = fwhms[:, None, None] * FWHM_TO_SIGMA
    radius = torch.floor(4 * sigma + 0.5)
    largest = int(radius.max())
    steps, numbers, distances = _taps(size, small, largest)
    share = steps - distances

    def weights(offsets: Tensor) -> Tensor:
        return torch.exp(-0.5 * (offsets / sigma) ** 2).where(offsets.abs() <= radius, 0.0)

    total = weights(torch.arange(-largest, largest + 1)).sum(dim=-1, keepdim=True)
    return _mirrored(size, numbers, ((1 - share) * weights(steps) + share * weights(steps - 1)) / total)


def _boxes(size: int, small: int, widths: Tensor, sigmas: Tensor) -> Tensor:
    """Boxes [B, small, size] of the widths [B], convolved with Gaussians, integrated over each fine sample."""
    width, sigma = widths[:, None, None], sigmas[:, None, None]
    _, numbers, distances = _taps(size, small, float((widths / 2 + 6 * sigmas).max()))

    def integral(upto: Tensor) -> Tensor:
        """Integrate from far below up to this distance from the centre."""
        if not sigmas.any():
            return (upto + width / 2).clamp(min=0).minimum(width)
        return sigma * (_ramp((upto + width / 2) / sigma) - _ramp((upto - width / 2) / sigma))

    weights = integral(distances + 0.5) - integral(distances - 0.5)
    return _mirrored(size, numbers, weights / weights.sum(dim=-1, keepdim=True))


def _ramp(z: Tensor) -> Tensor:
    """Integral of the normal distribution's cumulative function up to ``z``."""
    return z * torch.special.ndtr(z) + torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


def _spectra(size: int, small: int, kind: str, acquired: Tensor) -> Tensor:
    """Fourier series [B, small, size] of the frequencies below half of the acquired samples [B], at the centres."""
    highest = acquired[:, None] / 2
    frequencies = torch.arange((size - 1) // 2 + 1, dtype=torch.float64)
    part = frequencies / highest
    window = window_of(kind, part)
    window = window.where(frequencies < highest, 0.0)
    window[:, 1:] *= 2  # with the negative frequencies
    centres = (torch.arange(small, dtype=torch.float64) + 0.5) * (size / small) - 0.5
    fine = 2 * math.pi / size * frequencies * torch.arange(size, dtype=torch.float64)[:, None]
    coarse = 2 * math.pi / size * frequencies * centres[:, None]
    rows = (coarse.cos() * window[:, None]) @ fine.cos().T + (coarse.sin() * window[:, None]) @ fine.sin().T
    return rows / size


def window_of(kind: str, part: Tensor) -> Tensor:
    """Give the window of a k-space kind at frequencies that are parts of the largest acquired one."""
    if kind == "kspace_hamming":
        return 0.54 + 0.46 * torch.cos(math.pi * part)
    if kind == "kspace_fermi":
        edge = FERMI_RADIUS / FERMI_WIDTH
        return (1 + math.exp(-edge)) / (1 + torch.exp(part / FERMI_WIDTH - edge))
    return torch.ones_like(part)


class RandPointSpread(Randomizable):
    """Draw a point spread, and whether a network is told of it.

    Args:
        kinds: one of METHODS, several, which are then as probable, or the probability of each (up to a factor).
        width, gap, sharpness: ranges (low, high) that those of :class:`PointSpread` are drawn from, or one value; each
            only for the kinds that have it.
        unknown: probability that nothing is told.

    Raises:
        ValueError: an unknown kind, a negative or no probability, a range that is none, or values that
            :class:`PointSpread` does not take.
    """

    def __init__(
        self,
        kinds: str | Sequence[str] | Mapping[str, float],
        width: float | Sequence[float] = 1.0,
        gap: float | Sequence[float] = 0.0,
        sharpness: float | Sequence[float] = (-0.5, 1.0),
        unknown: float = 0.0,
    ) -> None:
        self.kinds = dict(kinds) if isinstance(kinds, Mapping) else dict.fromkeys(ensure_tuple(kinds), 1.0)
        self.ranges = {"width": width, "gap": gap, "sharpness": sharpness}
        self.ranges = {name: ensure_tuple_rep(value, 2) for name, value in self.ranges.items()}
        self.unknown = unknown
        if min(self.kinds.values(), default=0) < 0 or not sum(self.kinds.values()) > 0 or not 0 <= unknown <= 1:
            raise ValueError(
                f"probabilities are {self.kinds}, unknown {unknown}: expected 0 or more, not all of them 0"
            )
        for name, (low, high) in self.ranges.items():
            if not low <= high:
                raise ValueError(f"{name} is {low} to {high}: expected the lower end first")
        for kind in self.kinds:
            for end in (0, 1):
                self._point_spread(kind, {name: ends[end] for name, ends in self.ranges.items()})
        self.point_spread: PointSpread | None = None
        """What was drawn last."""
        self.told: PointSpread | None = None
        """What was drawn last, or None where the network is told nothing."""

    def randomize(self, data: object = None) -> None:
        shares = np.array(list(self.kinds.values()))
        kind = list(self.kinds)[int(self.R.choice(len(shares), p=shares / shares.sum()))]
        values = {name: float(self.R.uniform(*ends)) for name, ends in self.ranges.items()}
        self.point_spread = self._point_spread(kind, values)
        self.told = None if self.R.random_sample() < self.unknown else self.point_spread

    @staticmethod
    def _point_spread(kind: str, values: Mapping[str, float]) -> PointSpread:
        """Make a point spread of a kind, with those of the values that it has."""
        made = PointSpread(kind)
        if kind != "bicubic":
            made = replace(made, width=values["width"])
        if kind in SLICE_KINDS:
            made = replace(made, gap=values["gap"])
        return replace(made, sharpness=values["sharpness"]) if kind == "ct" else made

    def __str__(self) -> str:
        """Such as "gaussian or box, width 0.7 to 1.3, unknown 0.2"; probabilities of kinds are left out."""
        ranges = {name: " to ".join(f"{end:g}" for end in dict.fromkeys(ends)) for name, ends in self.ranges.items()}
        left_out = {("width", "1"), ("gap", "0"), *(() if "ct" in self.kinds else [("sharpness", ranges["sharpness"])])}
        stated = [f"{name} {text}" for name, text in ranges.items() if (name, text) not in left_out]
        stated += [f"unknown {self.unknown:g}"] * bool(self.unknown)
        return ", ".join([" or ".join(self.kinds), *stated])
