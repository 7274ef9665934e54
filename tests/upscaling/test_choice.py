"""Which bundle `medsr upscale`, `medsr inspect` and `Upscaler()` choose, by data in the bundles."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle_copies import BUNDLES, amend, interpolating_bundle
from PIL import Image

from medsr_monai import MedsrError, Upscaler
from medsr_monai.upscaling import choice as module
from medsr_monai.upscaling.bundles import _installed_code
from medsr_monai.upscaling.choice import Narrowing, Scan, choose
from medsr_monai.upscaling.trained_on import Known

THICK, CUBIC = (1.0, 1.0, 4.0), (1.0, 1.0, 1.0)
BRAIN = {"modality": "MR", "body_part": "HEAD"}


def scan(edges, shape=(40, 40, 10), picture=False, **known):
    return Scan(np.diag([*edges, 1.0]), shape, picture, Known(**known))


@pytest.mark.parametrize(
    ("seen", "narrowing", "bundle"),
    [
        (scan(THICK), {}, "rdst_e_thick"),
        (scan((1.0, 1.5, 1.0)), {}, "rdst_e_thick"),
        (scan((1.0, 1.0, 1.49)), {}, "rdst_e_x2"),
        (scan((1.0, 4.0, 4.0)), {}, "rdst_e_x2"),  # two axes are coarse: the pixels of a plane
        (scan(THICK, shape=(40, 40, 1)), {}, "rdst_e_x2"),
        (scan(CUBIC, picture=True), {}, "lgsr"),
        (scan(THICK), {"plane": "axial"}, "rdst_e_x2"),
        (scan(CUBIC), {"thick": ("--target-spacing 0.5",)}, "rdst_e_thick"),
        (scan(THICK, contrast="FLAIR", **BRAIN), {"scale": 4}, "rdst"),
        (scan(CUBIC, contrast="T1", **BRAIN), {"scale": 4}, "lgsr"),
        (scan(CUBIC, modality="CT", body_part="ABDOMEN"), {"scale": 4}, "lgsr"),
        (scan(CUBIC, modality="MR", body_part="CSPINE", contrast="T2*"), {"scale": 4}, "rdst"),
    ],
)
def test_what_is_chosen(seen, narrowing, bundle):
    assert choose(seen, Narrowing(**narrowing)).bundle == bundle


def test_the_line_says_what_is_measured_and_what_is_not():
    known = choose(scan(THICK, contrast="T1", **BRAIN))
    assert "4 times as thick as the pixels; measured +2.8 dB over interpolation on brain MR T1; --bundle" in str(known)
    assert known.gains == (2.79, 2.79)
    unknown = choose(scan(THICK))
    assert unknown.gains == (1.01, 2.79) and "(nothing states what this is)" in str(unknown)
    tomography = choose(scan(THICK, modality="CT", body_part="CHEST"))
    assert tomography.gains is None and "nothing is measured on chest CT, only on brain MR FLAIR" in str(tomography)
    ultrasound = choose(scan(CUBIC, picture=True, modality="US", body_part="NECK"))
    assert "measured -0.6 dB over interpolation on neck ultrasound" in str(ultrasound)


def test_a_narrowing_without_a_bundle_is_refused():
    with pytest.raises(ValueError, match="no bundle enlarges slices 3 times: choose --scale 2 or 4"):
        choose(scan(CUBIC), Narrowing(scale=3))
    with pytest.raises(ValueError, match="no bundle enlarges 2D images 2 times: choose --scale 4"):
        choose(scan(CUBIC, picture=True), Narrowing(scale=2))


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """Copies of the bundles that may be chosen, which interpolate."""
    names = [path.parents[1].name for path in BUNDLES.glob("*/docs/gains.json")]
    folders = {name: interpolating_bundle(tmp_path / "copies" / name, name) for name in sorted(names)}
    _installed_code()  # kept for all of the process: that of the real ones
    monkeypatch.setattr(module, "bundle_folders", lambda: folders)
    monkeypatch.setattr("medsr_monai.upscaling.bundles.bundle_folders", lambda: folders)
    return folders


def with_gains(folder, **values):
    file = folder / "docs" / "gains.json"
    content = json.loads(file.read_text())
    amend(file, kinds=[kind | values for kind in content["kinds"]])


def test_the_gains_are_data_of_the_bundles(copies):
    seen = scan(THICK, contrast="T1", **BRAIN)
    assert choose(seen).bundle == "rdst_e_thick"
    with_gains(copies["transmrsr"], gain=9.0)
    assert choose(seen).bundle == "transmrsr" and choose(seen).gains == (9.0, 9.0)
    with_gains(copies["transmrsr"], modality="CT")
    assert choose(seen).bundle == "rdst_e_thick"
    (copies["rdst_e_thick"] / "docs" / "gains.json").unlink()
    assert choose(seen).bundle == "transmrsr" and choose(seen).gains is None


def test_weights_that_are_missing_or_own(copies):
    """A bundle without weights is chosen only where no other has any; of weights of one's own nothing is known."""
    assert not choose(scan(THICK)).usable
    (copies["transmrsr"] / "models").mkdir()
    shutil.copy(BUNDLES / "transmrsr" / "models" / "model.pt", copies["transmrsr"] / "models")
    assert (choose(scan(THICK)).bundle, choose(scan(THICK)).usable) == ("transmrsr", True)
    amend(copies["transmrsr"] / "configs" / "metadata.json", weights=[{"path": "models/model.pt", "sha256": "0" * 64}])
    found = choose(scan(THICK))
    assert found.gains is None and "nothing is measured with these weights" in found.measured


def save(path, edges, shape=(16, 16, 4)):
    path.parent.mkdir(exist_ok=True)
    voxels = np.random.default_rng(0).random(shape).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([*edges, 1.0])), path)
    return path


def sidecar(path):
    return json.loads(Path(path).read_text())


def test_a_folder_of_all_kinds(copies, medsr, tmp_path):
    """Each case by its own bundle, told and recorded; the same command, and that bundle by name, keep them."""
    save(tmp_path / "in" / "a_T1w.nii.gz", THICK)
    save(tmp_path / "in" / "b.nii.gz", CUBIC)
    code, out, _ = medsr("upscale", "in", "out", "--nopicture")
    assert code == 0
    assert "in/a_T1w.nii.gz: bundle rdst_e_thick, since slices of 4 mm" in out
    assert "in/b.nii.gz: bundle rdst_e_x2, since voxels of 1x1x1 mm are no thick slices" in out
    thick, cubic = sidecar("out/a_T1w_sr.json"), sidecar("out/b_sr.json")
    assert (thick["Bundle"]["Name"], cubic["Bundle"]["Name"]) == ("rdst_e_thick", "rdst_e_x2")
    assert thick["Choice"]["GainDb"] == [2.79, 2.79] and "4 times as thick" in thick["Choice"]["Reason"]
    assert "rdst_e_thick" in medsr("inspect", "in/a_T1w.nii.gz", "--no-timing")[1]
    summary = sidecar("out/status.json")
    assert summary["Bundle"] == {"Name": "auto", "Chosen": {"rdst_e_thick": 1, "rdst_e_x2": 1}}
    assert medsr("upscale", "in", "out", "--nopicture")[1].count("kept") == 3
    out = medsr("upscale", "in", "out", "--nopicture", "--bundle", "rdst_e_thick")[1]
    assert "a_T1w_sr.nii.gz: kept" in out and "b_sr.nii.gz: kept" not in out


def test_processes_choose_likewise(copies, medsr, tmp_path):
    """With two of them, which read the bundles that are installed."""
    for name, edges in {"a": THICK, "b": THICK}.items():
        save(tmp_path / "in" / f"{name}.nii.gz", edges)
    assert medsr("upscale", "in", "out", "--nopicture", "--jobs", 2)[0] == 0
    assert {sidecar(f"out/{name}_sr.json")["Bundle"]["Name"] for name in "ab"} == {"rdst_e_thick"}


def test_the_python_door_chooses_too(copies, medsr, tmp_path):
    upscaler = Upscaler(plane="axial")
    volume = nib.load(save(tmp_path / "v.nii.gz", THICK))
    assert upscaler(volume).shape == (32, 32, 4)
    made = Upscaler()(volume)
    assert made.shape == (16, 16, 16) and made.record["Bundle"]["Name"] == "rdst_e_thick"
    assert made.record["Choice"]["Measured"].endswith("(nothing states what this is)")
    assert Upscaler("rdst_e_thick")(volume).record["Choice"] is None
    assert medsr("upscale", "v.nii.gz", "o.nii.gz")[0] == 0
    assert np.array_equal(made.get_fdata(), nib.load("o.nii.gz").get_fdata())


def test_pictures_and_scales(copies, medsr, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24), np.uint8)).save(tmp_path / "p.png")
    assert medsr("upscale", "p.png", "q.png")[0] == 0 and Image.open("q.png").size == (96, 80)
    save(tmp_path / "v.nii.gz", CUBIC)
    for scale in (2, 4):
        assert medsr("upscale", "v.nii.gz", f"{scale}.nii.gz", "--scale", scale)[0] == 0
        assert nib.load(f"{scale}.nii.gz").shape == (16 * scale, 16 * scale, 4)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--scale 3", "choose --scale 2 or 4"),
        ("--scale 1", "expected at least 2"),
        ("--scale 2 --bundle rdst_e", "scale is 2, bundle rdst_e has scale 4"),
        ("--scale 2 --target-spacing 1", "--scale 2 is for the plane of the slices, --target-spacing 1.0 for thick"),
        ("--weights model.pt", "name it with --bundle"),
        ("--target-spacing 1", "nothing to do"),
        ("--adapt", "nothing to do"),  # it leaves the bundles for thick slices
        ("--adapt --scale 2", "--scale 2 is for the plane of the slices, --adapt for thick slices"),
        ("--adapt protocol", "name it, such as --bundle rdst_e_thick"),
    ],
)
def test_refused_in_one_line(medsr, tmp_path, options, line):
    save(tmp_path / "v.nii.gz", CUBIC)
    code, _, err = medsr("upscale", "v.nii.gz", "o.nii.gz", *options.split())
    assert code == 1 and line in err and len(err.splitlines()) == 1 and not Path("o.nii.gz").exists()


def test_wrong_options_of_the_python_door():
    with pytest.raises(MedsrError, match="scale is 1"):
        Upscaler(scale=1)
    with pytest.raises(MedsrError, match="name it with --bundle"):
        Upscaler(weights="model.pt")
    with pytest.raises(MedsrError, match="name the bundle that is to be fitted"):
        Upscaler().adapt("scan.nii.gz")
