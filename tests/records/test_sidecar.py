"""The sidecar beside every output: what it says, by hand, and that no output is without one."""

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy.ndimage import gaussian_filter

import medsr_monai
from medsr_monai.records import sidecar as provenance
from medsr_monai.upscaling.bundles import BundleRunner

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[2]
NAME = "DOE^JANE"


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def image(*shape):
    return 1000 * gaussian_filter(np.random.default_rng(0).random(shape, dtype=np.float32), 1)


def test_a_volumes_sidecar_by_hand(medsr, bundle, tmp_path):
    turn = np.deg2rad(12)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine = affine @ np.diag([1.1, 0.9, 4, 1])
    values = image(20, 18, 5)
    nib.save(nib.Nifti1Image(values, affine), "in.nii.gz")
    options = ("--bundle", bundle, "--plane", "axial", "--device", "cpu", "--slice-batch", 2, "--tile", 64)
    code, _, err = medsr("upscale", tmp_path / "in.nii.gz", tmp_path / "out.nii.gz", *options)
    assert (code, err) == (0, "")
    content = json.loads(Path("out.json").read_text())
    assert content["IntendedUse"] == "research use only, not for clinical use"
    assert content["Sources"] == ["in.nii.gz"]
    assert content["Inputs"] == [{"Name": "in.nii.gz", "SHA256": digest("in.nii.gz"), "Files": 1}]
    names = ("out.nii.gz", "out.quality.png")
    assert content["Outputs"] == [{"Name": name, "SHA256": digest(name)} for name in names]
    assert content["GeneratedBy"] == [{"Name": "medsr_monai", "Version": medsr_monai.__version__, "Command": "upscale"}]
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert content["Bundle"] == {
        "Name": "tiny",
        "Version": metadata["version"],
        "Config": {"Name": "inference.json", "SHA256": digest(bundle / "configs" / "inference.json")},
        "Weights": {"Name": "model.pt", "SHA256": digest(bundle / "models" / "model.pt")},
        "Degradation": metadata["degradation"],
    }
    assert content["Versions"]["torch"] == torch.__version__.partition("+")[0]
    assert content["Versions"]["python"] == platform.python_version()
    assert content["Versions"].keys() >= {"medsr_monai", "monai", "numpy"}
    assert (content["Device"], content["SliceBatch"], content["Tile"]) == ("cpu", 2, [64, 64])
    assert content["Options"] == {"frame": None, "plane": "axial", "inferer#roi_size": [64, 64]}
    assert (content["Scale"], content["Plan"], content["Planes"]) == ([4, 4, 1], "plane axial", ["axial"])
    for grid, file in (("InputGrid", "in.nii.gz"), ("OutputGrid", "out.nii.gz")):
        volume = nib.load(file)
        assert content[grid]["Shape"] == list(volume.shape)
        np.testing.assert_allclose(content[grid]["Affine"], volume.affine, atol=1e-5)
        np.testing.assert_allclose(content[grid]["VoxelSizeMm"], volume.header.get_zooms(), rtol=1e-5)
    made = nib.load("out.nii.gz").get_fdata()
    ranges = content["IntensityRange"]
    np.testing.assert_allclose(ranges["Input"], [[values.min(), values.max()]], rtol=1e-4)
    np.testing.assert_allclose(ranges["Output"], [[made.min(), made.max()]], rtol=1e-5)
    ends = np.percentile(values, [0.1, 99.9], method="nearest")
    np.testing.assert_allclose(ranges["Scaled"], [ends], rtol=1e-5)
    assert content["Seconds"] > 0 and content["Warnings"] == []
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", content["Created"])


def make_dicom(folder):
    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for number in range(4):
        d = Dataset()
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = MRImageStorage
        d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, series, frame
        d.Modality, d.PatientName, d.PatientID, d.InstanceNumber = "MR", NAME, "4711", number + 1
        d.ImagePositionPatient, d.ImageOrientationPatient = [0.0, 0.0, 5.0 * number], [1, 0, 0, 0, 1, 0]
        d.PixelSpacing, d.SliceThickness, d.Rows, d.Columns = [1.0, 1.0], 5.0, 16, 16
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
        d.PixelData = image(16, 16).astype(np.uint16).tobytes()
        pydicom.dcmwrite(folder / f"IM{3 - number}", d, enforce_file_format=True)


def test_a_series_is_summed_by_the_stated_command_and_names_nobody(medsr, bundle, tmp_path):
    make_dicom(tmp_path / "secret" / "series")
    Path("out").mkdir()
    assert medsr("upscale", tmp_path / "secret" / "series", "out", "--bundle", bundle)[0] == 0
    text = Path("out/series_sr.json").read_text()
    (record,) = json.loads(text)["Inputs"]
    command = "sha256sum * | cut -c-64 | LC_ALL=C sort | sha256sum"
    guide = ROOT / "medsr_monai" / "records" / "README.md"
    assert command in provenance.source_record.__doc__ and command in guide.read_text()
    done = subprocess.run(command, shell=True, cwd="secret/series", capture_output=True, text=True, check=True)
    assert record == {"Name": "series", "SHA256": done.stdout.split()[0], "Files": 4}
    for file in Path("out").iterdir():
        if file.suffix in (".json", ".csv"):
            assert not re.search(f"DOE|JANE|4711|secret|{re.escape(str(tmp_path))}", file.read_text()), file
    # the same slices under other names, in another folder
    shutil.copytree("secret/series", "again")
    for file in Path("again").iterdir():
        file.rename(file.with_name(f"x{file.name[::-1]}"))
    assert provenance.source_record("again", provenance.source_files("again"))["SHA256"] == record["SHA256"]


def test_a_picture_has_a_sidecar_too(medsr, bundle, tmp_path):
    Image.fromarray((image(18, 20) / 4).astype(np.uint8)).save("in.png")
    assert medsr("upscale", "in.png", "out.png", "--bundle", bundle)[0] == 0
    content = json.loads(Path("out.json").read_text())
    assert content["Outputs"] == [{"Name": name, "SHA256": digest(name)} for name in ("out.png", "out.quality.png")]
    # no size of pixels is known, so none is stated
    assert content["InputGrid"] == {"Shape": [20, 18, 1], "VoxelSizeMm": None, "Affine": None}
    assert content["OutputGrid"]["Shape"] == [80, 72, 1] and content["Scale"] == [4, 4, 1]


def test_both_parts_of_a_pair_are_summed(tmp_path):
    nib.save(nib.Nifti1Pair(image(4, 4, 4), np.eye(4)), tmp_path / "a.img")
    files = provenance.source_files(tmp_path / "a.img")
    assert [f.name for f in files] == ["a.img", "a.hdr"]
    before = provenance.source_record(tmp_path / "a.img", files)
    (tmp_path / "a.hdr").write_bytes(b"other")
    assert provenance.source_record(tmp_path / "a.img", files) != before and before["Files"] == 2


# what the weights were trained for, and other warnings


@pytest.mark.parametrize("name", ["rdst", "rdst_e", "rdst_e_x2", "rdst_e_thick", "lgsr", "comparison", "transmrsr"])
def test_bundles_state_the_degradation_that_they_train_for(name):
    folder = ROOT / "bundles" / name / "configs"
    degradation = json.loads((folder / "metadata.json").read_text())["degradation"]
    train = json.loads((folder / "train.json").read_text())
    inference = json.loads((folder / "inference.json").read_text())
    thick = name in ("transmrsr", "rdst_e_thick")
    methods = (degradation["method"],) if isinstance(degradation["method"], str) else degradation["method"]
    assert train["degradation"] == inference["degradation"] == methods[0] and degradation["description"]
    assert degradation["scale"] == train["factor" if name == "transmrsr" else "scale"]
    assert degradation["direction"] == ("through-plane" if thick else "in-plane")
    assert (len(methods) > 1) == thick and not any(train.get("noise_std", ()))


def test_unknown_degradations_are_said(medsr, bundle, tmp_path, caplog):
    nib.save(nib.Nifti1Image(image(20, 18, 5), np.diag([1, 1, 4, 1])), "in.nii.gz")
    shutil.copy(bundle / "models" / "model.pt", "mine.pt")
    shutil.copytree(bundle, "silent")
    file = Path("silent/configs/metadata.json")
    metadata = json.loads(file.read_text())
    del metadata["degradation"]
    file.write_text(json.dumps(metadata))
    for number, (options, reason) in enumerate(
        [
            (("--bundle", bundle, "--weights", tmp_path / "mine.pt"), "mine.pt are not the weights of bundle tiny"),
            (("--bundle", "silent"), "bundle silent does not state what degradation its weights were trained for"),
        ]
    ):
        caplog.clear()
        assert medsr("upscale", "in.nii.gz", f"out{number}.nii.gz", *options)[0] == 0
        assert [m.startswith(reason) for m in caplog.messages] == [True]
        content = json.loads(Path(f"out{number}.json").read_text())
        assert content["Bundle"]["Degradation"] is None
        assert content["Warnings"] == caplog.messages
        assert str(tmp_path) not in json.dumps(content)


def test_warnings_of_a_case_are_its_own(medsr, bundle, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in "ab":
        nib.save(nib.Nifti1Image(image(20, 18, 5), np.diag([1, 1, 4, 1])), tmp_path / "in" / f"{name}.nii.gz")
    read = BundleRunner.read

    def warn(self, path):
        if Path(path).name == "a.nii.gz":
            logging.getLogger("medsr_monai.data").warning("%s/in/a.nii.gz: odd", tmp_path)
        return read(self, path)

    monkeypatch.setattr(BundleRunner, "read", warn)
    assert medsr("upscale", "in", "out", "--bundle", bundle)[0] == 0
    warnings = [json.loads(Path(f"out/{name}_sr.json").read_text())["Warnings"] for name in "ab"]
    assert warnings == [["a.nii.gz: odd"], []]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/jane/a b.nii: odd", "a b.nii: odd"),
        ("cannot open '/data/x/y.nii.gz', 3/4 read", "cannot open 'y.nii.gz', 3/4 read"),
        ("~/x/y.nii and in/z.nii", "y.nii and in/z.nii"),
        ("1/2 and/or https", "1/2 and/or https"),
    ],
)
def test_folders_are_cut_off(text, expected):
    assert provenance.without_folders(text) == expected


# an output and its sidecar


def test_no_output_takes_its_name_before_its_sidecar(tmp_path, monkeypatch):
    renamed = []
    for name in ("replace", "link"):  # names that are free are given by a link, which fails where they are taken
        give = getattr(os, name)
        monkeypatch.setattr(os, name, lambda a, b, give=give: renamed.append(Path(b).name) or give(a, b))
    record = {"GeneratedBy": [{"Name": "medsr_monai"}], "Value": float("nan")}
    output, picture = (tmp_path / "new" / name for name in ("x.nii.gz", "x.png"))
    with provenance.recorded(output, record, picture) as partials:
        for partial, path in zip(partials, (output, picture), strict=True):
            assert partial.name.endswith(path.name) and partial.parent == path.parent
            partial.write_bytes(b"voxels")
    assert renamed == ["x.json", "x.png", "x.nii.gz"] and sorted(os.listdir(tmp_path / "new")) == sorted(renamed)
    content = provenance.read_sidecar(tmp_path / "new" / "x.nii.gz")
    assert [one["Name"] for one in content["Outputs"]] == ["x.nii.gz", "x.png"] and content["Value"] is None


def test_what_fails_leaves_neither(tmp_path):
    with pytest.raises(OSError, match="disk full"), provenance.recorded(tmp_path / "x.nii.gz", {}) as (partial,):
        partial.write_bytes(b"half")
        raise OSError("disk full")
    assert not os.listdir(tmp_path)


def test_a_kill_between_both_is_mended(tmp_path, monkeypatch):
    output = tmp_path / "x.nii.gz"
    inputs, identity = [{"SHA256": "1"}], {name: {} for name in provenance.IDENTITY}
    identity["GeneratedBy"] = [{"Name": "medsr_monai"}]

    def write(content):
        with provenance.recorded(output, {"Inputs": inputs} | identity) as (partial,):
            partial.write_bytes(content)

    write(b"one")
    assert provenance.why_redo(output, inputs, identity) is None
    replace = os.replace

    def killed(source, target):
        if Path(target) == output:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", killed)
        write(b"two")
    assert output.read_bytes() == b"one" and provenance.is_ours(output)
    assert provenance.why_redo(output, inputs, identity) == "redone: x.nii.gz was not as written"
    output.unlink()
    assert provenance.why_redo(output, inputs, identity) == "redone: x.nii.gz was missing"


def test_all_outputs_that_a_sidecar_lists_must_be_there(tmp_path):
    output, picture = tmp_path / "x.nii.gz", tmp_path / "x.png"
    identity = {name: [{"Name": "medsr_monai"}] for name in provenance.IDENTITY}
    record = {"Inputs": []} | identity
    with provenance.recorded(output, record, picture) as partials:
        for partial in partials:
            partial.write_bytes(b"content")
    assert provenance.why_redo(output, [], identity) is None
    picture.unlink()
    assert provenance.why_redo(output, [], identity) == "redone: x.png was missing"


def test_a_sidecar_replaces_no_other_file(medsr, bundle, tmp_path):
    nib.save(nib.Nifti1Image(image(20, 18, 5), np.diag([1, 1, 4, 1])), "in.nii.gz")
    Path("out.json").write_text('{"EchoTime": 0.1}')
    for switch in ((), ("--overwrite",)):
        code, _, err = medsr("upscale", "in.nii.gz", "out.nii.gz", "--bundle", bundle, *switch)
        assert code == 1 and err.count("\n") == 1 and "out.json: exists and was not written by medsr" in err
    assert Path("out.json").read_text() == '{"EchoTime": 0.1}' and not Path("out.nii.gz").exists()
    assert medsr("upscale", "in.nii.gz", "a.nii.gz", "--bundle", bundle)[0] == 0
    code, _, err = medsr("upscale", "in.nii.gz", "a.nii", "--bundle", bundle)
    assert code == 1 and "a.json: exists as the sidecar of a.nii.gz" in err and not Path("a.nii").exists()
    assert medsr("upscale", "in.nii.gz", "a.nii", "--bundle", bundle, "--overwrite")[0] == 0
    code, _, err = medsr("upscale", "in.nii.gz", "a.nii", "--bundle", bundle)
    assert code == 1 and "a.nii: exists" in err, "of a single file nothing is kept silently"


def test_two_outputs_never_share_a_sidecar(medsr, bundle, tmp_path):
    (tmp_path / "in").mkdir()
    for suffix in ("png", "tif"):
        Image.fromarray((image(18, 20) / 4).astype(np.uint8)).save(tmp_path / "in" / f"a.{suffix}")
    code, _, err = medsr("upscale", "in", "out", "--bundle", bundle)
    assert code == 1 and "out/a_sr.json: would be the sidecar of a_sr.png and of a_sr.tif" in err
    assert not Path("out").exists()
