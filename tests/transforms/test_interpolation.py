"""Cubic B-splines against scipy, and what they must keep: samples, constants, straight lines, corners."""

import itertools

import numpy as np
import pytest
import scipy.ndimage
import torch
from monai.data import MetaTensor

from medsr_monai.transforms import degrade, outer_corners, resample, spacing, spline_matrix

SIZES = [(1, 1), (1, 4), (2, 3), (2, 8), (3, 10), (7, 7), (9, 30), (12, 40), (13, 52), (21, 168), (30, 11)]


@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_equal_to_scipy(size_in, size_out):
    samples = np.random.default_rng(size_in).random(size_in)
    matrix = spline_matrix(size_in, size_out)
    assert matrix.shape == (size_out, size_in) and matrix.dtype == torch.float64
    places = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
    # scipy's prefilter is exact for long signals only: 2 to 10 samples are mirrored by hand before
    margin = 24
    mirrored = np.pad(samples, margin, mode="symmetric")
    theirs = scipy.ndimage.map_coordinates(mirrored, places[None] + margin, order=3, mode="reflect")
    np.testing.assert_allclose(matrix.numpy() @ samples, theirs, rtol=0, atol=1e-12)


def test_equal_to_scipy_zoom_in_three_dimensions():
    image = np.random.default_rng(0).random((2, 16, 13, 15))
    ours = resample(torch.from_numpy(image), (53, 13, 31))
    for channel in range(2):
        theirs = scipy.ndimage.zoom(image[channel], (53 / 16, 1, 31 / 15), order=3, mode="reflect", grid_mode=True)
        np.testing.assert_allclose(ours[channel], theirs, rtol=0, atol=1e-12)


def test_two_samples_by_hand():
    # mirrored, the coefficients are c0 c0 c1 c1, with (5 c0 + c1) / 6 = 0 and (c0 + 5 c1) / 6 = 1
    c0, c1 = -0.25, 1.25
    x = 0.25  # where output 1 of 4 lies
    weights = [(1 - x) ** 3 / 6, 2 / 3 - x**2 + x**3 / 2, 2 / 3 - (1 - x) ** 2 + (1 - x) ** 3 / 2, x**3 / 6]
    expected = sum(w * c for w, c in zip(weights, (c0, c0, c1, c1), strict=True))
    values = spline_matrix(2, 4) @ torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert values[1].item() == pytest.approx(expected, abs=1e-12)
    assert values[2].item() == pytest.approx(1 - expected, abs=1e-12)


@pytest.mark.parametrize("factor", [3, 5, 7])
def test_passes_through_the_samples(factor):
    """For an odd factor, sample i is output factor * i + (factor - 1) / 2."""
    samples = torch.rand(17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = spline_matrix(17, 17 * factor) @ samples
    torch.testing.assert_close(out[(factor - 1) // 2 :: factor], samples, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_constants_and_mirror_images(size_in, size_out):
    matrix = spline_matrix(size_in, size_out)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(size_out, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix.flip(0, 1), matrix, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size_out", [132, 160, 133])
def test_straight_lines_stay_in_place(size_out):
    """Away from the ends, which are flat; 0.27 ** 12 of that is left 12 samples away."""
    line = torch.arange(40, dtype=torch.float64)
    out = spline_matrix(40, size_out) @ line
    places = (torch.arange(size_out, dtype=torch.float64) + 0.5) * 40 / size_out - 0.5
    inner = (places > 14) & (places < 25)
    torch.testing.assert_close(out[inner], places[inner], rtol=0, atol=1e-6)


def test_metadata_and_corners():
    affine = torch.tensor([[0, 0, 3.3, -4], [-1.1, 0, 0, 7], [0, 1.2, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    image = MetaTensor(torch.rand(1, 5, 6, 7), meta={"affine": affine, "filename_or_obj": "x.nii"})
    out = resample(image, (5, 6, 23))
    assert isinstance(out, MetaTensor) and out.shape == (1, 5, 6, 23) and out.meta["filename_or_obj"] == "x.nii"
    np.testing.assert_allclose(spacing(out.affine), (1.1, 1.2, 3.3 * 7 / 23), rtol=1e-12)
    np.testing.assert_allclose(outer_corners(out.affine, (5, 6, 23)), outer_corners(affine, (5, 6, 7)), atol=1e-9)
    assert tuple(out.meta["spatial_shape"]) == (5, 6, 23)
    torch.testing.assert_close(image.affine, affine)  # the source is left alone
    plain = resample(image.as_tensor(), (5, 6, 23))
    assert type(plain) is torch.Tensor and torch.equal(plain, out.as_tensor())


def test_axes_of_the_same_size_are_left_alone():
    image = torch.rand(2, 1, 5, 6, 7)
    assert torch.equal(resample(image, (5, 6, 7)), image)
    out = resample(image, (5, 18, 7))
    for n, i in itertools.product(range(2), range(5)):
        torch.testing.assert_close(out[n, 0, i], spline_matrix(6, 18).float() @ image[n, 0, i], rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_pairs_with_degradation(factor):
    """Down, as thick slices are made, and up again: the same grid, and a wave keeps its place."""
    phase = 2 * np.pi / 48 * torch.arange(96, dtype=torch.float64)
    high = MetaTensor(torch.sin(phase)[None, None, None].expand(1, 2, 2, 96).clone())
    low = degrade(high, (1, 1, factor), "box")
    back = resample(low, high.shape[1:])
    torch.testing.assert_close(back.affine, high.affine, rtol=0, atol=1e-12)
    # the mean of a block of a wave is the wave at its centre, times this; half a sample's shift would be 0.065
    kept = float(np.sin(factor * np.pi / 48) / (factor * np.sin(np.pi / 48)))
    inner = slice(3 * factor, -3 * factor)
    assert float((back - kept * high).as_tensor()[..., inner].abs().max()) < 0.006


@pytest.mark.parametrize(
    ("image", "sizes", "message"),
    [
        (torch.zeros(1, 4, 4, dtype=torch.int16), (8, 8), "image is torch.int16"),
        (torch.zeros(4, 4), (8, 8, 8), "image has 2 axes and 3 sizes"),
        (torch.zeros(1, 4, 4), (8, 0), "from 4 to 0 samples: expected at least 1"),
    ],
)
def test_refusals(image, sizes, message):
    with pytest.raises(ValueError, match=message):
        resample(image, sizes)
