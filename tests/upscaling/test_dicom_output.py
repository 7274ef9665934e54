"""`medsr upscale --output-format dicom`, on the command line."""

import json
import subprocess

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medsr_monai.commands.upscale import upscale
from medsr_monai.data import LoadVolumed
from medsr_monai.transforms import outer_corners, spacing
from medsr_monai.upscaling.dicom_output import find_dicom_cases

NAME = "Roe^Jane"


def write_series(folder, number=3, study="1.2.3", sop_class=MRImageStorage):
    """Six sagittal slices of 16x14 pixels."""
    folder.mkdir(parents=True)
    series = generate_uid()
    rows, columns = np.mgrid[:16, :14]
    for index in range(6):
        header = Dataset()
        header.SOPClassUID, header.SOPInstanceUID, header.Modality = sop_class, generate_uid(), "MR"
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, study + ".1"
        header.PatientName, header.PatientID = NAME, "id7"
        header.SeriesNumber, header.InstanceNumber, header.SeriesDescription = number, index + 1, f"t{number}"
        header.ImageType, header.SliceThickness = ["ORIGINAL", "PRIMARY", "OTHER"], 4
        header.ImageOrientationPatient, header.PixelSpacing = [0, 1, 0, 0, 0, -1], [1.25, 1.25]
        header.ImagePositionPatient = [-12 + 4 * index, -8.5, 30]
        header.Rows, header.Columns, header.SamplesPerPixel, header.BitsAllocated = 16, 14, 1, 16
        header.BitsStored, header.HighBit, header.PixelRepresentation = 12, 11, 0
        header.PhotometricInterpretation = "MONOCHROME2"
        pixels = 500 + 400 * np.sin(rows / 3 + index) * np.cos(columns / 4)
        header.PixelData = pixels.astype("<u2").tobytes()
        meta = header.file_meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, header.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.save_as(folder / f"{index}.dcm", enforce_file_format=True)
    return folder


def medsr(python, *args):
    command = [python, "-m", "medsr_monai", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_command(warm_python, tmp_path):
    source, out = write_series(tmp_path / "source"), tmp_path / "derived"
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    options = ("--output-format", "dicom", "--device", "cpu", "--bundle", "rdst_e")
    run = medsr(warm_python, "upscale", source, out, *options)
    assert run.returncode == 0, run.stderr
    assert NAME not in run.stdout + run.stderr and "Roe" not in run.stdout + run.stderr
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["derived", "derived.json", "derived.quality.png", "source"]
    sidecar = json.loads((tmp_path / "derived.json").read_text())
    assert [one["Name"] for one in sidecar["Outputs"]] == ["derived", "derived.quality.png"]
    assert NAME not in str(sidecar)
    assert upscale(str(source), str(tmp_path / "sr.nii.gz"), "rdst_e", device="cpu") == 0
    load = LoadVolumed("image").load
    derived, nifti, original = load(out), load(tmp_path / "sr.nii.gz"), load(source)
    headers = [pydicom.dcmread(path) for path in sorted(out.iterdir())]
    assert derived.shape == nifti.shape == (1, 56, 64, 6)
    assert float((derived - nifti).abs().max()) <= float(headers[0].RescaleSlope) * 0.5005 + 1e-4  # float32
    for other in (nifti, original):
        apart = outer_corners(derived.affine, derived.shape[1:]) - outer_corners(other.affine, other.shape[1:])
        assert np.abs(apart).max() < 1e-3
    np.testing.assert_allclose(spacing(derived.affine), [0.3125, 0.3125, 4], atol=1e-6)
    assert headers[0].SeriesDescription == "t3 SR x4 RESEARCH ONLY" and str(headers[0].PatientName) == NAME
    assert "bundle rdst_e" in headers[0].DerivationDescription and "sagittal" in headers[0].DerivationDescription
    assert str(tmp_path) not in headers[0].DerivationDescription

    again = medsr(warm_python, "upscale", source, out, "--output-format", "dicom")
    assert again.returncode == 1 and again.stderr.count("\n") == 1 and "is not empty" in again.stderr
    assert [path.read_bytes() for path in sorted(out.iterdir())] and len(list(out.iterdir())) == 6


def test_a_study_of_several_series(tmp_path):
    write_series(tmp_path / "study" / "a", 3)
    write_series(tmp_path / "study" / "b", 4)
    cases = find_dicom_cases(str(tmp_path / "study"), str(tmp_path / "out"), False)
    assert [case.output.relative_to(tmp_path / "out").as_posix() for case in cases] == ["003_MR_sr", "004_MR_sr"]
    (one,) = find_dicom_cases(str(tmp_path / "study"), str(tmp_path / "out"), False, series="4")
    assert one.output == tmp_path / "out"


def test_refused(tmp_path):
    source = write_series(tmp_path / "source")
    (tmp_path / "volume.nii.gz").touch()
    find = find_dicom_cases
    with pytest.raises(ValueError, match=r"volume.nii.gz: is no DICOM series.*leave --output-format dicom out"):
        find(str(tmp_path / "volume.nii.gz"), str(tmp_path / "out"), False)
    with pytest.raises(ValueError, match="written to a folder"):
        find(str(source), str(tmp_path / "out.nii.gz"), False)
    for inside in (source, source / "sr", tmp_path):
        with pytest.raises(ValueError, match="is, holds or lies in the input"):
            find(str(source), str(inside), True)
    with pytest.raises(FileNotFoundError, match="no such file"):
        find(str(tmp_path / "absent"), str(tmp_path / "out"), False)
    with pytest.raises(ValueError, match="output_format is 'DCM', expected nifti or dicom"):
        upscale(str(source), str(tmp_path / "out"), output_format="DCM")


def test_refused_before_the_work(tmp_path, monkeypatch):
    """A series of neither MR nor CT: nothing is computed."""
    from medsr_monai.upscaling.bundles import BundleRunner

    monkeypatch.setattr(BundleRunner, "run", lambda *args: pytest.fail("computed"))
    source = write_series(tmp_path / "source", sop_class="1.2.840.10008.5.1.4.1.1.7")
    with pytest.raises(ValueError, match="made of MR and CT images"):
        upscale(str(source), str(tmp_path / "out"), output_format="dicom", device="cpu")
    assert not (tmp_path / "out").exists()
