"""Low-resolution volumes from high-resolution ones, along any axes, with the outer corners kept."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_tensor, ensure_tuple, ensure_tuple_rep

from medsr_monai.transforms.geometry import with_corners_of
from medsr_monai.transforms.point_spread import (
    PointSpread,
    RandPointSpread,
    encode_point_spread,
    point_spread_of,
    sampling_matrices,
)
from medsr_monai.transforms.windows import to_device

__all__ = [
    "RandDegraded",
    "degrade",
    "degrade_batch",
    "describe_degradation",
    "white_noise",
]

Method = str | PointSpread | Mapping[str, object]
"""A point spread, its kind, or the keyword arguments of a :class:`medsr_monai.transforms.RandPointSpread`."""


def degrade(
    image: torch.Tensor,
    factors: float | Sequence[float],
    method: str | PointSpread | Sequence[str | PointSpread] = "bicubic",
    *,
    fwhm: float | None = None,
    noise_std: float = 0.0,
    noise_seed: int = 0,
) -> torch.Tensor:
    """Make a low-resolution version of an image or volume.

    Args:
        image: [C, *spatial], float. A ``MetaTensor`` gets the affine that keeps its outer corners.
        factors: factor of each spatial axis, 1 to leave it alone. Where a size is no multiple of its factor, the far
            end is cropped to one; the corners are then those of the cropped image, and the spacing is exactly
            ``factor`` times the original one. Of a factor that is no whole number the nearest multiple is kept, so that
            the spacing differs from ``factor`` by up to half a sample in the whole length.
        method: a :class:`medsr_monai.transforms.PointSpread` or its kind, for all axes or one for each spatial axis.
        fwhm: the full width at half maximum of the kind "gaussian", in fine samples; None for the factor.
        noise_std: standard deviation of additive white Gaussian noise, in the image's units.
        noise_seed: the same seed gives the same noise.

    Raises:
        ValueError: an image of integers, a factor below 1, an image smaller than its factors, another number of
            methods than of axes, or what :func:`medsr_monai.transforms.point_spread_of` refuses.

    Source: RDST (arXiv 2302.11184), equation 13 and the authors' code for ``bicubic``; the slice profiles are those of
    thick-slice simulation in the literature.
    """
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    drawn = {"method": method, "fwhm": fwhm, "noise_std": noise_std, "noise_seed": noise_seed}
    out = degrade_batch(plain[None], factors, [drawn])[0]
    if not isinstance(image, MetaTensor):
        return out
    return with_corners_of(image, out, _kept(image.shape[1:], ensure_tuple_rep(factors, image.ndim - 1)))


def degrade_batch(
    images: torch.Tensor, factors: float | Sequence[float], drawn: Sequence[Mapping[str, object]]
) -> torch.Tensor:
    """Make low-resolution versions of a batch of images, each degraded in its own way.

    Args:
        images: [B, C, *spatial], float, on any device, where the result is made.
        factors: see :func:`degrade`; the same for all images.
        drawn: the ``method``, ``fwhm``, ``noise_std`` and ``noise_seed`` of each image, see :func:`degrade`.

    Returns:
        [B, C, *(spatial // factors)]. The noise is made of the CPU's random numbers wherever the images are, so that a
        seed gives the same everywhere.

    Raises:
        ValueError: see :func:`degrade`.
    """
    factors = ensure_tuple_rep(factors, images.ndim - 2)
    if not images.is_floating_point():
        raise ValueError(f"image is {images.dtype}: degraded intensities are no integers, convert it to float32 first")
    if min(factors) < 1:
        raise ValueError(f"factors are {factors}: expected at least 1, 1 to leave an axis alone")
    kept = _kept(images.shape[2:], factors)
    if min(kept) == 0:
        raise ValueError(
            f"image of shape {tuple(images.shape[2:])} is smaller than the factors {factors}: use smaller factors"
        )
    by_axis = zip(*(ensure_tuple_rep(one["method"], len(factors)) for one in drawn), strict=True)
    out = images
    for axis, (size, factor, methods) in enumerate(zip(kept, factors, by_axis, strict=True), start=2):
        if factor > 1:
            spreads = [point_spread_of(m, one["fwhm"], factor) for m, one in zip(methods, drawn, strict=True)]
            matrices = sampling_matrices(size, coarse_size(size, factor), spreads, out.device).to(out).mT
            matrices = matrices[0] if len(matrices) == 1 else matrices.unflatten(0, (-1, *[1] * (out.ndim - 3)))
            out = torch.movedim(torch.movedim(out.narrow(axis, 0, size), axis, -1) @ matrices, -1, axis)
    if any(one["noise_std"] for one in drawn):
        noise = torch.stack([white_noise(one, out.shape[1:]) for one in drawn])
        out = out + to_device(noise.to(out.dtype), out.device)
    return out.contiguous()


def coarse_size(size: int, factor: float) -> int:
    """Give how many coarse samples a row of ``size`` fine ones makes, of which the far end may be cropped."""
    return int((size + 0.499) // factor)  # rounded up to a multiple where that is less than half a sample longer


def _kept(sizes: Sequence[int], factors: Sequence[float]) -> list[int]:
    """The sizes cropped to (the nearest) multiples of the factors."""
    return [round(coarse_size(size, factor) * factor) for size, factor in zip(sizes, factors, strict=True)]


def white_noise(drawn: Mapping[str, object], shape: Sequence[int]) -> torch.Tensor:
    """Make Gaussian noise (float64, on the CPU) by the ``noise_std`` and ``noise_seed`` that were drawn."""
    generator = torch.Generator().manual_seed(drawn["noise_seed"])
    return drawn["noise_std"] * torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def describe_degradation(
    method: Method | Sequence[str],
    fwhm: float | Sequence[float] | None = None,
    noise_std: float | Sequence[float] = 0.0,
) -> str:
    """Name a degradation for a table, such as "gaussian, fwhm 5, noise 0.02" or "box or bicubic, noise 0 to 0.02"."""
    one = RandPointSpread(**method) if isinstance(method, Mapping) else method
    parts = [" or ".join(map(str, ensure_tuple(one)))]
    for name, value in (("fwhm", fwhm), ("noise", noise_std)):
        ends = [] if value is None else list(dict.fromkeys(np.atleast_1d(value).tolist()))
        if any(ends):
            parts.append(f"{name} {' to '.join(f'{end:g}' for end in ends)}")
    return ", ".join(parts)


class RandDegraded(Randomizable, MapTransform):
    """Make a training pair: crop ``label`` to multiples of the factors and write its degraded version to ``image``.

    Pairs must be made this way round: cropping an HR and an LR volume at the same voxels shows two different places.

    What a network may be told of the point spread is written to ``psf``, see
    :func:`medsr_monai.transforms.encode_point_spread`.

    What was drawn lies in ``params``, keyword arguments of :func:`degrade`, and in ``psf``; calling with
    ``randomize=False`` replays it. Both images are plain tensors: for a volume with its affine, call :func:`degrade`.
    An item is a batch of one, see :meth:`pairs`.

    Args:
        keys: the high-resolution image (one key), [C, *spatial].
        image_key: the key that the low-resolution image is written to.
        factors: see :func:`degrade`.
        method: the keyword arguments of a :class:`medsr_monai.transforms.RandPointSpread`, which draws a point spread
            for each image and may leave it untold; a :class:`medsr_monai.transforms.PointSpread`; or its kind, and of
            several kinds, one is drawn for each image.
        fwhm: range (low, high), in samples, that the width of the kind "gaussian" is drawn from; None for the factor.
            It is given with kinds only.
        noise_std: range (low, high) that the noise level is drawn from.
        psf_key: the key that the vector of the point spread is written to.

    Raises:
        ValueError: a ``fwhm`` beside what is drawn, or what RandPointSpread refuses.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        image_key: str = "image",
        *,
        factors: float | Sequence[float],
        method: Method | Sequence[str] = "bicubic",
        fwhm: tuple[float, float] | None = None,
        noise_std: tuple[float, float] = (0.0, 0.0),
        psf_key: str = "psf",
    ) -> None:
        super().__init__(keys)
        (self.key,) = self.keys
        self.image_key = image_key
        self.factors = factors
        self.point_spreads = RandPointSpread(**method) if isinstance(method, Mapping) else None
        self.methods = () if isinstance(method, Mapping) else ensure_tuple(method)
        if self.point_spreads is not None and fwhm is not None:
            raise ValueError(f"fwhm is {fwhm} beside point spreads that are drawn: give their range of width instead")
        self.fwhm = fwhm
        self.noise_std = noise_std
        self.psf_key = psf_key
        self.params: dict = {}
        self.psf = encode_point_spread(None)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandDegraded:
        super().set_random_state(seed, state)
        if self.point_spreads is not None:
            self.point_spreads.set_random_state(state=self.R)
        return self

    def randomize(self, data: object = None) -> None:
        method, fwhm = self._point_spread()
        self.params = {
            "factors": self.factors,
            "method": method,
            "fwhm": fwhm,
            "noise_std": float(self.R.uniform(*self.noise_std)),
            "noise_seed": int(self.R.randint(2**31)),
        }
        told = point_spread_of(method, fwhm, max(ensure_tuple(self.factors)))
        self.psf = encode_point_spread(told if self.point_spreads is None else self.point_spreads.told)

    def _point_spread(self) -> tuple[str | PointSpread, float | None]:
        """Method and width; one method, like one width, draws no number, so that what comes next is always the same."""
        if self.point_spreads is not None:
            self.point_spreads.randomize()
            return self.point_spreads.point_spread, None
        method = self.methods[int(self.R.randint(len(self.methods)))] if len(self.methods) > 1 else self.methods[0]
        if self.fwhm is None or (method != "gaussian" and "gaussian" in self.methods):
            return method, None
        low, high = self.fwhm
        return method, float(low) if low == high else float(self.R.uniform(low, high))

    def __call__(self, data: Mapping[Hashable, object], randomize: bool = True) -> dict[Hashable, object]:
        d = dict(data)
        if randomize:
            self.randomize()
        labels, images = self.pairs(convert_to_tensor(d[self.key])[None], [self.params])
        return d | {self.key: labels[0], self.image_key: images[0], self.psf_key: self.psf}

    def pairs(self, labels: torch.Tensor, drawn: Sequence[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """Crop high-resolution images [B, C, *spatial], and degrade each by its ``params``; both are returned."""
        images = degrade_batch(labels, self.factors, drawn)
        for axis, size in enumerate(_kept(labels.shape[2:], ensure_tuple_rep(self.factors, labels.ndim - 2)), start=2):
            labels = labels.narrow(axis, 0, size)
        return labels, images
