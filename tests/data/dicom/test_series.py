"""DICOM series: made on the fly, and the real ones of ../shared/data."""

import copy
import io
import json
import os
import re
import subprocess
import time
import tracemalloc
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path, PureWindowsPath

import itk
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    EnhancedMRImageStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    KeyObjectSelectionDocumentStorage,
    MRImageStorage,
    MRSpectroscopyStorage,
    RawDataStorage,
    RLELossless,
    RTDoseStorage,
    RTPlanStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    generate_uid,
)

from medsr_monai.data import (
    LoadVolumed,
    NiftiWriter,
    SaveVolumed,
    find_series,
    is_dicom_folder,
    list_volumes,
    one_series,
)
from medsr_monai.data.dicom import pixels as dicom_pixels
from medsr_monai.data.dicom import slices as dicom_slices
from medsr_monai.data.dicom.series import read_study
from medsr_monai.data.dicom.studies import output_names, safe_name
from medsr_monai.transforms import outer_corners, sharp_plane, spacing
from medsr_monai.upscaling.cases import find_cases

DATA = Path(__file__).parents[3].parent / "shared" / "data" / "test"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real series of ../shared/data are not here")

ROW, COLUMN = np.array([0.8, 0.6, 0.0]), np.array([-0.6, 0.8, 0.0])
ORIGIN = np.array([-10.0, -20.0, 30.0])
EDGES = (1.5, 2.0, 4.0)  # between rows, between columns, between slices
STEP = np.array([0, 0, EDGES[2]])


def pixels(number):
    """16 rows of 16 columns."""
    return (np.arange(256).reshape(16, 16) + 1000 * number).astype("<u2")


def write_series(folder, edit=lambda number, header: None, count=8):
    folder.mkdir(parents=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for number in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
        header.Modality, header.PatientID, header.PatientName = "MR", "phantom", "Phantom"
        header.SeriesDescription, header.SeriesNumber, header.InstanceNumber = "t1", 3, number + 1
        header.ImageOrientationPatient = [*ROW, *COLUMN]
        header.ImagePositionPatient = (ORIGIN + STEP * number).tolist()
        header.PixelSpacing = list(EDGES[:2])
        header.SliceThickness = header.SpacingBetweenSlices = EDGES[2]
        header.Rows = header.Columns = 16
        header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 0
        header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
        header.PixelData = pixels(number).tobytes()
        edit(number, header)
        # file names do not follow the order of the slices
        header.save_as(folder / f"{(number * 5) % count:03}.dcm", enforce_file_format=True)
    return folder


def setting(tag, choose):
    """An edit that sets a tag by slice number."""
    return lambda number, header: setattr(header, tag, choose(number))


def coded(syntax):
    """An edit that claims pixels of a compressed transfer syntax."""

    def edit(number, header):
        header.PixelData, header.file_meta.TransferSyntaxUID = encapsulate([b"\0" * 64]), syntax
        header["PixelData"].is_undefined_length = True

    return edit


def refused(folder, *words):
    with pytest.raises(ValueError) as caught:
        LoadVolumed("image")({"image": str(folder)})
    message = str(caught.value)
    assert message.startswith(f"{folder}: ") and "\n" not in message
    for word in words:
        assert word in message, message


def expected_affine():
    """DICOM PS3.3 C.7.6.2.1.1, from LPS to RAS."""
    affine = np.eye(4)
    affine[:3, 0] = ROW * EDGES[1]  # along a row: from column to column
    affine[:3, 1] = COLUMN * EDGES[0]
    affine[:3, 2] = [0, 0, EDGES[2]]
    affine[:3, 3] = ORIGIN
    return np.diag([-1, -1, 1, 1]) @ affine


def test_good_series(tmp_path):
    folder = write_series(tmp_path / "good")
    assert is_dicom_folder(folder)
    volume = LoadVolumed("image")({"image": folder})["image"]
    assert tuple(volume.shape) == (1, 16, 16, 8)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-4)
    expected = np.stack([pixels(n).T for n in range(8)], axis=-1)
    np.testing.assert_array_equal(volume[0].numpy(), expected)
    assert sharp_plane(volume.affine) == "axial"
    assert list_volumes(folder) == [{"image": str(folder)}]


def test_slices_in_the_other_direction(tmp_path):
    edit = setting("ImagePositionPatient", lambda n: (ORIGIN - STEP * n).tolist())
    volume = LoadVolumed("image").load(write_series(tmp_path / "down", edit))
    for number in range(8):
        world = expected_affine() @ [3, 5, -number, 1]
        i, j, k = np.round(np.linalg.solve(volume.affine.numpy(), world)[:3]).astype(int)
        assert float(volume[0, i, j, k]) == pixels(number)[5, 3]


def test_one_slice(tmp_path):
    volume = LoadVolumed("image").load(write_series(tmp_path / "one", count=1))
    assert tuple(volume.shape) == (1, 16, 16, 1)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-4)


def test_one_coronal_slice_is_written_as_a_volume(tmp_path):
    edit = setting("ImageOrientationPatient", lambda n: [1, 0, 0, 0, 0, -1])
    volume = LoadVolumed("image").load(write_series(tmp_path / "one", edit, count=1))
    writer = NiftiWriter(output_dtype=np.float32)
    writer.set_data_array(volume, channel_dim=0)
    writer.set_metadata(volume.meta, resample=False)
    writer.write(tmp_path / "one.nii.gz")
    image = nibabel.load(tmp_path / "one.nii.gz")
    assert image.shape == (16, 16, 1)
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-4)


def test_rescale_slopes_that_differ_by_slice(tmp_path):
    """As in PET; the first slice's integer slope must not make integers of the others."""

    def edit(number, header):
        header.RescaleIntercept, header.RescaleSlope = -5, 1 if number == 0 else 0.25

    volume = LoadVolumed("image").load(write_series(tmp_path / "pet", edit))
    for number in range(8):
        expected = pixels(number).T.astype(float) * (1 if number == 0 else 0.25) - 5
        np.testing.assert_array_equal(volume[0, :, :, number].numpy(), expected)


def test_files_that_are_no_dicom_are_passed_over(tmp_path):
    folder = write_series(tmp_path / "good")
    (folder / "readme.txt").write_text("not an image")
    (folder / ".DS_Store").write_bytes(b"x")
    assert tuple(LoadVolumed("image").load(folder).shape) == (1, 16, 16, 8)


def test_what_is_a_dicom_folder(tmp_path):
    assert not is_dicom_folder(tmp_path / "absent")
    assert not is_dicom_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("x" * 300)
    assert not is_dicom_folder(tmp_path)
    folder = write_series(tmp_path / "mixed")
    assert not is_dicom_folder(folder / "000.dcm")
    (folder / "a.nii.gz").touch()
    assert not is_dicom_folder(folder)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (setting("SeriesInstanceUID", lambda n: f"1.2.{n // 4}"), ("2 DICOM series mixed (3 t1; 3 t1)", "own folder")),
        (setting("ImagePositionPatient", lambda n: [0, 0, 4.0 * (n + (n > 3))]), ("unevenly spaced (4.00 to 8.00",)),
        (setting("ImagePositionPatient", lambda n: [0, 0, 4.0 * n + 0.5 * (n == 3)]), ("unevenly spaced",)),
        (setting("ImagePositionPatient", lambda n: [0, 0, 4.0 * min(n, 6)]), ("several DICOM slices at one position",)),
        (setting("ImagePositionPatient", lambda n: [0, 0, 4.0 * (n % 4)]), ("2 DICOM series mixed", "volume 1")),
        (
            lambda n, h: (setattr(h, "ImagePositionPatient", [0, 0, 4.0 * (n % 4)]), setattr(h, "InstanceNumber", 1)),
            ("several DICOM slices at one position", "dcm2niix"),
        ),
        (setting("ImagePositionPatient", lambda n: [0, 1.5 * n, 4.0 * n]), ("sheared by 20.6 degrees (gantry tilt)",)),
        (setting("Columns", lambda n: 16 if n < 7 else 8), ("series mixed (3 t1, stack 1; 3 t1, single slices)",)),
        (setting("PixelSpacing", lambda n: [1.5, 2.0 if n < 7 else 2.1]), ("single slices",)),
        (setting("ImageOrientationPatient", lambda n: [n > 0, n == 0, 0, 0, n > 0, n == 0]), ("series mixed",)),
        (setting("NumberOfFrames", lambda n: 4), ("multi-frame DICOM without a position for each frame",)),
        (setting("SamplesPerPixel", lambda n: 3), ("in colour",)),
    ],
    ids=["series", "missing", "uneven", "duplicate", "phases", "repeated", "tilt", "size", "spacing", "orientation",
         "frames", "colour"],
)  # fmt: skip
def test_refused(tmp_path, edit, words):
    refused(write_series(tmp_path / "bad", edit), *words)


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_missing_geometry(tmp_path, tag):
    refused(write_series(tmp_path / "bad", lambda n, header: n == 2 and delattr(header, tag)), "no geometry", tag)


def test_no_image(tmp_path):
    folder = write_series(tmp_path / "bad", lambda n, header: delattr(header, "Rows"))
    refused(folder, "000.dcm has a damaged header (without an image: no Rows, truncated?)")


def test_missing_file(tmp_path):
    folder = write_series(tmp_path / "bad")
    (folder / "015.dcm").unlink(missing_ok=True)
    middle = next(p for p in folder.iterdir() if pydicom.dcmread(p).InstanceNumber == 4)
    middle.unlink()
    refused(folder, "unevenly spaced", "slices are missing")


def test_truncated_file(tmp_path):
    folder = write_series(tmp_path / "bad")
    for number in (1, 4, 8):
        path = next(p for p in folder.iterdir() if pydicom.dcmread(p, stop_before_pixels=True).InstanceNumber == number)
        whole = path.read_bytes()
        path.write_bytes(whole[:-200])
        refused(folder, "damaged")
        path.write_bytes(whole)


def test_all_files_truncated(tmp_path):
    folder = write_series(tmp_path / "bad")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    refused(folder, "damaged")


def unpack(name, folder):
    with zipfile.ZipFile(DATA / name) as archive:
        archive.extractall(folder)
    assert is_dicom_folder(folder)
    return folder


@needs_data
def test_real_thick_series_equals_its_nifti(tmp_path):
    load = LoadVolumed("image").load
    series = load(unpack("brain_t1_thick_dicom/dicom_35slices.zip", tmp_path))
    nifti = load(DATA / "brain_t1_thick_dicom" / "t1w_sag.nii.gz")
    assert series.shape == nifti.shape
    ours, theirs = (np.sort(outer_corners(v.affine, v.shape[1:]).round(2), axis=0) for v in (series, nifti))
    assert np.abs(ours - theirs).max() < 0.011
    assert sharp_plane(series.affine) == sharp_plane(nifti.affine) == "sagittal"
    rng = np.random.default_rng(0)
    for index in (rng.random((200, 3)) * series.shape[1:]).astype(int):
        world = series.affine.numpy() @ [*index, 1]
        i, j, k = np.round(np.linalg.solve(nifti.affine.numpy(), world)[:3]).astype(int)
        assert float(series[(0, *index)]) == pytest.approx(float(nifti[0, i, j, k]), abs=0.51)


@needs_data
def test_real_tilted_series_is_refused(tmp_path):
    refused(unpack("head_ct_tilted_dicom/dicom_28slices.zip", tmp_path), "DICOM slices are")


@needs_data
def test_real_chest_series(tmp_path):
    folder = unpack("chest_ct_dicom/dicom_20slices.zip", tmp_path)
    volume = LoadVolumed("image").load(folder)
    assert tuple(volume.shape) == (1, 512, 512, 20)
    np.testing.assert_allclose(spacing(volume.affine), [0.78125, 0.78125, 1.0], atol=1e-3)
    assert -2100 < float(volume.min()) <= -1000 and 1000 < float(volume.max()) < 4000  # Hounsfield units


def found(path):
    return {series.label: series for series in find_series(path)}


def test_thickness_number_and_date_do_not_split_a_stack(tmp_path):
    """ITK would read only the slices that agree in these, without a word."""

    def edit(number, header):
        header.SliceThickness = 4 if number < 5 else 3.9
        header.SeriesDate = "20200101" if number < 4 else "20200102"

    volume = LoadVolumed("image").load(write_series(tmp_path / "s", edit))
    np.testing.assert_array_equal(volume[0].numpy(), np.stack([pixels(n).T for n in range(8)], axis=-1))


def study(folder, *series):
    """A study of series given as (folder below, number, description, edit)."""
    uid = generate_uid()

    for name, number, description, more in series:

        def edit(n, header, number=number, description=description, more=more):
            header.StudyInstanceUID, header.SeriesNumber, header.SeriesDescription = uid, number, description
            more(n, header)

        write_series(folder / name, edit)
    return folder


MISSING = setting("ImagePositionPatient", lambda n: [0, 0, 4.0 * (n + (n > 3))])


def mixed(folder):
    """An export: good, localiser, derived, screenshot, incomplete; nested, and some files without suffix."""

    def screenshot(number, header):
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        del header.ImagePositionPatient

    study(
        folder,
        ("A/DICOM/1", 1, "t1 sag", lambda n, header: None),
        ("A/DICOM/2", 2, "scout", setting("ImageType", lambda n: ["ORIGINAL", "PRIMARY", "LOCALIZER"])),
        ("A/DICOM/3", 3, "t1/MPR", setting("ImageType", lambda n: ["DERIVED", "SECONDARY", "MPR"])),
        ("B/4", 4, "screen", screenshot),
        ("B/5", 5, "t2 Phantom", MISSING),
    )
    for path in sorted((folder / "A/DICOM/1").iterdir()):
        path.rename(path.with_suffix(""))
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "readme.txt").write_text("notes")
    (folder / "A" / "._1").write_bytes(b"x")
    return folder


def zipped(folder):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder))
    return path


def test_a_study_is_sorted(tmp_path):
    folder = mixed(tmp_path / "export")
    series = found(folder)
    assert [s.left_out for s in series.values()] == [None, "localiser", "derived", "secondary capture", None]
    assert list(series) == ["1 t1 sag", "2 scout", "3 t1/MPR", "4 screen", "5 t2 Phantom"]
    good = series["1 t1 sag"]
    assert good.problem is None and good.shape == (16, 16, 8) and good.modality == "MR"
    np.testing.assert_allclose(good.spacing, (2.0, 1.5, 4.0), atol=1e-5)
    assert all(Path(f).is_file() for f in good.files) and good.files == good.disk_files
    heights = [h.ImagePositionPatient[2] for h in good.headers()]
    assert heights == sorted(heights) and "PixelData" not in good.headers()[0]
    assert "PatientID" in good.headers()[0]
    assert "no geometry" in series["4 screen"].problem
    assert "1 between 12.00 and 20.00 mm (B/5/007.dcm, B/5/004.dcm)" in series["5 t2 Phantom"].problem
    # the same from a zip, of which nothing is unpacked
    archive = zipped(folder)
    before = sorted(tmp_path.rglob("*"))
    twin = found(archive)["1 t1 sag"]
    np.testing.assert_array_equal(twin.read(), good.read())
    np.testing.assert_array_equal(twin.affine, good.affine)
    np.testing.assert_allclose(good.affine, expected_affine(), atol=1e-4)
    assert twin.disk_files == [str(archive)] and sorted(tmp_path.rglob("*")) == before
    assert [h.SOPInstanceUID for h in twin.headers()] == [h.SOPInstanceUID for h in good.headers()]


def names(cases, out):
    return [str(case.output.relative_to(out)) for case in cases]


def test_cases_of_a_study(tmp_path, capsys):
    folder, out = mixed(tmp_path / "export"), tmp_path / "out"
    cases = find_cases(str(folder), str(out), False)
    assert names(cases, out) == ["001_MR_sr.nii.gz", "005_MR_sr.nii.gz"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"{folder}: of 43 files 40 read, 3 left out (hidden: A/._1; DICOMDIR: DICOMDIR; no DICOM: readme.txt)"
    )
    assert len(lines) == 4 and f"{folder}, series 2 scout: localiser, left out" in lines[1]
    assert cases[0].series.problem is None and "missing" in cases[1].series.problem
    with pytest.raises(ValueError, match="series 5: DICOM slices are unevenly spaced"):
        LoadVolumed("image").load(cases[1].input)
    # the description of series 5 holds the patient's name
    described = find_cases(str(folder), str(out), False, descriptions=True)
    assert names(described, out) == ["001_t1-sag_sr.nii.gz", "005_MR_sr.nii.gz"]
    everything = find_cases(str(folder), str(out), False, all_series=True, descriptions=True)
    assert len(everything) == 5 and names(everything, out)[2] == "003_t1-MPR_sr.nii.gz"
    assert names(find_cases(str(folder), str(out), False, "3"), out) == ["003_MR_sr.nii.gz"]
    uid = cases[0].series.uid
    one = find_cases(str(zipped(folder)), str(tmp_path / "x.nii.gz"), False, uid)
    assert len(one) == 1 and one[0].output == tmp_path / "x.nii.gz" and one[0].files == [Path(str(folder) + ".zip")]
    for options, message in {
        ("9", False): "no series 9, it has 1 t1 sag; 2 scout",
        ("1", True): "leave --all-",
    }.items():
        with pytest.raises(ValueError, match=message):
            find_cases(str(folder), str(out), False, *options)
    with pytest.raises(ValueError, match="a study of 2 DICOM series"):
        find_cases(str(folder), str(tmp_path / "x.nii.gz"), False)
    with pytest.raises(ValueError, match="has no DICOM series to choose from"):
        find_cases(str(tmp_path / "export" / "readme.txt"), str(out), False, "1")


def test_one_plain_series_is_named_after_its_folder(tmp_path):
    derived = setting("ImageType", lambda n: ["DERIVED", "SECONDARY"])
    folder = write_series(tmp_path / "t1.axial", derived)
    (case,) = find_cases(str(folder), str(tmp_path), False)
    assert case.source == str(folder) and case.output == tmp_path / "t1.axial_sr.nii.gz"
    assert sorted(case.files) == sorted(folder.iterdir())
    (case,) = find_cases(str(folder), str(tmp_path / "x.nii.gz"), False)
    assert case.output == tmp_path / "x.nii.gz"


HOSTILE = {
    "separators": "../../EVIL/a\\\\b:c",
    "dots": "..",
    "nul": "t1\0.nii",
    "control": "t1\x1b[31m\nred",
    "device": "NUL",
    "device with suffix": "com1.txt",
    "superscript device": "LPT\u00b9",
    "long": "x" * 300,
    "long in bytes": "\u8138" * 300,
    "right to left": "\u202egnp.exe\u200f",
    "formula": "=cmd|' /C calc'!A0",
    "spaces and dots": " .hidden. ",
    "surrogate": "\udcff",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_header_text_is_one_safe_component(text):
    name = safe_name(text)
    assert len(name.encode()) <= 150 and Path(name).name == name and PureWindowsPath(name).name == name
    assert not re.search(r"[\x00-\x1f\u200e\u200f\u202a-\u202e\u2066-\u2069<>:\"/\\\\|?*]", name) and ".." not in name
    assert not name.startswith((".", "-", "=", "+")) and not name.endswith((".", " "))
    assert name.split(".")[0].upper() not in (
        "CON",
        "PRN",
        "AUX",
        "NUL",
        *(f"{d}{n}" for d in ("COM", "LPT") for n in range(10)),
    )
    assert safe_name(name) == name


def test_names_that_stay():
    for name in ("003_t1_sag", "t1+c-2.5", "\u8138\u90e8", "KOPF_Sch\u00e4del"):
        assert safe_name(name) == name


@pytest.mark.parametrize("keyword", ["Modality", "SeriesDescription", "ImageType"])
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_output_escapes_by_header_text(tmp_path, keyword, text):
    """Whatever the header says, the outputs lie in the output folder, one for each series."""
    folder, out = mixed(tmp_path / "export"), tmp_path / "out"
    series = find_series(folder)
    value = ("ORIGINAL", "PRIMARY", text) if keyword == "ImageType" else text
    if keyword == "Modality":
        series = [replace(one, modality=text, description="") for one in series]
    elif keyword == "SeriesDescription":
        series = [replace(one, description=text) for one in series]
    else:
        series = [replace(one, part=f"type {'/'.join(value[2:])}") for one in series]
    found = [out / f"{name}_sr.nii.gz" for name in output_names(series, descriptions=True)]
    assert len({str(path).casefold() for path in found}) == len(series)
    assert all(path.parent == out and len(path.name.encode()) < 200 for path in found)


def test_no_output_of_a_bundle_escapes_by_header_text(tmp_path):
    scout = setting("ImageType", lambda n: ["ORIGINAL", "PRIMARY", "LOCALIZER"])
    folder = study(tmp_path / "s", ("a", 1, "../../EVIL", lambda n, header: None), ("b", 2, "scout", scout))
    save = SaveVolumed("image", str(tmp_path / "out"), data_root_dir=str(tmp_path))
    save(LoadVolumed("image")({"image": str(folder)}))
    assert [p.name for p in tmp_path.rglob("*.nii.gz")] == ["s_sr.nii.gz"]


def test_nothing_but_derived_series(tmp_path):
    edit = setting("ImageType", lambda n: ["DERIVED", "SECONDARY"])
    folder = study(tmp_path / "s", ("a", 1, "one", edit), ("b", 2, "two", edit))
    with pytest.raises(ValueError, match=r"nothing but 1 one \(derived\); 2 two \(derived\): .* --all-series"):
        find_cases(str(folder), str(tmp_path / "out"), False)


def test_several_studies_and_equal_names(tmp_path):
    root, out, plain = tmp_path / "cohort", tmp_path / "out", lambda n, header: None
    study(root / "sub-01", ("a", 3, "t1", plain), ("b", 3, "t1", plain))
    pseudonym = setting("PatientID", lambda n: "Phantom")
    study(root / "sub-02", ("phantom", 3, "t1", pseudonym))
    study(root / "PHANTOM^A", ("a", 3, "t1", plain))
    cases = find_cases(str(root), str(out), False)
    assert {c.series.study for c in cases} == {c.series.study for c in cases if c.output.parent != out}
    found = sorted(names(cases, out))
    assert [n for n in found if n.startswith("sub-")] == [
        "sub-01/003_MR_2_sr.nii.gz",
        "sub-01/003_MR_sr.nii.gz",
        "sub-02/phantom/003_MR_sr.nii.gz",
    ]
    assert sum(n.startswith("study-") for n in found) == 1 and not any("PHANTOM" in n for n in found)


def test_volume_loader_takes_the_one_usable_series(tmp_path):
    scout = setting("ImageType", lambda n: ["ORIGINAL", "PRIMARY", "LOCALIZER"])
    folder = study(tmp_path / "s", ("x/a", 1, "t1", lambda n, header: None), ("x/b", 2, "scout", scout))
    volume = LoadVolumed("image")({"image": str(folder)})["image"]
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-4)
    assert list_volumes(folder) == [{"image": str(folder)}]
    assert one_series(zipped(folder)).number == 1


def write_phases(folder, mark, values, drop=(), offset=0, count=8):
    """A series with the same positions, or some that are offset, once for each value of a tag."""
    uid, study = generate_uid(), generate_uid()
    for index, value in enumerate(values):

        def edit(number, header, index=index, value=value):
            header.StudyInstanceUID, header.SeriesInstanceUID, header.InstanceNumber = (
                study,
                uid,
                8 * index + number + 1,
            )
            setattr(header, mark, value)
            header.ImagePositionPatient = (ORIGIN + STEP * number + [0, 0, offset * (index % 2)]).tolist()
            header.PixelData = (pixels(number) + index).tobytes()

        write_series(folder / str(index), edit, count)
        for number in drop if index == 1 else ():
            (folder / str(index) / f"{number * 5 % 8:03}.dcm").unlink()
    return folder


@pytest.mark.parametrize(
    ("mark", "values", "name"),
    [
        ("EchoNumbers", [1, 2], "echo"),
        ("EchoTime", [10.0, 9.0], "echo time"),
        ("DiffusionBValue", [0.0, 1000.0], "b-value"),
        ("TemporalPositionIdentifier", [1, 2, 3], "time"),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]], "type"),
        ("AcquisitionNumber", [4, 10], "acquisition"),
    ],
)
def test_repeated_positions_are_told_apart(tmp_path, mark, values, name):
    series = find_series(write_phases(tmp_path / "s", mark, values))
    assert len(series) == len(values) and len({s.uid for s in series}) == 1
    for one in series:
        assert one.part.startswith(name + " ") and one.problem is None
        index = next(i for i, v in enumerate(values) if one.part.split()[-1] in (str(v), str(v)[-3:-2], f"{v}"[:-2]))
        expected = np.stack([pixels(n).T + index for n in range(8)], axis=-1)
        np.testing.assert_array_equal(one.read(), expected)
    refused(tmp_path / "s", f"{len(values)} DICOM series mixed", name)


PRIVATE_B_VALUES = {
    "Siemens": ((0x0019, 0x100C), lambda b: str(b).encode()),
    "GE": ((0x0043, 0x1039), lambda b: f"{b}\\8\\0\\0".encode()),
    "GE with an offset": ((0x0043, 0x1039), lambda b: f"{b + 10**9}\\8\\0\\0".encode()),
    "Philips": ((0x2001, 0x1003), lambda b: np.float32(b).tobytes()),
}


@pytest.mark.parametrize("vendor", PRIVATE_B_VALUES)
def test_private_b_values(tmp_path, vendor):
    """Bytes of an unknown VR, as implicit transfer syntaxes leave them; parts are sorted by number."""
    tag, encoded = PRIVATE_B_VALUES[vendor]
    folder = tmp_path / "s"
    write_phases(folder, "StudyDescription", ["1000", "50", "200"])
    for index, b in enumerate((1000, 50, 200)):
        for path in (folder / str(index)).iterdir():
            header = pydicom.dcmread(path)
            content = encoded(b)
            header.add_new(tag, "UN", content + b" " * (len(content) % 2))
            header.save_as(path)
    series = find_series(folder)
    assert [one.part for one in series] == ["b-value 50", "b-value 200", "b-value 1000"]
    for one, index in zip(series, (1, 2, 0), strict=True):
        np.testing.assert_array_equal(one.read(), np.stack([pixels(n).T + index for n in range(8)], axis=-1))


@pytest.mark.parametrize(
    "elements",
    [
        {(0x0019, 0x100E): ("FD", lambda v: v)},
        {(0x0019, 0x100E): ("UN", lambda v: np.array(v).tobytes())},
        {(0x0019, 0x10BB + i): ("UN", lambda v, i=i: f"{v[i]:<4}".encode()) for i in range(3)},
        {(0x2005, 0x10B0 + i): ("UN", lambda v, i=i: np.float32(v[i]).tobytes()) for i in range(3)},
    ],
    ids=["Siemens", "Siemens unknown", "GE", "Philips"],
)
def test_private_directions(tmp_path, elements):
    directions = [[0.5, 0.5, 0.0], [-0.5, 0.5, 0.0], [0.5, -0.5, 0.0]]
    folder = write_phases(tmp_path / "s", "StudyDescription", ["", "", ""])
    for index, direction in enumerate(directions):
        for path in (folder / str(index)).iterdir():
            header = pydicom.dcmread(path)
            for tag, (vr, encoded) in elements.items():
                header.add_new(tag, vr, encoded(direction))
            header.save_as(path)
    parts = [one.part for one in find_series(folder)]
    assert parts == [f"gradient direction {text} 0" for text in ("-0.5 0.5", "0.5 -0.5", "0.5 0.5")]


@pytest.mark.parametrize(
    ("tag", "values", "parts"),
    [
        ((0x0043, 0x102F), [b"\1\0", b"\0\0"], ["complex part 0", "complex part 1"]),
        ((0x0043, 0x1030), [b"\x2b\0", b"\x10\0"], ["gradient number 16", "gradient number 43"]),
        ((0x2001, 0x1008), [b"10", b"2 "], ["phase 2", "phase 10"]),
        ((0x2005, 0x1429), [b"LABEL ", b"CONTROL "], ["label CONTROL", "label LABEL"]),
    ],
    ids=["GE field map", "GE diffusion", "Philips phases", "Philips labelling"],
)
def test_other_private_marks(tmp_path, tag, values, parts):
    folder = write_phases(tmp_path / "s", "StudyDescription", ["", ""])
    for index, value in enumerate(values):
        for path in (folder / str(index)).iterdir():
            header = pydicom.dcmread(path)
            header.add_new(tag, "UN", value)
            header.save_as(path)
    series = find_series(folder)
    assert [one.part for one in series] == parts
    assert [int(one.read()[0, 0, 0]) for one in series] == [1, 0]


@pytest.mark.parametrize("layout", ["volume by volume", "position by position"])
def test_volumes_by_instance_number(tmp_path, layout):
    """Nothing else tells them apart, as in functional MR of GE; dcm2niix takes them so, too."""

    def edit(number, header):
        volume, place = divmod(number, 3) if layout == "volume by volume" else divmod(number, 4)[::-1]
        header.ImagePositionPatient = (ORIGIN + STEP * place).tolist()
        header.PixelData = (pixels(place) + volume).tobytes()

    folder = write_series(tmp_path / "s", edit, count=12)
    series = find_series(folder)
    assert [one.part for one in series] == [f"volume {n}" for n in (1, 2, 3, 4)]
    for volume, one in enumerate(series):
        np.testing.assert_array_equal(one.read(), np.stack([pixels(n).T + volume for n in range(3)], axis=-1))
    next(p for p in folder.iterdir() if pydicom.dcmread(p).InstanceNumber == 7).unlink()
    refused(folder, "several DICOM slices at one position", "dcm2niix")


def test_times_that_differ_between_all_slices_are_no_volumes(tmp_path):
    def edit(number, header):
        header.ImagePositionPatient = (ORIGIN + STEP * (number % 2)).tolist()
        header.AcquisitionTime = f"1010{number:02}"

    series = find_series(write_series(tmp_path / "s", edit, count=8))
    assert [(one.part, one.shape) for one in series] == [(f"volume {n}", (16, 16, 2)) for n in (1, 2, 3, 4)]


def test_units_are_compared_within_a_part(tmp_path):
    """Magnitude and phase have units of their own; slices of one volume have not."""
    folder = write_phases(tmp_path / "s", "RescaleType", ["normalized", "mrad"])
    series = find_series(folder)
    assert [(one.part, one.problem) for one in series] == [("units mrad", None), ("units normalized", None)]


@pytest.mark.parametrize("offset", [0.05, 2.0], ids=["0.05 mm", "half a slice"])
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize(
    ("mark", "values", "name"),
    [
        ("EchoNumbers", [1, 2], "echo"),
        ("EchoTime", [10.0, 9.0], "echo time"),
        ("DiffusionBValue", [0.0, 1000.0], "b-value"),
        ("TemporalPositionIdentifier", [1, 2, 3], "time"),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]], "type"),
        ("AcquisitionTime", ["101010", "101020"], "acquisition time"),
    ],
)
def test_volumes_that_lie_within_each_other(tmp_path, mark, values, name, offset, count):
    """Half a slice or less apart they are volumes each, never one in which they alternate."""
    folder = write_phases(tmp_path / "s", mark, values, offset=offset, count=count)
    series = find_series(folder)
    assert [one.shape for one in series] == [(16, 16, count)] * len(values)
    for one in series:
        assert one.part.startswith(name + " ") and one.problem is None
        ((first, *_), *_) = one.read().T[0]
        assert (one.read() == np.stack([pixels(n).T + first for n in range(count)], axis=-1)).all()


@pytest.mark.parametrize("mark", ["AcquisitionTime", "AcquisitionNumber", "TriggerTime"])
def test_slices_that_are_acquired_in_turns_are_one_volume(tmp_path, mark):
    folder = write_series(tmp_path / "s", setting(mark, lambda n: "101010" if n % 2 else "101030"))
    assert one_series(folder).shape == (16, 16, 8)


def test_an_echo_time_that_is_not_the_same_in_all_slices(tmp_path):
    folder = write_series(tmp_path / "s", setting("EchoTime", lambda n: 10 + 0.001 * n))
    assert one_series(folder).shape == (16, 16, 8)


def test_a_slice_that_only_the_other_echo_has(tmp_path):
    first, second = find_series(write_phases(tmp_path / "s", "EchoNumbers", [1, 2], drop=[7]))
    assert first.problem is None
    assert second.problem == "slices are missing that other parts of the series have, at 58.00 mm"


def test_copies_of_a_file(tmp_path):
    folder = write_series(tmp_path / "s")
    (folder / "again").mkdir()
    copy = folder / "again" / "000.dcm"
    copy.write_bytes((folder / "000.dcm").read_bytes())
    assert one_series(folder).shape == (16, 16, 8)
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    refused(folder, "have one SOPInstanceUID and differ", "again/000.dcm")


def test_three_planes_are_a_localiser(tmp_path):
    axes = np.eye(3, dtype=int).tolist()

    def edit(number, header):
        header.ImageOrientationPatient = axes[number % 3] + axes[(number + 1) % 3]

    (series,) = find_series(write_series(tmp_path / "s", edit, count=9))
    assert series.localiser and "three planes" in series.problem


def test_a_scout_within_its_series(tmp_path):
    def edit(number, header):
        if number == 0:
            header.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
            header.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    series = one_series(write_series(tmp_path / "s", edit))
    assert series.shape == (16, 16, 7) and series.part == "stack 2"


def write_planes(folder, counts, **scouts):
    """A stack of each plane, 4 mm between its slices; ``scouts`` are tags of single slices in two other planes."""
    axes = np.eye(3, dtype=int).tolist()
    slices = [(plane, place) for plane, count in enumerate(counts) for place in range(count)]

    def edit(number, header):
        plane, place = slices[number]
        row, column = axes[plane], axes[(plane + 1) % 3]
        header.ImageOrientationPatient = row + column
        header.ImagePositionPatient = (4.0 * place * np.cross(row, column)).tolist()
        header.PixelData = (pixels(place) + plane).tobytes()
        if counts[plane] == 1:
            for keyword, value in scouts.items():
                setattr(header, keyword, value)
            header.PixelData = bytes(2 * header.Rows * header.Columns)

    return write_series(folder, edit, count=sum(counts))


@pytest.mark.parametrize(
    "scouts",
    [
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "CT_SOM5 TOP", "TOPOGRAM"]},
        {"Rows": 32, "PixelSpacing": [1, 1]},
    ],
    ids=["localizer", "topogram", "size"],
)
@pytest.mark.parametrize("counts", [(12, 1, 1), (4, 1, 1), (11, 1, 0)])
def test_scouts_in_the_series_of_a_volume(tmp_path, scouts, counts, capsys):
    folder = write_planes(tmp_path / "s", counts, **scouts)
    volume = one_series(folder)
    assert volume.shape == (16, 16, counts[0]) and volume.problem is None
    assert [one.left_out for one in find_series(folder) if one.uid == volume.uid].count("localiser") == sum(counts[1:])
    (case,) = find_cases(str(folder), str(tmp_path / "x.nii.gz"), False)
    assert case.series.shape == volume.shape
    assert capsys.readouterr().out.count("localiser, left out") == sum(counts[1:])


def test_a_scout_without_position_in_the_series_of_a_volume(tmp_path):
    def edit(number, header):
        if number == 3:
            header.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
            del header.ImagePositionPatient
        else:
            header.ImagePositionPatient = (ORIGIN + STEP * (number - (number > 3))).tolist()

    folder = write_series(tmp_path / "s", edit)
    assert one_series(folder).shape == (16, 16, 7)
    assert [one.left_out for one in find_series(folder)] == [None, "localiser"]


def test_three_stacks_are_three_volumes(tmp_path):
    series = find_series(write_planes(tmp_path / "s", (7, 7, 7)))
    assert [(one.part, one.shape, one.left_out, one.problem) for one in series] == [
        (f"stack {n}", (16, 16, 7), None, None) for n in (1, 2, 3)
    ]
    assert {int(one.read()[0, 0, 0]) for one in series} <= {0, 1, 2, 6000, 6001, 6002}


def test_three_single_slices_are_a_localiser(tmp_path):
    (series,) = find_series(write_planes(tmp_path / "s", (1, 1, 1)))
    assert series.localiser and "three planes" in series.problem


def test_small_tilt_goes_into_the_affine(tmp_path):
    """Half a degree, of a head holder: no slice is moved from where the header has it."""
    edit = setting("ImagePositionPatient", lambda n: (ORIGIN + STEP * n + [0.02 * n, 0, 0]).tolist())
    volume = LoadVolumed("image").load(write_series(tmp_path / "s", edit))
    last = np.diag([-1, -1, 1]) @ (ORIGIN + STEP * 7 + [0.14, 0, 0])
    np.testing.assert_allclose((volume.affine.numpy() @ [0, 0, 7, 1])[:3], last, atol=1e-4)


def test_tilt_that_only_shows_over_the_whole_stack(tmp_path):
    """Two degrees move the slices less than a tenth of their distance each, and the last by 1 mm."""
    edit = setting("ImagePositionPatient", lambda n: [0, 0.14 * n, 4.0 * n])
    folder = write_series(
        tmp_path / "s", lambda n, h: (edit(n, h), setattr(h, "ImageOrientationPatient", [1, 0, 0, 0, 1, 0]))
    )
    refused(folder, "sheared by 2.0 degrees (gantry tilt)")


def test_several_lacks_are_named_together(tmp_path):
    edit = setting("ImagePositionPatient", lambda n: [0, 1.5 * (n + (n > 3)), 4.0 * (n + (n > 3))])
    refused(write_series(tmp_path / "s", edit), "gantry tilt", "1 between 12.00 and 20.00 mm")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (setting("SliceThickness", lambda n: 4 if n < 4 else 7), ("different thickness (4 to 7 mm)",)),
        (setting("RescaleType", lambda n: "HU" if n < 4 else "US"), ("different units (HU, US)",)),
        (setting("ImageType", lambda n: ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), ("Siemens mosaic", "dcm2niix")),
        (setting("Modality", lambda n: "RTDOSE"), ("modality RTDOSE",)),
        (setting("PhotometricInterpretation", lambda n: "PALETTE COLOR"), ("in colour",)),
        (setting("PixelSpacing", lambda n: [0, 1]), ("PixelSpacing [0.0, 1.0] mm",)),
        (setting("ImageOrientationPatient", lambda n: [1, 0, 0, 1, 0, 0]), ("not of two perpendicular unit vectors",)),
        (setting("RescaleSlope", lambda n: 0), ("RescaleSlope 0",)),
        (setting("ModalityLUTSequence", lambda n: [Dataset()]), ("lookup table",)),
        (coded("1.2.840.10008.1.2.4.100"), ("MPEG2", "decompress the series first")),
        (coded("1.2.840.113619.5.3"), ("unknown transfer syntax 1.2.840.113619.5.3",)),
        (lambda n, h: setattr(h, "ImagePositionPatient", [0, 8.0 * (n == 3), 4.0 * n]), ("shifted within its plane",)),
    ],
    ids=["thickness", "units", "mosaic", "dose", "palette", "spacing", "orientation", "slope", "lut", "video",
         "private", "aside"],
)  # fmt: skip
def test_refused_too(tmp_path, edit, words):
    refused(write_series(tmp_path / "bad", edit), *words)


@pytest.mark.parametrize("content", [b"", b"x" * 300])
def test_a_damaged_file_beside_the_others(tmp_path, content):
    """Without it the first or the last slice would be lost unnoticed."""
    folder = write_series(tmp_path / "s")
    (folder / "000.dcm").write_bytes(content)
    refused(folder, "000.dcm does not begin as DICOM files do", "a slice may be lost")


def test_header_cut_short(tmp_path):
    folder = write_series(tmp_path / "s")
    path = folder / "000.dcm"
    path.write_bytes(path.read_bytes()[:500])
    refused(folder, "000.dcm", "a slice may be lost")


def test_damaged_and_encrypted_zips(tmp_path):
    archive = zipped(write_series(tmp_path / "s"))
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-100])
    refused(archive, "cannot be unpacked", "damaged")
    content = bytearray(whole)
    content[whole.index(b"PK\x01\x02") + 8] |= 1  # the flag of an encrypted member
    content[6] |= 1
    archive.write_bytes(content)
    refused(archive, "encrypted")
    with zipfile.ZipFile(archive, "w") as empty:
        empty.writestr("notes.txt", "x")
    refused(archive, "a zip without a DICOM image")


WITHOUT_IMAGE = {
    "XX_1": ("1.3.46.670589.11.0.0.12.2", "MR", ("Rows", "Columns"), "1.3.46.670589.11.0.0.12.2, no image"),
    "raw": (RawDataStorage, "MR", ("Rows", "Columns"), "Raw Data Storage, no image"),
    "spectra": (MRSpectroscopyStorage, "MR", ("Rows", "Columns"), "MR Spectroscopy Storage, no image"),
    "dose": (RTDoseStorage, "RTDOSE", ("Rows", "Columns", "PixelData"), "RT Dose Storage"),
    "plan": (RTPlanStorage, "RTPLAN", (), "RT Plan Storage"),
    "contours": (RTStructureSetStorage, "RTSTRUCT", (), "RT Structure Set Storage"),
    "mask": (SegmentationStorage, "SEG", ("Rows", "Columns", "PixelData"), "Segmentation Storage"),
    "shown": (GrayscaleSoftcopyPresentationStateStorage, "PR", (), "Grayscale Softcopy Presentation State Storage"),
    "report": (EnhancedSRStorage, "SR", (), "Enhanced SR Storage"),
    "key": (KeyObjectSelectionDocumentStorage, "KO", (), "Key Object Selection Document Storage"),
    "pdf": (EncapsulatedPDFStorage, "DOC", (), "Encapsulated PDF Storage, no image"),
}
"""Objects that hold no intensities of a volume: class, modality, what they hold all the same, what they are called."""


def write_without_image(folder):
    """Each of them in the series that lies there, as some scanners write them."""
    template = pydicom.dcmread(sorted(folder.iterdir())[0])
    for name, (uid, modality, held, _) in WITHOUT_IMAGE.items():
        header = copy.deepcopy(template)
        for keyword in ("Rows", "Columns", "PixelData", "ImagePositionPatient", "PixelSpacing"):
            if keyword not in held:
                delattr(header, keyword)
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = uid
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        header.Modality = modality
        header.save_as(folder / name)


def test_objects_without_image(tmp_path, capsys, caplog):
    """They are no series: one line names them, and the one series is read as if they were not there."""
    folder = write_series(tmp_path / "s")
    expected = one_series(folder).read()
    write_without_image(folder)
    study = read_study(folder)
    assert study.left_out == {name: told for name, (*_, told) in WITHOUT_IMAGE.items()}
    assert [one.problem for one in study.series] == [None]
    (case,) = find_cases(str(folder), str(tmp_path / "x.nii.gz"), False)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{folder}: of 19 files 8 read, 11 left out (") and "RT Dose Storage: dose" in line
    assert list_volumes(folder) == [{"image": str(folder)}]
    assert (LoadVolumed("image").load(folder)[0].numpy() == expected).all() and (case.series.read() == expected).all()
    assert line in caplog.text
    for path in folder.glob("*.dcm"):
        path.unlink()
    refused(folder, "without an image", "dose (RT Dose Storage)")


def test_inspect_names_what_is_left_out(warm_python, tmp_path):
    folder = write_series(tmp_path / "s")
    write_without_image(folder)
    result = run_medsr(warm_python, "inspect", folder, "--json")
    assert result.returncode == 0 and len(json.loads(result.stdout)["items"]) == 1
    assert "11 left out (" in result.stderr


def everything(study):
    """Files of a study, each of which is in one place."""
    read = {item.file for one in study.series for item in one.slices}
    assert not (read & set(study.damaged)) and not (read & set(study.left_out))
    assert not (set(study.damaged) & set(study.left_out))
    return read | set(study.damaged) | set(study.left_out)


def damage(content, rng):
    """A file cut short, or with a changed bit, byte or four bytes in its header."""
    content = bytearray(content)
    end = content.index(b"\xe0\x7f\x10\x00")
    how = rng.integers(4)
    if how == 0:
        return bytes(content[: rng.integers(len(content))])
    for _ in range(4 if how == 1 else 1):
        place = rng.integers(128, end)
        content[place] = rng.integers(256) if how < 3 else content[place] ^ (1 << rng.integers(8))
    return bytes(content)


@pytest.mark.parametrize("tries", [60, pytest.param(6000, marks=pytest.mark.slow)])
def test_no_damaged_file_is_dropped_silently(tmp_path, tries):
    """Either the volume is as it was, or the file is named, or the slice is a series of its own.

    The last is for damages of several bytes that change both a UID and the place of a slice.
    """
    folder, apart = write_series(tmp_path / "s", count=6), 0
    files = [path.rename(path.with_suffix("")) for path in sorted(folder.iterdir())]
    expected, rng = one_series(folder).read(), np.random.default_rng(0)
    for _ in range(tries):
        path = files[rng.integers(len(files))]
        whole = path.read_bytes()
        path.write_bytes(damage(whole, rng))
        study = read_study(folder)
        assert everything(study) == {file.name for file in files}
        if not any(one.problem for one in study.series):
            try:
                np.testing.assert_array_equal(one_series(folder).read(), expected)
            except ValueError as error:
                apart += "2 DICOM series mixed" in str(error)
                assert path.name in str(error) or "2 DICOM series mixed" in str(error)
        path.write_bytes(whole)
    assert apart <= tries // 1000


def test_a_slice_of_another_series_by_its_uid(tmp_path):
    folder = write_series(tmp_path / "s", lambda n, h: n == 7 and setattr(h, "SeriesInstanceUID", "1.2.3"))
    series = find_series(folder)
    assert [one.shape[2] for one in series if one.problem] == [7]
    assert "003.dcm continues it, but is of another series" in next(s.problem for s in series if s.problem)


def test_several_uids_where_one_is_expected(tmp_path):
    folder = write_series(tmp_path / "s", lambda n, h: n == 7 and setattr(h, "SOPInstanceUID", ["1.2", "3.4"]))
    refused(folder, "003.dcm has a damaged header (SOPInstanceUID is no single UID)")


def test_every_second_slice_missing(tmp_path):
    edit = setting("ImagePositionPatient", lambda n: (ORIGIN + 2 * STEP * n).tolist())
    refused(write_series(tmp_path / "s", edit), "lie 8.00 mm apart", "a distance of 4 mm", "1 of 2 slices are missing")


@pytest.mark.parametrize(
    ("gap", "stated", "thickness", "doubtful"),
    [
        (4, 4, 4, False),
        (4, None, 1, True),
        (4, 0.5, 3.5, False),
        (4, 4, 2, False),
        (4, 8, 8, True),
        (4, None, 4, False),
    ],
)
def test_distance_against_what_is_stated(tmp_path, caplog, gap, stated, thickness, doubtful):
    """A distance that the headers do not explain is a warning, since there are scans with gaps."""

    def edit(number, header):
        header.ImagePositionPatient = (ORIGIN + STEP / EDGES[2] * gap * number).tolist()
        header.SpacingBetweenSlices, header.SliceThickness = stated, thickness

    one_series(write_series(tmp_path / "s", edit)).read()
    assert ("slices lie 4.00 mm apart" in caplog.text) == doubtful


def without_preamble(folder):
    """Only the data set, in implicit VR, as some scanners and archives write it."""
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        data = Dataset()
        data.update({element.tag: element for element in header})
        data.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"


@pytest.mark.parametrize("name", ["{}.dcm", "{}"])
@pytest.mark.parametrize("which", ["all", "one"])
def test_files_without_preamble(tmp_path, name, which):
    folder = write_series(tmp_path / "s")
    expected = one_series(folder).read()
    for path in sorted(folder.iterdir()):
        path.rename(path.with_name(name.format(path.stem)))
    if which == "all":
        without_preamble(folder)
    else:
        other = tmp_path / "other"
        other.mkdir()
        sorted(folder.iterdir())[3].rename(other / "x")
        without_preamble(other)
        (other / "x").rename(folder / name.format("003"))
    volume = LoadVolumed("image").load(folder)
    np.testing.assert_array_equal(volume[0].numpy(), expected)
    assert is_dicom_folder(folder) and read_study(folder).left_out == {}
    assert one_series(sorted(folder.iterdir())[0]).shape == (16, 16, 1)
    np.testing.assert_array_equal(one_series(zipped(folder)).read(), expected)
    assert len(one_series(folder).headers()) == 8


@pytest.mark.parametrize("member", ["../x.dcm", "a/../../x.dcm", "/x.dcm", "..\\x.dcm", "C:\\x.dcm", "twice"])
def test_zips_with_members_outside_of_them(tmp_path, member):
    archive = zipped(write_series(tmp_path / "s"))
    with zipfile.ZipFile(archive, "a") as more, warnings.catch_warnings(action="ignore"):
        name = "003.dcm" if member == "twice" else member
        more.writestr(name, more.read("003.dcm"))
    refused(archive, repr(name), "pack the study again")


def deflate(folder):
    """The data sets of its files deflated."""
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        header.save_as(path, enforce_file_format=True)


def test_deflated_files(tmp_path, monkeypatch):
    """They are read like others, and none takes more memory than it may."""
    folder = write_series(tmp_path / "s")
    expected = one_series(folder).read()
    deflate(folder)
    archive = zipped(folder)
    for source in (folder, archive):
        np.testing.assert_array_equal(one_series(source).read(), expected)
    whole = (folder / "003.dcm").read_bytes()
    for content in (whole[:-20], whole[:-40] + b"\xff" * 40):
        (folder / "003.dcm").write_bytes(content)
        refused(folder, "003.dcm has a damaged header")
    (folder / "003.dcm").write_bytes(whole)
    monkeypatch.setattr(dicom_slices, "unpacked_limit", lambda: 900)
    refused(folder, "000.dcm would take 0.0 GiB or more when unpacked")


def measured_memory(function):
    """Bytes of Python's objects at most, while a function runs."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["zip", "deflated", "deflated in zip"])
def test_no_memory_is_taken_before_bounds_are_checked(tmp_path, monkeypatch, kind):
    """64 MiB of zeros in some kB, where 16 MiB are allowed."""
    folder = write_series(tmp_path / "s", lambda n, h: n == 3 and setattr(h, "PixelData", bytes(2**26)))
    if kind != "zip":
        deflate(folder)
    source = folder if kind == "deflated" else zipped(folder)
    monkeypatch.setattr(dicom_slices, "unpacked_limit", lambda: 2**24)
    assert measured_memory(lambda: refused(source, "007.dcm would take 0.")) < 2**24


def test_no_memory_is_taken_for_pixels_that_a_header_only_states(tmp_path, monkeypatch):
    def edit(number, header):
        coded(RLELossless)(number, header)
        header.Rows = header.Columns = 20000
        header.PixelSpacing = [0.05, 0.05]

    monkeypatch.setattr(dicom_slices, "unpacked_limit", lambda: 2**24)
    folder = write_series(tmp_path / "s", edit)
    assert measured_memory(lambda: refused(folder, "would take 0.7 GiB or more when unpacked")) < 2**24


def test_a_zip_of_many_empty_members(tmp_path):
    archive = zipped(write_series(tmp_path / "s"))
    with zipfile.ZipFile(archive, "a") as more:
        for number in range(20_000):
            more.writestr(f"empty/{number}", b"")
    start = time.process_time()
    study = read_study(archive)
    assert time.process_time() - start < 10
    assert study.series[0].shape == (16, 16, 8) and len(study.left_out) == 20_000
    assert "20008 files 8 read, 20000 left out (no DICOM: empty/0, empty/1," in study.left_out_line


def test_volumes_of_other_kinds_beside_dicom(tmp_path, capsys, caplog):
    """dcm2niix writes into the DICOM folder, and masks lie beside studies: neither hides the other silently."""
    out = tmp_path / "out"
    out.mkdir()
    for suffix in (".nii.gz", ".mgz"):
        folder = write_series(tmp_path / f"s{suffix[1:4]}")
        (folder / "deep").mkdir()
        mask = folder / "deep" / f"mask{suffix}"
        image = nibabel.MGHImage if suffix == ".mgz" else nibabel.Nifti1Image
        image(np.ones((4, 4, 4), np.float32), np.eye(4)).to_filename(mask)
        for place in (mask, folder / mask.name):
            mask = mask.rename(place)
            caplog.clear()
            assert [case.source for case in find_cases(str(folder), str(out), False)] == [str(place)]
            assert "8 files of DICOM left out beside volumes of other kinds (3 t1)" in caplog.text
        (case,) = find_cases(str(folder), str(out), False, "3")
        assert case.series.shape == (16, 16, 8)
        assert f"of 9 files 8 read, 1 left out (no DICOM: mask{suffix})" in capsys.readouterr().out
        caplog.clear()
        assert LoadVolumed("image").load(folder).shape == (1, 16, 16, 8)
        assert f"1 left out (no DICOM: mask{suffix})" in caplog.text


def test_names_in_messages_are_printable(tmp_path):
    folder = write_series(tmp_path / "s", setting("SeriesDescription", lambda n: "t1\x1b[31m"))
    for name in (b"\xff.txt", b"a\x1b[2J.txt", b"line\nbreak"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text("x")
    study = read_study(folder)
    assert study.left_out_line.isprintable() and r"\udcff.txt" in study.left_out_line and len(study.left_out) == 3
    assert study.series[0].label == r"3 t1\x1b[31m"


def test_a_header_that_is_damaged_where_no_voxel_depends_on_it(tmp_path):
    folder = write_series(tmp_path / "s", setting("StudyID", lambda n: "7"))
    path = folder / "003.dcm"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x20\x00\x10\x00SH", b"\x20\x00\x10\x00FD"))
    assert path.read_bytes() != content
    series = one_series(folder)
    assert series.read().shape == (16, 16, 8)
    with pytest.raises(ValueError, match=r"s: 003.dcm has a damaged header \(.*Expected total bytes"):
        series.headers()


def test_links_pipes_and_loops(tmp_path):
    series = write_series(tmp_path / "s")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(series)
    (series / "up").symlink_to(root)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "pipe")
    study = read_study(root)
    assert study.series[0].shape == (16, 16, 8)
    assert LoadVolumed("image").load(root).shape == (1, 16, 16, 8)
    assert study.left_out == {"gone": "No such file or directory", "pipe": "no regular file"}


def signed(number, header):
    """12 bits in 16, without the sign in the unused bits."""
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = CTImageStorage
    header.Modality, header.PixelRepresentation, header.BitsStored, header.HighBit = "CT", 1, 12, 11
    header.RescaleSlope, header.RescaleIntercept = 0.5, -100
    values = (np.arange(256).reshape(16, 16) - 128 + number).astype("<i2")
    header.PixelData = (values.view("<u2") & 0x0FFF).tobytes()


def test_signed_pixels(tmp_path):
    volume = LoadVolumed("image").load(write_series(tmp_path / "s", signed))
    for number in range(8):
        expected = (np.arange(256).reshape(16, 16).T - 128.0 + number) * 0.5 - 100
        np.testing.assert_array_equal(volume[0, :, :, number].numpy(), expected)


def test_monochrome1_keeps_its_values(tmp_path):
    """It says how a viewer shows them; ITK inverts them, so that Hounsfield units would be wrong."""

    def edit(number, header):
        header.PhotometricInterpretation = "MONOCHROME1"
        header.RescaleSlope, header.RescaleIntercept = 2, -100

    folder = write_series(tmp_path / "s", edit)
    volume = LoadVolumed("image").load(folder)
    np.testing.assert_array_equal(volume[0].numpy(), np.stack([pixels(n).T * 2.0 - 100 for n in range(8)], axis=-1))
    same_as_dcm2niix(volume, folder, tmp_path / "nifti")


def same_as_dcm2niix(volume, folder, out):
    """Voxels by their place in the patient, read by another program."""
    pytest.importorskip("dcm2niix", reason="dcm2niix is not installed (pip install dcm2niix)")
    import dcm2niix

    out.mkdir()
    subprocess.run([dcm2niix.bin, "-o", out, "-f", "v", folder], check=True, capture_output=True)
    (path,) = out.glob("*.nii")
    image = nibabel.load(path)
    values = np.asanyarray(image.dataobj)
    assert sorted(values.shape) == sorted(volume.shape[1:])
    rng = np.random.default_rng(0)
    for index in (rng.random((100, 3)) * volume.shape[1:]).astype(int):
        place = np.linalg.solve(image.affine, volume.affine.numpy() @ [*index, 1])[:3]
        np.testing.assert_allclose(place, np.round(place), atol=0.01)
        i, j, k = np.round(place).astype(int)
        assert float(volume[(0, *index)]) == pytest.approx(float(values[i, j, k]), abs=1e-3)


def by_itk(header, compression):
    """JPEG lossless, which pydicom does not write, and JPEG 2000 of small images."""
    path = Path(header.filename).with_suffix(".tmp")
    image_io = itk.GDCMImageIO.New()
    image_io.SetCompressionType(getattr(itk.GDCMImageIOEnums, f"Compression_{compression}"))
    itk.imwrite(itk.image_from_array(header.pixel_array), str(path), imageio=image_io, compression=True)
    written = pydicom.dcmread(path)
    path.unlink()
    header.PixelData, header.file_meta.TransferSyntaxUID = written.PixelData, written.file_meta.TransferSyntaxUID
    header["PixelData"].is_undefined_length = True
    for tag in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(header, tag, written[tag].value)


CODECS = {
    "JPEG Lossless": lambda header: by_itk(header, "JPEG"),
    "JPEG 2000": lambda header: by_itk(header, "JPEG2000"),
    "JPEG-LS": lambda header: header.compress(JPEGLSLossless, generate_instance_uid=False),
    "RLE": lambda header: header.compress(RLELossless, generate_instance_uid=False),
}
NEEDED = {"JPEG Lossless": "libjpeg", "JPEG 2000": "openjpeg", "JPEG-LS": "jpeg_ls"}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("edit", [lambda n, h: None, signed], ids=["unsigned", "signed"])
def test_compressed_equals_uncompressed(tmp_path, codec, edit, monkeypatch):
    """By pydicom's decoders, and by ITK where there are none."""
    if codec in NEEDED:
        pytest.importorskip(NEEDED[codec], reason=f'{codec} needs pip install "medsr_monai[test]"')

    def with_slope(number, header):
        edit(number, header)
        header.RescaleSlope, header.RescaleIntercept = 0.5, -100

    folder = write_series(tmp_path / "s", with_slope)
    plain = LoadVolumed("image").load(folder)
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        CODECS[codec](header)
        header.save_as(path)
        assert header.file_meta.TransferSyntaxUID.name.startswith(codec)
    compressed = LoadVolumed("image").load(folder)
    assert (compressed == plain).all() and (compressed.affine == plain.affine).all()
    monkeypatch.setattr(dicom_pixels, "_pydicom_decodes", lambda syntax: False)
    assert (LoadVolumed("image").load(folder) == plain).all()
    if codec == "RLE":
        path = folder / "003.dcm"
        path.write_bytes(path.read_bytes()[:-150])
        monkeypatch.undo()
        refused(folder, "003.dcm: cannot be read to its end")


@pytest.mark.parametrize("by", ["pydicom", "ITK"])
def test_jpeg_baseline(tmp_path, by, monkeypatch):
    """8 bits with loss: as Pillow, which compressed it, decodes it, to a grey level."""
    codes = [io.BytesIO() for _ in range(8)]
    for number, code in enumerate(codes):
        Image.fromarray((np.arange(256).reshape(16, 16) // 2 + number).astype(np.uint8)).save(code, "JPEG", quality=90)

    def edit(number, header):
        header.BitsAllocated, header.BitsStored, header.HighBit = 8, 8, 7
        coded(JPEGBaseline8Bit)(number, header)
        header.PixelData = encapsulate([codes[number].getvalue()])

    folder = write_series(tmp_path / "s", edit)
    if by == "ITK":
        monkeypatch.setattr(dicom_pixels, "_pydicom_decodes", lambda syntax: False)
    voxels = one_series(folder).read()
    expected = np.stack([np.array(Image.open(code)).T for code in codes], axis=-1)
    np.testing.assert_allclose(voxels, expected, atol=1)


def test_syntax_without_codec(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "s", coded("1.2.840.10008.1.2.4.201"))
    monkeypatch.setattr(dicom_pixels, "_pydicom_decodes", lambda syntax: False)
    refused(folder, "High-Throughput JPEG 2000", 'pip install "medsr_monai[dicom]"')


def write_enhanced(path, order=range(6), slopes=None, echoes=(1,), positions=True):
    """One multi-frame file, its frames in an order of slice numbers; returns the volume [X, Y, Z] of each echo."""
    frames = [(echo, number) for echo in range(len(echoes)) for number in order]
    write_series(path.parent / "one", count=1)
    header = pydicom.dcmread(path.parent / "one" / "000.dcm")
    (path.parent / "one" / "000.dcm").unlink()
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(header, tag)
    del header.SpacingBetweenSlices
    header.NumberOfFrames, header.ImageType = len(frames), ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]

    def item(**tags):
        dataset = Dataset()
        for tag, value in tags.items():
            setattr(dataset, tag, value)
        return dataset

    measures = item(PixelSpacing=list(EDGES[:2]), SliceThickness=EDGES[2], SpacingBetweenSlices=EDGES[2])
    plane = item(ImageOrientationPatient=[*ROW, *COLUMN])
    header.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[plane])]
    groups = []
    for echo, number in frames:
        slope = slopes[number] if slopes else 1
        values = item(RescaleSlope=slope, RescaleIntercept=-3, RescaleType="US")
        group = item(PixelValueTransformationSequence=[values])
        group.MREchoSequence = [item(EffectiveEchoTime=float(echoes[echo]))]
        if positions:
            group.PlanePositionSequence = [item(ImagePositionPatient=(ORIGIN + STEP * number).tolist())]
        groups.append(group)
    header.PerFrameFunctionalGroupsSequence = groups
    header.PixelData = np.stack([pixels(number) + echo for echo, number in frames]).tobytes()
    header.save_as(path)
    volumes = []
    for echo in range(len(echoes)):
        slices = [(pixels(n).T.astype(float) + echo) * (slopes[n] if slopes else 1) - 3 for n in sorted(order)]
        volumes.append(np.stack(slices, axis=-1))
    return volumes


def test_enhanced_multi_frame(tmp_path):
    """Frames in any order, each with its own slope."""
    path = tmp_path / "e" / "IM1"
    slopes = [1, 2, 0.5, 1, 3, 1]
    (expected,) = write_enhanced(path, [3, 0, 5, 1, 2, 4], slopes)
    volume = LoadVolumed("image").load(path.parent)
    np.testing.assert_array_equal(volume[0].numpy(), expected)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-4)
    headers = one_series(path.parent).headers()
    assert [h.InstanceNumber for h in headers] == [2, 4, 5, 1, 6, 3]
    assert [float(h.RescaleSlope) for h in headers] == slopes
    np.testing.assert_allclose([h.ImagePositionPatient for h in headers], [ORIGIN + STEP * n for n in range(6)])
    assert "PerFrameFunctionalGroupsSequence" not in headers[0] and one_series(path).files == [str(path)]


def test_enhanced_multi_frame_equals_simpleitk(tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    path = tmp_path / "e" / "IM1"
    write_enhanced(path)
    ours, theirs = one_series(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(ours.read().T, sitk.GetArrayFromImage(theirs))
    to_ras = np.diag([-1, -1, 1])
    np.testing.assert_allclose(to_ras @ ours.affine[:3, 3], theirs.GetOrigin(), atol=1e-4)
    directions = np.reshape(theirs.GetDirection(), (3, 3)) * theirs.GetSpacing()
    np.testing.assert_allclose(to_ras @ ours.affine[:3, :3], directions, atol=1e-4)


def test_enhanced_multi_frame_of_two_echoes(tmp_path):
    path = tmp_path / "e" / "IM1"
    expected = write_enhanced(path, echoes=(10, 20))
    series = find_series(path)
    assert [s.part for s in series] == ["echo time 10.0", "echo time 20.0"]
    for one, voxels in zip(series, expected, strict=True):
        np.testing.assert_array_equal(one.read(), voxels)


def test_an_enhanced_file_is_a_folder_of_its_series(tmp_path):
    """One of its parts is chosen by the name that inspect prints, and by what its command says."""
    path, out = tmp_path / "e" / "IM1", tmp_path / "out"
    expected = write_enhanced(path, echoes=(10, 20))
    for source in (path, path.parent):
        cases = find_cases(str(source), str(out), False)
        assert names(cases, out) == ["003_MR_echo-time-10.0_sr.nii.gz", "003_MR_echo-time-20.0_sr.nii.gz"]
        first, second = find_series(source)
        for choice in (second.label, second.choice, "3 t1, echo time 20.0"):
            (case,) = find_cases(str(source), str(tmp_path / "x.nii.gz"), False, choice)
            assert case.output == tmp_path / "x.nii.gz" and case.files == [path]
            np.testing.assert_array_equal(LoadVolumed("image").load(case.input)[0], expected[1])
        for choice in ("3", first.uid, f"{second.label}, {first.label}", f"{first.choice},{second.choice}"):
            assert len(find_cases(str(source), str(out), False, choice)) == 2
        with pytest.raises(ValueError, match=r"no series 4, 3 t1 x, it has 3 t1, echo time 10.0; 3 t1, echo time 20"):
            find_cases(str(source), str(out), False, f"4,{first.label}, 3 t1 x")
        with pytest.raises(ValueError, match="a study of 2 DICOM series"):
            find_cases(str(source), str(tmp_path / "x.nii.gz"), False)
    refused(path, "2 DICOM series mixed", ": let `medsr upscale` sort them (--series chooses)")


def test_a_dicom_file_of_one_volume(tmp_path):
    (expected,) = write_enhanced(tmp_path / "e" / "IM1.dcm")
    out = tmp_path / "out"
    out.mkdir()
    for target, output in ((out, out / "IM1_sr.nii.gz"), (out / "x.nii.gz", out / "x.nii.gz")):
        (case,) = find_cases(str(tmp_path / "e" / "IM1.dcm"), str(target), False)
        assert case.output == output
        np.testing.assert_array_equal(LoadVolumed("image").load(case.input)[0], expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": [0, 1, 2, 4, 5]}, ("1 between", "IM1 frame 3, IM1 frame 4")),
        ({"order": [0, 1, 1, 2]}, ("at one position", "IM1 frame 2 and IM1 frame 3")),
        ({"positions": False}, ("ImagePositionPatient", "no geometry")),
    ],
)
def test_enhanced_multi_frame_refused(tmp_path, options, words):
    write_enhanced(tmp_path / "e" / "IM1", **options)
    refused(tmp_path / "e", *words)


@needs_data
@pytest.mark.parametrize("name", ["chest_ct_dicom/dicom_20slices.zip", "brain_t1_thick_dicom/dicom_35slices.zip"])
def test_real_series_equal_dcm2niix(tmp_path, name):
    volume = LoadVolumed("image").load(DATA / name)
    same_as_dcm2niix(volume, unpack(name, tmp_path / "s"), tmp_path / "nifti")


@needs_data
def test_real_tilted_zip_names_all_that_is_wrong():
    name = "head_ct_tilted_dicom/dicom_28slices.zip"
    refused(DATA / name, "18.5 degrees (gantry tilt)", "unevenly spaced (1.08 to 7.00 mm)", "24.dcm and 25.dcm")


def run_medsr(python, *arguments, **environment):
    command = [python, "-m", "medsr_monai", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_upscale_a_zipped_export(warm_python, tmp_path):
    """Good series are written, bad ones are named, nothing else is left behind."""
    archive, out, temporary = zipped(mixed(tmp_path / "export")), tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    result = run_medsr(warm_python, "upscale", archive, out, "--nopicture", "--device", "cpu", TMPDIR=str(temporary))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert [p.name for p in out.glob("*.nii.gz")] == ["001_MR_sr.nii.gz"] and not list(temporary.rglob("*.dcm"))
    assert "series 2 scout: localiser, left out" in result.stdout and "series 3 t1/MPR: derived" in result.stdout
    assert "series 5: DICOM slices are unevenly spaced" in result.stderr
    image = nibabel.load(out / "001_MR_sr.nii.gz")
    ours, theirs = outer_corners(image.affine, image.shape), outer_corners(expected_affine(), (16, 16, 8))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@needs_data
def test_upscale_refuses_the_tilted_zip(warm_python, tmp_path):
    result = run_medsr(
        warm_python, "upscale", DATA / "head_ct_tilted_dicom" / "dicom_28slices.zip", tmp_path / "x.nii.gz"
    )
    assert result.returncode == 1 and "gantry tilt" in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
