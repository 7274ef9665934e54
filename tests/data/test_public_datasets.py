"""Datalists of public datasets, on generated trees with the official names, and what reads them."""

import hashlib
import json
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor

from medsr_monai import cli
from medsr_monai.data import (
    PUBLIC_DATASETS,
    LoadLabeld,
    LoadVolumed,
    SliceDataset,
    check_subjects,
    prepare_datalist,
    split_volumes,
    write_datalist,
)
from medsr_monai.recipes import load_volume
from medsr_monai.transforms import RestoreIntensityd, ScaleVolumed, plane_axis

CONFIGS = Path(__file__).parents[2] / "bundles" / "rdst_e" / "configs"
PARTS = ("training", "validation", "test")
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


def keep(item):
    return item


def texture(shape, seed=0):
    """Positive, no two volumes alike."""
    return np.random.default_rng(seed).integers(1, 200, shape).astype(np.int16)


def save(path, data, affine=AFFINE, kind=nibabel.Nifti1Image):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(kind(data, affine), path)
    return path


def blocks(shape, **labels):
    """Label map: per slice ``{"z3": (label, count)}``."""
    data = np.zeros(shape, np.int16)
    for name, (label, count) in labels.items():
        data[..., int(name[1:])].flat[:count] = label
    return data


def digests(root):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


def items(datalist, parts=(*PARTS, "prior")):
    return [item for part in parts for item in datalist.get(part, [])]


# trees


def analyze(path, data):
    """As on the OASIS discs: big endian, a fourth axis of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = nibabel.AnalyzeHeader(endianness=">")
    header.set_data_dtype(np.int16)
    nibabel.save(nibabel.AnalyzeImage(data[..., None], None, header), path)


OASIS_SHAPE = (176, 208, 5)


def oasis(root, sessions=("0001_MR1", "0001_MR2", "0002_MR1", "0003_MR1", "0004_MR1")):
    for number, session in enumerate(sessions):
        folder = root / "disc1" / f"OAS1_{session}"
        name = f"OAS1_{session}_mpr_n{3 + number % 2}_anon_111_t88_masked_gfc"
        image = texture(OASIS_SHAPE, number)
        image[..., [0, 4]] = 0
        analyze(folder / "PROCESSED" / "MPRAGE" / "T88_111" / f"{name}.img", image)
        (folder / "PROCESSED" / "MPRAGE" / "T88_111" / f"{name}_tra_90.gif").touch()
        (folder / "RAW").mkdir()
        analyze(folder / "RAW" / f"OAS1_{session}_mpr-1_anon.img", image[..., :2])
        analyze(folder / "FSL_SEG" / f"{name}_fseg.img", (image % 4).astype(np.int16))
    return root


BRATS_SHAPE = (40, 36, 6)
BRATS_NAMES = ("HGG/Brats17_2013_2_1", "HGG/Brats17_CBICA_AAB_1", "HGG/Brats17_CBICA_AAB_2", "LGG/Brats17_TCIA_101_1")


def brats(root, names=BRATS_NAMES):
    # 26 voxels of label 4 add up to 104, of label 3 only to 78
    label = blocks(BRATS_SHAPE, z1=(4, 25), z2=(4, 26), z3=(1, 100), z4=(1, 101))
    for number, name in enumerate(names):
        folder = root / name
        for channel, modality in enumerate(("flair", "t1", "t1ce", "t2")):
            data = texture(BRATS_SHAPE, 10 * number + channel) * (channel + 1)
            data[0, 0, 0] = 5000  # in no chosen slice
            save(folder / f"{folder.name}_{modality}.nii.gz", data, np.diag([-1.0, -1, 1, 1]))
        save(folder / f"{folder.name}_seg.nii.gz", label, np.diag([-1.0, -1, 1, 1]))
    return root


# slices run along the third axis, which points to the front
CORONAL = np.array([[1.5, 0, 0, 0], [0, 0, 10.0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])


def acdc(root, patients=4, shape=(24, 22, 4), frames=(1, 12)):
    for number in range(1, patients + 1):
        name = f"patient{number:03d}"
        for frame in frames:
            save(root / "training" / name / f"{name}_frame{frame:02d}.nii.gz", texture(shape, number), CORONAL)
            label = blocks(shape, z1=(2, 50), z2=(3, 34), z3=(1, 2))
            save(root / "training" / name / f"{name}_frame{frame:02d}_gt.nii.gz", label, CORONAL)
        (root / "training" / name / f"{name}_4d.nii.gz").touch()
        (root / "training" / name / "Info.cfg").touch()
    return root


COVID_NAMES = ("coronacases_001", "coronacases_010", "radiopaedia_10_85902_1", "radiopaedia_10_85902_3",
               "radiopaedia_4_85506_1")  # fmt: skip


def covid_ct(root, names=COVID_NAMES):
    shape = (30, 28, 4)
    for number, name in enumerate(names):
        save(root / "COVID-19-CT-Seg_20cases" / f"{name}.nii.gz", texture(shape, number) - 100)
        save(root / "Lung_and_Infection_Mask" / f"{name}.nii.gz", blocks(shape, z1=(3, 90), z3=(1, 300)))
    return root


def ixi(root, subjects=4, folders=True):
    for number in range(subjects):
        name = f"IXI{number + 2:03d}-{('Guys', 'HH', 'IOP')[number % 3]}-{800 + number:04d}"
        for contrast in ("T1", "T2"):
            data = texture((12, 10, 8), number)
            data[:3] = 0
            data[:, :, 7] = 0
            folder = root / f"IXI-{contrast}" if folders else root
            save(folder / f"{name}-{contrast}.nii.gz", data, np.eye(4))
    return root


TREES = {"oasis": oasis, "brats": brats, "acdc": acdc, "covid_ct": covid_ct, "ixi": ixi}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in TREES.items()}


@pytest.fixture
def medsr(monkeypatch, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in arguments])
        return stop.value.code, *capsys.readouterr()

    return run


def every(dataset):
    """Items of the first pass; a dataset goes on with the next one."""
    return [dataset[i] for i in range(len(dataset))]


def read(root, datalist, tmp_path, **kwargs):
    """The volumes and slices of all parts, through the file."""
    write_datalist(datalist, tmp_path / "list.json")
    split = split_volumes(root, tmp_path / "list.json")
    data = [item for part in split.values() for item in part]
    return data, SliceDataset(data, load_volume(intensity="minmax", **kwargs), keep)


# the datasets


@pytest.mark.parametrize("name", TREES)
def test_a_datalist_can_be_read(trees, tmp_path, name):
    before = digests(trees[name])
    datalist = prepare_datalist(name, trees[name])
    write_datalist(datalist, tmp_path / "a" / "list.json")
    assert json.loads((tmp_path / "a" / "list.json").read_text()) == datalist
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["list.json"]
    subjects = [{item["subject"] for item in datalist[part]} for part in PARTS]
    assert all(subjects) and sum(map(len, subjects)) == len(set().union(*subjects)) >= 3
    data, dataset = read(trees[name], datalist, tmp_path)
    assert {name for name in ("image", "subject", "slices")} <= set(data[0])
    wanted = sorted(
        (dataset.case(i), plane, position)
        for i, item in enumerate(data)
        for plane, positions in item["slices"].items()
        for position in positions
    )
    got = every(dataset)
    assert sorted((d["case"], d["plane"], d["slice"]) for d in got) == wanted
    channels = 4 if name == "brats" else 1
    assert {d["label"].shape[0] for d in got} == {channels}
    assert all(torch.isfinite(d["label"]).all() for d in got)
    assert digests(trees[name]) == before


def test_oasis_by_hand(trees, tmp_path):
    datalist = prepare_datalist("oasis", trees["oasis"])
    assert datalist["labels"] == {"0": "background", "1": "CSF", "2": "GM", "3": "WM"}
    by_image = {Path(i["image"]).name[:13]: i for i in items(datalist)}
    assert len(by_image) == 5
    folder = "disc1/OAS1_0002_MR1"
    name = "OAS1_0002_MR1_mpr_n3_anon_111_t88_masked_gfc"
    assert by_image["OAS1_0002_MR1"] == {
        "image": f"{folder}/PROCESSED/MPRAGE/T88_111/{name}.img",
        "label": f"{folder}/FSL_SEG/{name}_fseg.img",
        "subject": "oasis-OAS1_0002",
        "orientation": "LAS",
        "slices": {"axial": [1, 2, 3]},
        "crop": {"axial": [128, 160]},
    }
    assert by_image["OAS1_0001_MR1"]["subject"] == by_image["OAS1_0001_MR2"]["subject"]
    data, dataset = read(trees["oasis"], datalist, tmp_path)
    number = next(i for i, item in enumerate(data) if "OAS1_0002_MR1" in item["image"])
    item = next(dataset[k] for k, entry in enumerate(dataset.items) if (entry[0], entry[3]) == (number, 2))
    source = texture(OASIS_SHAPE, 2).astype(np.float64)
    low, high = source[..., 1:4].min(), source[..., 1:4].max()  # air slices are not measured
    expected = (source[24:-24, 24:-24, 2] - low) / (high - low)
    np.testing.assert_allclose(item["label"][0].numpy(), expected, atol=1e-6)


def test_brats_by_hand(trees, tmp_path):
    datalist = prepare_datalist("brats", trees["brats"])
    assert datalist["modality"] == {"0": "t1ce", "1": "t1", "2": "t2", "3": "flair"}
    assert sorted({i["subject"] for i in items(datalist)}) == ["brats-2013_2", "brats-CBICA_AAB", "brats-TCIA_101"]
    item = next(i for i in items(datalist) if "TCIA_101" in i["label"])
    prefix = "LGG/Brats17_TCIA_101_1/Brats17_TCIA_101_1"
    assert item == {
        "image": [f"{prefix}_{m}.nii.gz" for m in ("t1ce", "t1", "t2", "flair")],
        "label": f"{prefix}_seg.nii.gz",
        "subject": "brats-TCIA_101",
        "label_map": {"4": 3},
        "slices": {"axial": [2, 4]},
        "crop": {"axial": [192, 192]},
    }
    write_datalist(datalist, tmp_path / "list.json")
    split = split_volumes(trees["brats"], tmp_path / "list.json")
    loaded = next(i for part in split.values() for i in part if "TCIA_101" in i["label"])
    dataset = SliceDataset(
        [loaded], load_volume(intensity="minmax", label_key="label"), keep, keys={"image": "image", "label": "label"}
    )
    assert len(dataset) == 2 and dataset[0]["case"] == "Brats17_TCIA_101_1/Brats17_TCIA_101_1_t1ce"
    # written as flair, t1, t1ce, t2
    for channel, written in enumerate((2, 1, 3, 0)):
        source = texture(BRATS_SHAPE, 30 + written).astype(float) * (written + 1)
        low, high = source[..., [2, 4]].min(), source[..., [2, 4]].max()
        np.testing.assert_allclose(dataset[1]["image"][channel], (source[..., 4] - low) / (high - low), atol=1e-6)
    assert dataset[0]["label"].unique().tolist() == [0, 3] and int((dataset[0]["label"] == 3).sum()) == 26
    assert dataset[1]["label"].unique().tolist() == [0, 1]


def test_acdc_takes_the_acquired_plane_and_both_frames(trees):
    datalist = prepare_datalist("acdc", trees["acdc"])
    entries = items(datalist)
    assert len(entries) == 8 and not any("4d" in i["image"] or "_gt" in i["image"] for i in entries)
    for item in entries:
        # 50 voxels of 2 are 100 and too few, 34 of 3 are 102
        assert item["slices"] == {"coronal": [2]} and item["crop"] == {"coronal": [128, 128]}
    for part in PARTS:
        for item in datalist[part]:
            assert item["image"].replace(".nii.gz", "_gt.nii.gz") == item["label"]
            assert sum(other["subject"] == item["subject"] for other in datalist[part]) == 2


def test_covid_scans_of_one_case_stay_together(trees):
    datalist = prepare_datalist("covid_ct", trees["covid_ct"])
    subjects = {Path(i["image"]).name: i["subject"] for i in items(datalist)}
    assert subjects["radiopaedia_10_85902_1.nii.gz"] == subjects["radiopaedia_10_85902_3.nii.gz"]
    assert len(set(subjects.values())) == 4
    assert all(i["slices"] == {"axial": [1, 3]} for i in items(datalist))


def test_ixi(tmp_path):
    ixi(tmp_path, 46, folders=False)
    datalist = prepare_datalist("ixi", tmp_path)
    counts = {part: len({i["subject"] for i in datalist[part]}) for part in (*PARTS, "prior")}
    assert counts == {"training": 25, "validation": 5, "test": 10, "prior": 6}
    assert {i["image"][-9:-7] for i in datalist["prior"]} == {"T1", "T2"}
    for item in items(datalist, PARTS):
        expected = {"sagittal": list(range(3, 12))} if "T1" in item["image"] else {"axial": list(range(7))}
        assert item["slices"] == expected and "crop" not in item and "label" not in item
    assert not any("slices" in i for i in datalist["prior"])
    only = prepare_datalist("ixi", tmp_path, contrast="T2")
    assert only["modality"] == {"0": "T2"}
    for part in (*PARTS, "prior"):
        assert only[part] == [i for i in datalist[part] if "T2" in i["image"]]


def test_ixi_without_its_other_contrast(tmp_path, caplog):
    ixi(tmp_path)
    alone = tmp_path / "IXI-T2" / "IXI002-Guys-0800-T2.nii.gz"
    alone.unlink()
    datalist = prepare_datalist("ixi", tmp_path)
    assert "subject IXI002 left out" in caplog.text and f"{alone}: no such file" in caplog.text
    assert {i["subject"] for i in items(datalist)} == {"ixi-IXI003", "ixi-IXI004", "ixi-IXI005"}
    for path in (tmp_path / "IXI-T2").iterdir():
        path.unlink()
    assert len(items(prepare_datalist("ixi", tmp_path, contrast="T1"))) == 4
    with pytest.raises(FileNotFoundError, match="no scan of IXI T2 in this folder"):
        prepare_datalist("ixi", tmp_path, contrast="T2")


# the split


def subjects(datalist):
    return {part: sorted({i["subject"] for i in datalist[part]}) for part in PARTS}


def test_the_papers_numbers_of_subjects(tmp_path):
    acdc(tmp_path, 102, (11, 11, 4), frames=(1,))
    chosen = subjects(prepare_datalist("acdc", tmp_path))
    assert {part: len(names) for part, names in chosen.items()} == {"training": 72, "validation": 8, "test": 20}
    assert subjects(prepare_datalist("acdc", tmp_path, seed=1)) != chosen
    everyone = subjects(prepare_datalist("acdc", tmp_path, all_subjects=True))
    assert {part: len(names) for part, names in everyone.items()} == {"training": 74, "validation": 8, "test": 20}


def test_proportions_of_few_subjects(tmp_path):
    acdc(tmp_path, 10)
    counts = {part: len(names) for part, names in subjects(prepare_datalist("acdc", tmp_path)).items()}
    assert counts == {"training": 7, "validation": 1, "test": 2}
    assert prepare_datalist("acdc", tmp_path) == prepare_datalist("acdc", tmp_path)


def test_a_subject_on_both_sides_is_refused(trees, tmp_path):
    datalist = prepare_datalist("acdc", trees["acdc"])
    datalist["test"].append(datalist["training"][0])
    name = datalist["training"][0]["subject"]
    with pytest.raises(ValueError, match=f"subject {name} is in training and in test"):
        check_subjects({part: datalist[part] for part in PARTS})
    write_datalist(datalist, tmp_path / "list.json")
    with pytest.raises(ValueError, match=rf"list\.json: subject {name} is in training and in test"):
        split_volumes(trees["acdc"], tmp_path / "list.json")


def test_lists_of_a_datalist(trees, tmp_path):
    path = tmp_path / "list.json"
    datalist = prepare_datalist("acdc", trees["acdc"])
    write_datalist(datalist, path)
    split = split_volumes(trees["acdc"], path)
    assert list(split) == list(PARTS)
    for part in PARTS:
        assert [i["image"] for i in split[part]] == [str(trees["acdc"] / i["image"]) for i in datalist[part]]
        assert [i["label"] for i in split[part]] == [str(trees["acdc"] / i["label"]) for i in datalist[part]]
        # patient001 is a folder's name too
        assert [i["subject"] for i in split[part]] == [i["subject"] for i in datalist[part]]
    path.write_text(json.dumps({part: datalist[part] for part in ("training", "validation")}))
    assert list(split_volumes(trees["acdc"], path)) == ["training", "validation"]


# what is refused


@pytest.mark.parametrize("name", TREES)
def test_wrong_root(medsr, tmp_path, name):
    (tmp_path / "elsewhere" / "scans").mkdir(parents=True)
    save(tmp_path / "elsewhere" / "scans" / "t1.nii.gz", texture((9, 9, 9)))
    for root, reason in ((tmp_path / "elsewhere", "no scan of"), (tmp_path / "absent", "no such folder")):
        code, out, err = medsr("prepare", name, "--root", root, "--output", tmp_path / "new" / "list.json")
        assert code == 1 and not out and err.count("\n") == 1
        assert f"medsr: error: {root}: {reason}" in err and PUBLIC_DATASETS[name].title in err
        if root.exists():
            assert PUBLIC_DATASETS[name].expected in err
    assert not (tmp_path / "new").exists()


def test_command_line(medsr, trees, tmp_path):
    out = tmp_path / "new" / "list.json"
    code, said, err = medsr("prepare", "acdc", "--root", trees["acdc"], "--output", out, "--seed", 3)
    assert code == 0 and not err
    assert "training: 2 subjects, 4 images, 4 slices\n" in said and "test: 1 subjects, 2 images" in said
    assert json.loads(out.read_text()) == prepare_datalist("acdc", trees["acdc"], seed=3)
    before = out.read_bytes()
    code, _, err = medsr("prepare", "acdc", "--root", trees["acdc"], "--output", out)
    assert code == 1 and "exists" in err and "--overwrite" in err and out.read_bytes() == before
    code, *_ = medsr("prepare", "acdc", "--root", trees["acdc"], "--output", out, "--overwrite")
    assert code == 0 and json.loads(out.read_text())["seed"] == 0
    code, _, err = medsr("prepare", "adni", "--root", trees["acdc"], "--output", tmp_path / "b.json")
    assert code == 1 and "'adni', expected one of oasis, brats, acdc, covid_ct, ixi" in err
    code, _, err = medsr(
        "prepare", "acdc", "--root", trees["acdc"], "--contrast", "T1", "--output", tmp_path / "b.json"
    )
    assert code == 1 and "contrast is 'T1', leave it out" in err
    code, _, err = medsr("prepare", "ixi", "--root", trees["ixi"], "--contrast", "PD", "--output", tmp_path / "b.json")
    assert code == 1 and "contrast is 'PD', expected T1 or T2" in err
    assert not (tmp_path / "b.json").exists()


def test_damaged_subjects_are_left_out_with_a_reason(tmp_path, caplog):
    names = [f"HGG/Brats17_TCIA_{n}_1" for n in range(100, 107)]
    brats(tmp_path / "MICCAI_BraTS17_Data_Training", names)
    folder = tmp_path / "MICCAI_BraTS17_Data_Training" / "HGG"

    def file(number, kind):
        return folder / f"Brats17_TCIA_{number}_1" / f"Brats17_TCIA_{number}_1_{kind}.nii.gz"

    file(100, "seg").unlink()
    moved = np.diag([-1.0, -1, 1, 1])
    moved[0, 3] = 2
    save(file(101, "t2"), texture(BRATS_SHAPE), moved)
    save(file(102, "seg"), blocks((40, 36, 5), z1=(1, 300)))
    file(103, "flair").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING, logger="medsr_monai"):
        datalist = prepare_datalist("brats", tmp_path)
    assert sorted({i["subject"] for i in items(datalist)}) == [f"brats-TCIA_{n}" for n in (104, 105, 106)]
    said = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("medsr"))
    for line in (
        f"subject TCIA_100 left out: {file(100, 'seg')}: no such file",
        f"subject TCIA_101 left out: {file(101, 't2')}: corners up to 2.00 mm from those of {file(101, 't1ce')}",
        f"subject TCIA_102 left out: {file(102, 'seg')}: (40, 36, 5) voxels, but",
        f"subject TCIA_103 left out: {file(103, 'flair')}: cannot be read",
    ):
        assert line in said
    file(104, "seg").unlink()
    with pytest.raises(
        ValueError, match=r"2 complete subjects, expected at least 3.*first fault.*_seg\.nii\.gz: no such"
    ):
        prepare_datalist("brats", tmp_path)


def test_scans_without_a_slice_are_left_out(tmp_path, caplog):
    acdc(tmp_path)
    path = tmp_path / "training" / "patient002" / "patient002_frame01_gt.nii.gz"
    save(path, blocks((24, 22, 4)), CORONAL)
    datalist = prepare_datalist("acdc", tmp_path)
    assert "patient002_frame01.nii.gz left out: no slice sums up to more than 100" in caplog.text
    assert len(items(datalist)) == 7
    for gt in tmp_path.rglob("*_gt.nii.gz"):
        save(gt, blocks((24, 22, 4)), CORONAL)
    with pytest.raises(ValueError, match="no scan for training has a slice to take: is this ACDC"):
        prepare_datalist("acdc", tmp_path)


def test_label_maps_with_another_place_are_taken_by_index_with_a_warning(tmp_path, caplog):
    covid_ct(tmp_path)
    path = tmp_path / "Lung_and_Infection_Mask" / "coronacases_001.nii.gz"
    save(path, blocks((30, 28, 4), z0=(1, 200)), CORONAL)
    datalist = prepare_datalist("covid_ct", tmp_path)
    assert f"{path}: corners up to" in caplog.text and "taken voxel by voxel" in caplog.text
    item = next(i for i in items(datalist) if "coronacases_001" in i["image"])
    assert item["slices"] == {"axial": [0]}


# reading: files of several channels, Analyze pairs, label maps


def test_channels_and_their_grids(tmp_path):
    first = save(tmp_path / "a.nii", texture((5, 4, 3), 0))
    second = save(tmp_path / "b.nii", texture((5, 4, 3), 1))
    volume = LoadVolumed("image")({"image": [str(first), str(second)]})["image"]
    assert volume.shape == (2, 5, 4, 3) and volume.dtype == torch.float32
    for channel, seed in enumerate((0, 1)):
        np.testing.assert_array_equal(volume[channel].numpy(), texture((5, 4, 3), seed))
    np.testing.assert_array_equal(volume.affine.numpy(), AFFINE)
    assert volume.meta["filename_or_obj"] == str(first)
    other = save(tmp_path / "c.nii", texture((5, 4, 4)))
    with pytest.raises(ValueError, match=r"c\.nii: \(5, 4, 4\) voxels, but .*a\.nii has \(5, 4, 3\): .*resample"):
        LoadVolumed("image").load([first, other])
    other = save(tmp_path / "d.nii", texture((5, 4, 3)), AFFINE + np.array([[0, 0, 0, 0.5]] + 3 * [[0] * 4]))
    with pytest.raises(ValueError, match=r"d\.nii: corners up to 0\.50 mm from those of .*a\.nii"):
        LoadVolumed("image").load([first, other])
    with pytest.raises(ValueError, match="empty list of files"):
        LoadVolumed("image").load([])


@pytest.mark.parametrize(
    ("orientation", "columns"),
    [("LAS", [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]), ("PIR", [[0, 0, 1], [-1, 0, 0], [0, -1, 0]])],
)
def test_analyze_needs_its_orientation(tmp_path, orientation, columns):
    path = tmp_path / "a.img"
    header = nibabel.AnalyzeHeader(endianness=">")
    header.set_data_dtype(np.int16)
    header.set_data_shape((5, 4, 3, 1))
    header.set_zooms((2, 3, 4, 1))
    nibabel.save(nibabel.AnalyzeImage(texture((5, 4, 3, 1)), None, header), path)
    volume = LoadVolumed("image")({"image": str(path), "orientation": orientation})["image"]
    np.testing.assert_array_equal(volume[0].numpy(), texture((5, 4, 3, 1))[..., 0])
    np.testing.assert_array_equal(volume.affine[:3, :3].numpy(), np.array(columns) @ np.diag([2, 3, 4]))
    np.testing.assert_array_equal((volume.affine @ torch.tensor([2, 1.5, 1, 1], dtype=torch.float64))[:3], np.zeros(3))
    with pytest.raises(ValueError, match=r"a\.img: an Analyze file does not hold its orientation: convert"):
        LoadVolumed("image")({"image": str(path)})
    for wrong in ("LA", "LRS", "xyz"):
        with pytest.raises(ValueError, match=rf"a\.img: orientation '{wrong}' in the datalist, expected one letter"):
            LoadVolumed("image")({"image": str(path), "orientation": wrong})


def test_a_nifti_pair_knows_its_orientation(tmp_path):
    path = save(tmp_path / "a.img", texture((5, 4, 3)), CORONAL, nibabel.Nifti1Pair)
    volume = LoadVolumed("image")({"image": str(path)})["image"]
    np.testing.assert_array_equal(volume[0].numpy(), texture((5, 4, 3)))
    np.testing.assert_allclose(volume.affine.numpy(), CORONAL)
    raw = bytearray((tmp_path / "a.hdr").read_bytes())
    raw[80:84] = np.float32(0).tobytes()  # pixdim[1]
    (tmp_path / "a.hdr").write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.img: voxel size \[0\.0, 1\.5, 10\.0\] mm in the header"):
        LoadVolumed("image")({"image": str(path)})


def test_label_maps(tmp_path):
    path = save(tmp_path / "a.nii", blocks((5, 4, 3), z0=(4, 3), z1=(3, 2), z2=(1, 5)))
    read = LoadLabeld()({"label": str(path), "label_map": {"4": 3, "3": 4}})["label"]
    assert isinstance(read, MetaTensor) and read.dtype == torch.float32 and read.shape == (1, 5, 4, 3)
    np.testing.assert_array_equal(read[0].numpy(), blocks((5, 4, 3), z0=(3, 3), z1=(4, 2), z2=(1, 5)))
    plain = LoadLabeld()({"label": str(path)})["label"]
    assert plain.unique().tolist() == [0, 1, 3, 4]
    path = save(tmp_path / "b.nii", np.full((5, 4, 3), 0.5, np.float32))
    with pytest.raises(ValueError, match=r"b\.nii: .*not whole numbers"):
        LoadLabeld()({"label": str(path)})


def test_ranges_by_channel_and_chosen_slices():
    data = torch.stack([torch.arange(24.0).reshape(2, 3, 4), 100 + 10 * torch.arange(24.0).reshape(2, 3, 4)])
    volume = MetaTensor(data, affine=torch.eye(4))
    scaled = ScaleVolumed("image", "minmax")({"image": volume})["image"]
    for channel in scaled:
        np.testing.assert_allclose(channel, np.arange(24).reshape(2, 3, 4) / 23, atol=1e-6)
    back = RestoreIntensityd("pred", "image")({"image": scaled, "pred": scaled.clone()})["pred"]
    torch.testing.assert_close(back.as_tensor(), data, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="ranges of 2 channels cannot be applied to 1 channels"):
        RestoreIntensityd("pred", "image")({"image": scaled, "pred": scaled[:1]})
    item = {"image": volume, "slices": {"axial": [1, 2], "coronal": []}}
    scaled = ScaleVolumed("image", "minmax")(item)["image"]
    # of the first channel the chosen voxels are 1 to 22
    np.testing.assert_allclose(scaled[0], (np.arange(24).reshape(2, 3, 4) - 1) / 21, atol=1e-6)


# slices


@pytest.fixture
def volume_file(tmp_path):
    data = texture((20, 18, 16))
    data[..., 8:] = 0
    return save(tmp_path / "a.nii", data, np.eye(4)), data


def test_chosen_slices_and_crops(volume_file):
    path, data = volume_file
    item = {"image": str(path), "slices": {"axial": [3, 9], "sagittal": [19]}, "crop": {"axial": [9, 30]}}
    dataset = SliceDataset([item], LoadVolumed("image"), keep)
    # air is taken where it is asked for; coronal slices are not
    assert [(i["plane"], i["slice"]) for i in every(dataset)] == [("sagittal", 19), ("axial", 3), ("axial", 9)]
    np.testing.assert_array_equal(dataset[0]["label"][0], data[19])
    # 9 of 20 rows around row 10, all of 18 columns
    np.testing.assert_array_equal(dataset[1]["label"][0], data[6:15, :, 3])
    assert [i["plane"] for i in every(SliceDataset([item], LoadVolumed("image"), keep, "axial"))] == ["axial", "axial"]
    assert [i["plane"] for i in every(SliceDataset([item], LoadVolumed("image"), keep, min_size=10))] == ["sagittal"]
    only = SliceDataset(
        [item | {"slices": {"axial": list(range(16))}}], LoadVolumed("image"), keep, slices_per_volume=2
    )
    assert [i["slice"] for i in every(only)] == [4, 11]
    with pytest.raises(ValueError, match=r"axial slices 3 to 16 chosen, it has 0 to 15: was the datalist made"):
        SliceDataset([item | {"slices": {"axial": [3, 16]}}], LoadVolumed("image"), keep)


def test_crop_without_chosen_slices(volume_file):
    path, data = volume_file
    item = {"image": str(path), "crop": {"axial": [8, 8]}}
    dataset = SliceDataset([item], LoadVolumed("image"), keep, "axial")
    assert [i["slice"] for i in every(dataset)] == list(range(8))
    np.testing.assert_array_equal(dataset[5]["label"][0], data[6:14, 5:13, 5])


def test_images_with_label_maps(volume_file, tmp_path):
    path, data = volume_file
    label = (data % 3).astype(np.int16)
    item = {"image": str(path), "label": str(save(tmp_path / "l.nii", label, np.eye(4))), "slices": {"coronal": [2]}}
    keys = {"image": "image", "label": "label"}
    dataset = SliceDataset([item], load_volume(intensity="minmax", label_key="label"), keep, keys=keys)
    np.testing.assert_array_equal(dataset[0]["label"][0], label[:, 2])
    low, high = data[:, 2].min(), data[:, 2].max()
    np.testing.assert_allclose(dataset[0]["image"][0], (data[:, 2] - low) / (high - low), atol=1e-6)
    item["label"] = str(save(tmp_path / "m.nii", label[:-1], np.eye(4)))
    with pytest.raises(ValueError, match="volumes of different shapes"):
        SliceDataset([item], load_volume(label_key="label"), keep, keys=keys)


# training


def test_training_and_evaluation_on_four_channels(trees, tmp_path):
    write_datalist(prepare_datalist("brats", trees["brats"]), tmp_path / "list.json")
    settings = {
        "bundle_root": str(tmp_path),
        "dataset_dir": str(trees["brats"]),
        "datalist": str(tmp_path / "list.json"),
        "patch_size": 32,
        "batch_size": 2,
        "epochs": 1,
        "intensity": "minmax",
        "device": "$torch.device('cpu')",
        "network_def#in_channels": 4,
        "network_def#out_channels": 4,
        "network_def#embed_dim": 12,
        "network_def#growth_rate": 6,
        "network_def#num_heads": 2,
        "network_def#num_blocks": 1,
        "network_def#num_dense_blocks": 1,
    }
    flow = ConfigWorkflow(str(CONFIGS / "train.json"), workflow_type="train", logging_file=False, **settings)
    flow.initialize()
    flow.run()
    content = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert content["network"]["in_channels"] == 4
    dataset = flow.parser.get_parsed_content("train#dataset")
    assert dataset[0]["label"].shape == (4, 32, 32) and dataset[0]["image"].shape == (4, 8, 8)
    files = [str(CONFIGS / f"{name}.json") for name in ("train", "evaluate")]
    settings["evaluate_list"] = "test"
    flow = ConfigWorkflow(files, workflow_type="train", logging_file=False, run_id="evaluating", **settings)
    flow.initialize()
    flow.run()
    rows = (tmp_path / "eval" / "slices.csv").read_text().splitlines()
    tested = sum(len(i["slices"]["axial"]) for i in json.loads((tmp_path / "list.json").read_text())["test"])
    assert len(rows) == 1 + 3 * tested
    modalities = [f"{name}_modality_{n}" for n in range(1, 5) for name in ("psnr", "ssim", "psnr_monai", "ssim_monai")]
    assert rows[0].split(",")[11:] == modalities


def test_planes_of_the_recipes_are_across_the_third_axis(trees):
    for name in ("oasis", "brats", "acdc", "covid_ct"):
        item = items(prepare_datalist(name, trees[name]))[0]
        files = [trees[name] / f for f in ([item["image"]] if isinstance(item["image"], str) else item["image"])]
        affine = LoadVolumed("image").load(files, item.get("orientation")).affine
        assert [plane_axis(affine, plane) for plane in item["slices"]] == [2]
