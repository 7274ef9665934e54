"""Volumes below a folder: what is found, what is left out, what it is called."""

import os

import nibabel
import numpy as np
import pytest
from made_volumes import AFFINE, save, save_study, values

from medsr_monai.data import (
    LoadVolumed,
    find_pictures,
    find_volumes,
    holds_volumes,
    list_pairs,
    list_volumes,
    volume_name,
)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/sub-1_T1w.nii.gz", "sub-1_T1w"),
        ("x.y.nii", "x.y"),
        ("ORIG.MGZ", "ORIG"),
        ("dicom/1.2.3", "1.2.3"),
        ("a.img.gz", "a"),
        ("b.hdr", "b"),
    ],
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


def relative(root, paths):
    return [os.path.relpath(path, root) for path in paths]


def test_links_to_files_and_folders_are_followed(tmp_path, caplog):
    """As in data sets kept by datalad; a loop ends, and is told as what is linked but not there."""
    real, cohort = tmp_path / "elsewhere", tmp_path / "cohort"
    (real / "anat").mkdir(parents=True)
    cohort.mkdir()
    save(real / "anat" / "x.nii")
    (cohort / "sub-01").symlink_to(real)
    (cohort / "sub-02.nii").symlink_to(real / "anat" / "x.nii")
    (cohort / "sub-03").mkdir()
    (cohort / "sub-03" / "loop").symlink_to(cohort)
    (cohort / "sub-04.nii.gz").symlink_to(tmp_path / "absent")
    expected = ["sub-01/anat/x.nii", "sub-02.nii"]
    assert relative(cohort, find_volumes(cohort)) == expected
    assert "1 left out, a link to what is not there: sub-04.nii.gz" in caplog.text
    assert "1 left out, a link to a folder above it, or a folder that cannot be opened: sub-03/loop" in caplog.text
    assert relative(cohort, (item["image"] for item in list_volumes(cohort))) == expected
    for part in ("images", "labels"):
        (tmp_path / "pairs").mkdir(exist_ok=True)
        (tmp_path / "pairs" / part).symlink_to(real)
    assert [item["image"] for item in list_pairs(tmp_path / "pairs")] == [str(tmp_path / "pairs/images/anat/x.nii")]


def save_pair(path, data, kind=nibabel.Nifti1Pair):
    nibabel.save(kind(data, AFFINE), path)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_pairs_by_either_name(tmp_path, ending):
    save_pair(tmp_path / f"a.img{ending}", values())
    assert relative(tmp_path, find_volumes(tmp_path)) == [f"a.img{ending}"]
    for name in ("hdr", "img"):
        volume = LoadVolumed("image").load(tmp_path / f"a.{name}{ending}")
        np.testing.assert_array_equal(volume[0], values())
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    (tmp_path / f"a.hdr{ending}").unlink()
    with pytest.raises(FileNotFoundError, match=rf"a.img{ending}: a pair of two files, a.hdr{ending} is not there"):
        LoadVolumed("image").load(tmp_path / f"a.img{ending}")


def test_both_files_of_a_compressed_pair_are_checked_to_their_ends(tmp_path):
    save_pair(tmp_path / "a.img.gz", values())
    for name in ("a.hdr.gz", "a.img.gz"):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(ValueError, match=r"a.img.gz: cannot be read (to its end|as a volume) .*damaged"):
            LoadVolumed("image").load(tmp_path / "a.img.gz")
        (tmp_path / name).write_bytes(before)
    assert LoadVolumed("image").load(tmp_path / "a.hdr.gz").shape == (1, 7, 6, 5)


def test_what_is_left_out_is_named_and_counted(tmp_path, caplog):
    """All that may be an image is found, or left out with a line."""
    save(tmp_path / "a.nii.gz")
    save_pair(tmp_path / "b.img", values())
    save_pair(tmp_path / "c.img", values().astype(np.int16), nibabel.AnalyzeImage)
    for name in ("d.img", "e.hdr", "f.mha", "g.nrrd", "h.mgh.gz", "i.zip", "j.png", "k.JPG"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "l.nii")
    (tmp_path / "m.dcm").write_bytes(bytes(128) + b"DICM")
    for number in range(12):
        (tmp_path / f"n{number:02}.mnc").touch()
    (tmp_path / "notes.json").touch()
    assert relative(tmp_path, (item["image"] for item in list_volumes(tmp_path))) == ["a.nii.gz", "b.img"]
    lines = [record.getMessage().removeprefix(f"{tmp_path}: ") for record in caplog.records]
    assert sorted(lines) == sorted([
        "1 left out, Analyze, whose orientation only a datalist can state: c.img",
        "2 left out, half a pair of .hdr and .img: d.img, e.hdr",
        "14 left out, a format that is not read, convert it to NIfTI: f.mha, g.nrrd, "
        + ", ".join(f"n{n:02}.mnc" for n in range(8)) + ", and 4 more",
        "1 left out, a compressed .mgh, rename it to .mgz: h.mgh.gz",
        "1 left out, a zip, give it itself: i.zip",
        "2 left out, pictures beside volumes: j.png, k.JPG",
        "1 left out, no regular file: l.nii",
        "1 file of DICOM left out beside volumes of other kinds (damaged): "
        "give their own folder, or choose them with --series",
    ])  # fmt: skip
    assert relative(tmp_path, find_pictures(tmp_path)) == ["j.png", "k.JPG"]


@pytest.mark.parametrize(("name", "remedy"), [("a.nrrd", "convert it to NIfTI"), ("a.mgh.gz", "rename it to .mgz")])
def test_a_format_that_is_not_read_is_refused_with_what_to_do(tmp_path, name, remedy):
    (tmp_path / name).write_bytes(b"NRRD0004")
    with pytest.raises(ValueError, match=rf"{name}: not a volume file, .*{remedy}"):
        LoadVolumed("image").load(tmp_path / name)
    assert not holds_volumes(tmp_path)


def test_a_study_behind_a_link_is_read(tmp_path):
    """Its folder holds nothing but a link to a folder of DICOM files."""
    save_study(tmp_path / "real")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "T1").symlink_to(tmp_path / "real")
    assert list_volumes(tmp_path / "study") == [{"image": str(tmp_path / "study")}]
    volumes = [LoadVolumed("image").load(tmp_path / name) for name in ("study", "real")]
    assert volumes[0].shape == (1, 8, 6, 4) and (volumes[0] == volumes[1]).all()
