"""What weights were trained on: described by a command, named in sidecars, and inputs unlike it warned of."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import TINY, copy_bundle, save_weights, tiny_network
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from medsr_monai.recipes import load_volume
from medsr_monai.records.figures import Seen, measured, slice_figures
from medsr_monai.records.training_data import UNKNOWN, TrainingData, TrainingGroup, find_training_data
from medsr_monai.transforms import degrade, plane_axis, resample
from medsr_monai.upscaling.bundles import BundleRunner
from medsr_monai.upscaling.cases import Case
from medsr_monai.upscaling.trained_on import Known, TrainedOn, differences, is_hounsfield, known_of
from medsr_monai.weights.stated import MAIN_WEIGHTS, stated_files

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
DESCRIBED = sorted(ROOT.glob("bundles/*/docs/training_data.json"))
FIGURES = {"background": 0.5, "dark": 0.3, "median": 0.5, "bright": 0.8, "alike": 0.2, "edges": 0.5}
GROUP = {
    "modality": "MR",
    "body_parts": ["brain"],
    "contrasts": ["T1", "T2"],
    "volumes": 3,
    "images": 0,
    "slices": 10,
    "pixel_mm": [2.0, 4.0],
    "size_pixels": [32, 64],
    "thickness": None,
    "figures": {name: [value - 0.1, value + 0.1] for name, value in FIGURES.items()},
}
CT = GROUP | {"modality": "CT", "body_parts": ["chest"], "contrasts": [], "volumes": 1, "images": 2}


def data(*groups, **others):
    return TrainingData(tuple(TrainingGroup(**group) for group in groups), **others)


def seen(thickness=None, edges=(3.0, 3.0), **figures):
    return Seen(edges, (40, 40), FIGURES | figures, thickness)


# figures


def test_figures_by_hand():
    """Half air, a quarter at 0.4 and a quarter at 1, in columns: every number can be counted."""
    image = torch.zeros(1, 40, 40)
    image[..., 20:30], image[..., 30:] = 0.4, 1.0
    figures = slice_figures([7 * image - 3])
    assert figures["background"] == pytest.approx(0.5) and figures["alike"] == pytest.approx(0.5)
    assert [figures[name] for name in ("dark", "bright")] == pytest.approx([0.4, 1.0])
    # steps of 0.4 and 0.6 in 40 rows, of 2 * 39 * 40 pairs; mean 0.35, mean square 0.29
    assert figures["edges"] == pytest.approx(((0.16 + 0.36) * 40 / (2 * 39 * 40) / (0.29 - 0.35**2)) ** 0.5, rel=1e-4)


def test_figures_do_not_depend_on_units_or_orientation():
    image = torch.from_numpy(gaussian_filter(np.random.default_rng(0).random((60, 50)), 2))[None]
    expected = slice_figures([image])
    for other in (image * 1000 - 500, image.flip(1), image.transpose(1, 2)):
        assert slice_figures([other]) == pytest.approx(expected, abs=1e-6)
    assert slice_figures([image + 0.05 * torch.rand(image.shape)])["edges"] > 1.5 * expected["edges"]


def test_pixels_are_those_of_the_plane_and_of_the_target():
    volume = MetaTensor(torch.rand(1, 20, 24, 6), affine=torch.diag(torch.tensor([-1.0, 1.5, 6.0, 1.0])))
    assert measured(volume, "axial").edges == (1.0, 1.5) and measured(volume, "axial").size == (20, 24)
    assert measured(volume, "coronal").edges == (1.0, 6.0)
    thick = measured(volume, "sagittal", axis=2, size=24, resized=resample)
    assert (thick.edges, thick.size, thick.thickness) == ((1.5, 1.5), (24, 24), 4)
    volume.meta["picture_spacing"] = "none"
    assert measured(volume, "axial").edges is None


# differences


@pytest.mark.parametrize(
    ("one", "known", "expected"),
    [
        (seen(), Known("MR", "T1", "HEAD", "DICOM header"), []),
        (seen(), Known(), []),
        (seen(), Known("CT", None, None, "DICOM header"), ["modality CT (DICOM header): trained on MR"]),
        (seen(), Known("MR", "BOLD"), ["contrast BOLD (by its name): trained on T1, T2"]),
        (seen(), Known(body_part="ABDOMEN", source="header"), ["body part ABDOMEN (header): trained on brain"]),
        (seen(edges=(1.0, 1.0)), Known(), ["pixels of 1 mm: trained on 2 to 4 mm"]),
        (seen(edges=(1.9, 4.2)), Known(), []),
        (seen(edges=None), Known(), []),
        (
            seen(alike=0.4),
            Known(),
            ["intensities unlike the training data: share of the tissue that is alike 0.40, in training 0.10 to 0.30"],
        ),
        (seen(alike=0.34), Known(), []),
    ],
)  # fmt: skip
def test_what_differs_is_named(one, known, expected):
    assert differences(data(GROUP), [one], known) == expected


def test_thick_slices_are_compared_with_the_target():
    group = GROUP | {"thickness": [4.0, 4.0]}
    assert differences(data(group), [seen(5.5)], Known()) == []
    (line,) = differences(data(group), [seen(8.0)], Known())
    assert line == "slices 8 times as thick as the target: trained on 4 times"


def test_an_input_is_compared_with_its_modality_else_with_what_is_nearest():
    groups = [GROUP, CT | {"pixel_mm": [0.5, 0.6]}]
    (line,) = differences(data(*groups), [seen()], Known("CT"))
    assert line == "pixels of 3 mm: trained on 0.5 to 0.6 mm"
    assert differences(data(*groups), [seen()], Known()) == []
    cine = data(GROUP | {"modality": "cine MR"})
    assert differences(cine, [seen()], Known("MR")) == []


def test_sentences():
    described = data(GROUP, CT, degradation={"method": "bicubic"})
    text = "trained on 3 brain MR volumes (T1, T2) and 1 chest CT volume and 2 chest CT images, bicubic degradation"
    assert described.sentence == text
    several = data(GROUP, CT, degradation={"method": ["gaussian", "box"]})
    assert several.sentence == text.replace("bicubic", "gaussian or box")
    assert UNKNOWN == "not known what the weights were trained on"


def test_what_names_and_sidecars_say(tmp_path):
    for name, contrast in (
        ("sub-1_T1w.nii.gz", "T1"),
        ("sub-1_acq-3d_FLAIR.nii.gz", "FLAIR"),
        ("t2_flair.nii", "FLAIR"),
        ("t2s_axial.nii.gz", "T2*"),
        ("scan.nii", None),
        ("st1.nii", None),
    ):
        assert known_of(tmp_path / name).contrast == contrast, name
    (tmp_path / "scan.json").write_text('{"Modality": "MR", "BodyPartExamined": "HEAD", "ProtocolName": "ax T2w"}')
    assert known_of(tmp_path / "scan.nii") == Known("MR", "T2", "HEAD", "BIDS sidecar")
    (tmp_path / "scan.json").write_text("[")
    assert known_of(tmp_path / "scan.nii").modality is None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        *[(-1024, 1500, True), (-3024, 2000, True), (-1000, 300, True)],
        *[(-4096, 4094, False), (-2.1, 4.0, False), (0, 3000, False), (-200, 300, False)],
    ],
)
def test_hounsfield_units(low, high, expected):
    assert is_hounsfield(low, high) is expected


# the commands


def volume(seed, size=112):
    """Soft blobs of many grey values in air."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    inside = (np.hypot(x, y) < 0.75)[..., None]
    texture = gaussian_filter(rng.random((size, size, 3)), (3, 3, 0))
    return (1000 * inside * (0.3 + 4 * np.abs(texture - 0.5))).astype(np.float32)


def save(image, name, edge, thick=5.0):
    nib.save(nib.Nifti1Image(image, np.diag([edge, edge, thick, 1])), name)


def test_described_then_named_and_warned_of(medsr, bundle, tmp_path, caplog):
    (tmp_path / "data").mkdir()
    for number in range(3):
        save(volume(number), f"data/secret{number}_T1w.nii.gz", 1 + 0.1 * number)
    items = [{"image": f"secret{number}_T1w.nii.gz"} for number in range(3)]
    Path("list.json").write_text(json.dumps({"training": items[:2], "validation": items[2:]}))
    options = ("--dataset-dir", "data", "--datalist", "list.json", "--modality", "MR", "--body-part", "brain")
    shutil.copy(bundle / MAIN_WEIGHTS, "mine.pt")
    code, out, err = medsr("describe", bundle, *options, "--weights", "mine.pt")
    assert (code, err) == (0, "")
    assert "mine.training_data.json: trained on 2 brain MR volumes (T1), bicubic degradation" in out
    text = Path("mine.training_data.json").read_text()
    (group,) = json.loads(text)["groups"]
    assert "secret" not in text and str(tmp_path) not in text
    assert (group["pixel_mm"], group["size_pixels"], group["volumes"]) == ([4.0, 4.4], [28, 28], 2)
    assert medsr("describe", bundle, *options, "--weights", "mine.pt")[0] == 1, "nothing is overwritten"
    shutil.copytree(bundle, "described")
    shutil.copy("mine.training_data.json", "described/docs/training_data.json")
    code, _, err = medsr("describe", "described", *options)
    assert code == 1 and "model.pt: its data are described already" in err
    assert not Path("described/models/model.training_data.json").exists(), "which would be told in place of the other"
    several = ("--weights", "mine.pt", "--output", "mixed.json", "--degradation", "box,kspace")
    assert "T1), box or kspace degradation" in medsr("describe", bundle, *options, *several)[1]
    assert json.loads(Path("mixed.json").read_text())["degradation"]["method"] == ["box", "kspace"]

    def upscale(source, *more):
        caplog.clear()
        code, out, err = medsr(
            "upscale", source, "out.nii.gz", "--nopicture", "--bundle", bundle, "--plane", "axial", *more, "--overwrite"
        )
        assert code == 0, err
        return out, json.loads(Path("out.json").read_text())

    lr = degrade(MetaTensor(torch.from_numpy(volume(5))[None], affine=torch.eye(4)), (4, 4, 1))[0].numpy()
    save(lr, "same_T1w.nii.gz", 4.2)
    out, content = upscale("same_T1w.nii.gz", "--weights", "mine.pt")
    assert out.count("tiny: trained on 2 brain MR volumes (T1), bicubic degradation") == 1
    assert content["TrainedOn"]["Data"][0]["PixelMm"] == [4.0, 4.4]
    assert not [w for w in content["Warnings"] if w.startswith("unlike")]
    # the body, between air at -1000 and bone at 2000, is alike
    rng = np.random.default_rng(0)
    ct = np.where(lr > 100, 40 + 10 * rng.standard_normal(lr.shape), -1000).astype(np.float32)
    ct[10:12, 10:12] = 2000
    save(ct, "scan.nii.gz", 0.8)
    out, content = upscale("scan.nii.gz", "--weights", "mine.pt")
    unlike = [w for w in content["Warnings"] if w.startswith("unlike what tiny was trained on: ")]
    assert unlike == [m for m in caplog.messages if m.startswith("unlike")]
    assert [w.split(": ")[1][:20] for w in unlike] == [
        "modality CT (intensi",
        "pixels of 0.8 mm",
        "intensities unlike t",
    ]
    # the bundle's own weights have no description beside them
    out, content = upscale("scan.nii.gz")
    assert "tiny: not known what the weights were trained on" in out and content["TrainedOn"] is None
    assert content["Warnings"] == []


def test_thick_slices_are_described_by_the_target(medsr, tmp_path):
    """A network that makes k slices of one is described as one that refines interpolated slices is."""
    folder = copy_bundle(tmp_path / "thick", "rdst_e_thick", **TINY, psf_channels=0)
    network = tiny_network(scale=[1, 4])
    save_weights(network, folder / MAIN_WEIGHTS)
    (tmp_path / "data").mkdir()
    save(volume(0), "data/a_T1w.nii.gz", 1.1, thick=9.0)
    items = [{"image": "a_T1w.nii.gz"}]
    Path("list.json").write_text(json.dumps({"training": items, "validation": items}))
    options = ("--dataset-dir", "data", "--datalist", "list.json", "--overwrite")
    for scale, thickness in (((), 4.0), (("--scale", 8), 8.0)):
        code, _, err = medsr("describe", folder, *options, *scale)
        assert code == 0, err
        content = json.loads((folder / "models" / "model.training_data.json").read_text())
        (group,) = content["groups"]
        assert group["thickness"] == [thickness, thickness] and group["pixel_mm"] == [1.1, 1.1]
        assert content["degradation"]["scale"] == [1, int(thickness)]


def test_a_description_is_of_its_weights_alone(bundle, tmp_path):
    docs = tmp_path / "bundle" / "docs"
    docs.mkdir(parents=True)
    weights = tmp_path / "w.pt"
    (docs / "training_data.json").write_text(json.dumps({"weights_sha256": "1", "groups": [GROUP]}))
    assert find_training_data(docs.parent, weights, "1") and find_training_data(docs.parent, weights, "2") is None
    (docs / "training_data.json").write_text(json.dumps({"groups": [GROUP]}))
    assert find_training_data(docs.parent, weights, "1") is None
    beside = tmp_path / "w.training_data.json"
    beside.write_text(json.dumps({"groups": [CT]}))
    assert find_training_data(docs.parent, weights, "1").groups == (TrainingGroup(**CT),)
    for broken in ("[]", "{", '{"groups": []}', '{"groups": [{}]}'):
        beside.write_text(broken)
        with pytest.raises(ValueError, match=r"w\.training_data\.json: no description of training data"):
            find_training_data(docs.parent, weights, "1")


@pytest.mark.parametrize("file", DESCRIBED, ids=lambda p: p.parent.parent.name)
def test_the_shipped_descriptions_are_of_the_published_weights(file):
    """After another training: medsr describe BUNDLE ... --output bundles/BUNDLE/docs/training_data.json --overwrite."""
    folder = file.parent.parent
    description = TrainingData.read(file)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert description.weights_sha256 == stated_files(folder)[MAIN_WEIGHTS].hash_val
    degradation = metadata["degradation"]
    assert description.degradation == {name: degradation[name] for name in ("method", "scale")}
    modality = metadata["network_data_format"]["inputs"]["image"]["modality"]
    assert modality == "any" or {g.modality for g in description.groups} == {modality}


def test_all_bundles_with_weights_are_described():
    with_weights = {
        p.parent.parent.name for p in ROOT.glob("bundles/*/configs/metadata.json") if stated_files(p.parents[1])
    }
    assert {p.parent.parent.name for p in DESCRIBED} == with_weights


# real volumes


@pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes of ../shared/data are not here")
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("val/brain_t1_d/t1w_conformed1mm.nii.gz", 0),
        ("val/brain_flair_ms26/flair_mni1mm.nii.gz", 0),
        ("test/brain_thick_ms12/t2w.nii.gz", 0),
        ("train/chest_ct_thick/chest_thick.nii.gz", 2),
        ("test/spine_mr/t1w_crop1mm.nii.gz", 1),
    ],
)
def test_real_volumes_degraded_as_in_training(file, expected):
    volume = load_volume()({"image": str(DATA / file)})["image"]
    factors = [4, 4, 4]
    factors[plane_axis(volume.affine, "axial")] = 1
    runner = BundleRunner("rdst_e", trained=False, plane="axial")
    trained = TrainedOn(runner, None)
    trained.data = TrainingData.read(ROOT / "bundles" / "rdst_e" / "docs" / "training_data.json")
    low = degrade(volume, factors)
    lines = trained.differences(low, runner.plan(low.affine, low.shape[1:]), Case(str(DATA / file), Path("x.nii.gz")))
    assert len(lines) == expected, lines
