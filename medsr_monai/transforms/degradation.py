"""Low-resolution volumes from high-resolution ones: the papers' degradations, along any axes, corners kept.

Every degradation here is linear and separable, so it is one matrix per axis (:func:`sampling_matrix`), the same
for a patch, a slice or a volume.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_tensor, ensure_tuple, ensure_tuple_rep

from medsr_monai.transforms.geometry import with_corners_of
from medsr_monai.transforms.windows import to_device

__all__ = [
    "METHODS",
    "RandDegraded",
    "degradation_matrix",
    "degrade",
    "degrade_batch",
    "describe_degradation",
    "sampling_matrices",
    "sampling_matrix",
    "white_noise",
]

METHODS = ("bicubic", "gaussian", "box", "kspace")
FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))


def _gaussian_rows(size: int, rows: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Rows of the matrices that convolve with a sampled Gaussian (cut at 4 sigma), half-sample symmetric borders.

    Args:
        size: of the matrices.
        rows: whole numbers [R].
        sigmas: [B], float64.

    Returns:
        [B, R, size]
    """
    sigma = sigmas[:, None]
    radius = torch.floor(4 * sigma + 0.5)
    reach = int(radius.max())
    offsets = torch.arange(reach + 2, device=sigmas.device)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2).where(offsets <= radius, 0.0)  # the last one is 0
    weights = weights / (2 * weights.sum(dim=-1, keepdim=True) - weights[:, :1])
    places = torch.arange(size, device=sigmas.device)
    matrices = torch.zeros(len(sigmas), len(rows), size, dtype=sigmas.dtype, device=sigmas.device)
    # every sample and its images in the mirrors at both ends
    periods = -(-(reach + size) // (2 * size))
    for period in range(-periods, periods + 1):
        for images in (places, -1 - places):
            distances = (images + 2 * size * period - rows[:, None]).abs()
            matrices += weights[:, distances.clamp(max=reach + 1)]
    return matrices


@lru_cache(maxsize=64)
def sampling_matrix(size: int, small: int, method: str, fwhm: float | None = None) -> torch.Tensor:
    """Matrix [small, size] (float64) that turns ``size`` samples into ``small`` thick ones of the same outer faces.

    Thick sample ``i`` lies at ``(i + 0.5) * size / small - 0.5`` of the fine ones; the ratio, the factor below, need
    not be whole.

    Methods:
        - ``bicubic``: cubic convolution (A = -0.75) without antialiasing, as the RDST authors' code (OpenCV) and
          ``torch.nn.functional.interpolate`` make it;
        - ``gaussian``: a Gaussian slice profile of full width at half maximum ``fwhm`` (in high-resolution samples,
          default the factor), sampled at the centres, between fine samples linearly;
        - ``box``: mean of the block, whose first and last sample count by the part that lies in it;
        - ``kspace``: the central part of the spectrum (periodic), as a smaller acquisition matrix.

    Raises:
        ValueError: unknown method, ``small`` not in 1 to ``size``, or ``fwhm`` not positive or given to a method other
            than ``gaussian``.
    """
    if method not in METHODS:
        raise ValueError(f"degradation method is {method!r}, expected one of {', '.join(METHODS)}")
    if not 1 <= small <= size:
        raise ValueError(f"{size} samples cannot be degraded to {small}: expected 1 to {size}")
    if fwhm is not None and (method != "gaussian" or fwhm <= 0):
        raise ValueError(f"fwhm is {fwhm} for {method!r}: expected a positive width, with the method 'gaussian' only")
    factor = size / small
    if method == "bicubic":
        identity = torch.eye(size, dtype=torch.float64)
        columns = F.interpolate(identity[None, None], size=(small, size), mode="bicubic", align_corners=False)
        return columns[0, 0]
    if method == "box":
        faces = factor * np.arange(small + 1)[:, None]
        covered = np.clip(faces[1:], *(ends := (np.arange(size), np.arange(size) + 1))) - np.clip(faces[:-1], *ends)
        return torch.from_numpy(covered / factor)
    if method == "gaussian":
        return _slice_profiles(size, small, torch.tensor([fwhm or factor], dtype=torch.float64))[0]
    centres = (np.arange(small) + 0.5) * factor - 0.5
    # Fourier series of the kept frequencies, evaluated at the centres; an even matrix's highest frequency is dropped,
    # since it has no partner
    highest = (small - 1) // 2
    frequencies = np.arange(-highest, highest + 1)
    phases = 2 * np.pi / size * (centres[:, None] - np.arange(size))
    return torch.from_numpy(np.cos(phases[..., None] * frequencies).sum(axis=-1) / size)


def _slice_profiles(size: int, small: int, fwhms: torch.Tensor) -> torch.Tensor:
    """Gaussian slice profiles [B, small, size] of the widths [B], float64."""
    centres = (torch.arange(small, device=fwhms.device, dtype=torch.float64) + 0.5) * (size / small) - 0.5
    before = centres.floor().long()
    after = (before + 1).clamp(max=size - 1)
    share = (centres - before)[:, None]
    sigmas = fwhms * FWHM_TO_SIGMA
    return (1 - share) * _gaussian_rows(size, before, sigmas) + share * _gaussian_rows(size, after, sigmas)


@lru_cache(maxsize=64)
def _sampling_matrix_on(size: int, small: int, method: str, fwhm: float | None, device: torch.device) -> torch.Tensor:
    return sampling_matrix(size, small, method, fwhm).to(device)


def sampling_matrices(
    size: int, small: int, methods: Sequence[str], fwhms: Sequence[float | None], device: torch.device | str
) -> torch.Tensor:
    """:func:`sampling_matrix` for each image of a batch: [B, small, size], float64; [1, small, size] if all are alike.

    Args:
        methods: of each image.
        fwhms: of each image.
        device: where the matrices are made, or kept: those without widths are made once.

    Raises:
        ValueError: see :func:`sampling_matrix`.
    """
    device = torch.device(device)
    pairs = list(zip(methods, fwhms, strict=True))
    if len(set(pairs)) == 1:
        return _sampling_matrix_on(size, small, *pairs[0], device)[None]
    matrices = torch.empty(len(pairs), small, size, dtype=torch.float64, device=device)
    for b, (method, fwhm) in enumerate(pairs):
        if fwhm is None:
            matrices[b] = _sampling_matrix_on(size, small, method, None, device)
        elif method != "gaussian" or fwhm <= 0 or not 1 <= small <= size:
            sampling_matrix(size, small, method, fwhm)  # which says what is wrong
    if drawn := [b for b, (_, fwhm) in enumerate(pairs) if fwhm is not None]:
        widths = torch.tensor([pairs[b][1] for b in drawn], dtype=torch.float64)
        matrices[drawn] = _slice_profiles(size, small, widths.to(device))
    return matrices


def degradation_matrix(size: int, factor: int, method: str, fwhm: float | None = None) -> torch.Tensor:
    """:func:`sampling_matrix` [size // factor, size] of a whole factor, whose errors it raises.

    Args:
        size: a multiple of ``factor``.

    Raises:
        ValueError: ``size`` is no multiple of ``factor``.
    """
    if factor < 1 or size < factor or size % factor:
        raise ValueError(f"size {size} is no multiple of the factor {factor}: crop it first")
    return sampling_matrix(size, size // factor, method, fwhm)


def degrade(
    image: torch.Tensor,
    factors: int | Sequence[int],
    method: str = "bicubic",
    *,
    fwhm: float | None = None,
    noise_std: float = 0.0,
    noise_seed: int = 0,
) -> torch.Tensor:
    """Low-resolution version of an image or volume.

    Args:
        image: [C, *spatial], float. A ``MetaTensor`` gets the affine that keeps its outer corners.
        factors: integer factor of each spatial axis, 1 to leave it alone. Where a size is no multiple of its factor,
            the far end is cropped to one; the corners are then those of the cropped image, and the spacing is exactly
            ``factor`` times the original one.
        method, fwhm: see :func:`sampling_matrix`, whose errors it raises.
        noise_std: standard deviation of additive white Gaussian noise, in the image's units.
        noise_seed: the same seed gives the same noise.

    Raises:
        ValueError: an image of integers, a factor below 1, or an image smaller than its factors.

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
    images: torch.Tensor, factors: int | Sequence[int], drawn: Sequence[Mapping[str, object]]
) -> torch.Tensor:
    """Low-resolution versions of a batch of images, each degraded in its own way.

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
        raise ValueError(f"factors are {factors}: expected integers of at least 1, 1 to leave an axis alone")
    kept = _kept(images.shape[2:], factors)
    if min(kept) == 0:
        raise ValueError(
            f"image of shape {tuple(images.shape[2:])} is smaller than the factors {factors}: use smaller factors"
        )
    methods, fwhms = [one["method"] for one in drawn], [one["fwhm"] for one in drawn]
    out = images
    for axis, (size, factor) in enumerate(zip(kept, factors, strict=True), start=2):
        if factor > 1:
            matrices = sampling_matrices(size, size // factor, methods, fwhms, out.device).to(out).mT
            matrices = matrices[0] if len(matrices) == 1 else matrices.unflatten(0, (-1, *[1] * (out.ndim - 3)))
            out = torch.movedim(torch.movedim(out.narrow(axis, 0, size), axis, -1) @ matrices, -1, axis)
    if any(one["noise_std"] for one in drawn):
        noise = torch.stack([white_noise(one, out.shape[1:]) for one in drawn])
        out = out + to_device(noise.to(out.dtype), out.device)
    return out.contiguous()


def _kept(sizes: Sequence[int], factors: Sequence[int]) -> list[int]:
    """The sizes cropped to multiples of the factors."""
    return [size // factor * factor for size, factor in zip(sizes, factors, strict=True)]


def white_noise(drawn: Mapping[str, object], shape: Sequence[int]) -> torch.Tensor:
    """Gaussian noise (float64, on the CPU) of the ``noise_std`` and ``noise_seed`` that were drawn."""
    generator = torch.Generator().manual_seed(drawn["noise_seed"])
    return drawn["noise_std"] * torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def describe_degradation(
    method: str | Sequence[str], fwhm: float | Sequence[float] | None = None, noise_std: float | Sequence[float] = 0.0
) -> str:
    """A degradation as a table names it, such as "gaussian, fwhm 5, noise 0.02"; ranges: "3 to 5", "box or bicubic"."""
    parts = [" or ".join(ensure_tuple(method))]
    for name, value in (("fwhm", fwhm), ("noise", noise_std)):
        ends = [] if value is None else list(dict.fromkeys(np.atleast_1d(value).tolist()))
        if any(ends):
            parts.append(f"{name} {' to '.join(f'{end:g}' for end in ends)}")
    return ", ".join(parts)


class RandDegraded(Randomizable, MapTransform):
    """Make a training pair: crop ``label`` to multiples of the factors and write its degraded version to ``image``.

    Pairs must be made this way round: cropping an HR and an LR volume at the same voxels shows two different places.

    What was drawn lies in ``params``, keyword arguments of :func:`degrade`; calling with ``randomize=False`` replays
    it. Both images are plain tensors: for a volume with its affine, call :func:`degrade`. An item is a batch of one,
    see :meth:`pairs`.

    Args:
        keys: the high-resolution image (one key), [C, *spatial].
        image_key: where the low-resolution image goes.
        factors: see :func:`degrade`.
        method: see :func:`degrade`; of several, one is drawn for each image.
        fwhm: range (low, high) in samples that the Gaussian's width is drawn from, or None for the factor; of several
            methods, only "gaussian" has it.
        noise_std: range (low, high) that the noise level is drawn from.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        image_key: str = "image",
        *,
        factors: int | Sequence[int],
        method: str | Sequence[str] = "bicubic",
        fwhm: tuple[float, float] | None = None,
        noise_std: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__(keys)
        (self.key,) = self.keys
        self.image_key = image_key
        self.factors = factors
        self.methods = ensure_tuple(method)
        self.fwhm = fwhm
        self.noise_std = noise_std
        self.params: dict = {}

    def randomize(self, data: object = None) -> None:
        # one method, like one width, draws no number, so that what is drawn next is the same whatever it is
        method = self.methods[int(self.R.randint(len(self.methods)))] if len(self.methods) > 1 else self.methods[0]
        has_width = method == "gaussian" or "gaussian" not in self.methods
        self.params = {
            "factors": self.factors,
            "method": method,
            "fwhm": self._width() if has_width else None,
            "noise_std": float(self.R.uniform(*self.noise_std)),
            "noise_seed": int(self.R.randint(2**31)),
        }

    def _width(self) -> float | None:
        if self.fwhm is None:
            return None
        low, high = self.fwhm
        return float(low) if low == high else float(self.R.uniform(low, high))

    def __call__(self, data: Mapping[Hashable, object], randomize: bool = True) -> dict[Hashable, object]:
        d = dict(data)
        if randomize:
            self.randomize()
        labels, images = self.pairs(convert_to_tensor(d[self.key])[None], [self.params])
        return d | {self.key: labels[0], self.image_key: images[0]}

    def pairs(self, labels: torch.Tensor, drawn: Sequence[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """High-resolution images [B, C, *spatial], cropped, and their degraded versions, by the ``params`` of each."""
        images = degrade_batch(labels, self.factors, drawn)
        for axis, size in enumerate(_kept(labels.shape[2:], ensure_tuple_rep(self.factors, labels.ndim - 2)), start=2):
            labels = labels.narrow(axis, 0, size)
        return labels, images
