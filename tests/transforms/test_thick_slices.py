"""Training pairs for thick slices: by hand, by scipy, and what they must keep."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d, zoom

from medsr_monai.recipes import thick_slice_pairs, thick_slice_patches
from medsr_monai.transforms import RandThickSliced, TurnBackd

AXES = ("left-right", "inferior-superior")


def item(*shape, seed=0):
    label = torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {"label": label, "axes": AXES}


@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_pair_is_the_protocol(factor, axis):
    """Gaussian of full width k, samples at k i + (k - 1) / 2, cubic B-spline back with the corners kept."""
    data = item(96, 96)
    pair = thick_slice_pairs(factor, AXES[axis])(data)
    label = data["label"][0].numpy() if axis else data["label"][0].numpy().T
    blurred = gaussian_filter1d(label, factor / np.sqrt(8 * np.log(2)), axis=1, mode="reflect")
    places = factor * np.arange(96 // factor) + (factor - 1) / 2
    thick = np.stack([np.interp(places, np.arange(96), line) for line in blurred])
    expected = zoom(thick, (1, factor), order=3, mode="reflect", grid_mode=True)
    np.testing.assert_allclose(pair["label"][0], label, rtol=0, atol=0)
    np.testing.assert_allclose(pair["image"][0], expected, rtol=0, atol=1e-6)
    assert pair["thick_axis"] == AXES[axis] and pair["axes"] == (AXES[1 - axis], AXES[axis])
    assert pair["turned"] is (axis == 0)


@pytest.mark.parametrize("method", ["gaussian", "box", "kspace"])
@pytest.mark.parametrize("factor", [4, 8])
def test_pairs_keep_the_place(method, factor):
    """A bump stays where it is, to a hundredth of a pixel: a shift by half a thick slice would be 1.5 or more."""
    x = torch.arange(128, dtype=torch.float64)
    for centre in (60.0, 63.5, 70.25):
        label = torch.exp(-0.5 * ((x - centre) / 12) ** 2).expand(1, 3, 128)
        image = RandThickSliced(factor=factor, thick_axis=AXES[1], method=method)({"label": label, "axes": AXES})[
            "image"
        ]
        assert image.shape == label.shape
        place = (image[0, 0] * x).sum() / image[0, 0].sum()
        assert float(place) == pytest.approx(centre, abs=0.01)


def test_far_end_is_cropped_and_a_label_map_with_it():
    data = item(21, 30) | {"segmentation": torch.arange(630).reshape(1, 21, 30)}
    for axis, shape in ((0, (1, 30, 20)), (1, (1, 21, 28))):
        pair = RandThickSliced(factor=4, thick_axis=AXES[axis])(data)
        assert pair["image"].shape == pair["label"].shape == pair["segmentation"].shape == shape
        back = TurnBackd()(pair)
        height, width = back["label"].shape[1:]
        assert torch.equal(back["label"], data["label"][:, :height, :width])
        assert torch.equal(back["segmentation"], data["segmentation"][:, :height, :width])
        assert back["image"].shape == back["label"].shape and back["turned"] is False
        assert torch.equal(TurnBackd()(back)["label"], back["label"])


def test_both_axes_are_drawn_and_replayed():
    transform = RandThickSliced(factor=4, fwhm=(3.0, 5.0), noise_std=(0.0, 0.1))
    transform.set_random_state(seed=0)
    drawn = []
    for _ in range(20):
        pair = transform(item(16, 16))
        drawn.append((pair["thick_axis"], transform.params["fwhm"]))
        again = transform(item(16, 16), randomize=False)
        assert torch.equal(again["image"], pair["image"]) and again["thick_axis"] == pair["thick_axis"]
    assert {axis for axis, _ in drawn} == set(AXES)
    assert all(3 <= width <= 5 for _, width in drawn) and len({width for _, width in drawn}) == 20


def test_patches_are_cut_from_whole_slices():
    """Every patch, mirrored back, lies in the pair of the whole slice; small slices are padded with zeros."""
    data = item(24, 20)
    whole = thick_slice_pairs(4, AXES[1])(data)
    transform = thick_slice_patches(4, 8, AXES[1])
    transform.set_random_state(seed=0)
    seen = set()
    for _ in range(12):
        patch = transform(data)
        found = []
        for flips in ((), (1,), (2,), (1, 2)):
            both = torch.cat([patch["label"], patch["image"]]).flip(flips)
            windows = torch.cat([whole["label"], whole["image"]]).unfold(1, 8, 1).unfold(2, 8, 1)
            same = (windows - both[:, None, None]).abs().amax((0, 3, 4)) < 1e-12
            found += [(flips, *place) for place in same.nonzero().tolist()]
        assert len(found) == 1
        seen.add(found[0])
    assert len({flips for flips, *_ in seen}) == 4 and len(seen) > 8
    padded = thick_slice_patches(4, 32, AXES[1])(data)
    assert padded["image"].shape == padded["label"].shape == (1, 32, 32)
    assert float(padded["label"].sum()) == pytest.approx(float(data["label"].sum()))
    for name in ("image", "label"):
        assert not padded[name][:, :4].any() and not padded[name][:, :, -6:].any()


def test_intensities_of_a_pair_change_together():
    transform = thick_slice_patches(4, 16, AXES[1], intensity_factor=0.5)
    transform.set_random_state(seed=0)
    data = {"label": torch.ones(1, 16, 16), "axes": AXES}
    values = []
    for _ in range(8):
        patch = transform(data)
        torch.testing.assert_close(patch["image"], patch["label"])
        values.append(float(patch["label"].mean()))
    assert min(values) >= 0.5 and max(values) <= 1.2 and np.std(values) > 0.05


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="thick axis is 'axial', expected one of left-right"):
        RandThickSliced(factor=4, thick_axis="axial")
    with pytest.raises(ValueError, match="left-right and inferior-superior, not the thick axis posterior-anterior"):
        RandThickSliced(factor=4, thick_axis="posterior-anterior")(item(16, 16))
    with pytest.raises(ValueError, match="smaller than the factor 8"):
        RandThickSliced(factor=8, thick_axis=AXES[0])(item(6, 16))
