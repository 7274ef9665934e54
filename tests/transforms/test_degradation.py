"""Degradations against their definitions: torch's bicubic, scipy's Gaussian, block means, Fourier series."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d

from medsr_monai.transforms import (
    METHODS,
    RandDegraded,
    degrade,
    describe_degradation,
    sampling_matrix,
)


@pytest.fixture
def image():
    return torch.rand(2, 24, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_is_torch_without_antialiasing(image, factor):
    expected = F.interpolate(image[None], scale_factor=1 / factor, mode="bicubic", antialias=False)[0]
    torch.testing.assert_close(degrade(image, factor), expected, rtol=0, atol=1e-12)
    single = degrade(image.float(), factor)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, expected.float(), rtol=0, atol=1e-6)


def test_bicubic_taps_at_x4():
    matrix = sampling_matrix(16, 4, "bicubic")
    expected = torch.zeros(16, dtype=torch.float64)
    expected[4:8] = torch.tensor([-0.09375, 0.59375, 0.59375, -0.09375])
    torch.testing.assert_close(matrix[1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gaussian_is_the_protocol(axis):
    """data/README.md: gaussian_filter1d, sigma 4/2.3548, reflect, linear at the positions 4i + 1.5."""
    volume = np.random.default_rng(1).random((20, 24, 16))
    blurred = np.moveaxis(gaussian_filter1d(volume, 4 / 2.3548, axis=axis, mode="reflect"), axis, 0)
    positions = 4 * np.arange(volume.shape[axis] // 4) + 1.5
    expected = np.apply_along_axis(lambda line: np.interp(positions, np.arange(line.size), line), 0, blurred)
    factors = [4 if a == axis else 1 for a in range(3)]
    low = degrade(torch.tensor(volume)[None], factors, "gaussian")[0].numpy()
    np.testing.assert_allclose(low, np.moveaxis(expected, 0, axis), rtol=0, atol=1e-5)


def test_gaussian_of_odd_factor_and_own_width():
    line = np.random.default_rng(2).random(30)
    expected = gaussian_filter1d(line, 2.0 / np.sqrt(8 * np.log(2)), mode="reflect")[1::3]
    low = degrade(torch.tensor(line)[None], 3, "gaussian", fwhm=2.0)[0].numpy()
    np.testing.assert_allclose(low, expected, rtol=0, atol=1e-12)
    assert not np.allclose(low, degrade(torch.tensor(line)[None], 3, "gaussian")[0])


def test_gaussian_on_an_image_smaller_than_its_kernel():
    line = np.array([1.0, 5.0, 2.0, 4.0])
    expected = gaussian_filter1d(line, 4 / np.sqrt(8 * np.log(2)), mode="reflect")[1:3].mean()
    assert float(degrade(torch.tensor(line)[None], 4, "gaussian")) == pytest.approx(expected, abs=1e-12)


def test_box_by_hand():
    low = degrade(torch.arange(8.0).reshape(1, 2, 4), 2, "box")
    assert low.tolist() == [[[2.5, 4.5]]]


@pytest.mark.parametrize(("size", "factor"), [(32, 4), (36, 4), (30, 3), (28, 2)])
def test_kspace_reproduces_what_is_band_limited(size, factor):
    small = size // factor
    n = torch.arange(size, dtype=torch.float64) + 0.5
    m = torch.arange(small, dtype=torch.float64) + 0.5
    for k in range((small - 1) // 2 + 1):
        for phase in (0.0, 0.7):
            low = degrade(torch.cos(2 * torch.pi * k * n / size + phase)[None], factor, "kspace")[0]
            expected = torch.cos(2 * torch.pi * k * m / small + phase)
            torch.testing.assert_close(low, expected, rtol=0, atol=1e-10)
    beyond = torch.cos(2 * torch.pi * (small // 2 + 1) * n / size)
    assert float(degrade(beyond[None], factor, "kspace").abs().max()) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_constant_in_constant_out(method):
    low = degrade(torch.full((1, 13, 9, 8), 3.25, dtype=torch.float64), (4, 3, 2), method)
    torch.testing.assert_close(low, torch.full((1, 3, 3, 4), 3.25, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_mirror_symmetric_and_separable(image, method):
    low = degrade(image, 4, method)
    torch.testing.assert_close(degrade(image.flip(1), 4, method), low.flip(1), rtol=0, atol=1e-12)
    one_by_one = degrade(degrade(image, (1, 4), method), (4, 1), method)
    torch.testing.assert_close(one_by_one, low, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_factor_one_is_identity(image, method):
    assert torch.equal(degrade(image, 1, method), image)
    assert torch.equal(degrade(image, (1, 4), method)[:, :1], degrade(image[:, :1], (1, 4), method))


@pytest.mark.parametrize("method", METHODS)
def test_far_end_is_cropped(image, method):
    """27 x 31 is degraded as its first 24 x 28."""
    large = F.pad(image, (0, 0, 0, 3), value=9.0)[:, :, :31]
    torch.testing.assert_close(degrade(large, 4, method), degrade(large[:, :24, :28], 4, method), rtol=0, atol=0)


def test_input_is_untouched(image):
    before = image.clone()
    degrade(image, 4, noise_std=0.1)
    assert torch.equal(image, before)


def test_noise_by_seed(image):
    clean = degrade(image, 2)
    noisy = degrade(image, 2, noise_std=0.1, noise_seed=3)
    assert torch.equal(noisy, degrade(image, 2, noise_std=0.1, noise_seed=3))
    assert not torch.equal(noisy, degrade(image, 2, noise_std=0.1, noise_seed=4))
    torch.testing.assert_close((noisy - clean) * 2, degrade(image, 2, noise_std=0.2, noise_seed=3) - clean)
    big = degrade(torch.zeros(1, 400, 400), 2, noise_std=0.1, noise_seed=0)
    assert float(big.std()) == pytest.approx(0.1, rel=0.02)
    assert abs(float(big.mean())) < 2e-3


def test_matrix_rows_sum_to_one():
    for method in METHODS:
        rows = sampling_matrix(24, 6, method).sum(dim=1)
        torch.testing.assert_close(rows, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "nearest"}, "'nearest', expected one of bicubic, gaussian, box, kspace"),
        ({"fwhm": 3.0}, "fwhm is 3.0 for 'bicubic'"),
        ({"method": "gaussian", "fwhm": 0.0}, "fwhm is 0.0"),
        ({"method": "gaussian", "fwhm": -1.0}, "fwhm is -1.0"),
        ({"factors": (1, 50)}, r"shape \(24, 36\) is smaller than the factors \(1, 50\)"),
        ({"factors": 0}, r"factors are \(0, 0\)"),
        ({"factors": (2, -1)}, r"factors are \(2, -1\)"),
    ],
)
def test_refusals(image, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        degrade(image, **({"factors": 4} | arguments))
    assert "\n" not in str(caught.value)


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"torch\.int16.*float32"):
        degrade(torch.zeros(1, 8, 8, dtype=torch.int16), 4)


def test_rand_degraded_draws_once_and_replays():
    transform = RandDegraded(factors=4, method="gaussian", fwhm=(3.0, 6.0), noise_std=(0.01, 0.05))
    transform.set_random_state(seed=5)
    label = torch.rand(1, 26, 21)
    first = transform({"label": label})
    drawn = dict(transform.params)
    assert 3.0 <= drawn["fwhm"] <= 6.0 and 0.01 <= drawn["noise_std"] <= 0.05
    assert first["label"].shape == (1, 24, 20) and first["image"].shape == (1, 6, 5)
    assert torch.equal(first["label"], label[:, :24, :20])
    replayed = transform({"label": label}, randomize=False)
    assert torch.equal(replayed["image"], first["image"]) and transform.params == drawn
    assert torch.equal(degrade(label, **drawn), first["image"])
    assert torch.equal(degrade(first["label"], **drawn), first["image"])

    second = transform({"label": label})
    assert transform.params["fwhm"] != drawn["fwhm"] and transform.params["noise_seed"] != drawn["noise_seed"]
    assert not torch.equal(second["image"], first["image"])
    again = RandDegraded(factors=4, method="gaussian", fwhm=(3.0, 6.0), noise_std=(0.01, 0.05))
    again.set_random_state(seed=5)
    assert torch.equal(again({"label": label})["image"], first["image"])


def test_rand_degraded_by_default_is_the_papers():
    label = torch.rand(1, 24, 24)
    item = RandDegraded(factors=[1, 4])({"label": label})
    assert torch.equal(item["image"], degrade(label, (1, 4), "bicubic"))
    assert item["image"].shape == (1, 24, 6)


def test_rand_degraded_draws_one_of_several_methods():
    transform = RandDegraded(factors=4, method=["gaussian", "box"], fwhm=(3.0, 6.0))
    transform.set_random_state(seed=0)
    label = torch.rand(1, 24, 24)
    drawn = []
    for _ in range(200):
        item = transform({"label": label})
        drawn.append((transform.params["method"], transform.params["fwhm"]))
        assert torch.equal(item["image"], degrade(label, 4, drawn[-1][0], fwhm=drawn[-1][1]))
    widths = [width for method, width in drawn if method == "gaussian"]
    assert 70 < len(widths) < 130 and min(widths) < 3.3 and max(widths) > 5.7
    assert all(width is None for method, width in drawn if method == "box")
    with pytest.raises(ValueError, match=r"fwhm is .* for '(kspace|box)'"):
        RandDegraded(factors=4, method=["kspace", "box"], fwhm=(3.0, 3.0))({"label": label})
    with pytest.raises(ValueError, match="'spline', expected one of"):
        RandDegraded(factors=4, method=["spline"])({"label": label})
    assert describe_degradation(["gaussian", "box"], [2, 6], 0.02) == "gaussian or box, fwhm 2 to 6, noise 0.02"


@pytest.mark.parametrize(("size", "small"), [(242, 44), (33, 6), (10, 7), (9, 9)])
def test_any_ratio(size, small):
    """Thick samples between two fine ones: the same definitions, centres by the outer faces."""
    line = np.random.default_rng(3).random(size)
    factor = size / small
    centres = (np.arange(small) + 0.5) * factor - 0.5
    blurred = gaussian_filter1d(line, factor / np.sqrt(8 * np.log(2)), mode="reflect")
    values = {method: (sampling_matrix(size, small, method) @ torch.tensor(line)).numpy() for method in METHODS}
    np.testing.assert_allclose(values["gaussian"], np.interp(centres, np.arange(size), blurred), rtol=0, atol=1e-12)
    bicubic = F.interpolate(torch.tensor(line)[None, None, None], size=(1, small), mode="bicubic")[0, 0, 0]
    np.testing.assert_allclose(values["bicubic"], bicubic, rtol=0, atol=1e-12)
    integral = np.interp(factor * np.arange(small + 1), np.arange(size + 1), np.concatenate([[0], line.cumsum()]))
    np.testing.assert_allclose(values["box"], np.diff(integral) / factor, rtol=0, atol=1e-12)
    wave = np.cos(2 * np.pi * (np.arange(size) + 0.5) / size + 0.7)
    expected = np.cos(2 * np.pi * (np.arange(small) + 0.5) / small + 0.7)
    np.testing.assert_allclose(sampling_matrix(size, small, "kspace") @ torch.tensor(wave), expected, atol=1e-10)


@pytest.mark.parametrize("small", [0, 9])
def test_more_samples_are_no_degradation(small):
    with pytest.raises(ValueError, match=f"8 samples cannot be degraded to {small}: expected 1 to 8"):
        sampling_matrix(8, small, "box")


@pytest.mark.parametrize(
    ("size", "factor", "coarse", "kept"), [(100, 3.3, 30, 99), (64, 6.7, 9, 60), (64, 4.0, 16, 64), (66, 3.3, 20, 66)]
)
def test_a_factor_that_is_not_whole_keeps_the_nearest_multiple(size, factor, coarse, kept):
    image = torch.rand(1, 3, size, dtype=torch.float64)
    out = degrade(image, (1, factor), "box")
    assert out.shape == (1, 3, coarse)
    torch.testing.assert_close(out, image[..., :kept] @ sampling_matrix(kept, coarse, "box").T)
    pair = RandDegraded(factors=(1, factor), method="box")({"label": image})
    assert pair["label"].shape == (1, 3, kept) and torch.equal(pair["image"], out)
    assert abs(kept - coarse * factor) <= 0.5
