"""Volumes on disk: what is refused and how, what is read."""

import gzip
import re
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from made_volumes import AFFINE, patch, save, save_study, values
from monai.data import MetaTensor

from medsr_monai.data import LoadVolumed, check_nifti
from medsr_monai.errors import reason_of
from medsr_monai.recipes import load_volume
from medsr_monai.transforms import outer_corners, sharp_plane, spacing

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes of ../shared/data are not here")


def load(path, **kwargs):
    return LoadVolumed("image", **kwargs).load(path)


def refused(path, *words, kind=ValueError, **kwargs):
    """One line that names the file; nothing else is raised by the transform either."""
    with pytest.raises(kind) as caught:
        LoadVolumed("image", **kwargs)({"image": str(path)})
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    for word in words:
        assert word in message, message


# refusals


def test_missing_file(tmp_path):
    refused(tmp_path / "absent.nii.gz", "no such file", kind=FileNotFoundError)


def test_folder_instead_of_a_file(tmp_path):
    refused(tmp_path, "a folder without DICOM images")
    (tmp_path / "x.nii.gz").mkdir()
    refused(tmp_path / "x.nii.gz", "a folder without DICOM images")


def test_wrong_suffix(tmp_path):
    (tmp_path / "x.png").write_bytes(b"png")
    refused(tmp_path / "x.png", "not a volume file, expected .nii, .nii.gz, .mgz, .mgh")


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.mgz"])
def test_empty_and_misnamed_files(tmp_path, name):
    path = tmp_path / name
    path.touch()
    refused(path, "the file is empty")
    path.write_bytes(b"\x89PNG\r\n" * 200)
    refused(path, "cannot be read as a volume", "damaged or misnamed?")


def test_compression_that_the_name_does_not_tell(tmp_path):
    plain = save(tmp_path / "a.nii")
    (tmp_path / "b.nii.gz").write_bytes(plain.read_bytes())
    refused(tmp_path / "b.nii.gz", "damaged or misnamed?")
    (tmp_path / "c.nii").write_bytes(gzip.compress(plain.read_bytes()))
    refused(tmp_path / "c.nii", "damaged or misnamed?")


def test_wrong_magic(tmp_path):
    refused(patch(save(tmp_path / "a.nii"), 344, "4s", b"xyz"), "damaged or misnamed?")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated_files(tmp_path, name, kept):
    path = save(tmp_path / name, values((20, 20, 20)))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(kept * len(raw))])
    refused(path, "cannot be read to its end", "damaged file?")


def flips(path, count, seed=0):
    """Copies of a file, each with one bit changed: evenly spread, and the last eight bytes among them."""
    raw = path.read_bytes()
    places = [*np.linspace(10, len(raw) - 9, count).astype(int), *range(len(raw) - 8, len(raw))]
    for place, bit in zip(places, np.random.default_rng(seed).integers(0, 8, len(places)), strict=True):
        changed = bytearray(raw)
        changed[place] ^= 1 << int(bit)
        yield changed


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz"])
@pytest.mark.parametrize("frames", [(), (3,)])
def test_a_changed_bit_of_a_compressed_file_never_passes(tmp_path, name, frames):
    """The checksum stands behind the last voxel, where readers of voxels do not come by themselves."""
    data = values((12, 12, 12, *frames))
    kind = nibabel.MGHImage if name.endswith("mgz") else nibabel.Nifti1Image
    nibabel.save(kind(data, AFFINE), tmp_path / name)
    frame = 0 if frames else None  # which lies at the beginning of the file
    before = load(tmp_path / name, frame=frame)
    assert np.array_equal(before[0].numpy(), data[..., 0] if frames else data)
    refusals = 0
    for changed in flips(tmp_path / name, 60):
        (tmp_path / name).write_bytes(changed)
        try:
            volume = load(tmp_path / name, frame=frame)
        except ValueError as error:
            assert str(error).startswith(f"{tmp_path / name}: ") and "\n" not in str(error)
            refusals += 1
        else:
            assert torch.equal(volume, before) and np.array_equal(volume.affine, before.affine)
    assert refusals > 60


def test_a_changed_bit_of_a_zip_never_passes(tmp_path):
    """The checksum of each member is read."""
    save_study(tmp_path / "study")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((tmp_path / "study").iterdir()):
            archive.write(path, path.name)
    before = load(tmp_path / "a.zip")
    assert before.shape == (1, 8, 6, 4)
    refusals = 0
    for changed in flips(tmp_path / "a.zip", 60):
        (tmp_path / "a.zip").write_bytes(changed)
        try:
            volume = load(tmp_path / "a.zip")
        except ValueError as error:
            assert "\n" not in str(error)
            refusals += 1
        else:
            assert torch.equal(volume, before)
    assert refusals > 50


@pytest.mark.parametrize("place", [-8, -1])
def test_checksum_and_length_of_a_compressed_file(tmp_path, place):
    path = save(tmp_path / "a.nii.gz")
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    refused(path, "cannot be read to its end", "damaged file?")


def test_header_cut_short(tmp_path):
    path = save(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:200])
    refused(path, "damaged or misnamed?")


def test_out_of_memory_is_no_damaged_file(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii")
    loader = LoadVolumed("image")

    def full(*args, **kwargs):
        raise MemoryError("cannot allocate")

    monkeypatch.setattr(loader, "loader", full)
    with pytest.raises(MemoryError, match="cannot allocate"):
        loader.load(path)


@pytest.mark.parametrize("shape", [(7, 6), (7,)])
def test_fewer_dimensions(tmp_path, shape):
    refused(save(tmp_path / "a.nii", values(shape)), "a 3D volume is needed")


def test_more_dimensions(tmp_path):
    refused(save(tmp_path / "a.nii", values((4, 4, 4, 1, 3))), "5 dimensions", "a 3D volume is needed")


def test_series_of_frames(tmp_path):
    path = save(tmp_path / "a.nii.gz", values((7, 6, 5, 3)))
    refused(path, "a series of 3 frames (7, 6, 5, 3), choose one with --frame 0 to 2")
    refused(path, "frame 3 asked for, it has frames 0 to 2", frame=3)
    refused(path, "frame -1 asked for", frame=-1)
    refused(save(tmp_path / "b.nii"), "frame 1 asked for, it has frames 0 to 0", frame=1)


def test_colour_and_complex(tmp_path):
    colour = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(save(tmp_path / "a.nii", colour), "RGB and complex volumes")
    refused(save(tmp_path / "b.nii", values((4, 4, 4), np.complex64)), "RGB and complex volumes")


@pytest.mark.parametrize("edge", [0.0, -2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_voxel_size(tmp_path, edge, name):
    """nibabel repairs zero and negative sizes on reading, and the geometry would be a guess."""
    path = patch(save(tmp_path / "a.nii"), 84, "<f", edge)
    if name != "a.nii":
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
    refused(tmp_path / name, "voxel size", "correct pixdim")


@pytest.mark.parametrize("bad", [[0, 0, 0, 0], [1e-12, 0, 0, 0], [float("nan"), 0, 0, 0], [0, 2.0, 0, 0]])
def test_singular_affine(tmp_path, bad):
    path = save(tmp_path / "a.nii")
    patch(path, 252, "<h", 0)
    refused(patch(path, 280, "<4f", *bad), "singular or not finite")


def test_sheared_affine(tmp_path):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.3
    refused(save(tmp_path / "a.nii", affine=sheared), "not perpendicular", "resample")


def test_forms_that_disagree(tmp_path):
    path = tmp_path / "a.nii"
    image = nibabel.Nifti1Image(values(), AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] += 3
    image.set_qform(moved, 1)
    image.set_sform(AFFINE, 1)
    nibabel.save(image, path)
    refused(path, "qform and sform place the volume up to", "set the code of the wrong one to 0")
    image.set_qform(moved, 0)
    nibabel.save(image, path)
    np.testing.assert_allclose(load(path).affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize(("qform", "sform", "legal"), [(1, 2, True), (1, 4, True), (2, 1, True), (2, 2, False)])
def test_forms_of_two_spaces(tmp_path, qform, sform, legal, caplog):
    """Where the scanner was and where a registration has moved it: the sform counts, as in nibabel and ANTs."""
    path, moved = tmp_path / "a.nii", AFFINE.copy()
    moved[:3, 3] += 20
    image = nibabel.Nifti1Image(values(), None)
    image.set_qform(AFFINE, qform)
    image.set_sform(moved, sform)
    nibabel.save(image, path)
    if not legal:
        refused(path, "qform and sform place the volume up to")
        return
    for _ in range(2):
        np.testing.assert_allclose(load(path).affine, moved, atol=1e-4)
    said = [record.getMessage() for record in caplog.records if "the sform is used" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith(f"{path}: qform (") and "34.6" in said[0]


def test_a_background_of_nan(tmp_path, caplog):
    data = values()
    data[:3] = np.nan
    path = save(tmp_path / "a.nii", data)
    assert int(load(path).isnan().sum()) == 3 * 30
    with pytest.raises(RuntimeError) as caught:  # MONAI's Compose wraps it
        load_volume()({"image": path})
    assert re.search("90 of 210 voxels are NaN .*, or give --nan-value, such as 0", reason_of(caught.value))
    for value in (0, -1024.5):
        np.testing.assert_array_equal(load(path, nan_value=value)[0], np.nan_to_num(data, nan=value))
        assert f"{path}: 90 of 210 voxels were NaN and became {value:g}" in caplog.text
    scaled = load_volume(nan_value=0)({"image": path})["image"]
    assert scaled.isfinite().all() and float(scaled[0, 0].max()) == float(scaled[0, 0].min())
    data[5, 5, 4] = np.inf
    assert load(save(path, data), nan_value=0).isinf().sum() == 1
    with pytest.raises(ValueError, match="nan_value is nan, expected a number such as 0"):
        load(path, nan_value=float("nan"))


def test_forms_that_differ_by_rounding(tmp_path):
    """A half turn and a little: the worst case for a qform's float32 quaternion, on a large grid."""
    turn = nibabel.quaternions.quat2mat([3e-4, 0.1, 0.2, np.sqrt(1 - 0.05 - 9e-8)])
    affine = nibabel.affines.from_matvec(turn * 0.5, [1, 2, 3])
    image = nibabel.Nifti1Image(np.zeros((700, 700, 2), np.uint8), affine)
    image.dataobj[0, 0, 0] = 1
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nibabel.save(image, tmp_path / "a.nii")
    check_nifti(tmp_path / "a.nii")


def test_qform_that_is_no_rotation(tmp_path):
    path = save(tmp_path / "a.nii")
    patch(path, 252, "<hh", 1, 1)
    refused(patch(path, 256, "<3f", 3.0, 3.0, 3.0), "qform")


def test_empty_side(tmp_path):
    image = save(tmp_path / "a.nii", np.zeros((4, 0, 4), np.float32))
    with pytest.raises(ValueError, match=r"a\.nii: ") as caught:
        check_nifti(image)
    assert "\n" not in str(caught.value)


# reading


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", ">i2", ">f4"])
def test_types_and_byte_orders(tmp_path, name, dtype):
    data = values(dtype=np.dtype(dtype))
    header = nibabel.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(dtype)
    nibabel.save(nibabel.Nifti1Image(data, AFFINE, header), tmp_path / name)
    assert nibabel.load(tmp_path / name).header.endianness == (">" if dtype.startswith(">") else "<")
    volume = load(tmp_path / name)
    assert isinstance(volume, MetaTensor) and volume.dtype == torch.float32
    assert tuple(volume.shape) == (1, 7, 6, 5)
    np.testing.assert_array_equal(volume[0].numpy(), data.astype(np.float32))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.meta["filename_or_obj"] == str(tmp_path / name)


def test_slope_and_intercept(tmp_path):
    stored = np.arange(7 * 6 * 5, dtype=np.int16).reshape(7, 6, 5)
    path = save(tmp_path / "a.nii", stored)
    patch(path, 112, "<2f", 0.5, -1024.0)
    np.testing.assert_allclose(load(path)[0].numpy(), stored * 0.5 - 1024)


@pytest.mark.parametrize("dtype", ["f8", "f4", "i4"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("masked", [False, True])
def test_an_offset_that_eats_the_range(tmp_path, dtype, sign, masked, caplog):
    """float32 has steps of 64 at 1e9, and of 1/16 at 1e6."""
    signal = np.random.default_rng(0).permutation(np.linspace(0, 10, 7 * 6 * 5)).reshape(7, 6, 5)
    outside = np.arange(7)[:, None, None] < (3 if masked else 0)

    def made(offset, scale=1):
        data = np.where(outside, 0, sign * (offset + scale * signal))
        return save(tmp_path / "a.nii", data.round().astype(dtype) if dtype == "i4" else data.astype(dtype))

    np.testing.assert_allclose(load(made(1e6))[0].numpy(), np.asarray(nibabel.load(made(1e6)).dataobj), atol=0.032)
    assert "steps of 0.0625, to which they are rounded" in caplog.text
    for offset, scale in ((1e9, 1), (1e9, 20), (3e7, 1)):
        refused(made(offset, scale), "where float32 has steps of", "subtract an offset")
    caplog.clear()
    assert load(made(1e9, 5e6)).isfinite().all() and "rounded" not in caplog.text  # the steps are small for this range


@pytest.mark.parametrize("value", [0.1, 1e-12, 1.5])
def test_masks_are_no_matter_of_steps(tmp_path, value):
    mask = value * (values() > 100)
    np.testing.assert_array_equal(load(save(tmp_path / "a.nii", mask))[0].numpy(), mask.astype(np.float32))


def test_freesurfer(tmp_path):
    data = values(dtype=np.uint8)
    nibabel.save(nibabel.MGHImage(data, AFFINE), tmp_path / "a.mgz")
    volume = load(tmp_path / "a.mgz")
    np.testing.assert_array_equal(volume[0].numpy(), data)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize("extra", [(1,), (1, 1)])
def test_one_frame_is_a_volume(tmp_path, extra):
    data = values()
    path = save(tmp_path / "a.nii", data.reshape(data.shape + extra))
    for frame in (None, 0):
        np.testing.assert_array_equal(load(path, frame=frame).numpy(), data[None])


@pytest.mark.parametrize("extra", [(), (1,)])
def test_one_frame_of_a_series(tmp_path, extra):
    data = values((7, 6, 5, 3))
    path = save(tmp_path / "a.nii.gz", data.reshape(data.shape + extra))
    for frame in range(3):
        volume = load(path, frame=frame)
        np.testing.assert_array_equal(volume.numpy(), data[None, ..., frame])
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)


# real volumes


REAL = {
    "val/brain_t1_d/t1w_conformed1mm.nii.gz": "axial",
    "val/brain_flair_ms26/flair_mni1mm.nii.gz": "axial",
    "test/brain_t1_labelled/orig.mgz": "axial",
    "test/brain_t1_thick_dicom/t1w_sag.nii.gz": "sagittal",
    "test/brain_thick_ms12/t1w.nii.gz": None,
    "test/brain_thick_ms12/t2w.nii.gz": None,
    "test/brain_thick_ms12/flair.nii.gz": None,
    "test/spine_mr/t2s_axial.nii.gz": "axial",
    "test/abdomen_ct_3mm/abdomen_ct_3mm.nii.gz": "axial",
}


@needs_data
@pytest.mark.parametrize(("name", "plane"), REAL.items())
def test_real_volumes(name, plane):
    check_nifti(DATA / name)
    volume = load(DATA / name)
    image = nibabel.load(DATA / name)
    assert tuple(volume.shape[1:]) == image.shape[:3] and bool(torch.isfinite(volume.as_tensor()).all())
    corners = outer_corners(image.affine, image.shape[:3])
    assert np.abs(outer_corners(volume.affine, volume.shape[1:]) - corners).max() < 1e-3 * spacing(image.affine).min()
    np.testing.assert_array_equal(
        volume[0, ::9, ::9, ::9].numpy(), np.asarray(image.dataobj[::9, ::9, ::9], np.float32)
    )
    if plane is not None:
        assert sharp_plane(volume.affine) == plane
    else:
        edges = spacing(volume.affine)
        across = nibabel.aff2axcodes(image.affine)[int(edges.argmax())]
        assert sharp_plane(volume.affine) == {"L": "sagittal", "P": "coronal", "I": "axial"}.get(
            across, {"R": "sagittal", "A": "coronal", "S": "axial"}.get(across)
        )
