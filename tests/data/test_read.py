"""Volumes on disk: what is refused and how, what is read, what is written."""

import gzip
import json
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsr_monai.data import (
    LoadVolumed,
    NiftiWriter,
    SaveVolumed,
    check_nifti,
    find_volumes,
    list_volumes,
    split_volumes,
    volume_name,
)
from medsr_monai.transforms import outer_corners, sharp_plane, spacing

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes of ../shared/data are not here")

AFFINE = np.array([[-1.5, 0, 0, 40], [0, 2.0, 0, -30], [0, 0, 2.5, 7], [0, 0, 0, 1]])


def values(shape=(7, 6, 5), dtype=np.float32):
    return (np.random.default_rng(0).random(shape) * 200).astype(dtype)


def save(path, data=None, affine=AFFINE, **header):
    image = nibabel.Nifti1Image(values() if data is None else data, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def patch(path, offset, layout, *numbers):
    """Overwrite header fields of an uncompressed NIfTI file."""
    raw = bytearray(path.read_bytes())
    raw[offset : offset + struct.calcsize(layout)] = struct.pack(layout, *numbers)
    path.write_bytes(raw)
    return path


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


# names and lists


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/sub-1_T1w.nii.gz", "sub-1_T1w"), ("x.y.nii", "x.y"), ("ORIG.MGZ", "ORIG"), ("dicom/1.2.3", "1.2.3")],
)
def test_volume_name(path, name):
    assert volume_name(path) == name


def test_find_volumes_sorts_and_leaves_hidden_files_out(tmp_path):
    for name in ("b.nii.gz", "a/z.nii", "a/c.MGZ", "notes.txt", ".hidden.nii", ".git/x.nii", ".partial-1-b.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = [str(tmp_path / n) for n in ("a/c.MGZ", "a/z.nii", "b.nii.gz")]
    assert find_volumes(tmp_path) == expected
    assert list_volumes(tmp_path) == [{"image": p} for p in expected]


def test_find_volumes_refuses(tmp_path):
    with pytest.raises(FileNotFoundError, match="no volume"):
        find_volumes(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_volumes(tmp_path / "absent")


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


def test_slightly_sheared_is_read_and_written_so_that_it_can_be_read_again(tmp_path):
    sheared = np.eye(4)
    sheared[0, 1] = 0.008
    volume = load(save(tmp_path / "a.nii", values((100, 100, 3)), sheared))
    SaveVolumed("image", str(tmp_path / "out"))({"image": volume})
    again = load(tmp_path / "out" / "a_sr.nii.gz")
    np.testing.assert_allclose(again.affine, sheared, atol=1e-6)
    assert nibabel.load(tmp_path / "out" / "a_sr.nii.gz").header["qform_code"] == 0


# writing


def write(volume, path):
    writer = NiftiWriter(output_dtype=np.float32)
    writer.set_data_array(volume, channel_dim=0)
    writer.set_metadata(volume.meta, resample=False)
    writer.write(path)


def test_written_header(tmp_path):
    volume = MetaTensor(torch.tensor(values()[None]), affine=torch.tensor(AFFINE))
    write(volume, tmp_path / "a.nii.gz")
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == np.float32
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.header["qform_code"] == image.header["sform_code"] == 1
    np.testing.assert_allclose(image.get_qform(), AFFINE, atol=1e-5)
    np.testing.assert_allclose(image.get_sform(), AFFINE, atol=1e-5)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), values())
    assert np.isnan(image.header["scl_slope"]) or float(image.header["scl_slope"]) in (0, 1)


@pytest.mark.parametrize("shape", [(7, 6, 1), (7, 1, 1), (1, 6, 5), (1, 1, 1)])
def test_single_slices_keep_three_dimensions(tmp_path, shape):
    volume = load(save(tmp_path / "a.nii", values(shape)))
    assert tuple(volume.shape) == (1, *shape)
    write(volume, tmp_path / "b.nii.gz")
    assert nibabel.load(tmp_path / "b.nii.gz").shape == shape
    SaveVolumed("image", str(tmp_path))({"image": volume})
    assert nibabel.load(tmp_path / "a_sr.nii.gz").shape == shape
    np.testing.assert_array_equal(load(tmp_path / "a_sr.nii.gz").numpy(), volume.numpy())


def test_writer_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    volume = MetaTensor(torch.tensor(values()[None]), affine=torch.tensor(AFFINE))
    write(volume, path)
    before = path.read_bytes()
    original = nibabel.Nifti1Image.to_stream

    def disk_full(image, stream):
        original(image, stream)
        assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 2
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nibabel.Nifti1Image, "to_stream", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write(volume * 2, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]
    with pytest.raises(OSError, match="No space left"):
        write(volume, tmp_path / "new.nii.gz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_save_keeps_subfolders_and_refuses_to_overwrite(tmp_path):
    source = tmp_path / "in" / "sub-01" / "anat" / "t1.v2.nii.gz"
    source.parent.mkdir(parents=True)
    volume = load(save(source))
    out = tmp_path / "out"
    target = out / "sub-01" / "anat" / "t1.v2_sr.nii.gz"
    SaveVolumed("image", str(out), data_root_dir=str(tmp_path / "in"))({"image": volume})
    assert [p for p in out.rglob("*") if p.is_file()] == [target]
    before = target.read_bytes()
    with pytest.raises(FileExistsError, match=r"t1\.v2_sr\.nii\.gz: exists, choose"):
        SaveVolumed("image", str(out), data_root_dir=str(tmp_path / "in"))({"image": volume + 1})
    assert target.read_bytes() == before
    SaveVolumed("image", str(out), data_root_dir=str(tmp_path / "in"), overwrite=True)({"image": volume + 1})
    np.testing.assert_allclose(load(target).numpy(), volume.numpy() + 1)


def test_save_postfix_and_folder_names_with_dots(tmp_path):
    volume = load(save(tmp_path / "a.nii"))
    for folder in ("1.2.840.1", "1.2.840.2"):
        volume.meta["filename_or_obj"] = str(tmp_path / folder)
        SaveVolumed("image", str(tmp_path / "out"), "x4")({"image": volume})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["1.2.840.1_x4.nii.gz", "1.2.840.2_x4.nii.gz"]


# splitting


def tree(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def parts(root, split):
    return [[str(Path(item["image"]).relative_to(root)) for item in split[part]] for part in ("training", "validation")]


def test_a_datalist_may_have_further_lists(tmp_path):
    lists = {part: [{"image": f"{part}.nii.gz"}] for part in ("training", "validation", "test", "spine")}
    other = {"name": "a", "authors": ["b", "c"], "labels": {"0": "air"}, "empty": []}
    (tmp_path / "list.json").write_text(json.dumps(lists | other))
    split = split_volumes(tmp_path, tmp_path / "list.json")
    assert {part: [item["image"] for item in items] for part, items in split.items()} == {
        part: [str(tmp_path / f"{part}.nii.gz")] for part in lists
    }


def test_split_by_bids_subject(tmp_path):
    names = [f"sub-{s}/ses-{v}/anat/sub-{s}_{c}.nii.gz" for s in "abcde" for v in "12" for c in ("T1w", "T2w")]
    training, validation = parts(tmp_path, split_volumes(tree(tmp_path, *names)))
    assert sorted(training + validation) == sorted(names)
    subjects = [{name[:5] for name in part} for part in (training, validation)]
    assert len(subjects[0]) == 4 and len(subjects[1]) == 1 and not subjects[0] & subjects[1]


def test_split_by_bids_label_in_one_folder(tmp_path):
    names = [f"sub-{s}_{c}.nii.gz" for s in ("01", "02", "03") for c in ("T1w", "T2w")]
    training, validation = parts(tmp_path, split_volumes(tree(tmp_path, *names)))
    assert len(training) == 4 and len(validation) == 2
    assert not {n[:6] for n in training} & {n[:6] for n in validation}


@pytest.mark.parametrize("above", ["", "all/", "study/all/"])
def test_split_by_folder(tmp_path, above):
    """Also below a common folder: contrasts of one patient never lie on both sides."""
    names = [f"{above}p{p}/{c}.nii" for p in range(10) for c in ("t1", "t2", "more/flair")]
    training, validation = parts(tmp_path, split_volumes(tree(tmp_path, *names)))
    assert sorted(training + validation) == sorted(names)
    patients = [{n.removeprefix(above).split("/")[0] for n in part} for part in (training, validation)]
    assert len(patients[0]) == 8 and len(patients[1]) == 2 and not patients[0] & patients[1]


@pytest.mark.parametrize("above", ["", "images/"])
def test_split_by_file(tmp_path, above):
    names = [f"{above}{i}.nii.gz" for i in range(5)]
    training, validation = parts(tmp_path, split_volumes(tree(tmp_path, *names)))
    assert len(training) == 4 and len(validation) == 1 and sorted(training + validation) == names


def test_split_fraction_and_seed(tmp_path):
    tree(tmp_path, *(f"{i}.nii" for i in range(12)))
    first = parts(tmp_path, split_volumes(tmp_path, seed=1))
    assert first == parts(tmp_path, split_volumes(tmp_path, seed=1))
    assert any(first != parts(tmp_path, split_volumes(tmp_path, seed=s)) for s in range(2, 6))
    assert [len(p) for p in parts(tmp_path, split_volumes(tmp_path, train_fraction=0.0))] == [1, 11]
    assert [len(p) for p in parts(tmp_path, split_volumes(tmp_path, train_fraction=1.0))] == [11, 1]


def test_split_of_two_and_of_one(tmp_path):
    tree(tmp_path, "a.nii", "b.nii")
    assert [len(p) for p in parts(tmp_path, split_volumes(tmp_path))] == [1, 1]
    one = tree(tmp_path / "one", "sub-7_T1w.nii", "sub-7_T2w.nii")
    with pytest.raises(ValueError, match=r"one: volumes of one subject only \(sub-7\).*datalist"):
        split_volumes(one)


def test_split_by_datalist(tmp_path):
    datalist = tmp_path / "list.json"
    datalist.write_text(
        json.dumps({"training": [{"image": "a.nii"}, {"image": "b.nii"}], "validation": [{"image": "c.nii"}]})
    )
    root = tmp_path / "data"
    assert parts(root, split_volumes(root, datalist)) == [["a.nii", "b.nii"], ["c.nii"]]
    with pytest.raises(FileNotFoundError, match=r"absent\.json: no such datalist"):
        split_volumes(root, tmp_path / "absent.json")


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


def test_a_dicom_folder_that_is_the_root_is_saved_below_the_output(tmp_path):
    """Its own parent is no place below the root: the result would land beside the output folder."""
    study = tmp_path / "study"
    study.mkdir()
    volume = MetaTensor(torch.rand(1, 4, 5, 6), affine=torch.eye(4), meta={"filename_or_obj": str(study)})
    for root in (str(study), f"{study}/"):
        SaveVolumed("pred", str(tmp_path / "out"), data_root_dir=root, overwrite=True)({"pred": volume})
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.nii.gz")] == ["out/study_sr.nii.gz"]
