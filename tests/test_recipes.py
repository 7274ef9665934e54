"""Recipes: what a bundle's JSON names."""

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsr_monai.recipes import (
    inference_postprocessing,
    label_map_postprocessing,
    labelled_patches,
    load_volume,
    slice_pairs,
    thick_slice_pairs,
    training_patches,
)
from medsr_monai.transforms import PatchBatches, degrade


@pytest.fixture
def path(tmp_path):
    data = np.random.default_rng(0).random((9, 8, 7), dtype=np.float32) * 400 - 50
    affine = np.diag([-1.0, 2, 3, 1])
    (tmp_path / "in" / "sub").mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "in" / "sub" / "case.nii.gz")
    return tmp_path / "in" / "sub" / "case.nii.gz"


def test_load_volume_leaves_voxels_where_they_are(path):
    image = load_volume("image", "minmax")({"image": str(path)})["image"]
    data = nibabel.load(path).get_fdata(dtype=np.float32)
    assert isinstance(image, MetaTensor) and image.dtype == torch.float32
    np.testing.assert_allclose(image[0].numpy(), (data - data.min()) / (data.max() - data.min()), atol=1e-6)
    np.testing.assert_array_equal(image.affine, np.diag([-1.0, 2, 3, 1]))


def test_from_file_to_file(path, tmp_path):
    item = load_volume()({"image": str(path)})
    pred = MetaTensor(item["image"].repeat_interleave(2, 1).repeat_interleave(2, 2), meta=item["image"].meta)
    post = inference_postprocessing(str(tmp_path / "out"), str(tmp_path / "in"))
    done = post(item | {"pred": pred})
    saved = nibabel.load(tmp_path / "out" / "sub" / "case_sr.nii.gz")
    source = nibabel.load(path)
    assert saved.shape == (18, 16, 7) and saved.get_data_dtype() == np.float32
    np.testing.assert_allclose(saved.affine, [[-0.5, 0, 0, 0.25], [0, 1, 0, -0.5], [0, 0, 3, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(saved.get_fdata()[::2, ::2], source.get_fdata(), atol=1e-4)
    assert tuple(done["image"].meta["spatial_shape"]) == (18, 16, 7)
    with pytest.raises(RuntimeError) as caught:
        post(load_volume()({"image": str(path)}) | {"pred": pred})
    assert isinstance(caught.value.__cause__, FileExistsError)
    assert "case_sr.nii.gz: exists" in str(caught.value.__cause__)


def test_postprocessing_without_saving(path, tmp_path):
    item = load_volume()({"image": str(path)})
    done = inference_postprocessing()(item | {"pred": item["image"].clone()})
    torch.testing.assert_close(
        done["pred"].as_tensor(), torch.tensor(nibabel.load(path).get_fdata()[None]).float(), rtol=0, atol=1e-4
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]


@pytest.mark.parametrize(("scale", "patch", "low"), [(4, 96, (24, 24)), ([1, 4], 32, (32, 8)), (2, [16, 32], (8, 16))])
def test_training_patches(scale, patch, low):
    transform = training_patches(scale, patch)
    assert isinstance(transform, PatchBatches)
    label = torch.rand(1, 110, 100)
    transform.set_random_state(seed=1)
    first = transform({"label": label})
    assert tuple(first["image"].shape[1:]) == low
    assert tuple(first["label"].shape[1:]) == tuple(np.broadcast_to(patch, 2))
    for key in ("image", "label"):
        assert type(first[key]) is torch.Tensor  # plain tensors: metadata of patches would cost time in every batch
    torch.testing.assert_close(degrade(first["label"], scale), first["image"], rtol=0, atol=1e-6)
    second = transform({"label": label})
    assert not torch.equal(first["label"], second["label"])
    transform.set_random_state(seed=1)
    torch.testing.assert_close(transform({"label": label})["label"], first["label"], rtol=0, atol=0)


def test_training_patches_are_pieces_of_the_slice():
    """With unit contrast, a patch is found again in the slice, in one of its eight poses."""
    label = torch.arange(40 * 50, dtype=torch.float32).reshape(1, 40, 50)
    transform = training_patches(2, 8, intensity_factor=0).set_random_state(seed=0)
    poses = set()
    for _ in range(60):
        patch = transform({"label": label})["label"][0]
        for pose in range(8):
            turned = torch.rot90(patch, pose % 4)
            turned = turned.flip(0) if pose > 3 else turned
            start = int(turned[0, 0])
            row, column = divmod(start, 50)
            if row <= 32 and column <= 42 and torch.equal(turned, label[0, row : row + 8, column : column + 8]):
                poses.add(pose)
                break
        else:
            pytest.fail("the patch is no piece of the slice")
    assert poses == set(range(8))


def test_training_intensities():
    transform = training_patches(2, 8, intensity_factor=0.5).set_random_state(seed=0)
    means = [float(transform({"label": torch.ones(1, 16, 16)})["label"].mean()) for _ in range(200)]
    assert 0.5 <= min(means) < 0.55 and 1.15 < max(means) <= 1.2 + 1e-6


def test_training_noise_is_on_the_low_resolution_only():
    item = training_patches(2, 64, intensity_factor=0, noise_std=[0.1, 0.1])({"label": torch.ones(1, 64, 64)})
    assert float(item["label"].std()) == 0
    assert float(item["image"].std()) == pytest.approx(0.1, rel=0.15)


def test_slice_pairs():
    label = torch.rand(1, 30, 27)
    item = slice_pairs([2, 4])({"label": label, "case": "a"})
    assert torch.equal(item["label"], label[:, :30, :24]) and item["case"] == "a"
    assert torch.equal(item["image"], degrade(label[:, :30, :24], (2, 4)))


def test_conditions_are_the_degradations_they_name():
    label = torch.rand(1, 24, 24)
    conditions = [{}, {"noise_std": 0.02}, {"degradation": "gaussian", "fwhm": 6}, {"degradation": "box"}]
    recipes = slice_pairs(4, "bicubic", conditions=conditions)
    assert list(recipes) == ["bicubic", "bicubic, noise 0.02", "gaussian, fwhm 6", "box"]
    items = {name: one.set_random_state(seed=7)({"label": label}) for name, one in recipes.items()}
    for name, method, fwhm in (
        ("bicubic", "bicubic", None),
        ("gaussian, fwhm 6", "gaussian", 6.0),
        ("box", "box", None),
    ):
        assert torch.equal(items[name]["image"], degrade(label, 4, method, fwhm=fwhm))
    noise = items["bicubic, noise 0.02"]["image"] - items["bicubic"]["image"]
    assert float(noise.std()) == pytest.approx(0.02, rel=0.4)
    again = recipes["bicubic, noise 0.02"].set_random_state(seed=7)({"label": label})
    assert torch.equal(again["image"], items["bicubic, noise 0.02"]["image"])


@pytest.mark.parametrize(("conditions", "message"), [
    ([], "empty list"),
    ([{}, {"noise_std": 0}], "two conditions are 'bicubic'"),
    ([{"noise": 0.1}], "a condition has noise, expected any of degradation, fwhm, noise_std"),
])  # fmt: skip
def test_conditions_that_say_nothing_are_refused(conditions, message):
    with pytest.raises(ValueError, match=message):
        slice_pairs(4, conditions=conditions)


def test_the_thick_axis_is_drawn_the_same_under_all_conditions():
    """Also for another width, which is not drawn: the rows of a table show the same slices."""
    item = {"label": torch.rand(1, 24, 20), "axes": ("left-right", "posterior-anterior")}
    recipes = thick_slice_pairs(4, conditions=[{}, {"fwhm": 6}, {"noise_std": 0.02}, {"degradation": "box"}])
    axes = [[r.set_random_state(seed=s)(item)["thick_axis"] for s in range(12)] for r in recipes.values()]
    assert len(set(axes[0])) == 2 and axes.count(axes[0]) == 4


def labelled_slice():
    """A slice whose image tells its label: 10 times as much, and 0.5 more."""
    label = torch.arange(30 * 20).reshape(1, 30, 20).float()
    return {"image": 10 * label + 0.5, "label": label}


@pytest.mark.parametrize("flips", [False, True])
def test_labelled_patches_keep_image_and_label_together(flips):
    patches = labelled_patches(16, flips, intensity_factor=0)
    slices, upright = labelled_slice(), 0
    for seed in range(20):
        patches.set_random_state(seed)
        item = patches(dict(slices))
        assert item["image"].shape == item["label"].shape == (1, 16, 16) and item["label"].dtype == torch.int64
        assert torch.equal(item["image"], 10 * item["label"] + 0.5)
        rows, columns = item["label"][0].diff(dim=0).unique(), item["label"][0].diff(dim=1).unique()
        upright += rows.tolist() == [20] and columns.tolist() == [1]
    # 8 ways to lie, none but one without flips
    assert upright == 20 if not flips else 0 < upright < 12


def test_labelled_patches_repeat_the_border_and_scale_the_image_only():
    patches = labelled_patches((32, 24), intensity_factor=0.5)
    factors = set()
    for seed in range(20):
        patches.set_random_state(seed)
        item = patches(labelled_slice())
        assert item["label"].shape == (1, 32, 24)
        assert torch.equal(item["label"][0, 1:31, 2:22], labelled_slice()["label"][0].long())
        assert torch.equal(item["label"][0, :, 0], item["label"][0, :, 2])
        ratio = item["image"] / (10 * item["label"] + 0.5)
        assert ratio.std() < 1e-5
        factors.add(round(float(ratio.mean()), 4))
    assert len(factors) == 20 and 0.5 <= min(factors) < 0.7 and 1 < max(factors) <= 1.2


def test_whole_slices_keep_their_label_map_in_place():
    label = torch.arange(18 * 17, dtype=torch.float32).reshape(1, 18, 17)
    item = slice_pairs(4)({"label": label, "segmentation": label % 3, "case": "a"})
    assert item["label"].shape == item["segmentation"].shape == (1, 16, 16) and item["image"].shape == (1, 4, 4)
    assert torch.equal(item["segmentation"], item["label"] % 3) and item["case"] == "a"
    assert "segmentation" not in slice_pairs((1, 4))({"label": label})


def test_label_maps_from_logits(path, tmp_path):
    item = load_volume()({"image": str(path)})
    labels = torch.randint(0, 300, (9, 8, 7), generator=torch.Generator().manual_seed(0))
    for classes, dtype in ((300, np.int32), (256, np.uint8)):
        expected = labels.clamp(max=classes - 1)
        logits = torch.nn.functional.one_hot(expected, classes).movedim(-1, 0).float() - 3
        post = label_map_postprocessing(classes, str(tmp_path / "out"), str(tmp_path / "in"), postfix=f"seg{classes}")
        result = post(item | {"pred": MetaTensor(logits).copy_meta_from(item["image"])})
        assert torch.equal(result["pred"][0].as_tensor().long(), expected)
        saved = nibabel.load(tmp_path / "out" / "sub" / f"case_seg{classes}.nii.gz")
        assert saved.get_data_dtype() == dtype
        np.testing.assert_array_equal(np.asarray(saved.dataobj), expected)
        np.testing.assert_array_equal(saved.affine, nibabel.load(path).affine)
