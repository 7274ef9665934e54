"""PSNR and SSIM against scikit-image and by hand."""

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from medsr_monai.metrics import (
    PaddedPSNRSlices,
    PaddedSSIMSlices,
    PSNRSlices,
    SSIMSlices,
    padded_psnr,
    padded_ssim,
    psnr,
    ssim,
)


def pair(seed=0, shape=(40, 33)):
    rng = np.random.default_rng(seed)
    label = rng.random(shape)
    return label + rng.normal(0, 0.05, shape), label


def test_psnr_by_hand():
    label = torch.zeros(20, 20)
    assert psnr(label + 0.1, label) == pytest.approx(20, abs=1e-5)
    assert psnr(label + 0.1, label, data_range=2.0) == pytest.approx(20 + 20 * math.log10(2), abs=1e-5)
    assert psnr(label, label) == math.inf


@pytest.mark.parametrize("border", [0, 4, 9])
def test_equal_scikit_image(border):
    pred, label = pair()
    inner = (slice(border, 40 - border), slice(border, 33 - border))
    expected = peak_signal_noise_ratio(label[inner], pred[inner], data_range=1.0)
    assert psnr(pred, label, border) == pytest.approx(expected, abs=1e-9)
    expected = structural_similarity(label[inner], pred[inner], data_range=1.0, win_size=7)
    assert ssim(pred, label, border) == pytest.approx(expected, abs=1e-12)
    assert ssim(torch.tensor(pred), MetaTensor(torch.tensor(label)), border) == pytest.approx(expected, abs=1e-12)


def test_ssim_by_hand():
    """Two constants a and b: only the luminance term is left."""
    a, b, c1 = 0.5, 0.6, 0.01**2
    value = ssim(torch.full((20, 20), a), torch.full((20, 20), b))
    assert value == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-6)
    assert ssim(torch.full((20, 20), a), torch.full((20, 20), a)) == pytest.approx(1)


@pytest.mark.parametrize("border", [0, 4])
def test_border_is_left_out(border):
    pred, label = pair()
    spoilt = pred.copy()
    for edge in (np.s_[:4], np.s_[-4:], np.s_[:, :4], np.s_[:, -4:]):
        spoilt[edge] = 100
    assert (psnr(spoilt, label, border) == psnr(pred, label, border)) == (border == 4)
    assert (ssim(spoilt, label, border) == ssim(pred, label, border)) == (border == 4)


def test_nothing_is_clipped():
    label = torch.ones(20, 20)
    assert psnr(label + 0.1, label) == pytest.approx(20, abs=1e-4)


def test_data_range_of_ssim():
    pred, label = pair()
    assert ssim(pred * 1000, label * 1000, data_range=1000) == pytest.approx(ssim(pred, label), abs=1e-9)


def test_channels_are_averaged():
    pairs = [pair(seed) for seed in range(3)]
    pred, label = (np.stack(x) for x in zip(*pairs, strict=True))
    assert ssim(pred, label) == pytest.approx(np.mean([ssim(p, t) for p, t in pairs]), abs=1e-12)


def test_too_small_slices():
    with pytest.raises(ValueError, match="a slice of 14x30 pixels is too small for a 7x7 window inside a border of 4"):
        ssim(torch.rand(14, 30), torch.rand(14, 30))
    psnr(torch.rand(15, 30), torch.rand(15, 30))


@pytest.mark.parametrize(("metric", "function"), [(PSNRSlices, psnr), (SSIMSlices, ssim)])
def test_metric_is_the_mean_over_all_slices(metric, function):
    """Also where batches are of unequal length: the mean of batch means would differ."""
    pairs = [pair(seed) for seed in range(7)]
    pred, label = (torch.tensor(np.stack(x))[:, None] for x in zip(*pairs, strict=True))
    pred[0] += 0.3
    expected = [function(p, t) for p, t in zip(pred[:, 0], label[:, 0], strict=True)]
    cumulative = metric()
    for _ in range(2):
        for start, stop in ((0, 1), (1, 5), (5, 7)):
            values = cumulative(pred[start:stop], label[start:stop])
            assert values.flatten().tolist() == pytest.approx(expected[start:stop])
        assert float(cumulative.aggregate()) == pytest.approx(np.mean(expected), abs=1e-9)
        cumulative.reset()


def test_metric_options():
    pred, label = (torch.tensor(x)[None, None] for x in pair())
    assert float(PSNRSlices(border=0, data_range=2.0)(pred, label)) == pytest.approx(psnr(pred, label, 0, 2.0))
    assert float(SSIMSlices(border=0, data_range=2.0)(pred, label)) == pytest.approx(ssim(pred[0], label[0], 0, 2.0))


def test_padding_counts_as_equal():
    label = torch.zeros(1, 20, 10)
    # a mean squared error of 0.01 over 200 of 1600 pixels
    assert padded_psnr(label + 0.1, label, size=40) == pytest.approx(20 + 10 * math.log10(8))
    assert padded_psnr(label - 0.1, label, size=40) == math.inf  # clipped
    assert padded_psnr(label, label, size=40) == math.inf


@pytest.mark.parametrize("shape", [(21, 30), (40, 37), (50, 24), (57, 45)])
def test_padded_square_by_hand(shape):
    """One more line before than after where they are odd; the centre of larger slices."""
    pred, label = np.random.default_rng(0).uniform(-0.2, 1.2, (2, *shape))
    square = []
    for image in (pred, label):
        place = np.zeros((60, 60))
        top, left = (math.ceil((60 - n) / 2) for n in shape)
        place[top : top + shape[0], left : left + shape[1]] = image.clip(0, 1)
        square.append(place)
    for size in (60, 40):
        margin = (60 - size) // 2
        a, b = (place[margin : 60 - margin, margin : 60 - margin] for place in square)
        if all((60 - n) % 2 == 0 for n in shape) or size == 60:
            assert padded_psnr(pred, label, size) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1))
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = structural_similarity(*square[::-1], data_range=1, full=True, **gaussian)[1][5:-5, 5:-5].mean()
    assert padded_ssim(pred, label, 60) == pytest.approx(expected)
    with pytest.raises(ValueError, match="the padded size is 10, expected 11 or more"):
        padded_psnr(pred, label, 10)


def test_padded_metrics_are_means():
    pred, label = torch.rand(2, 3, 1, 20, 24)
    for metric, function in ((PaddedPSNRSlices(32), padded_psnr), (PaddedSSIMSlices(32), padded_ssim)):
        metric(pred, label)
        expected = np.mean([function(p, t, 32) for p, t in zip(pred, label, strict=True)])
        assert float(metric.aggregate()) == pytest.approx(expected)
