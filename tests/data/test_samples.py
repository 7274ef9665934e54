"""Latents of a seed, and generated images on disk."""

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medsr_monai.data import SaveSampled, list_latents
from medsr_monai.transforms import RandLatentd


def test_latents_follow_the_seed_alone():
    few, many = list_latents(2, 40, seed=3), list_latents(50, 40, seed=3)
    assert [item["name"] for item in few] == ["seed3_0000", "seed3_0001"]
    assert all(torch.equal(a["latent"], b["latent"]) for a, b in zip(few, many, strict=False))
    values = torch.stack([item["latent"] for item in many + list_latents(50, 40, seed=4)])
    assert len(values.unique(dim=0)) == 100
    assert abs(values.mean()) < 0.05 and abs(values.std() - 1) < 0.05


@pytest.mark.parametrize("count, seed", [(0, 0), (1, -1)])
def test_senseless_requests_are_refused(count, seed):
    with pytest.raises(ValueError, match=f"{count} images of seed {seed}: expected 1 or more"):
        list_latents(count, 8, seed)


def test_random_latents_of_items():
    transform = RandLatentd("z", 1000).set_random_state(seed=0)
    first, second = (transform({"image": 1}) for _ in range(2))
    assert first["image"] == 1 and first["z"].dtype == torch.float32 and first["z"].shape == (1000,)
    assert not torch.equal(first["z"], second["z"]) and abs(first["z"].std() - 1) < 0.1
    assert torch.equal(transform.set_random_state(seed=0)({})["z"], first["z"])


def test_files(tmp_path):
    image = torch.tensor([[[-0.5, 0.0, 0.2], [0.5, 1.0, 3.0]]])
    for form in ("nii.gz", "png"):
        SaveSampled(output_dir=str(tmp_path / "new"), output_format=form)({"pred": image, "name": "a"})
    volume = nib.load(tmp_path / "new" / "a.nii.gz")
    np.testing.assert_array_equal(volume.get_fdata()[..., 0], image[0])
    assert volume.get_data_dtype() == np.float32 and np.array_equal(volume.affine, np.eye(4))
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.mode == "L"
        # the first axis runs from left to right
        np.testing.assert_array_equal(np.array(picture), [[0, 128], [0, 255], [51, 255]])
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.nii.gz", "a.png"]


def test_colour(tmp_path):
    image = torch.zeros(3, 2, 2)
    image[1] = 1
    SaveSampled(output_dir=str(tmp_path), output_format="png")({"pred": image, "name": "green"})
    with Image.open(tmp_path / "green.png") as picture:
        assert picture.mode == "RGB" and picture.getpixel((0, 1)) == (0, 255, 0)


def test_nothing_is_overwritten_unasked(tmp_path):
    item = {"pred": torch.zeros(1, 2, 2), "name": "a"}
    SaveSampled(output_dir=str(tmp_path))(item)
    with pytest.raises(FileExistsError, match="exists, choose another output_dir"):
        SaveSampled(output_dir=str(tmp_path))(item)
    SaveSampled(output_dir=str(tmp_path), overwrite=True)(item | {"pred": torch.ones(1, 2, 2)})
    assert nib.load(tmp_path / "a.nii.gz").get_fdata().all()


def test_unknown_format():
    with pytest.raises(ValueError, match=r"the format is 'jpg', expected one of nii\.gz, png"):
        SaveSampled(output_format="jpg")
