"""Power and correlation above the low-resolution grid's Nyquist frequency, by hand."""

import math

import pytest
import torch

from medsr_monai.metrics import high_frequency_figures
from medsr_monai.transforms import degrade, resample


def waves(rows, columns, size=64):
    """A wave of so many cycles a pixel along each axis, about 1."""
    y, x = torch.meshgrid(torch.arange(size).double(), torch.arange(size).double(), indexing="ij")
    return (1 + torch.cos(2 * math.pi * (rows * y + columns * x)))[None]


def texture(seed=0, size=64):
    """Rough tissue: white noise, smoothed a little."""
    image = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(image, 3, 1, 1)[0]


def test_the_reference_itself_is_1_and_half_of_it_a_quarter():
    label = texture()
    assert high_frequency_figures(label, label, (4, 4)) == pytest.approx({"hf_power": 1, "hf_correlation": 1})
    half = high_frequency_figures(0.5 * label, label, (4, 4))
    # the half of the mean that is lacking is low in frequency
    assert half == pytest.approx({"hf_power": 0.25, "hf_correlation": 1}, rel=1e-3)
    assert high_frequency_figures(-label, label, (4, 4))["hf_correlation"] == pytest.approx(-1, rel=1e-3)


@pytest.mark.parametrize(("factors", "wave", "inside"), [
    ((4, 4), (0.25, 0), True), ((4, 4), (0, 0.25), True), ((4, 4), (0.0625, 0.0625), False),
    ((1, 4), (0.25, 0), False), ((1, 4), (0, 0.25), True), ((4, 1), (0.25, 0), True), ((2, 2), (0.1875, 0), False),
])  # fmt: skip
def test_the_band_is_what_the_low_resolution_grid_cannot_hold(factors, wave, inside):
    """A wave of half the reference's strength in the band is a quarter of its power, one outside changes nothing."""
    label = waves(0.4375, 0.4375)
    found = high_frequency_figures(label + 0.5 * (waves(*wave) - 1), label, factors)["hf_power"]
    assert found == pytest.approx(1.25 if inside else 1, abs=2e-3)


def test_interpolation_is_less_and_noise_is_more():
    label = texture()
    small = degrade(label, 4)
    bicubic = torch.nn.functional.interpolate(small[None], scale_factor=4, mode="bicubic")[0]
    noise = 0.1 * torch.randn(label.shape, generator=torch.Generator().manual_seed(1))
    lost, noisy, other = (high_frequency_figures(p, label, (4, 4)) for p in (bicubic, label + noise, texture(1)))
    assert lost["hf_power"] < 0.5 and lost["hf_correlation"] < 0.5
    assert noisy["hf_power"] > 1.2 and 0.5 < noisy["hf_correlation"] < 0.95
    # as sharp, and wrong
    assert other["hf_power"] == pytest.approx(1, abs=0.2) and abs(other["hf_correlation"]) < 0.1
    both = high_frequency_figures(resample(degrade(label, (1, 4)), (64, 64)), label, (1, 4))
    assert both["hf_power"] < 0.3


def test_nothing_to_compare():
    label, flat = texture(), torch.full((1, 64, 64), 0.3)
    none = {"hf_power": None, "hf_correlation": None}
    assert high_frequency_figures(label, label, (1, 1)) == none
    assert high_frequency_figures(label, flat, (4, 4)) == none
    found = high_frequency_figures(flat, flat.clone(), (4, 4))
    assert found == none


def test_channels_count_together():
    label = torch.cat([texture(0), 3 * texture(1)])
    found = high_frequency_figures(torch.cat([label[:1], 0 * label[1:] + label[1:].mean()]), label, (4, 4))
    powers = [high_frequency_figures(one, label[:1], (4, 4))["hf_power"] for one in (label[:1], label[1:])]
    assert found["hf_power"] == pytest.approx(1 / sum(powers), rel=1e-2)
