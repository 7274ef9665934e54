"""The share of k-space that holds signal along an axis: what a scanner acquired, without what zero-filling added."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import uniform_filter, uniform_filter1d

__all__ = ["AxisSpectrum", "axis_spectrum"]

LEAST_RUN = 32
"""Stretches of tissue with fewer voxels have a spectrum that is too coarse to be judged."""
LINES = 4000
"""At most this many lines of voxels have their spectra averaged."""
BINS = 512
"""Spectra of lines of any length are given at multiples of 1 / BINS cycles a voxel."""
FOREGROUND = 0.15
"""Tissue begins at this share of the way from the background to the bright end of the intensities."""
FILL_SHARE = 0.05
"""A value that a larger share of voxels has was filled in, as a background, by skull-stripping or by a rotation."""
FALLS = (0.02, 0.04, 0.08, 0.12)
"""Widths of the fall at the border that are tried, in cycles a voxel: from a sharp border to that of a wide filter."""
BODY = 0.1
"""Width of the band inside the border, in cycles a voxel, whose slope counts as the spectrum's own."""
LEAST_BODY = 0.06
"""Least width of that band, in cycles a voxel, for a border at low frequencies."""
TAIL = 0.025
"""Width of the band outside the border, in cycles a voxel, whose level counts as that of the empty part."""
UNEVEN = 0.03
"""Frequency in cycles a voxel below which large organs make the spectrum uneven."""
LEAST_DROP = 6.5
"""The spectrum falls at a border by at least this many dB more than its own slope explains."""
LONG_RUN = 100
"""For shorter stretches of tissue, in voxels, LEAST_DROP grows in proportion, since their spectra are rougher."""
DEPTH = 25.0
"""The fall is followed down to this many dB below the signal; in data without noise it goes on and on."""
SHARP = 6.0
"""A sharp border, blurred by the Hann window, lies where the spectrum is this many dB below the signal."""
GENTLE = 0.3
"""A flank begins and ends where its descent is this share of the steepest."""
LARGEST_TAIL_SLOPE = 0.3
"""The empty part is flat if its slope is below this share of the border's."""


@dataclass(frozen=True)
class AxisSpectrum:
    """The mean power spectrum along one array axis, and the border of the signal in it.

    Attributes:
        judged: whether there were enough voxels of tissue in a row; if not, the rest says nothing.
        share: share of k-space that holds signal; 1 if no empty outer part was found.
        drop: how far the spectrum falls at the border beyond its own slope, in dB; 0 if no border was found.
        width: about how wide the fall is, in cycles a voxel; 0 if no border was found.
        frequency: frequencies of the spectrum in cycles a voxel, from 0 to 0.5.
        power: the spectrum in dB; white noise of variance 1 has 0 dB.
    """

    judged: bool
    share: float
    drop: float
    width: float
    frequency: np.ndarray
    power: np.ndarray

    @property
    def interpolated(self) -> bool:
        """Whether an empty outer part of k-space was found."""
        return self.share < 1

    def acquired(self, size: int) -> int:
        """Return how many of ``size`` samples hold all of the signal."""
        return round(self.share * size)


def axis_spectrum(volume: ArrayLike, axis: int) -> AxisSpectrum:
    """Find the share of k-space that holds signal along one axis of a magnitude image.

    A matrix that was zero-filled on the scanner, or a volume that was interpolated with a good filter, has a spectrum
    that falls to the level of noise or rounding below the Nyquist frequency and is flat from there on. This border is
    looked for in the mean power spectrum of lines of voxels along the axis. Each line is cut to its longest stretch of
    tissue and windowed (Hann), because what lies outside hides the border: the edges of skull-stripping, and the noise
    of air, which taking the magnitude spreads over all of k-space. A border counts if the spectrum falls there by more
    than LEAST_DROP dB beyond its own slope, however wide the filter. A spectrum that comes down to white noise
    gradually has no border, nor has one that falls up to the Nyquist frequency itself.

    Args:
        volume: real voxels [X, Y, Z] or [X, Y].
        axis: the array axis.

    Returns:
        The spectrum. Its share is exact to about one part in the length of the stretches, a few percent. Linear
        interpolation leaves no empty part and is not found.
    """
    frequency = np.arange(BINS // 2 + 1) / BINS
    lines, starts, lengths = _tissue_lines(np.asarray(volume), axis)
    if not len(lines):
        return AxisSpectrum(False, 1.0, 0.0, 0.0, frequency, np.full(len(frequency), -np.inf))
    power = _mean_power(lines, starts, lengths)
    if power.max() <= 0:
        return AxisSpectrum(False, 1.0, 0.0, 0.0, frequency, np.full(len(frequency), -np.inf))
    with np.errstate(divide="ignore"):
        # what float32 cannot hold is no signal
        level = 10 * np.log10(np.maximum(power, power.max() * 1e-13))
    share, drop, width = _border(frequency, level, float(np.median(lengths)))
    return AxisSpectrum(True, share, drop, width, frequency, level)


def _tissue_lines(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lines along the axis [N, size], and where in each the longest stretch of tissue begins and its length."""
    size = array.shape[axis]
    image = np.nan_to_num(np.moveaxis(array, axis, -1).astype(np.float32, copy=False), posinf=0, neginf=0)
    smooth = uniform_filter(image, min(5, *image.shape) if min(image.shape) > 1 else (*(1,) * (image.ndim - 1), 5))
    fill = _fill_value(image)
    sample = smooth.ravel()[:: max(1, smooth.size // 200_000)]
    low = np.percentile(sample, 1) if fill is None else min(fill, float(sample.max()))
    high = np.percentile(sample, 99)
    if fill is not None:
        high = max(high, low)
    tissue = smooth > low + FOREGROUND * (high - low)
    if fill is not None:
        tissue &= image != fill
    tissue, image = tissue.reshape(-1, size), image.reshape(-1, size)
    run, longest, end = (np.zeros(len(tissue), np.int32) for _ in range(3))
    for i in range(size):
        run = np.where(tissue[:, i], run + 1, 0)
        better = run > longest
        longest, end = np.where(better, run, longest), np.where(better, i + 1, end)
    enough = np.flatnonzero(longest >= LEAST_RUN)
    if len(enough):
        # long stretches show the border more sharply
        enough = enough[longest[enough] >= np.percentile(longest[enough], 67)]
        enough = enough[:: max(1, len(enough) // LINES)]
    return image[enough], (end - longest)[enough], longest[enough]


def _fill_value(image: np.ndarray) -> float | None:
    sample = image.ravel()[:: max(1, image.size // 200_000)]
    values, counts = np.unique(sample, return_counts=True)
    return float(values[counts.argmax()]) if counts.max() > FILL_SHARE * len(sample) else None


def _mean_power(lines: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    bins = max(BINS, 2 ** int(np.ceil(np.log2(lines.shape[1]))))
    place = np.arange(lines.shape[1]) - starts[:, None]
    inside = (place >= 0) & (place < lengths[:, None])
    window = np.where(inside, np.sin(np.pi * (place + 0.5) / lengths[:, None]) ** 2, 0)
    values = lines.astype(np.float64)
    values = (values - (values * window).sum(1, keepdims=True) / window.sum(1, keepdims=True)) * window
    values /= np.sqrt((window**2).sum(1, keepdims=True))
    power = (np.abs(np.fft.rfft(values, bins, axis=1)) ** 2).mean(0)
    step = bins // BINS
    return power[::step]


def _border(frequency: np.ndarray, level: np.ndarray, length: float) -> tuple[float, float, float]:
    """Return the share of the band that holds signal, the drop in dB and its width; (1, 0, 0) if there is no border."""
    blur = 2 / length  # half the main lobe of the Hann window, by which a border is blurred
    best = (LEAST_DROP * max(1.0, LONG_RUN / length), 0.0, 0.0, 0.0)
    for end in frequency[(frequency >= UNEVEN) & (frequency <= 0.5 - TAIL)]:
        outside = (frequency >= end) & (frequency <= end + TAIL)
        tail_slope, floor = np.polyfit(frequency[outside] - end, level[outside], 1)
        for begin in {end - max(fall, 2 * blur) for fall in FALLS}:
            body = (frequency >= max(begin - BODY, UNEVEN)) & (frequency <= begin)
            if begin - UNEVEN < max(LEAST_BODY, 3 * blur):
                continue
            slope, start = np.polyfit(frequency[body] - begin, level[body], 1)
            spread = np.std(level[body] - (start + slope * (frequency[body] - begin)))
            drop = start + min(slope, 0.0) * (end - begin) - floor
            flat = -tail_slope < LARGEST_TAIL_SLOPE * (start - floor) / (end - begin)
            if flat and drop > max(best[0], 3 * spread):
                best = (float(drop), float(end), float(begin), float(floor + drop))
    drop, end, begin, signal = best
    if not end:
        return 1.0, 0.0, 0.0
    level = np.maximum(level, signal - DEPTH)
    descent = -np.gradient(uniform_filter1d(level, max(5, round(0.75 * blur * BINS))), frequency)
    steepest = np.where((frequency >= begin) & (frequency <= end), descent, -np.inf).argmax()
    gentle = descent < GENTLE * descent[steepest]
    foot = frequency[steepest:][gentle[steepest:]]
    shoulder = frequency[:steepest][gentle[:steepest]]
    foot, shoulder = float(foot[0]) if len(foot) else end, float(shoulder[-1]) if len(shoulder) else begin
    if foot - shoulder < 2 * blur:
        # a sharp border is blurred to both sides: it lies where the level has come down a little
        high = frequency[(level > signal - SHARP) & (frequency <= foot)]
        border = float(high[-1]) if len(high) else shoulder
    else:
        # the foot of a filter's flank is the end of what was acquired
        border = foot - blur / 2
    return 2 * border, drop, foot - shoulder
