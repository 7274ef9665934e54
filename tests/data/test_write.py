"""What is written: headers, whole files or none, names in the output folder."""

import nibabel
import numpy as np
import pytest
import torch
from made_volumes import AFFINE, save, values
from monai.data import MetaTensor

from medsr_monai.data import LoadVolumed, NiftiWriter, SaveVolumed


def load(path):
    return LoadVolumed("image").load(path)


def test_slightly_sheared_is_read_and_written_so_that_it_can_be_read_again(tmp_path):
    sheared = np.eye(4)
    sheared[0, 1] = 0.008
    volume = load(save(tmp_path / "a.nii", values((100, 100, 3)), sheared))
    SaveVolumed("image", str(tmp_path / "out"))({"image": volume})
    again = load(tmp_path / "out" / "a_sr.nii.gz")
    np.testing.assert_allclose(again.affine, sheared, atol=1e-6)
    assert nibabel.load(tmp_path / "out" / "a_sr.nii.gz").header["qform_code"] == 0


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


def test_a_dicom_folder_that_is_the_root_is_saved_below_the_output(tmp_path):
    """Its own parent is no place below the root: the result would land beside the output folder."""
    study = tmp_path / "study"
    study.mkdir()
    volume = MetaTensor(torch.rand(1, 4, 5, 6), affine=torch.eye(4), meta={"filename_or_obj": str(study)})
    for root in (str(study), f"{study}/"):
        SaveVolumed("pred", str(tmp_path / "out"), data_root_dir=root, overwrite=True)({"pred": volume})
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.nii.gz")] == ["out/study_sr.nii.gz"]
