"""Sharpness: how much detail that the coarse grid cannot hold is in a result, and how much of it is right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["high_frequency_figures"]

LEAST_SHARE = 1e-14
"""A band with less than this share of a slice's power holds nothing but rounding errors of float64."""


def high_frequency_figures(pred: Tensor, label: Tensor, factors: Sequence[int]) -> dict[str, float | None]:
    """Compare a result with its reference above the Nyquist frequency of the low-resolution grid.

    Both slices, less the reference's mean and windowed (Hann, along both axes), are Fourier transformed. The band holds
    every frequency that the low-resolution grid cannot: those above 0.5 / factor cycles a pixel along an axis that was
    enlarged.

    - ``hf_power``: the result's power in the band divided by the reference's. It is 1 for a result that is as sharp,
      and less for a blurred one. Noise and invented detail are power, too, and the reference's own noise is part of
      the 1;
    - ``hf_correlation``: Re sum(P conj(R)) / sqrt(sum |P|^2 sum |R|^2) over the band, -1 to 1: how much of what the
      result has there lies where the reference has it. Noise raises the power and lowers the correlation.

    Args:
        pred, label: result and reference, slices [C, H, W] of one shape.
        factors: the factors by which rows and columns were enlarged; 1 leaves an axis out.

    Returns:
        Both figures; None instead of one that has nothing to divide by, because no axis was enlarged or a slice has no
        power in the band.

    Source: the correlation is that of a Fourier ring (Saxton, Baumeister, Journal of Microscopy 127, 1982) with the
    band in place of a ring.
    """
    shape = label.shape[-2:]
    pairs = list(zip(shape, factors, strict=True))
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64).abs() > 0.5 / f if f > 1 else torch.zeros(n).bool()
                     for n, f in pairs)  # fmt: skip
    band = rows[:, None] | columns
    windows = [torch.hann_window(n + 2, periodic=False, dtype=torch.float64)[1:-1] for n in shape]
    window = windows[0][:, None] * windows[1]
    truth = label.double()
    mean = truth.mean(dim=(-2, -1), keepdim=True)
    ours, theirs = (torch.fft.fft2((image.double() - mean) * window) for image in (pred, truth))
    powers = [float(one.abs().square()[..., band].sum()) for one in (ours, theirs)]
    least = [LEAST_SHARE * float(one.abs().square().sum()) for one in (ours, theirs)]
    known = [power > few for power, few in zip(powers, least, strict=True)]
    common = float((ours * theirs.conj()).real[..., band].sum())
    return {
        "hf_power": powers[0] / powers[1] if known[1] else None,
        "hf_correlation": common / (powers[0] * powers[1]) ** 0.5 if all(known) else None,
    }
