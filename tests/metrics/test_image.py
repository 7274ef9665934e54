"""PSNR and SSIM against scikit-image and by hand."""

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from medsr_monai.metrics import PSNRSlices, SSIMSlices, psnr, ssim


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
