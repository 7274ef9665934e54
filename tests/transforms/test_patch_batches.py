"""Batches of patches are what the same transforms make of the slices one by one."""

import numpy as np
import pytest
import torch

from medsr_monai.recipes import image_patches, labelled_patches, thick_slice_patches, training_patches
from medsr_monai.transforms import (
    RandDegraded,
    RandThickSliced,
    degrade,
)

AXES = ("left-right", "inferior-superior")
SCANNERS = {
    "kinds": {"bicubic": 1, "gaussian": 2, "rounded": 2, "kspace_fermi": 2, "ct": 2},
    "width": [0.5, 1.5],
    "gap": [-0.2, 0.2],
    "unknown": 0.3,
}
RECIPES = {
    "rdst_e": training_patches(4, 96),
    "one axis": training_patches([1, 4], [32, 24], intensity_factor=0),
    "noise": training_patches(2, 33, noise_std=[0, 0.03]),
    "widths": training_patches(4, 32, "gaussian", fwhm=[2, 7], noise_std=[0.01, 0.01]),
    "box": training_patches(3, 48, "box"),
    "kspace": training_patches(3, 48, "kspace"),
    "transmrsr": thick_slice_patches(4, 64),
    "thick, all drawn": thick_slice_patches(
        3, [40, 120], intensity_factor=0.5, fwhm=[2, 5], noise_std=[0, 0.05], method="gaussian"
    ),
    "mixed": training_patches(4, 32, ["box", "gaussian", "bicubic"], fwhm=[2, 7], noise_std=[0, 0.02]),
    "thick, mixed": thick_slice_patches(4, 48, method=["gaussian", "box"], fwhm=[2, 6]),
    "thick axis": thick_slice_patches(8, 48, "left-right", "bicubic", noise_std=[0.02, 0.02]),
    "scanners": training_patches(4, 32, SCANNERS, noise_std=[0, 0.02]),
    "thick, scanners": thick_slice_patches(4, 48, method=SCANNERS),
    "structure": training_patches(4, 32, structure=0.8),
    "a ratio": training_patches([1, 3.3], 40, "gaussian", noise_std=0.01),
    "seg_unet": labelled_patches(128),
    "seg_unet, flips": labelled_patches(48, flips=True),
    "transmrsr_prior": image_patches(64),
    "no flips": image_patches([20, 140], flips=False),
}


def slices(sizes, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    items = []
    for number, size in enumerate(sizes):
        image = torch.from_numpy(rng.random((channels, *size), dtype=np.float32))
        label = image if channels == 1 else torch.from_numpy(rng.random((channels, *size), dtype=np.float32))
        items.append({"label": label, "image": image, "case": f"c{number}", "slice": number, "axes": AXES})
    return items


def item_by_item(transform, items, seeds):
    made = []
    for item, seed in zip(items, seeds, strict=True):
        copy = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in item.items()}
        made.append(transform.set_random_state(seed=seed)(copy))
    return made


def assert_same_items(batch, single):
    for one, other in zip(batch, single, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            if isinstance(value, torch.Tensor):
                assert type(one[key]) is torch.Tensor and one[key].dtype == value.dtype
                torch.testing.assert_close(one[key], value, rtol=0, atol=2e-6)
            else:
                assert one[key] == value, key


@pytest.mark.parametrize("name", RECIPES)
def test_batch_equals_items(name, channels=2):
    """Slices of several sizes, smaller than the patch where the recipe pads, and exactly as large."""
    transform = RECIPES[name]
    padded = transform.padding is not None
    sizes = [(110, 97), (96, 96), (96, 150), (128, 101), (200, 120), (110, 97)]
    items = slices(sizes + ([(16, 17), (40, 130), (131, 21), (64, 64)] if padded else []), channels)
    if "label" not in transform.keys:
        items = [{k: v for k, v in item.items() if k != "label"} for item in items]
    elif transform.thick or "image" not in transform.keys:
        items = [{k: v for k, v in item.items() if k != "image"} for item in items]
    before = [{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in item.items()} for item in items]
    rounds = 4 if padded else 6  # 36 or 40 items: every flip, turn and axis
    seeds = [1_000_003 * 7 + number for number in range(rounds * len(items))]
    single = item_by_item(transform, items * rounds, seeds)
    batch = transform.batch(items * rounds, seeds, "cpu")
    assert_same_items(batch, single)
    for item, old in zip(items, before, strict=True):
        assert all(torch.equal(item[k], v) if isinstance(v, torch.Tensor) else item[k] == v for k, v in old.items())
    # an item is the same in any batch
    assert_same_items(transform.batch((items * 2)[3:8], seeds[3:8], "cpu"), single[3:8])


def test_the_recipes_have_everything_that_a_batch_can_have():
    recipes = RECIPES.values()
    assert {r.padding for r in recipes} == {None, "constant", "replicate"}
    assert {r.poses for r in recipes} == {1, 4, 8}
    assert {type(r.pairs) for r in recipes} == {type(None), RandDegraded, RandThickSliced}
    assert {bool(r.dtypes) for r in recipes} == {bool(r.intensity_factor) for r in recipes} == {False, True}


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if type(recipe.pairs) is RandDegraded])
def test_a_patch_is_degraded_as_a_volume_is(name):
    transform = RECIPES[name].set_random_state(seed=3)
    for item in slices([(110, 97), (96, 96), (128, 101)]) * 3:
        patch = transform({"label": item["label"]})
        expected = degrade(patch["label"], **transform.pairs.params)
        torch.testing.assert_close(patch["image"], expected, rtol=0, atol=1e-6)


def test_patches_reach_all_borders():
    image = torch.arange(12 * 10, dtype=torch.float32).reshape(1, 12, 10)
    items = [{"label": image}] * 300
    patches = training_patches(2, 8, intensity_factor=0).batch(items, list(range(300)), "cpu")
    corners = {divmod(int(one["label"].min()), 10) for one in patches}
    assert corners == {(row, column) for row in range(5) for column in range(3)}


def test_a_slice_without_room_for_a_patch_is_refused():
    with pytest.raises(ValueError, match="slice of 30x40 pixels has no patch of 32x32"):
        training_patches(2, 32).batch([{"label": torch.zeros(1, 30, 40)}], [0], "cpu")
    with pytest.raises(ValueError, match="smaller than the factor 8"):
        item = {"label": torch.zeros(1, 4, 4), "axes": AXES}
        thick_slice_patches(8, 32).batch([item], [0], "cpu")
    with pytest.raises(ValueError, match="not the thick axis posterior-anterior"):
        item = {"label": torch.zeros(1, 64, 64), "axes": AXES}
        thick_slice_patches(4, 32, "posterior-anterior").batch([item], [0], "cpu")


def test_label_maps_of_thick_slices_are_refused():
    item = {"label": torch.rand(1, 64, 64), "segmentation": torch.ones(1, 64, 64), "axes": AXES}
    with pytest.raises(ValueError, match="label maps of slices"):
        thick_slice_patches(4, 32).batch([item], [1], "cpu")


def test_patches_with_structure():
    """Of a slice that is empty but for a corner, patches of that corner are found far more often than by chance."""
    image = torch.zeros(1, 128, 128)
    image[:, :40, :40] = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0))

    def found(structure):
        recipe = training_patches(4, 32, structure=structure)
        patches = recipe.batch([{"label": image}] * 40, range(40), "cpu")
        return sum(bool(patch["label"].std() > 0) for patch in patches)

    assert found(0.5) > 24 > 12 > found(0)  # 32 and 7 are expected
    with pytest.raises(ValueError, match="structure is -1"):
        training_patches(4, 32, structure=-1)
