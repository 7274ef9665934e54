"""The noise estimate against phantoms whose noise is known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medsr_monai.metrics import estimate_noise

SIZE = (96, 96, 6)


def phantom(air: float = 0.0) -> np.ndarray:
    """A head of tissues with edges and a slow shading, in air."""
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in SIZE[:2])
    radius = np.hypot(rows[:, None] / 36, columns[None] / 30)
    image = np.where(radius < 1, 700.0 + 200 * (radius < 0.8) - 400 * (radius < 0.3), air)
    image[radius < 1] *= 1 + 0.1 * rows[:, None].repeat(SIZE[1], 1)[radius < 1] / 48
    return np.repeat(image[..., None], SIZE[2], axis=2)


def noisy(kind: str, sigma: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    first, second = (sigma * rng.standard_normal(SIZE) for _ in range(2))
    image = phantom()
    if kind == "rician":
        return np.hypot(image + first, second)
    if kind == "masked":  # as after skull stripping
        return np.where(image > 0, image + first, 0)
    if kind == "ct":
        return phantom(air=-1000) + first
    return image + first


@pytest.mark.parametrize("sigma", [5.0, 20.0, 60.0])
@pytest.mark.parametrize("kind", ["rician", "gaussian", "masked", "ct"])
def test_known_noise_is_found(kind, sigma):
    assert estimate_noise(noisy(kind, sigma)) == pytest.approx(sigma, rel=0.08)


def test_rician_noise_needs_its_correction():
    """Air alone has 0.655 of the receiver's deviation."""
    assert noisy("rician", 20.0)[:8].std() == pytest.approx(0.655 * 20, rel=0.03)


def test_slices_are_those_across_the_axis():
    """Noise that is the same in all slices is noise in these only."""
    image = np.repeat(noisy("gaussian", 20.0)[..., :1], 32, axis=2)
    assert estimate_noise(image, 2) == pytest.approx(20, rel=0.08)
    assert estimate_noise(image, 0) is None  # all coefficients are flat


def test_smooth_volumes_have_next_to_none():
    image = gaussian_filter(np.random.default_rng(0).random((64, 64, 5)), (4, 4, 0))
    assert estimate_noise(image) < 0.005 * np.ptp(image)


@pytest.mark.parametrize("image", [np.full((30, 30, 3), 7.0), np.random.default_rng(0).random((3, 30, 2))])
def test_too_little_to_tell(image):
    assert estimate_noise(image) is None
