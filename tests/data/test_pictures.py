"""PNG pictures as volumes of one slice."""

import numpy as np
import pytest
import torch
from PIL import Image

from medsr_monai.data import LoadLabeld, LoadVolumed, is_picture, load_picture
from medsr_monai.transforms import plane_axis
from medsr_monai.transforms.recipes import load_volume


def save(path, array, mode=None):
    picture = Image.fromarray(array)
    (picture if mode is None else picture.convert(mode)).save(path)
    return path


def test_a_picture_is_an_axial_slice_of_columns_and_rows(tmp_path):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)  # 2 rows of 3
    volume = load_picture(save(tmp_path / "a.png", pixels))
    assert volume.shape == (1, 3, 2, 1) and volume.dtype == torch.float32
    np.testing.assert_array_equal(volume[0, :, :, 0], pixels.T)
    assert plane_axis(volume.affine, "axial") == 2
    # one pixel to the right is 1 mm to the patient's left, one down 1 mm to the back
    np.testing.assert_array_equal(volume.affine @ torch.tensor([1.0, 2, 0, 1]).double(), [-1, -2, 0, 1])


def test_16_bits_and_colour(tmp_path):
    deep = np.array([[0, 65535], [256, 1]], dtype=np.uint16)
    np.testing.assert_array_equal(load_picture(save(tmp_path / "deep.png", deep))[0, ..., 0], deep.T)
    colour = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    volume = load_picture(save(tmp_path / "colour.PNG", colour))
    np.testing.assert_array_equal(volume[..., 0], colour.transpose(2, 1, 0))


def test_what_is_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4, (8, 8), dtype=np.uint8)
    palette = save(tmp_path / "palette.png", pixels, "P")
    with pytest.raises(ValueError, match=r"pixels of the format P, expected one of L, I, I;16, RGB"):
        load_picture(palette)
    colour = save(tmp_path / "colour.png", pixels, "RGB")
    with pytest.raises(ValueError, match=r"pixels of the format RGB, expected one of 1, L"):
        LoadLabeld(pictures=True)({"label": colour})
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text.png: cannot be read as a picture"):
        load_picture(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match=r"none.png: no such file"):
        load_picture(tmp_path / "none.png")
    # a picture holds no geometry, so whoever needs one must not get it unasked
    with pytest.raises(ValueError, match=r"not a volume file"):
        LoadVolumed("image")({"image": save(tmp_path / "grey.png", pixels)})
    assert not is_picture("a.nii.gz") and is_picture("a.dcm.PNG")


def test_palette_and_bilevel_masks_are_labels(tmp_path):
    pixels = np.array([[0, 1, 2]], dtype=np.uint8)
    picture = Image.fromarray(pixels, mode="P")
    picture.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    picture.save(tmp_path / "palette.png")
    load = LoadLabeld(pictures=True, classes=3)
    assert load({"label": tmp_path / "palette.png"})["label"][0, :, 0, 0].tolist() == [0, 1, 2]
    mask = save(tmp_path / "mask.png", np.array([[0, 255]], dtype=np.uint8), "1")
    assert load({"label": mask})["label"][0, :, 0, 0].tolist() == [0, 1]


def test_image_and_label_of_an_item(tmp_path):
    image = save(tmp_path / "image.png", np.arange(20, 120, dtype=np.uint8).reshape(10, 10))
    label = save(tmp_path / "label.png", np.where(np.eye(10) > 0, 255, 0).astype(np.uint8))
    item = {"image": image, "label": label, "label_map": {"255": 1}}
    load = load_volume(intensity="minmax", label_key="label", classes=2, pictures=True)
    item = load(item)
    assert item["image"].min() == 0 and item["image"].max() == 1
    assert torch.equal(item["label"].as_tensor()[0, :, :, 0], torch.eye(10))
    with pytest.raises(RuntimeError) as error:
        load({"image": image, "label": label})
    assert "label.png: labels 255, expected 0 to 1" in str(error.value.__cause__)
