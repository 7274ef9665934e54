"""PSNR and SSIM of 2D slices, as the evaluations of the RDST and TransMRSR papers compute them with scikit-image.

RDST's are :func:`psnr` and :func:`ssim`, which leave out a border and take a uniform window. TransMRSR's are
:func:`padded_psnr` and :func:`padded_ssim`, of slices padded to a square.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

__all__ = [
    "PSNRSlices",
    "PaddedPSNRSlices",
    "PaddedSSIMSlices",
    "SSIMSlices",
    "padded_psnr",
    "padded_ssim",
    "psnr",
    "ssim",
]

SSIM_WINDOW = 7
"""Side of the uniform window of :func:`ssim`, in pixels."""
GAUSSIAN_SIGMA, GAUSSIAN_WINDOW = 1.5, 11
"""Standard deviation and side of the Gaussian window of :func:`padded_ssim`, in pixels."""


def _inner(image: torch.Tensor | np.ndarray, border: int) -> np.ndarray:
    array = torch.as_tensor(image).detach().cpu().double().numpy()
    if min(array.shape[-2:]) < 2 * border + SSIM_WINDOW:
        raise ValueError(
            f"a slice of {array.shape[-2]}x{array.shape[-1]} pixels is too small for a {SSIM_WINDOW}x{SSIM_WINDOW} "
            f"window inside a border of {border}: use larger slices or a smaller border"
        )
    return array[..., border : array.shape[-2] - border, border : array.shape[-1] - border]


def psnr(
    pred: torch.Tensor | np.ndarray, label: torch.Tensor | np.ndarray, border: int = 4, data_range: float = 1.0
) -> float:
    """Return the peak signal-to-noise ratio in dB of one slice; ``inf`` if both are equal.

    Args:
        pred, label: result and reference [..., H, W], which are not clipped.
        border: pixels left out at every side.
        data_range: range of the intensities of the label's volume.

    Raises:
        ValueError: inside the border the slice is smaller than 7 pixels, the side of SSIM's window.
    """
    return _psnr(_inner(pred, border), _inner(label, border), data_range)


def _psnr(pred: np.ndarray, label: np.ndarray, data_range: float) -> float:
    if np.array_equal(pred, label):
        return float("inf")
    return float(peak_signal_noise_ratio(label, pred, data_range=data_range))


def ssim(
    pred: torch.Tensor | np.ndarray, label: torch.Tensor | np.ndarray, border: int = 4, data_range: float = 1.0
) -> float:
    """Return the structural similarity of one slice [H, W], or the mean over channels [C, H, W].

    The window is uniform, 7x7. Arguments and errors are those of :func:`psnr`.
    """
    pred, label = _inner(pred, border), _inner(label, border)
    axis = 0 if pred.ndim == 3 else None
    return float(structural_similarity(label, pred, data_range=data_range, win_size=SSIM_WINDOW, channel_axis=axis))


def _padded(image: torch.Tensor | np.ndarray, size: int, data_range: float) -> np.ndarray:
    """Clip a slice to [0, data_range] and put it, or what of it fits, into the middle of a square of zeros."""
    array = torch.as_tensor(image).detach().cpu().double().numpy().clip(0, data_range)
    if size < GAUSSIAN_WINDOW:
        raise ValueError(f"the padded size is {size}, expected {GAUSSIAN_WINDOW} or more: the side of SSIM's window")
    for axis in (-2, -1):
        lacking = size - array.shape[axis]
        if lacking < 0:
            array = array.take(range(-lacking // 2, -lacking // 2 + size), axis)
        else:
            widths = np.zeros((array.ndim, 2), int)
            widths[axis] = lacking - lacking // 2, lacking // 2  # an odd number is split as the authors do
            array = np.pad(array, widths)
    return array


def padded_psnr(
    pred: torch.Tensor | np.ndarray, label: torch.Tensor | np.ndarray, size: int = 256, data_range: float = 1.0
) -> float:
    """Return the peak signal-to-noise ratio in dB of one slice padded with zeros to a square; ``inf`` for equal ones.

    The zeros, equal in both, count: a slice of 181 x 217 in a square of 256 gains 2.2 dB. Use this for the comparison
    with published figures, and :func:`psnr` for the slice alone.

    Args:
        pred, label: result and reference [..., H, W], which are clipped to [0, data_range].
        size: side of the square in pixels, 11 or more; of a larger slice the centre is taken.
        data_range: range of the intensities of the label's volume.

    Raises:
        ValueError: the square is smaller than SSIM's window.

    Source: TransMRSR's authors' code.
    """
    return _psnr(_padded(pred, size, data_range), _padded(label, size, data_range), data_range)


def padded_ssim(
    pred: torch.Tensor | np.ndarray, label: torch.Tensor | np.ndarray, size: int = 256, data_range: float = 1.0
) -> float:
    """Return the structural similarity of a padded slice [H, W], or the mean over channels [C, H, W].

    The window is Gaussian, 11x11 with a standard deviation of 1.5 pixels, and counts where it lies inside the square.
    Arguments and errors are those of :func:`padded_psnr`.

    Source: TransMRSR's authors' code.
    """
    pred, label = _padded(pred, size, data_range), _padded(label, size, data_range)
    axis = 0 if pred.ndim == 3 else None
    gaussian = {"gaussian_weights": True, "sigma": GAUSSIAN_SIGMA, "use_sample_covariance": False}
    return float(structural_similarity(label, pred, data_range=data_range, channel_axis=axis, **gaussian))


class _SliceMetric(CumulativeIterationMetric):
    """The mean over all processes' slices of a function of two slices and an ``extent``: border or padded size."""

    def __init__(self, measure: Callable[..., float], extent: int, data_range: float) -> None:
        super().__init__()
        self.measure = measure
        self.extent = extent
        self.data_range = data_range

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        values = [self.measure(p, t, self.extent, self.data_range) for p, t in zip(y_pred, y, strict=True)]
        return torch.tensor(values, dtype=torch.float64, device=y_pred.device).unsqueeze(1)

    def aggregate(self) -> torch.Tensor:
        """Return the mean over all slices since the last reset."""
        return self.get_buffer().mean()


class PSNRSlices(_SliceMetric):
    """The mean of :func:`psnr` over slices [B, C, H, W]."""

    def __init__(self, border: int = 4, data_range: float = 1.0) -> None:
        super().__init__(psnr, border, data_range)


class SSIMSlices(_SliceMetric):
    """The mean of :func:`ssim` over slices [B, C, H, W]."""

    def __init__(self, border: int = 4, data_range: float = 1.0) -> None:
        super().__init__(ssim, border, data_range)


class PaddedPSNRSlices(_SliceMetric):
    """The mean of :func:`padded_psnr` over slices [B, C, H, W]."""

    def __init__(self, size: int = 256, data_range: float = 1.0) -> None:
        super().__init__(padded_psnr, size, data_range)


class PaddedSSIMSlices(_SliceMetric):
    """The mean of :func:`padded_ssim` over slices [B, C, H, W]."""

    def __init__(self, size: int = 256, data_range: float = 1.0) -> None:
        super().__init__(padded_ssim, size, data_range)
