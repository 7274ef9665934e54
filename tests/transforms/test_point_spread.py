"""Point spreads against their formulas: scipy's filters and quadrature, the discrete Fourier transform, by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from scipy.ndimage import gaussian_filter1d
from scipy.special import erf

from medsr_monai.recipes import slice_pairs, thick_slice_pairs, training_patches
from medsr_monai.transforms import (
    ENCODING,
    METHODS,
    PointSpread,
    RandDegraded,
    RandPointSpread,
    RandThickSliced,
    degrade,
    describe_degradation,
    encode_point_spread,
    parse_point_spread,
    point_spread_of,
    resample,
    sampling_matrices,
    sampling_matrix,
)

SIZES = [(96, 24), (60, 15), (242, 44), (33, 6), (30, 20)]
each_size = pytest.mark.parametrize(("size", "small"), SIZES)
WIDTHS = [0.5, 0.8, 1.0, 1.25, 1.5]
SPREADS = [
    *(PointSpread(kind, width) for kind in METHODS if kind != "bicubic" for width in WIDTHS),
    PointSpread("bicubic"),
    PointSpread("gaussian", 1.1, 0.2),
    PointSpread("box", 1.0, -0.5),
    PointSpread("rounded", 0.9, 0.1),
    PointSpread("ct", 1.0, 0.25, -0.5),
    PointSpread("ct", 1.2, 0.0, 1.0),
]


def line(size, seed=0):
    return np.random.default_rng(seed).random(size)


def centres(size, small):
    return (np.arange(small) + 0.5) * size / small - 0.5


def applied(point_spread, size, small, values):
    return (sampling_matrix(size, small, point_spread) @ torch.from_numpy(values)).numpy()


@each_size
@pytest.mark.parametrize("width", WIDTHS)
def test_gaussian(size, small, width):
    x = line(size)
    blurred = gaussian_filter1d(x, width * size / small / math.sqrt(8 * math.log(2)), mode="reflect")
    expected = np.interp(centres(size, small), np.arange(size), blurred)
    np.testing.assert_allclose(applied(PointSpread("gaussian", width), size, small, x), expected, rtol=0, atol=1e-12)


@each_size
@pytest.mark.parametrize(("width", "gap"), [*((w, 0.0) for w in WIDTHS), (1.0, 0.2), (1.0, -0.5), (0.9, 0.1)])
def test_box_is_the_mean_of_its_interval(size, small, width, gap):
    """Of the mirrored line, whose integral is known at all faces and linear between them; gaps and overlaps."""
    x, factor = line(size), size / small
    mirrored = np.pad(x, size, mode="symmetric")
    integral = np.concatenate([[0], mirrored.cumsum()])
    middle = centres(size, small) + size + 0.5
    half = width * (1 - gap) * factor / 2
    ends = [np.interp(middle + side * half, np.arange(3 * size + 1), integral) for side in (-1, 1)]
    expected = (ends[1] - ends[0]) / (2 * half)
    np.testing.assert_allclose(applied(PointSpread("box", width, gap), size, small, x), expected, rtol=0, atol=1e-12)


def test_box_with_a_gap_by_hand():
    """Slices of 2 mm every 4 mm, pixels of 1 mm: the two in the middle; of 6 mm: one more to each side."""
    row = sampling_matrix(16, 4, PointSpread("box", 1.0, gap=0.5))[1]
    assert row.tolist() == pytest.approx([0] * 5 + [0.5, 0.5] + [0] * 9)
    row = sampling_matrix(16, 4, PointSpread("box", 1.0, gap=-0.5))
    assert row[1].tolist() == pytest.approx([0] * 3 + [1 / 6] * 6 + [0] * 7)
    assert row[0].tolist() == pytest.approx([1 / 3] + [1 / 6] * 4 + [0] * 11)  # the first is seen in the mirror
    half = sampling_matrix(16, 4, PointSpread("box", 0.5))
    assert torch.equal(half, sampling_matrix(16, 4, PointSpread("box", 1.0, gap=0.5)))


@pytest.mark.parametrize("width", WIDTHS)
def test_rounded_box_is_the_integral_of_its_profile(width):
    size, small = 60, 15
    full = width * size / small
    sigma = full / 10

    def profile(t):
        return (erf((t + full / 2) / sigma / math.sqrt(2)) - erf((t - full / 2) / sigma / math.sqrt(2))) / 2 / full

    assert profile(full / 2) == pytest.approx(profile(0) / 2, rel=1e-6)  # the full width at half maximum
    middle = centres(size, small)[7]
    edges = (-full / 2, full / 2)
    expected = [quad(profile, n - middle - 0.5, n - middle + 0.5, points=edges, epsabs=1e-12)[0] for n in range(size)]
    found = sampling_matrix(size, small, PointSpread("rounded", width))[7]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("sharpness", [-1.0, -0.5, 0.0, 0.7, 1.0])
@pytest.mark.parametrize("width", [0.6, 1.0, 1.4])
def test_ct_kernels_have_their_transfer_function(width, sharpness):
    """The Fourier sum of a row at any frequency, over that of a fine sample."""
    size, small = 1024, 16
    middle = centres(size, small)[8]
    row = sampling_matrix(size, small, PointSpread("ct", width, sharpness=sharpness))[8].numpy()
    for f in (0.0, 0.1, 0.3, 0.5, 0.8, 1.0, 1.3):  # cycles a width
        cycles = f / (width * size / small)  # a fine sample
        found = (row * np.cos(2 * np.pi * cycles * (np.arange(size) - middle))).sum()
        gaussian = math.exp(-4 * math.log(2) * f**2)
        expected = np.sinc(f) * (1 + sharpness * 4 * gaussian * (1 - gaussian)) * np.sinc(cycles)
        # the fine samples' copies of the spectrum, at 1 a fine sample and more, add a little
        assert found == pytest.approx(expected, abs=1e-3), f
    sharp = sampling_matrix(size, small, PointSpread("ct", width, sharpness=1.0))[8]
    assert float(sharp.min()) < -1e-4  # overshoot at edges


@each_size
@pytest.mark.parametrize("kind", ["kspace", "kspace_hamming", "kspace_fermi"])
@pytest.mark.parametrize("width", WIDTHS)
def test_kspace_is_a_cut_spectrum(size, small, kind, width):
    """FFT, shift by the distance of the first centres, window, cut, and the inverse FFT of the small matrix."""
    acquired = small / width
    spectrum = np.fft.fft(line(size))
    k = np.fft.fftfreq(size, 1 / size)
    part = np.abs(k) / (acquired / 2)
    window = {
        "kspace": np.ones(size),
        "kspace_hamming": 0.54 + 0.46 * np.cos(np.pi * part),
        "kspace_fermi": (1 + math.exp(-0.9 / 0.05)) / (1 + np.exp((part - 0.9) / 0.05)),
    }[kind]
    spectrum = spectrum * np.where((part < 1) & (np.abs(k) < size / 2), window, 0)
    spectrum = spectrum * np.exp(2j * np.pi * k / size * (size / small - 1) / 2)
    folded = np.zeros(small, dtype=complex)
    np.add.at(folded, k.astype(int) % small, spectrum)  # what is beyond the coarse samples' spectrum aliases
    expected = np.fft.ifft(folded) * small / size
    assert np.abs(expected.imag).max() < 1e-12
    found = applied(PointSpread(kind, width), size, small, line(size))
    np.testing.assert_allclose(found, expected.real, rtol=0, atol=1e-12)


def test_kspace_windows_by_hand():
    rows = {kind: sampling_matrix(64, 16, kind).numpy() for kind in METHODS if kind.startswith("kspace")}
    for k in range(8):
        wave = np.cos(2 * np.pi * k * (np.arange(64) + 0.5) / 64)
        coarse = np.cos(2 * np.pi * k * (np.arange(16) + 0.5) / 16)
        np.testing.assert_allclose(rows["kspace"] @ wave, coarse, rtol=0, atol=1e-12)
        np.testing.assert_allclose(rows["kspace_hamming"] @ wave, np.hamming(17)[8 + k] * coarse, rtol=0, atol=1e-12)
        fermi = 1 / (1 + math.exp((k / 8 - 0.9) / 0.05))
        np.testing.assert_allclose(rows["kspace_fermi"] @ wave, fermi * coarse, rtol=0, atol=1e-6)
    assert 1 / (1 + math.exp(-0.1 / 0.05)) > 0.88  # at 0.8 of the largest frequency the Fermi window is still there


def test_bicubic_is_torch():
    x = torch.from_numpy(line(33))[None, None, None]
    expected = F.interpolate(x, size=(1, 6), mode="bicubic", align_corners=False)[0, 0, 0]
    found = sampling_matrix(33, 6, PointSpread("bicubic")) @ x.flatten()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_full_widths_at_half_maximum():
    """As the docstring has them, by interpolation of finely sampled rows."""
    stated = {"gaussian": 1.0, "rounded": 1.0, "kspace": 1.21, "kspace_hamming": 1.81}
    for kind, expected in stated.items():
        for width in (0.7, 1.0, 1.3):
            row = sampling_matrix(1024, 64, PointSpread(kind, width))[32].numpy()
            above = np.flatnonzero(row > row.max() / 2)
            right = above[-1] + (row[above[-1]] - row.max() / 2) / (row[above[-1]] - row[above[-1] + 1])
            left = above[0] - (row[above[0]] - row.max() / 2) / (row[above[0]] - row[above[0] - 1])
            assert (right - left) / 16 == pytest.approx(expected * width, rel=0.015), kind


@pytest.mark.parametrize("point_spread", SPREADS, ids=str)
def test_what_all_point_spreads_keep(point_spread):
    """Constants, the mirror image, and the kind of tensor; any ratio, tiny sizes."""
    for size, small in [*SIZES, (5, 1), (3, 2), (8, 8), (1, 1)]:
        matrix = sampling_matrix(size, small, point_spread)
        assert matrix.shape == (small, size) and matrix.dtype == torch.float64 and bool(matrix.isfinite().all())
        torch.testing.assert_close(matrix.sum(dim=1), torch.ones(small, dtype=torch.float64), rtol=0, atol=1e-11)
        torch.testing.assert_close(matrix.flip(0, 1), matrix, rtol=0, atol=1e-11)


@each_size
def test_matrices_of_a_batch(size, small):
    spreads = [*SPREADS, *SPREADS[::-2]]
    batch = sampling_matrices(size, small, spreads, "cpu")
    assert batch.shape == (len(spreads), small, size)
    for matrix, point_spread in zip(batch, spreads, strict=True):
        torch.testing.assert_close(matrix, sampling_matrix(size, small, point_spread), rtol=0, atol=1e-10)
    assert sampling_matrices(size, small, [PointSpread("box")] * 3).shape == (1, small, size)
    for width in (0.4, 1.0, 3.3, 40.0):  # in fine samples
        named = sampling_matrix(size, small, "gaussian", width)
        torch.testing.assert_close(
            named, sampling_matrix(size, small, PointSpread("gaussian", width * small / size)), rtol=0, atol=1e-13
        )


def test_what_names_and_widths_in_fine_samples_mean():
    assert point_spread_of("box", None, 4) == PointSpread("box")
    assert point_spread_of("gaussian", 5.0, 4) == PointSpread("gaussian", 1.25)
    assert point_spread_of(PointSpread("ct", 0.7), None, 4) == PointSpread("ct", 0.7)
    for method, fwhm in (("box", 2.0), ("gaussian", -1.0), (PointSpread("box"), 2.0)):
        with pytest.raises(ValueError, match=rf"fwhm is {fwhm} for '(box|gaussian)': expected a positive width"):
            point_spread_of(method, fwhm, 4)


def test_an_axis_each():
    """In the plane a cut of k-space, across it thick slices with gaps."""
    volume = torch.rand(1, 24, 20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    across, along = PointSpread("rounded", 1.0, 0.2), PointSpread("kspace_hamming", 1.2)
    low = degrade(volume, (2, 2, 5), [along, "kspace", across])
    expected = volume
    for axis, (small, one) in enumerate([(12, along), (10, "kspace"), (6, across)], start=1):
        matrix = sampling_matrix(volume.shape[axis], small, one)
        expected = torch.movedim(torch.tensordot(expected, matrix, dims=([axis], [1])), -1, axis)
    torch.testing.assert_close(low, expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="length 3, got 2"):
        degrade(volume, (2, 2, 5), [along, across])


def test_the_vector_that_a_network_is_told():
    assert ENCODING == (
        "bicubic", "gaussian", "box", "kspace", "kspace_hamming", "kspace_fermi", "rounded", "ct",
        "width", "gap", "sharpness",
    )  # fmt: skip
    vector = encode_point_spread(PointSpread("ct", 1.2, 0.25, 0.5))
    assert vector.dtype == torch.float32
    assert vector.tolist() == pytest.approx([0, 0, 0, 0, 0, 0, 0, 1, 0.9, 0.25, 0.5])
    assert encode_point_spread(PointSpread("box")).tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0]
    assert encode_point_spread(None).tolist() == [0] * 11
    assert len({tuple(encode_point_spread(one).tolist()) for one in set(SPREADS)}) == len(set(SPREADS))


def test_what_a_command_says():
    assert parse_point_spread("gaussian", 4.0) == parse_point_spread("gaussian:", 4.0) == PointSpread("gaussian")
    assert parse_point_spread("box:3", 4.0) == PointSpread("box", 0.75)
    assert parse_point_spread("kspace_hamming:1.5", 1.0) == PointSpread("kspace_hamming", 1.5)
    assert parse_point_spread("ct:0.6:0.8", 0.5) == PointSpread("ct", 1.2, sharpness=0.8)
    assert parse_point_spread("ct::-0.5", 0.5) == PointSpread("ct", sharpness=-0.5)
    assert str(PointSpread("gaussian", 1.2, 0.1)) == "gaussian, width 1.2, gap 0.1" and str(PointSpread("box")) == "box"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spline", "point spread is 'spline', expected one of bicubic, gaussian, box, kspace, "),
        ("", "point spread is '', expected one of"),
        ("box:wide", "'box:wide': expected KIND, KIND:FWHM_MM or ct:FWHM_MM:SHARPNESS, such as gaussian:4.5"),
        ("box:1:0:0", "'box:1:0:0': expected KIND, KIND:FWHM_MM"),
        ("box:-1", "'box:-1': expected a positive width in mm"),
        ("box:0", "'box:0': expected a positive width in mm"),
        ("box:nan", "'box:nan': expected a positive width in mm"),
        ("box:inf", "'box:inf': expected a positive width in mm"),
        ("bicubic:2", "'bicubic:2': expected a positive width in mm, and none of bicubic"),
        ("box:1:0.5", "sharpness of 'box' is 0.5: expected -1 to 1 of 'ct'"),
        ("ct:1:2", "sharpness of 'ct' is 2.0"),
    ],
)
def test_mistakes_of_a_command(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_point_spread(text, 4.0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "box", "width": 0.0}, "width of 'box' is 0.0: expected a positive number"),
        ({"kind": "box", "width": math.nan}, "width of 'box' is nan"),
        ({"kind": "bicubic", "width": 0.5}, "width of 'bicubic' is 0.5: expected 1, since it has none"),
        ({"kind": "box", "gap": 1.0}, "gap of 'box' is 1.0: expected a number below 1"),
        ({"kind": "kspace", "gap": 0.1}, "gap of 'kspace' is 0.1: expected 0, since it has no slices"),
        ({"kind": "ct", "sharpness": math.nan}, "sharpness of 'ct' is nan"),
    ],
)
def test_values_that_a_point_spread_does_not_have(values, message):
    with pytest.raises(ValueError, match=message):
        PointSpread(**values)


def test_point_spreads_are_drawn_from_their_ranges():
    kinds = {"gaussian": 2, "box": 1, "kspace": 1, "ct": 4, "bicubic": 2}
    draw = RandPointSpread(kinds, (0.5, 1.5), (-0.2, 0.3), (-0.5, 1.0), unknown=0.3).set_random_state(seed=0)
    drawn, told = [], []
    for _ in range(2000):
        draw.randomize()
        drawn.append(draw.point_spread)
        told.append(draw.told)
    for kind, share in kinds.items():
        of_kind = [one for one in drawn if one.kind == kind]
        assert len(of_kind) / 2000 == pytest.approx(share / 10, abs=0.04)
        widths, gaps, sharpness = ([getattr(o, n) for o in of_kind] for n in ("width", "gap", "sharpness"))
        assert (min(widths) < 0.55 and max(widths) > 1.45) if kind != "bicubic" else set(widths) == {1}
        assert (min(gaps) < -0.15 and max(gaps) > 0.25) if kind not in ("bicubic", "kspace") else set(gaps) == {0}
        assert (min(sharpness) < -0.4 and max(sharpness) > 0.9) if kind == "ct" else set(sharpness) == {0}
    assert all(t is None or t == d for t, d in zip(told, drawn, strict=True))
    assert told.count(None) / 2000 == pytest.approx(0.3, abs=0.04)
    again = RandPointSpread(kinds, (0.5, 1.5), (-0.2, 0.3), (-0.5, 1.0), unknown=0.3).set_random_state(seed=0)
    again.randomize()
    assert again.point_spread == drawn[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kinds": "spline"}, "point spread is 'spline', expected one of"),
        ({"kinds": []}, "probabilities are {}"),
        ({"kinds": {"box": -1, "gaussian": 2}}, "probabilities are .*expected 0 or more"),
        ({"kinds": {"box": 0}}, "probabilities are .*not all"),
        ({"kinds": "box", "unknown": 1.5}, "unknown 1.5"),
        ({"kinds": "box", "width": (1.5, 0.5)}, "width is 1.5 to 0.5: expected the lower end first"),
        ({"kinds": "box", "width": (0, 1)}, "width of 'box' is 0"),
        ({"kinds": "ct", "sharpness": (0, 2)}, "sharpness of 'ct' is 2"),
    ],
)
def test_ranges_that_cannot_be_drawn_from(values, message):
    with pytest.raises(ValueError, match=message):
        RandPointSpread(**values)


SCANNERS = {"kinds": {"gaussian": 1, "box": 1, "kspace_hamming": 1, "ct": 1}, "width": [0.7, 1.3], "gap": [0, 0.2]}


def test_pairs_of_drawn_point_spreads_tell_them():
    transform = RandDegraded(factors=4, method=SCANNERS).set_random_state(seed=1)
    label, seen = torch.rand(1, 24, 20, generator=torch.Generator().manual_seed(0)), set()
    for _ in range(30):
        item = transform({"label": label})
        point_spread = transform.params["method"]
        seen.add(point_spread)
        assert torch.equal(item["psf"], encode_point_spread(point_spread))
        assert torch.equal(item["image"], degrade(label, 4, point_spread))
        again = transform({"label": label}, randomize=False)
        assert torch.equal(again["image"], item["image"]) and torch.equal(again["psf"], item["psf"])
    assert len(seen) == 30 and {one.kind for one in seen} == set(SCANNERS["kinds"])
    with pytest.raises(ValueError, match=r"fwhm is .* beside point spreads that are drawn"):
        RandDegraded(factors=4, method=SCANNERS, fwhm=(2.0, 3.0))


def test_thick_slices_of_drawn_point_spreads_tell_them():
    axes = ("left-right", "inferior-superior")
    transform = RandThickSliced(factor=4, thick_axis=axes[1], method=SCANNERS).set_random_state(seed=1)
    label = torch.rand(1, 20, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(10):
        item = transform({"label": label, "axes": axes})
        point_spread = transform.params["method"]
        assert torch.equal(item["psf"], encode_point_spread(point_spread))
        expected = resample(degrade(label, (1, 4), point_spread), (20, 24))
        torch.testing.assert_close(item["image"], expected, rtol=0, atol=1e-12)


def test_what_bundles_name_is_told_as_well():
    label = torch.rand(1, 24, 20)
    named = {"bicubic": PointSpread("bicubic"), "gaussian": PointSpread("gaussian", 1.5), "box": PointSpread("box")}
    for method, expected in named.items():
        fwhm = 6 if method == "gaussian" else None
        for recipe in (slice_pairs(4, method, fwhm), training_patches(4, 16, method, fwhm=fwhm)):
            assert torch.equal(recipe({"label": label})["psf"], encode_point_spread(expected))
    untold = training_patches([1, 4], 16, {"kinds": "box", "unknown": 1.0})
    assert not untold({"label": label})["psf"].any()


def test_told_and_untold_rows_of_a_table():
    conditions = [{"degradation": {"kinds": "box", "width": 0.8, "unknown": unknown}} for unknown in (0, 1)]
    recipes = thick_slice_pairs(4, conditions=conditions)
    assert list(recipes) == ["box, width 0.8", "box, width 0.8, unknown 1"]
    item = {"label": torch.rand(1, 24, 20), "axes": ("left-right", "inferior-superior")}
    told, untold = (one.set_random_state(seed=3)(dict(item)) for one in recipes.values())
    assert torch.equal(told["image"], untold["image"]) and told["psf"].any() and not untold["psf"].any()
    assert describe_degradation(SCANNERS, None, 0.02) == (
        "gaussian or box or kspace_hamming or ct, width 0.7 to 1.3, gap 0 to 0.2, sharpness -0.5 to 1, noise 0.02"
    )
    assert describe_degradation(PointSpread("box", 1.2)) == "box, width 1.2"
