"""The border of k-space: phantoms zero-filled by known factors, what must not be taken for one, real volumes."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medsr_monai.metrics import axis_spectrum
from medsr_monai.transforms import degrade, resample

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes of ../shared/data are not here")


@pytest.fixture(scope="module")
def head():
    """A head of many sharp ellipsoids, and where it is."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (128, 160, 6)), indexing="ij")
    inside = (x / 0.9) ** 2 + (y / 0.92) ** 2 + (z / 1.3) ** 2 < 1
    image = np.where(inside, 400.0, 0.0)
    for _ in range(150):
        centre, radius, angle = rng.uniform(-0.75, 0.75, 3), rng.uniform(0.03, 0.22, 2), rng.uniform(0, np.pi)
        u = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
        v = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
        part = (u / radius[0]) ** 2 + (v / radius[1]) ** 2 + ((z - centre[2]) / 0.5) ** 2 < 1
        image[part & inside] += rng.uniform(-120, 120)
    return np.clip(image, 20 * inside, None), inside


def zero_filled(image, factors, window="none", noise=0.0):
    """Magnitude image of which only the centre of k-space was acquired, and the shares of k-space that were."""
    rng = np.random.default_rng(1)
    acquired = [2 * round(n / f / 2) if f != 1 else n for n, f in zip(image.shape, factors, strict=True)]
    centre = tuple(slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(image.shape, acquired, strict=True))
    kept = np.fft.fftshift(np.fft.fftn(image))[centre]
    scatter = rng.standard_normal((2, *kept.shape))
    kept = kept + noise * np.sqrt(image.size) * (scatter[0] + 1j * scatter[1])
    for axis, (m, factor) in enumerate(zip(acquired, factors, strict=True)):
        place = np.abs(np.arange(m) - m // 2) / (m / 2)
        weights = {"none": np.ones(m), "hann": np.cos(np.pi / 2 * place) ** 2}.get(window)
        weights = 1 / (1 + np.exp((place - 0.85) / 0.04)) if weights is None else weights
        if factor != 1:
            kept = kept * weights.reshape([-1 if axis == i else 1 for i in range(image.ndim)])
    whole = np.zeros(image.shape, complex)
    whole[centre] = kept
    shares = [m / n for m, n in zip(acquired, image.shape, strict=True)]
    return np.abs(np.fft.ifftn(np.fft.ifftshift(whole))), shares


# a little above the largest errors found on these phantoms: 3.1, 4.6 and 5.6 %
TOLERANCE = {"none": 0.04, "fermi": 0.05, "hann": 0.06}


@pytest.mark.parametrize("noise", [0.0, 8.0])
@pytest.mark.parametrize("window", ["none", "fermi", "hann"])
@pytest.mark.parametrize("factors", [(2, 2, 1), (1.5, 1.5, 1), (1, 1.25, 1), (2, 1, 1)])
def test_zero_filling_is_found(head, factors, window, noise):
    image, inside = head
    filled, shares = zero_filled(image, factors, window, noise)
    for volume in (filled, torch.from_numpy(filled * inside).float()):  # as it is, and skull-stripped
        for axis in (0, 1):
            found = axis_spectrum(volume, axis)
            assert found.judged and found.interpolated == (factors[axis] != 1)
            assert found.share == pytest.approx(shares[axis], rel=TOLERANCE[window])
            assert found.acquired(volume.shape[axis]) == round(found.share * volume.shape[axis])


@pytest.mark.parametrize("window", ["none", "fermi"])
def test_zero_filling_is_found_in_eight_bits(head, window):
    filled, shares = zero_filled(head[0], (1.5, 2, 1), window, 4.0)
    coarse = np.rint(filled * 255 / filled.max()).astype(np.uint8)
    for axis in (0, 1):
        assert axis_spectrum(coarse, axis).share == pytest.approx(shares[axis], rel=0.05)


@pytest.mark.parametrize("noise", [0.0, 4.0, 20.0])
def test_what_was_acquired_whole_is_not_flagged(head, noise):
    image, inside = head
    whole, _ = zero_filled(image, (1, 1, 1), noise=noise)
    eight_bits = np.rint(whole * 255 / whole.max()).astype(np.uint8)
    for volume in (whole, whole * inside, eight_bits, eight_bits[..., 3]):
        assert [axis_spectrum(volume, axis).share for axis in (0, 1)] == [1, 1]


@pytest.mark.parametrize("sigma", [0.5, 0.8])
def test_a_smooth_image_in_white_noise_has_no_border(head, sigma):
    noisy = gaussian_filter(head[0], (sigma, sigma, 0)) + np.random.default_rng(2).normal(0, 8, head[0].shape)
    assert [axis_spectrum(noisy, axis).share for axis in (0, 1)] == [1, 1]


def test_degraded_and_interpolated_back(head):
    """Of every fourth pixel a quarter of the band is left; a spline leaves images beyond it, below its own zero."""
    low = degrade(torch.from_numpy(head[0]).float()[None], (4, 1, 1), "bicubic")
    back = resample(low, head[0].shape)[0]
    assert 0.2 < axis_spectrum(back, 0).share < 0.6
    assert axis_spectrum(back, 1).share == 1


def test_what_cannot_be_judged():
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((100, 90, 10))
    framed = np.pad(rng.random((80, 80, 5)) + 1, ((30, 30), (20, 20), (0, 0)))
    for volume in (noise, noise[..., 0], framed, rng.integers(0, 2, (64, 64, 64)).astype(np.uint8)):
        assert all(axis_spectrum(volume, axis).share == 1 for axis in range(volume.ndim))
    for volume in (np.ones((50, 50, 5)), np.zeros((64, 64, 3)), np.full((64, 64, 4), np.nan), noise[:20, :20]):
        found = axis_spectrum(volume, 0)
        assert not found.judged and found.share == 1 and not found.interpolated


# judged by their spectra, which fall by 6 to 19 dB to a flat outer part; None where they do not
REAL = {
    "train/brain_thick_ms04/flair": (0.70, None),
    "train/brain_thick_ms04/t1w": (0.80, None),
    "train/brain_thick_ms04/t2w": (0.75, None),
    "test/brain_thick_ms12/t2w": (0.75, None),
    "test/brain_t1_thick_dicom/t1w_sag": (230 / 256, None),  # AcquisitionMatrix 256 x 230
    "train/brain_flair_ms07/flair_mni1mm": (None, None, None),
    "train/brain_t1_t2_3t_b/t1w_memprage": (None, None, None),
}
REAL_SLOW = {
    "test/brain_thick_ms12/flair": (0.70, None),
    "test/brain_thick_ms12/t1w": (0.82, None),
    "train/brain_t1_t2_3t_b/t2w_ax_fse": (0.70, None),
    "train/brain_t1_3t_a/t1w": (None, None, 0.952),  # 0.7 mm (Hanke 2014) in 384 pixels of 256 mm: 366
    "train/brain_t1_c/t1w": (None, None, None),
    "train/brain_t1_t2_flair_stroke/t1": (None, None, None),
    "train/brain_t1_colin27/ch2_brain_t1": (None, None, None),
    "train/brain_flair_ms19/flair_mni1mm": (None, None, None),
    "val/brain_flair_ms26/flair_mni1mm": (None, None, None),
    "val/brain_t1_d/t1w_conformed1mm": (None, None, None),
    "test/brain_t1_labelled/orig": (0.5, None, None),  # the README of the data calls this axis smooth
}


def check_real(name, expected):
    path = next((DATA / name).parent.glob(f"{Path(name).name}.*"))
    volume = np.asarray(nib.load(path).dataobj, dtype=np.float32).squeeze()
    for axis, share in enumerate(expected):
        assert axis_spectrum(volume, axis).share == pytest.approx(share or 1, rel=0.05 if share else 0), axis


@needs_data
@pytest.mark.parametrize(("name", "expected"), REAL.items())
def test_real_volumes(name, expected):
    check_real(name, expected)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), REAL_SLOW.items())
def test_more_real_volumes(name, expected):
    check_real(name, expected)
