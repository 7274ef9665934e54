"""PSNR and SSIM of 2D slices, as the RDST paper's evaluation computes them (scikit-image's definitions)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

__all__ = ["PSNRSlices", "SSIMSlices", "psnr", "ssim"]

SSIM_WINDOW = 7


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
    """Peak signal-to-noise ratio in dB of one slice [..., H, W]; ``inf`` where both are equal.

    Args:
        pred, label: not clipped.
        border: pixels left out at every side.
        data_range: of the label's volume.
    """
    pred, label = _inner(pred, border), _inner(label, border)
    if np.array_equal(pred, label):
        return float("inf")
    return float(peak_signal_noise_ratio(label, pred, data_range=data_range))


def ssim(
    pred: torch.Tensor | np.ndarray, label: torch.Tensor | np.ndarray, border: int = 4, data_range: float = 1.0
) -> float:
    """Structural similarity of one slice [H, W] or the mean over channels [C, H, W]: uniform 7x7 window."""
    pred, label = _inner(pred, border), _inner(label, border)
    axis = 0 if pred.ndim == 3 else None
    return float(structural_similarity(label, pred, data_range=data_range, win_size=SSIM_WINDOW, channel_axis=axis))


class _SliceMetric(CumulativeIterationMetric):
    """Mean over slices of a function of two slices; gathers over processes."""

    measure: Callable[..., float]

    def __init__(self, border: int = 4, data_range: float = 1.0) -> None:
        super().__init__()
        self.border = border
        self.data_range = data_range

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        values = [type(self).measure(p, t, self.border, self.data_range) for p, t in zip(y_pred, y, strict=True)]
        return torch.tensor(values, dtype=torch.float64, device=y_pred.device).unsqueeze(1)

    def aggregate(self) -> torch.Tensor:
        """Mean over all slices since the last reset."""
        return self.get_buffer().mean()


class PSNRSlices(_SliceMetric):
    """Mean :func:`psnr` over slices [B, C, H, W]."""

    measure = staticmethod(psnr)


class SSIMSlices(_SliceMetric):
    """Mean :func:`ssim` over slices [B, C, H, W]."""

    measure = staticmethod(ssim)
