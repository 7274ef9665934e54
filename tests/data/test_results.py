"""Results matched with references by name."""

import re
from pathlib import Path

import pytest

from medsr_monai.data import match_results


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def touch(*names):
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(b"")

    return touch


def test_folders_by_name_and_postfix(make):
    make("hr/a.nii.gz", "hr/a_2.nii", "hr/sub/c.mgz", "hr/p.x.png", "hr/.a.nii.gz", "hr/notes.txt")
    make("sr/a_sr.nii.gz", "sr/a_2-model.nii.gz", "sr/sub/c.nii", "sr/p.x.png")
    make("masks/a.png", "masks/a_2_mask.nii", "masks/sub/c_mask.nii.gz", "masks/p.x_m.png")
    found = match_results("sr", "hr", "masks")
    assert found == [
        {"case": "a", "ref": "hr/a.nii.gz", "pred": "sr/a_sr.nii.gz", "label": "masks/a.png"},
        {"case": "a_2", "ref": "hr/a_2.nii", "pred": "sr/a_2-model.nii.gz", "label": "masks/a_2_mask.nii"},
        {"case": "p.x", "ref": "hr/p.x.png", "pred": "sr/p.x.png", "label": "masks/p.x_m.png"},
        {"case": "sub/c", "ref": "hr/sub/c.mgz", "pred": "sr/sub/c.nii", "label": "masks/sub/c_mask.nii.gz"},
    ]
    assert all("label" not in case for case in match_results("sr", "hr"))


def test_files(make):
    make("x.nii.gz", "y.png")
    assert match_results("x.nii.gz", "y.png") == [{"case": "y", "pred": "x.nii.gz", "ref": "y.png"}]
    assert match_results("x.nii.gz", "x.nii.gz", "y.png")[0]["label"] == "y.png"


@pytest.mark.parametrize(("files", "error", "message"), [
    (["sr/a.nii", "hr/a.nii", "hr/b.nii", "hr/c.nii"], FileNotFoundError, "sr: has no file for hr/b.nii (2 such)"),
    (["sr/a.nii", "sr/ab.nii", "hr/a.nii"], ValueError, "sr/ab.nii: no file of this name"),
    (["sr/a_1.nii", "sr/a_2.nii", "hr/a.nii"], ValueError, "sr/a_2.nii: sr/a_1.nii fits hr/a.nii too"),
    (["sr/a.nii", "sr/a.png", "hr/a.nii"], ValueError, "sr/a.png: sr/a.nii has the same name but for its suffix"),
    (["sr/a.nii", "hr"], ValueError, "hr is one image and sr a folder of images"),
    (["sr/a.nii", "hr/a.txt"], FileNotFoundError,
     "hr: no volume (.nii, .nii.gz, .mgz, .mgh, .img, .hdr, .img.gz, .hdr.gz) and no picture (.png"),
])  # fmt: skip
def test_what_cannot_be_matched_is_named(make, files, error, message):
    make(*files)
    with pytest.raises(error, match=re.escape(message)):
        match_results("sr", "hr")
