"""Label maps told from images: by header, name and voxels, of made data and of real data."""

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from made_volumes import AFFINE, save, values
from PIL import Image
from scipy import ndimage

from medsr_monai.data import LoadLabeld, LoadVolumed, find_volumes, is_label_map, list_volumes, match_results

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes of ../shared/data are not here")


def regions(count, shape=(24, 22, 20), seed=0):
    """A parcellation: each voxel has the number of the seed point that is nearest, outside a ball it is 0."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    seeds = rng.random((count, 3)) * shape
    labels = 1 + np.linalg.norm(places[..., None, :] - seeds, axis=-1).argmin(-1)
    return np.where(np.linalg.norm(places - np.array(shape) / 2, axis=-1) < 9, labels, 0)


def anatomy(levels, shape=(24, 22, 20), noise=1.0):
    """A smooth image with noise, in whole numbers of so many levels, black outside a ball."""
    rng = np.random.default_rng(1)
    image = ndimage.gaussian_filter(rng.random(shape), 3)
    image = (image - image.min()) / np.ptp(image) + noise / levels * rng.standard_normal(shape)
    return np.where(regions(1, shape) > 0, np.clip(image * levels, 1, levels).round(), 0)


LABELS = {
    "binary": regions(1),
    "three": regions(3),
    "many": 1000 * (regions(40) > 0) + 7 * regions(40),
    "no background": regions(5) + 3,
    "two values": np.where(regions(1) > 0, 255, 10),
    "scattered": (np.random.default_rng(0).random((24, 22, 20)) > 0.999).astype(int),
}
IMAGES = {
    "256 levels": anatomy(255),
    "a CT": anatomy(2000) - 1024,
    "20 levels": anatomy(20),
    "counts": np.random.default_rng(0).poisson(2, (24, 22, 20)),
    "fractions": regions(3) / 3,
    "soft mask": ndimage.gaussian_filter(regions(1).astype(float), 1),
    "ramp": np.arange(24 * 22 * 20).reshape(24, 22, 20),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_label_maps_are_left_out_and_refused_by_name(tmp_path, kind, dtype, caplog):
    voxels = LABELS[kind] % (2**8 if dtype == "u1" else 2**15)
    path = save(tmp_path / "b.nii.gz", voxels.astype(dtype))
    save(tmp_path / "a.nii.gz")
    assert is_label_map(path)
    assert [item["image"] for item in list_volumes(tmp_path)] == [str(tmp_path / "a.nii.gz")]
    assert "1 left out, a label map, which is never interpolated: b.nii.gz" in caplog.text
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: a label map, .*nearest neighbour"):
        LoadVolumed("image")({"image": str(path)})
    read = LoadVolumed("image", label_maps=True).load(path)
    np.testing.assert_array_equal(read[0], voxels)
    np.testing.assert_array_equal(LoadLabeld("label")({"label": str(path)})["label"], read)


@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_whole_numbers_or_few_values_are_images(tmp_path, kind):
    path = save(tmp_path / "a.nii.gz", IMAGES[kind].astype(np.float32))
    assert not is_label_map(path) and find_volumes(tmp_path) == [str(path)]
    np.testing.assert_array_equal(LoadVolumed("image").load(path)[0], IMAGES[kind].astype(np.float32))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("sub-01_dseg.nii.gz", True),
        ("sub-01_desc-brain_mask.nii", True),
        ("lesion_seg.nii.gz", True),
        ("aseg.mgz", True),
        ("aparc.a2009s+aseg.mgz", True),
        ("sub-01_T1w.nii.gz", False),
        ("brainmask.mgz", False),
        ("masked_T1w.nii", False),
    ],
)
def test_names_tell_where_voxels_do_not(tmp_path, name, label):
    """Of whole numbers that lie as those of an image; other numbers are never labels."""
    kind = nibabel.MGHImage if name.endswith("mgz") else nibabel.Nifti1Image
    nibabel.save(kind(anatomy(255).astype(np.int16), AFFINE), tmp_path / name)
    assert is_label_map(tmp_path / name) == label
    nibabel.save(kind(values(), AFFINE), tmp_path / name)
    assert not is_label_map(tmp_path / name)


def test_the_header_tells(tmp_path):
    path = save(tmp_path / "a.nii", anatomy(255).astype(np.int16), intent_code=1002)
    assert is_label_map(path)
    with pytest.raises(ValueError, match="a label map"):
        LoadVolumed("image").load(path)


def test_what_cannot_be_read_or_is_constant_is_left_to_the_reader(tmp_path):
    (tmp_path / "a_dseg.nii.gz").touch()
    save(tmp_path / "b.nii.gz", np.ones((4, 4, 4), np.uint8))
    assert not is_label_map(tmp_path / "a_dseg.nii.gz") and not is_label_map(tmp_path / "absent.nii")
    assert find_volumes(tmp_path) == [str(tmp_path / name) for name in ("a_dseg.nii.gz", "b.nii.gz")]


def test_pictures_of_labels(tmp_path, caplog):
    Image.fromarray((LABELS["three"][..., 10] * 60).astype(np.uint8)).save(tmp_path / "mask.png")
    Image.fromarray(anatomy(255)[..., 10].astype(np.uint8)).save(tmp_path / "image.png")
    assert [item["image"] for item in list_volumes(tmp_path)] == [str(tmp_path / "image.png")]
    assert "1 left out, a label map, which is never interpolated: mask.png" in caplog.text
    with pytest.raises(ValueError, match=r"mask.png: a label map"):
        LoadVolumed("image", pictures=True).load(tmp_path / "mask.png")


def test_a_folder_of_labels_is_read_where_labels_are_asked_for(tmp_path):
    for folder in ("sr", "hr", "labels"):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "a.nii", LABELS["three"].astype(np.uint8) if folder == "labels" else None)
    (case,) = match_results(tmp_path / "sr", tmp_path / "hr", tmp_path / "labels")
    assert case["label"] == str(tmp_path / "labels" / "a.nii")


def is_label_of_shared_data(path):
    name = path.relative_to(DATA).as_posix()
    return bool(re.search(r"labels|_seg\.|lesion_|aparc", name.replace("brain_t1_labelled", "")))


@needs_data
def test_no_image_of_the_real_data_is_taken_for_a_label_map_and_no_label_map_for_an_image():
    found = find_volumes(DATA, pictures=True, label_maps=True)
    thinned = [path for number, path in enumerate(found) if "hippocampus" not in path or number % 8 == 0]
    wrong = [path for path in thinned if is_label_map(path) != is_label_of_shared_data(Path(path))]
    assert not wrong and len([p for p in thinned if is_label_of_shared_data(Path(p))]) > 200
