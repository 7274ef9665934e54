"""Datalists: volumes, images with label maps, and one's own volumes, split by subject."""

import json
from pathlib import Path

import pytest

from medsr_monai import cli
from medsr_monai.data import list_pairs, own_datalist, split_labelled, split_volumes

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes of ../shared/data are not here")
PATTERN = r"SC-[A-Z-]+\d+"
PARTS = ("training", "validation", "test")


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


# images with label maps


def make(root, *names, parts=("images", "labels")):
    """Empty files: nothing is read when they are listed."""
    for part in parts:
        for name in names:
            (root / part / name).parent.mkdir(parents=True, exist_ok=True)
            (root / part / name).touch()
    return root


def subjects(items):
    return [item["subject"] for item in items]


def test_pairs_by_name(tmp_path):
    make(tmp_path, "b/2.nii.gz", "a.mgz", "sub-07_T1w.nii", "x.png", ".hidden.png", "notes.txt")
    items = list_pairs(tmp_path)
    assert [Path(i["image"]).relative_to(tmp_path).as_posix() for i in items] == [
        "images/a.mgz", "images/b/2.nii.gz", "images/sub-07_T1w.nii", "images/x.png"
    ]  # fmt: skip
    assert all(i["label"] == i["image"].replace("/images/", "/labels/") for i in items)
    assert subjects(items) == ["a", "b", "sub-07", "x"]
    assert [i.get("slices") for i in items] == [None, None, None, {"axial": [0]}]
    assert "label_map" not in items[0]
    assert list_pairs(tmp_path, label_map={"255": 1})[0]["label_map"] == {"255": 1}


def test_pattern(tmp_path):
    make(tmp_path, "SC-HF-I-04-IM-0001.png", "SC-HF-I-04-IM-0002.png", "SC-N-40-IM-0001.png")
    assert subjects(list_pairs(tmp_path, PATTERN)) == ["SC-HF-I-04", "SC-HF-I-04", "SC-N-40"]
    assert subjects(list_pairs(tmp_path, r"SC-[A-Z-]+(\d+)")) == ["04", "04", "40"]
    with pytest.raises(ValueError, match=r"SC-N-40-IM-0001.png: subject_pattern 'SC-HF' does not match"):
        list_pairs(tmp_path, "SC-HF")


def test_partners_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images: no such folder: expected images/ and labels/"):
        list_pairs(tmp_path)
    make(tmp_path, "a.png", parts=["images"])
    make(tmp_path, "readme.txt", parts=["labels"])
    with pytest.raises(FileNotFoundError, match=r"images/a.png has no labels/a.png \(1 such files\)"):
        list_pairs(tmp_path)
    (tmp_path / "images" / "a.png").rename(tmp_path / "labels" / "a.png")
    with pytest.raises(FileNotFoundError, match=r"labels/a.png has no images/a.png"):
        list_pairs(tmp_path)
    (tmp_path / "labels" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"images: no volume .* and no picture in this folder"):
        list_pairs(tmp_path)


def test_split_by_subject(tmp_path):
    make(tmp_path, *(f"SC-N-{s:02}-IM-{i}.png" for s in range(10) for i in range(3)))
    split = split_labelled(tmp_path, subject_pattern=PATTERN)
    train, val = (subjects(split[part]) for part in ("training", "validation"))
    assert (len(train), len(val)) == (24, 6) and not set(train) & set(val)
    assert split == split_labelled(tmp_path, subject_pattern=PATTERN)
    assert split != split_labelled(tmp_path, subject_pattern=PATTERN, seed=1)
    assert len(split_labelled(tmp_path, subject_pattern=PATTERN, train_fraction=0.5)["training"]) == 15
    with pytest.raises(ValueError, match=r"pictures of one subject .* give subject_pattern"):
        split_labelled(tmp_path)
    with pytest.raises(ValueError, match=r"one subject only \(SC-N\)"):
        split_labelled(tmp_path, subject_pattern="SC-N")


def test_volumes_need_no_pattern(tmp_path):
    make(tmp_path, *(f"hippocampus_{i}.nii.gz" for i in range(5)))
    split = split_labelled(tmp_path)
    assert [len(items) for items in split.values()] == [4, 1]


def test_validation_folder(tmp_path):
    train = make(tmp_path / "train", "SC-N-01-IM-1.png", "SC-N-02-IM-1.png")
    val = make(tmp_path / "val", "SC-N-03-IM-1.png")
    split = split_labelled(train, validation_dir=val)
    assert [len(items) for items in split.values()] == [2, 1]
    make(val, "SC-N-02-IM-9.png")
    with pytest.raises(ValueError, match=r"subject SC-N-02 is in training and in validation"):
        split_labelled(train, validation_dir=val, subject_pattern=PATTERN)


def test_datalist(tmp_path):
    path = tmp_path / "datalist.json"
    items = [{"image": f"{i}.nii.gz", "label": f"{i}_seg.nii.gz", "label_map": {"4": 3}} for i in range(2)]
    items.append({"image": "x.png", "label": "y.png"})
    path.write_text(json.dumps({"training": items[:2], "validation": items[2:]}))
    split = split_labelled(tmp_path, path, label_map={"255": 1})
    # what the datalist says of an item goes first
    assert [i["label_map"] for i in split["training"]] == [{"4": 3}] * 2
    assert split["validation"][0] == {
        "image": str(tmp_path / "x.png"), "label": str(tmp_path / "y.png"),
        "label_map": {"255": 1}, "slices": {"axial": [0]},
    }  # fmt: skip
    path.write_text(json.dumps({"training": [{"image": "0.nii.gz"}], "validation": items[:1]}))
    with pytest.raises(ValueError, match=r"0.nii.gz: the datalist names no label"):
        split_labelled(tmp_path, path)


@needs_data
def test_real_pictures():
    split = split_labelled(DATA / "train/cardiac_cine", validation_dir=DATA / "val/cardiac_cine",
                           subject_pattern=PATTERN)  # fmt: skip
    assert [(len(i), len(set(subjects(i)))) for i in split.values()] == [(98, 11), (32, 4)]


# own volumes


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
