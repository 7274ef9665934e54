"""DICOM series: made on the fly, and the real ones of ../shared/data."""

import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medsr_monai.data import LoadVolumed, is_dicom_folder, list_volumes
from medsr_monai.transforms import outer_corners, sharp_plane, spacing

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "test"
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
        (setting("ImagePositionPatient", lambda n: [0, 0, 4.0 * (n % 4)]), ("several DICOM slices at one position",)),
        (setting("ImagePositionPatient", lambda n: [0, 1.5 * n, 4.0 * n]), ("sheared by 20.6 degrees (gantry tilt)",)),
        (setting("Columns", lambda n: 16 if n < 7 else 8), ("series mixed (3 t1, stack 1; 3 t1, single slices)",)),
        (setting("PixelSpacing", lambda n: [1.5, 2.0 if n < 7 else 2.1]), ("single slices",)),
        (setting("ImageOrientationPatient", lambda n: [1, 0, 0, 0, 1, 0] if n else [0, 1, 0, 0, 0, 1]), ("series mixed",)),
        (setting("NumberOfFrames", lambda n: 4), ("multi-frame DICOM without a position for each frame",)),
        (setting("SamplesPerPixel", lambda n: 3), ("in colour",)),
    ],
    ids=["series", "missing", "uneven", "duplicate", "phases", "tilt", "size", "spacing", "orientation", "frames",
         "colour"],
)  # fmt: skip
def test_refused(tmp_path, edit, words):
    refused(write_series(tmp_path / "bad", edit), *words)


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_missing_geometry(tmp_path, tag):
    refused(write_series(tmp_path / "bad", lambda n, header: n == 2 and delattr(header, tag)), "no geometry", tag)


def test_no_image(tmp_path):
    refused(write_series(tmp_path / "bad", lambda n, header: delattr(header, "Rows")), "without an image")


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
