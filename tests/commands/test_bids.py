"""`medsr bids`, called as a BIDS App is: which images are taken, and that the derivative data set is valid."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsr_monai.data.bids import bids_images

VALIDATOR = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent)) or shutil.which(
    "bids-validator-deno"
)


def image(path, edges=(1.0, 1.0, 4.0), shape=(12, 12, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(len(path.name)).random(shape).astype(np.float32)
    one = nib.Nifti1Image(voxels, np.diag([*edges, 1.0]))
    one.set_sform(one.affine, 1)
    one.set_qform(one.affine, 1)
    one.header.set_xyzt_units("mm")
    nib.save(one, path)


def describe(root, **others):
    content = {"Name": "made", "BIDSVersion": "1.9.0", "DatasetType": "raw", "License": "CC0", "Authors": ["A", "B"]}
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps(content | others))


@pytest.fixture
def raw(tmp_path):
    root = tmp_path / "raw"
    describe(root)
    (root / "README").write_text("A made data set. " * 20)
    for subject in ("01", "02"):
        for session in ("a", "b"):
            place, name = root / f"sub-{subject}" / f"ses-{session}", f"sub-{subject}_ses-{session}"
            image(place / "anat" / f"{name}_T1w.nii.gz")
            image(place / "anat" / f"{name}_acq-fast_run-2_FLAIR.nii.gz")
            image(place / "func" / f"{name}_task-rest_bold.nii.gz")
    image(root / "sub-03" / "anat" / "sub-03_T2w.nii")
    (root / "sub-03" / "anat" / "sub-03_T2w.json").write_text('{"SkullStripped": true}')
    # none of these is an image of the raw data set
    for name in ("sub-03_desc-brain_T1w.nii.gz", "sub-03_T1w_mask.nii.gz", ".sub-03_T1w.nii.gz", "T1w.nii.gz"):
        image(root / "sub-03" / "anat" / name)
    image(root / "derivatives" / "other" / "sub-03" / "anat" / "sub-03_T1w.nii.gz")
    image(root / "sub-03" / "anat" / "sub-01_T1w.nii.gz")  # of another participant's name
    return root


def names(images):
    return [one.path.name for one in images]


def test_what_is_found(raw):
    everything = names(bids_images(raw))
    assert len(everything) == 9 and everything[-1] == "sub-03_T2w.nii"
    assert names(bids_images(raw, ["sub-01"], ["b"], ["T1w"])) == ["sub-01_ses-b_T1w.nii.gz"]
    assert names(bids_images(raw, None, None, ["bold"]))[0] == "sub-01_ses-a_task-rest_bold.nii.gz"
    (one,) = bids_images(raw, ["02"], ["ses-a"], ["FLAIR"])
    assert one.derived.as_posix() == ("sub-02/ses-a/anat/sub-02_ses-a_acq-fast_run-2_res-fine_desc-sr_FLAIR.nii.gz")


def test_a_derivative_that_the_validator_accepts(medsr, bundle, raw):
    command = ("bids", "raw", "out", "participant", "--participant-label", "01", "03", "--session-label", "a")
    code, _, err = medsr(*command, "--bundle", bundle)
    assert code == 0 and "session" not in err  # sub-03 has none, so it is not taken
    made = {p.relative_to("out/sub-01/ses-a/anat").as_posix() for p in Path("out").rglob("*.nii.gz")}
    endings = ("res-fine_desc-sr_T1w", "acq-fast_run-2_res-fine_desc-sr_FLAIR")
    assert made == {f"sub-01_ses-a_{ending}.nii.gz" for ending in endings}
    code, out, _ = medsr("bids", "raw", "out", "participant", "--modality", "T2w", "T1w", "--bundle", bundle)
    assert code == 0 and out.count(": kept") == 1
    sidecar = json.loads(Path("out/sub-03/anat/sub-03_res-fine_desc-sr_T2w.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-03/anat/sub-03_T2w.nii"] and sidecar["SkullStripped"] is True
    assert sidecar["Resolution"] == "voxels of 0.25x0.25x4 mm"
    described = json.loads(Path("out/dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative" and described["DatasetLinks"] == {"raw": "../raw"}
    assert described["GeneratedBy"][0]["Name"] == "medsr_monai"
    if VALIDATOR is None:
        pytest.skip("bids-validator-deno is not installed: everything else was checked")
    done = subprocess.run([VALIDATOR, "--json", "out"], capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert not [issue for issue in issues if issue.get("severity") == "error"], issues
    # it does read the sidecars
    broken = Path("out/sub-03/anat/sub-03_res-fine_desc-sr_T2w.json")
    broken.write_text("{}")
    done = subprocess.run([VALIDATOR, "--json", "out"], capture_output=True, text=True)
    assert [i for i in json.loads(done.stdout)["issues"]["issues"] if i.get("severity") == "error"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("raw out group", "analysis_level is 'group', expected participant"),
        ("raw out participant --participant-label 01 99", "no subject 99 in it, there is 01, 02, 03"),
        ("raw out participant --session-label c", "no session c in it, there is a, b"),
        ("raw out participant --modality T9w", "no suffix T9w"),
        ("raw/sub-01 out participant", "no BIDS data set, it has no dataset_description.json"),
        ("derived out participant", "is no raw BIDS data set"),
        ("raw foreign participant", "describes a data set that medsr has not written"),
    ],
)
def test_refused_in_one_line(medsr, raw, tmp_path, words, line):
    describe(tmp_path / "derived", DatasetType="derivative")
    describe(tmp_path / "foreign", DatasetType="derivative", GeneratedBy=[{"Name": "other"}])
    code, _, err = medsr("bids", *words.split())
    assert code == 1 and line in err and len(err.splitlines()) == 1 and not Path("out").exists()
