"""A datalist of one's own volumes, by one command, and the training's view of it."""

import json

import pytest

from medsr_monai import cli
from medsr_monai.data import own_datalist, split_volumes

PARTS = ("training", "validation", "test")


@pytest.fixture
def folder(tmp_path):
    for subject in range(10):
        for scan in ("t1", "t2"):
            path = tmp_path / "data" / f"sub-{subject:02}" / f"{scan}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()  # files are listed, not read
    return tmp_path / "data"


def test_the_command_writes_what_a_training_reads(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["prepare", "own", "--root", "data", "--output", "list.json"])
    assert end.value.code == 0 and "training: 6 subjects, 12 images, all planes" in capsys.readouterr().out
    text = (tmp_path / "list.json").read_text()
    assert str(tmp_path) not in text
    lists = json.loads(text)
    subjects = [{item["subject"] for item in lists[part]} for part in PARTS]
    assert [len(names) for names in subjects] == [6, 2, 2] and len(set.union(*subjects)) == 10
    split = split_volumes(folder, tmp_path / "list.json")
    assert [len(split[part]) for part in PARTS] == [12, 4, 4]
    images = {item["image"] for part in PARTS for item in split[part]}
    assert images == {str(path) for path in folder.rglob("*.nii.gz")}
    assert own_datalist(folder) == lists and own_datalist(folder, seed=1) != lists


def test_too_few_subjects_and_options_of_others(folder, tmp_path, capsys):
    for path in list(folder.iterdir())[2:]:
        for file in path.iterdir():
            file.unlink()
    with pytest.raises(ValueError, match=r"volumes of 2 subjects .* need one each"):
        own_datalist(folder)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        own_datalist(tmp_path / "absent")
    with pytest.raises(SystemExit) as end:
        cli.main(["prepare", "own", "--root", str(folder), "--contrast", "T1", "--output", str(tmp_path / "x.json")])
    assert end.value.code == 1 and "leave them out" in capsys.readouterr().err and not (tmp_path / "x.json").exists()
