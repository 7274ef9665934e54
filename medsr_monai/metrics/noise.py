"""The noise of a volume, estimated from the volume alone."""

from __future__ import annotations

import numpy as np
import pywt
from scipy.optimize import brentq
from scipy.stats import median_abs_deviation, rice
from skimage.filters import threshold_otsu

__all__ = ["estimate_noise"]

WAVELET = "db2"
"""The Daubechies wavelet with two vanishing moments, the one of skimage.restoration.estimate_sigma."""
MOST_SLICES = 64
"""At most this many slices, evenly spaced, are looked at."""
FEWEST = 256
"""A region needs at least this many wavelet coefficients, or no deviation is taken from it."""
FLAT = 1e-6
"""Wavelet coefficients below this part of the volume's range come from a masked background and are no noise."""
RAYLEIGH = float(rice.mean(0) / rice.std(0))
"""The mean of pure noise in a magnitude image divided by its standard deviation: 1.91."""


def estimate_noise(volume: np.ndarray, axis: int = 2) -> float | None:
    """Return the standard deviation of a volume's noise, in its units; None if there are too few voxels to tell.

    It is the median absolute deviation of the slices' finest diagonal wavelet coefficients, in which white noise keeps
    its deviation and smooth anatomy leaves next to nothing. Two regions are measured: below Otsu's threshold, since air
    has no texture, and of what lies above it the half with the weaker gradients. Texture only adds, so the smaller
    deviation counts. The noise of magnitude MR is Rician: near zero signal its deviation is 0.655 times that of the
    receiver's noise, which is corrected by the ratio of signal to deviation. Where air has values on both sides of
    zero, noise is additive and nothing is corrected. What a mask has made constant is left out.

    Texture that fills a volume, as after a degradation without antialiasing, is taken for noise. Noise that a scanner's
    filter has removed from the air, or that is stronger inside the body, is underestimated.

    Args:
        volume: finite voxels [X, Y, Z].
        axis: the array axis that runs across the slices.

    Source: Donoho and Johnstone, Biometrika 81 (1994) (as ``skimage.restoration.estimate_sigma``, which takes whole
    slices); Coupe et al., Medical Image Analysis 14 (2010), for the regions and the Rician correction.
    """
    slices = np.moveaxis(np.asarray(volume), axis, 0)
    if len(slices) > MOST_SLICES:
        slices = slices[np.linspace(0, len(slices) - 1, MOST_SLICES).round().astype(int)]
    slices = slices.astype(float)
    span = float(np.ptp(slices))
    if not span or min(slices.shape[1:]) < 4:
        return None
    means, details = [], []
    for image in slices:
        approximation, (_, _, diagonal) = pywt.dwt2(image, WAVELET)
        means.append(approximation / 2)
        details.append(diagonal)
    mean, detail = np.stack(means), np.stack(details)
    steepness = np.hypot(*np.gradient(mean, axis=(1, 2)))
    noisy = np.abs(detail) > FLAT * span
    bright = mean > threshold_otsu(slices)
    away = noisy & bright
    if away.any():
        away &= steepness <= np.median(steepness[away])
    parts = [part for part in (away, noisy & ~bright) if part.sum() >= FEWEST]
    found = [_deviation(detail[part], mean[part]) for part in parts]
    return min(found, default=None)


def _deviation(detail: np.ndarray, mean: np.ndarray) -> float:
    """Return the receiver's noise, from wavelet coefficients and the local means beside them."""
    measured = float(median_abs_deviation(detail, scale="normal"))
    ratio = float(np.median(mean)) / measured if measured else np.inf
    if not 1 < ratio < 10:  # additive, or so far above zero that Rician noise is Gaussian
        return measured
    signal = brentq(lambda b: rice.mean(b) / rice.std(b) - ratio, 0, 20) if ratio > RAYLEIGH else 0.0
    return measured / float(rice.std(signal))
