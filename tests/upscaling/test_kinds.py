"""Volumes of all kinds that Python callers have."""

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsr_monai.data import LoadVolumed, write_volume
from medsr_monai.errors import MedsrError
from medsr_monai.transforms import outer_corners
from medsr_monai.upscaling.kinds import like, name_of, to_volume

OBLIQUE = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([-0.7, 0.9, 3.0]), [-40.5, 17.25, 8.0]
)
VOXELS = np.random.default_rng(0).integers(-50, 900, (5, 6, 7)).astype(np.int16)


def images():
    """The same voxels in headers of several kinds."""
    plain = nibabel.Nifti1Image(VOXELS, OBLIQUE)
    plain.set_qform(OBLIQUE, 1)
    metres = nibabel.Nifti1Image(VOXELS, np.diag([1e-3, 1e-3, 1e-3, 1]) @ OBLIQUE)
    metres.header.set_xyzt_units("meter")
    scaled = nibabel.Nifti1Image(VOXELS.astype(float) * 0.37, OBLIQUE)
    scaled.set_data_dtype(np.int16)
    return {"plain": plain, "metres": metres, "scaled": scaled, "nifti2": nibabel.Nifti2Image(VOXELS, OBLIQUE)} | {
        "trailing": nibabel.Nifti1Image(VOXELS[..., None, None], OBLIQUE),
        "mgh": nibabel.MGHImage(VOXELS.astype(np.float32), OBLIQUE),
    }


@pytest.mark.parametrize("name", images())
def test_an_image_is_what_its_file_is(tmp_path, name):
    path = tmp_path / ("a.mgz" if name == "mgh" else "a.nii.gz")
    images()[name].to_filename(path)
    expected = LoadVolumed("image").load(path)
    for volume in (path, str(path), nibabel.load(path)):
        made = to_volume(volume)
        assert made.dtype == torch.float32 and made.shape == (1, *VOXELS.shape)
        assert made.stride() == expected.stride()  # sums are rounded in the order in which numbers lie
        assert torch.equal(made.as_tensor(), expected.as_tensor()) and torch.equal(made.affine, expected.affine)
        back = like(made, volume)
        assert isinstance(back, nibabel.Nifti1Image) and back.shape == VOXELS.shape
        assert back.header.get_xyzt_units()[0] == "mm" and back.get_data_dtype() == np.float32
        np.testing.assert_allclose(
            outer_corners(back.affine, back.shape), outer_corners(OBLIQUE, VOXELS.shape), atol=1e-3
        )
    write_volume(made, tmp_path / "out.nii")
    assert (tmp_path / "out.nii").read_bytes() == back.to_bytes()  # as the command writes it


def test_a_frame_of_a_file_and_of_its_image(tmp_path):
    frames = np.random.default_rng(0).random((5, 6, 7, 3)).astype(np.float32)
    path = tmp_path / "a.nii"
    nibabel.Nifti1Image(frames, OBLIQUE).to_filename(path)
    for volume in (path, nibabel.load(path)):
        np.testing.assert_array_equal(to_volume(volume, 2).numpy()[0], frames[..., 2])
        for frame in (None, 3):
            with pytest.raises(MedsrError, match="frames"):
                to_volume(volume, frame)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_pairs_come_back_as_they_were(kind, channel, dtype):
    voxels = VOXELS.astype(dtype)[None] if channel else VOXELS.astype(dtype)
    array, affine = kind(voxels.copy()), kind(OBLIQUE.copy())
    volume = to_volume((array, affine))
    assert isinstance(volume, MetaTensor) and volume.dtype == torch.float32
    assert volume.is_contiguous() and to_volume((array.swapaxes(-1, -2), affine)).is_contiguous()
    np.testing.assert_array_equal(volume[0].numpy(), VOXELS)
    np.testing.assert_array_equal(volume.affine.numpy(), OBLIQUE)
    volume += 1
    volume.affine[0, 0] = 7
    np.testing.assert_array_equal(np.asarray(array), voxels)  # the caller's are left alone
    np.testing.assert_array_equal(affine, OBLIQUE)
    made, place = like(volume, (array, affine))
    assert type(made) is type(array) and type(place) is type(affine)
    assert tuple(made.shape) == voxels.shape and place.shape == (4, 4) and place[0, 0] == 7


@pytest.mark.parametrize("channel", [False, True])
def test_meta_tensors_come_back_as_they_were(channel):
    given = MetaTensor(torch.from_numpy(VOXELS).float()[(None,) * channel], affine=torch.from_numpy(OBLIQUE))
    given.meta["SeriesDescription"] = "T1"
    volume = to_volume(given)
    assert volume.shape == (1, *VOXELS.shape) and volume.meta["SeriesDescription"] == "T1"
    volume += 1
    volume.meta["SeriesDescription"] = "T2"
    assert torch.equal(given.as_tensor().reshape(VOXELS.shape), torch.from_numpy(VOXELS).float())
    assert given.meta["SeriesDescription"] == "T1" and "spatial_shape" not in given.meta
    back = like(volume, given)
    assert isinstance(back, MetaTensor) and back.shape == given.shape
    assert torch.equal(back.affine, given.affine)


def sheared():
    affine = np.eye(4)
    affine[0, 1] = 0.3
    return affine


@pytest.mark.parametrize(
    ("volume", "reason"),
    [
        (VOXELS, "it is of type ndarray, expected a path"),
        (torch.from_numpy(VOXELS), "it is of type Tensor, expected a path"),
        ((VOXELS[0], OBLIQUE), r"shape \(6, 7\), expected \[X, Y, Z\]"),
        ((np.zeros((2, 5, 6, 7)), OBLIQUE), r"shape \(2, 5, 6, 7\), expected"),
        ((VOXELS[:0], OBLIQUE), r"shape \(0, 6, 7\), expected"),
        ((VOXELS.astype(complex), OBLIQUE), "complex128, expected real numbers"),
        ((torch.from_numpy(VOXELS).to(torch.complex64), OBLIQUE), "complex64, expected real numbers"),
        ((VOXELS, OBLIQUE[:3]), r"affine of shape \(3, 4\)"),
        ((VOXELS, np.zeros((4, 4))), "singular or not finite"),
        ((VOXELS, sheared()), "not perpendicular"),
        (nibabel.Nifti1Image(VOXELS, sheared()), "not perpendicular"),
        (nibabel.Nifti1Image(VOXELS[0], OBLIQUE), "2 dimensions"),
        (nibabel.AnalyzeImage(VOXELS, np.eye(4)), "does not hold its orientation"),
        (MetaTensor(VOXELS, meta={"space": "LPS"}), "expected RAS"),
        ("absent.nii", "absent.nii: no such file"),
    ],
)
def test_what_is_no_volume_is_one_line(volume, reason):
    with pytest.raises(MedsrError, match=reason) as error:
        to_volume(volume)
    assert "\n" not in str(error.value)


def test_an_array_has_no_frames():
    with pytest.raises(MedsrError, match="frame 1 asked for"):
        to_volume((VOXELS, OBLIQUE), 1)
    assert to_volume((VOXELS, OBLIQUE), 0).shape == (1, *VOXELS.shape)


def test_messages_name_the_file_of_a_volume(tmp_path):
    path = tmp_path / "a.nii"
    nibabel.Nifti1Image(VOXELS, OBLIQUE).to_filename(path)
    for volume in (path, str(path), nibabel.load(path), LoadVolumed("image").load(path)):
        assert name_of(volume) == str(path) == name_of(to_volume(volume))
    for volume in ((VOXELS, OBLIQUE), nibabel.Nifti1Image(VOXELS, OBLIQUE), MetaTensor(VOXELS)):
        assert name_of(volume) == "the volume" == name_of(to_volume(volume))


def test_label_maps_are_refused_unless_they_are_asked_for():
    labels = np.zeros((24, 24, 24), np.uint8)
    labels[6:18, 6:18, 6:18] = 1
    for volume in (nibabel.Nifti1Image(labels, OBLIQUE), (labels, OBLIQUE), MetaTensor(labels, affine=OBLIQUE)):
        with pytest.raises(MedsrError, match="a label map"):
            to_volume(volume)
        np.testing.assert_array_equal(to_volume(volume, label_maps=True)[0].numpy(), labels)
