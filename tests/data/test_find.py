"""Volumes below a folder: what is found, what it is called."""

import pytest

from medsr_monai.data import find_volumes, list_volumes, volume_name


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
