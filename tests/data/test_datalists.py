"""Images and label maps in two folders: paired by name, split by subject."""

import json
from pathlib import Path

import pytest

from medsr_monai.data import list_pairs, split_labelled

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes of ../shared/data are not here")
PATTERN = r"SC-[A-Z-]+\d+"


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
