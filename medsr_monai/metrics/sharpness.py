"""How much of what a coarse grid cannot hold is in a slice, and how much of it is right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["high_frequency_figures"]

LEAST_SHARE = 1e-14
"""Of a slice's power: less is rounding."""


def high_frequency_figures(pred: Tensor, label: Tensor, factors: Sequence[int]) -> dict[str, float | None]:
    """Power and correlation of a result above the Nyquist frequency of the low-resolution grid.

    Both slices [C, H, W], less the reference's mean and windowed (Hann, along both axes), are Fourier transformed. The
    band is every frequency that the low-resolution grid has no room for: above 0.5 / factor cycles a pixel along an
    axis that was enlarged.

    - ``hf_power``: the result's power in the band in parts of the reference's: 1 for one that is as sharp, less for a
      blurred one. Noise and invented detail are power, too, and the reference's own noise is part of the 1;
    - ``hf_correlation``: Re sum(P conj(R)) / sqrt(sum |P|^2 sum |R|^2) over the band, -1 to 1: how much of what the
      result has there lies where the reference has it. Noise raises the power and lowers this one.

    Args:
        pred, label: slices of one shape.
        factors: by which rows and columns were enlarged; 1 leaves an axis out.

    Returns:
        None where there is nothing to divide by: no axis enlarged, or a slice without power in the band.

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
