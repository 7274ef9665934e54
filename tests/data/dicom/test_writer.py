"""Derived DICOM series: the same array and affine by every reader as of our NIfTI, and what the headers say."""

import copy
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import dcm2niix
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from monai.data import MetaTensor
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)

import medsr_monai
from medsr_monai.data import LoadVolumed, NiftiWriter, one_series, write_dicom_series
from medsr_monai.data.dicom import writer as dicom_writer
from medsr_monai.transforms import outer_corners, with_corners_of

DATA = Path(__file__).parents[3].parent / "shared" / "data" / "test"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real series of ../shared/data are not here")

AXIAL, SAGITTAL, CORONAL = ((1, 0, 0), (0, 1, 0)), ((0, 1, 0), (0, 0, -1)), ((1, 0, 0), (0, 0, -1))
OBLIQUE = ((0.8, 0.6, 0.0), (-0.36, 0.48, -0.8))
FLIPPED = ((-1, 0, 0), (0, 1, 0))  # rows run to the right, slices' normal points down
NAME = "Núñez^José"
SHAPE = (7, 10, 12)  # slices, rows, columns


def source_series(folder, orientation=AXIAL, modality="MR", step=4.0, signed=False, edit=lambda number, header: None):
    """A small series that dciodvfy finds nothing wrong with; ``step`` along the normal may be negative."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    row, column = (np.array(v, dtype=float) for v in orientation)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for number in range(SHAPE[0]):
        header = Dataset()
        header.SpecificCharacterSet = "ISO_IR 100"
        header.SOPClassUID = MRImageStorage if modality == "MR" else CTImageStorage
        header.SOPInstanceUID = generate_uid()
        header.ImageType = ["ORIGINAL", "PRIMARY", "OTHER" if modality == "MR" else "AXIAL"]
        header.StudyDate = header.SeriesDate = header.ContentDate = header.AcquisitionDate = "20200102"
        header.StudyTime = header.SeriesTime = "101500"
        header.ContentTime = header.AcquisitionTime = f"1016{number:02}"
        header.AccessionNumber, header.Modality, header.Manufacturer = "A1", modality, "SIEMENS"
        header.ReferringPhysicianName, header.SeriesDescription, header.ProtocolName = "", "t1 head", "t1 head"
        header.PatientName, header.PatientID, header.PatientBirthDate, header.PatientSex = NAME, "id7", "", "O"
        header.SliceThickness, header.PatientPosition, header.BodyPartExamined = abs(step) * 0.9, "HFS", "HEAD"
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
        header.StudyID, header.SeriesNumber, header.AcquisitionNumber = "1", 3, 1
        header.InstanceNumber, header.PositionReferenceIndicator = number + 1, ""
        header.ImageOrientationPatient = [*orientation[0], *orientation[1]]
        position = np.array([-31.5, 20.25, 7.125]) + step * number * np.cross(row, column)
        header.ImagePositionPatient = [f"{v:.9g}" for v in position]
        header.SliceLocation, header.PixelSpacing = step * number, [1.1, 0.9]
        header.Rows, header.Columns = SHAPE[1:]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
        header.PixelRepresentation = int(signed)
        if modality == "MR":
            header.ScanningSequence, header.SequenceVariant, header.ScanOptions = "GR", "NONE", ""
            header.MRAcquisitionType, header.EchoTime, header.EchoTrainLength = "2D", 2.5, 1
            header.RepetitionTime, header.AcquisitionMatrix = 300, [0, 12, 10, 0]
        else:
            header.KVP, header.RescaleSlope, header.RescaleIntercept = 120, 1, -1024
        low, high = (-900, 900) if signed else (0, 1800)
        header.PixelData = rng.integers(low, high, SHAPE[1:]).astype("<i2" if signed else "<u2").tobytes()
        edit(number, header)
        save(header, folder / f"{(number * 5) % SHAPE[0]}.dcm")
    return folder


def save(header, path):
    meta = header.file_meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.save_as(path, enforce_file_format=True)


def enlarged(source, factors):
    """The source's volume, smoothly enlarged, and its headers."""
    series = one_series(source)
    volume = LoadVolumed("image").load(series)
    larger = torch.nn.functional.interpolate(volume.as_tensor()[None], scale_factor=factors, mode="trilinear")[0]
    return with_corners_of(volume, larger), series.headers()


def derive(source, folder, factors=(4, 4, 1), **options):
    volume, headers = enlarged(source, factors)
    write_dicom_series(volume, folder, headers, **options)
    return volume, [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def by_us(folder, scratch):
    volume = LoadVolumed("image").load(folder)
    return volume[0].numpy(), np.asarray(volume.affine)


def by_simpleitk(folder, scratch):
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0).astype(float), np.diag([-1, -1, 1, 1]) @ affine


def by_dcm2niix(folder, scratch):
    scratch.mkdir()
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-f", "out", "-o", str(scratch), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True)
    files = list(scratch.glob("*.nii"))
    assert run.returncode == 0 and len(files) == 1, run.stdout + run.stderr
    image = nibabel.load(files[0])
    return image.get_fdata(), image.affine


READERS = [by_us, by_simpleitk, by_dcm2niix]


def canonical(voxels, affine):
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels.astype(np.float64), affine))
    return image.get_fdata(), image.affine


def check_readers(volume, folder, scratch):
    """Every reader sees what our NIfTI holds."""
    writer = NiftiWriter(output_dtype=np.float32)
    writer.set_data_array(volume, channel_dim=0)
    writer.set_metadata(volume.meta, resample=False)
    writer.write(scratch / "ours.nii.gz")
    image = nibabel.load(scratch / "ours.nii.gz")
    expected, affine = canonical(image.get_fdata(), image.affine)
    header = pydicom.dcmread(next(iter(folder.iterdir())), stop_before_pixels=True)
    step = float(header.RescaleSlope)
    for reader in READERS:
        voxels, found = canonical(*reader(folder, scratch / reader.__name__))
        assert voxels.shape == expected.shape, reader.__name__
        # float32 of readers adds to half a step
        assert np.abs(voxels - expected).max() <= step * 0.5005 + 1e-4, reader.__name__
        corners = outer_corners(found, voxels.shape) - outer_corners(affine, expected.shape)
        assert np.abs(corners).max() < 1e-3, reader.__name__
    return step


def rescaled(slope, intercept, **others):
    def edit(number, header):
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
        for name, value in others.items():
            setattr(header, name, value)

    return edit


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({"modality": "CT"}, (4, 4, 1)),
        ({"modality": "CT", "signed": True, "edit": rescaled(1, 0), "step": -4.0}, (4, 4, 1)),
        ({"modality": "CT", "orientation": OBLIQUE, "edit": rescaled(0.5, -3.25)}, (1, 4, 4)),
        ({"orientation": SAGITTAL}, (4, 4, 1)),
        ({"orientation": SAGITTAL, "step": -4.0}, (1, 1, 3)),
        ({"orientation": CORONAL}, (4, 1, 4)),
        ({"orientation": CORONAL, "edit": rescaled(0.37, -5, Manufacturer="Philips")}, (1, 1, 5)),
        ({"orientation": OBLIQUE, "signed": True, "edit": rescaled(3.5, 11)}, (4, 4, 1)),
        ({"orientation": OBLIQUE, "step": -3.3, "edit": rescaled(1, 0, Manufacturer="GE MEDICAL SYSTEMS")}, (1, 1, 4)),
        ({"orientation": FLIPPED}, (2, 3, 2)),
    ],
    ids=["ct", "ct-signed-down", "ct-oblique-slope", "sagittal", "sagittal-down-thin", "coronal", "coronal-thin-slope",
         "oblique-signed-slope", "oblique-down-thin", "flipped"],
)  # fmt: skip
def test_readers_agree_with_our_nifti(tmp_path, options, factors):
    source = source_series(tmp_path / "source", **options)
    volume, headers = derive(source, tmp_path / "derived", factors)
    step = check_readers(volume, tmp_path / "derived", tmp_path)
    span = float(volume.max().clamp(min=0) - volume.min().clamp(max=0))
    original = one_series(source).headers()
    if options.get("modality") == "CT":
        assert (step, headers[0].RescaleIntercept) == (original[0].RescaleSlope, original[0].RescaleIntercept)
    else:
        assert step == pytest.approx(span / 65535, rel=1e-6)
    # rows, columns and the slices' numbers run as the source's
    original.sort(key=lambda h: h.InstanceNumber)
    np.testing.assert_allclose(headers[0].ImageOrientationPatient, original[0].ImageOrientationPatient, atol=1e-9)
    ours, theirs = (
        np.subtract(h[-1].ImagePositionPatient, h[0].ImagePositionPatient).astype(float) for h in (headers, original)
    )
    assert ours @ theirs > 0.99 * np.linalg.norm(ours) * np.linalg.norm(theirs)
    assert [h.InstanceNumber for h in headers] == list(range(1, len(headers) + 1))
    assert all(h.PixelRepresentation == int(options.get("signed", False)) for h in headers)


def test_axes_of_the_volume_in_any_order(tmp_path):
    """A volume that was turned to other array axes is written as if it had not been."""
    source = source_series(tmp_path / "source", OBLIQUE)
    volume, plain = derive(source, tmp_path / "plain", (4, 4, 1))
    voxels = volume.as_tensor()[0].flip(0, 2).permute(2, 0, 1)[None]  # new axis 0 is old 2, 1 is old 0, 2 is old 1
    back = np.zeros((4, 4))
    back[3, 3] = 1
    back[2, 0], back[2, 3] = -1, volume.shape[3] - 1
    back[0, 1], back[0, 3] = -1, volume.shape[1] - 1
    back[1, 2] = 1
    turned = MetaTensor(voxels, affine=volume.affine @ torch.as_tensor(back), meta={"original_channel_dim": 0})
    write_dicom_series(turned, tmp_path / "turned", one_series(source).headers())
    for one, path in zip(plain, sorted((tmp_path / "turned").iterdir()), strict=True):
        other = pydicom.dcmread(path)
        assert one.PixelData == other.PixelData
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            np.testing.assert_allclose(one[name].value, other[name].value, atol=1e-9)


def test_what_the_headers_say(tmp_path):
    source = source_series(tmp_path / "source", OBLIQUE)
    before = {path: path.read_bytes() for path in source.iterdir()}
    _, headers = derive(source, tmp_path / "derived", description="bundle x, plane axial")
    assert {path: path.read_bytes() for path in source.iterdir()} == before
    original = pydicom.dcmread(source / "0.dcm")
    first = headers[0]
    assert sorted(p.name for p in (tmp_path / "derived").iterdir()) == [f"{n:04}.dcm" for n in range(1, 8)]
    assert first.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert first.SOPClassUID == first.file_meta.MediaStorageSOPClassUID == MRImageStorage and first.Modality == "MR"
    assert first.ImageType == ["DERIVED", "SECONDARY", "OTHER"]
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate", "AccessionNumber",
                 "EchoTime", "AcquisitionMatrix", "ProtocolName", "Manufacturer"):  # fmt: skip
        assert first[name] == original[name], name
    assert str(first.PatientName) == NAME
    uids = {h.SOPInstanceUID for h in headers} | {first.SeriesInstanceUID}
    assert len(uids) == 8 and all(uid.startswith("2.25.") and uid.is_valid for uid in uids)
    assert len({h.SeriesInstanceUID for h in headers}) == 1
    assert (first.SeriesNumber, first.SeriesDescription) == (1003, "t1 head SR x4 RESEARCH ONLY")
    assert "bundle x, plane axial" in first.DerivationDescription
    assert "research use only" in first.DerivationDescription and medsr_monai.__version__ in first.DerivationDescription
    assert [(c.CodeValue, c.CodingSchemeDesignator) for c in first.DerivationCodeSequence] == [("113085", "DCM")]
    (equipment,) = first.ContributingEquipmentSequence
    assert (equipment.ManufacturerModelName, equipment.SoftwareVersions) == ("medsr_monai", medsr_monai.__version__)
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert (first.SliceThickness, first.SpacingBetweenSlices) == (pytest.approx(3.6), pytest.approx(4.0))
    np.testing.assert_allclose(first.PixelSpacing, [1.1 / 4, 0.9 / 4])
    assert (first.Rows, first.Columns) == (40, 48)
    assert (first.BitsAllocated, first.BitsStored, first.HighBit) == (16, 16, 15)
    assert {str(h.WindowCenter) + str(h.WindowWidth) for h in headers} == {
        str(first.WindowCenter) + str(first.WindowWidth)
    }
    by_number = {int(pydicom.dcmread(p).InstanceNumber): pydicom.dcmread(p).SOPInstanceUID for p in source.iterdir()}
    for header in headers:
        (item,) = header.SourceImageSequence
        assert item.ReferencedSOPInstanceUID == by_number[int(header.InstanceNumber)]
        assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        row, column = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
        location = np.cross(row, column) @ np.array(header.ImagePositionPatient, dtype=float)
        assert float(header.SliceLocation) == pytest.approx(location, abs=1e-6)


def test_new_slices_come_from_all_sources(tmp_path):
    source = source_series(tmp_path / "source", SAGITTAL)
    _, headers = derive(source, tmp_path / "derived", (1, 1, 4))
    assert len(headers) == 28 and headers[0].SeriesDescription == "t1 head SR x4 RESEARCH ONLY"
    assert all(len(h.SourceImageSequence) == 7 for h in headers)
    assert headers[0].SliceThickness == headers[0].SpacingBetweenSlices == pytest.approx(1.0)


def test_derived_of_derived(tmp_path):
    """What was derived before is told first; a description never exceeds its 64 characters."""
    source = source_series(tmp_path / "source", edit=lambda n, h: setattr(h, "SeriesDescription", "x" * 64))
    _, first = derive(source, tmp_path / "first", description="once")
    _, second = derive(tmp_path / "first", tmp_path / "second", (1, 1, 2), description="twice")
    assert len(first[0].SeriesDescription) == 64 and first[0].SeriesDescription.endswith("x SR x4 RESEARCH ONLY")
    assert len(second[0].SeriesDescription) == 64 and second[0].SeriesNumber == 2003
    told = second[0].DerivationDescription
    assert told.index("once") < told.index("twice")
    assert len(second[0].DerivationCodeSequence) == len(second[0].ContributingEquipmentSequence) == 2


def test_what_does_not_hold_is_gone(tmp_path):
    def edit(number, header):
        header.add_new(0x00291010, "OB", b"private")
        header.add_new(0x60003000, "OW", b"\0" * 16)
        header.SmallestImagePixelValue, header.LargestImagePixelValue, header.PixelPaddingValue = 0, 1800, 0
        header.GantryDetectorTilt, header.SAR, header.ImagesInAcquisition = 0, 0.1 * number, 7
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = MRImageStorage, "1.2.3"
        header.ReferencedImageSequence, header.IconImageSequence = [item], [Dataset()]
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "69536005", "SCT", "Head"
        code.add_new(0x00291011, "LO", "private inside")
        header.AnatomicRegionSequence = [code]
        header.LossyImageCompression, header.LossyImageCompressionRatio = "01", 9.5

    source = source_series(tmp_path / "source", edit=edit)
    _, headers = derive(source, tmp_path / "derived")
    for header in headers:
        assert not [e for e in header.iterall() if e.tag.is_private or (e.tag.group >= 0x5000 and e.tag.group < 0x7FE0)]
        for name in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue", "GantryDetectorTilt",
                     "SAR", "ImagesInAcquisition", "ReferencedImageSequence", "IconImageSequence",
                     "AcquisitionTime"):  # fmt: skip
            assert name not in header, name
        assert header.AnatomicRegionSequence[0].CodeMeaning == "Head" and header.AcquisitionDate == "20200102"
        assert (header.LossyImageCompression, header.LossyImageCompressionRatio) == ("01", 9.5)
    assert 0x00291010 in one_series(source).headers()[0]


def test_loss_is_known_by_the_transfer_syntax_too(tmp_path):
    volume, headers = enlarged(source_series(tmp_path / "source"), (1, 1, 1))
    for header in headers:
        header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    write_dicom_series(volume, tmp_path / "derived", headers)
    derived = pydicom.dcmread(tmp_path / "derived" / "0001.dcm")
    assert (derived.LossyImageCompression, derived.LossyImageCompressionMethod) == ("01", "ISO_10918_1")


def window(choose):
    def edit(number, header):
        header.WindowCenter, header.WindowWidth = choose(number)

    return edit


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (window(lambda n: ([40, -600], [400, 1500])), ([40, -600], [400, 1500])),
        (window(lambda n: (100 + n, 300 + 10 * n)), (103, 330)),
    ],
    ids=["of all slices", "of each slice"],
)
def test_window_of_the_source(tmp_path, edit, expected):
    _, headers = derive(source_series(tmp_path / "source", edit=edit), tmp_path / "derived", (1, 1, 2))
    assert all((h.WindowCenter, h.WindowWidth) == expected for h in headers)


def test_window_of_the_volume(tmp_path):
    """Of small numbers too, where the standard's LINEAR would want a width of 1."""
    source = source_series(tmp_path / "source", edit=rescaled(1e-4, 0))
    volume, headers = derive(source, tmp_path / "derived")
    low, high = np.percentile(volume.numpy(), (0.5, 99.5))
    assert headers[0].VOILUTFunction == "LINEAR_EXACT"
    assert headers[0].WindowCenter == pytest.approx((low + high) / 2) and headers[0].WindowWidth < 0.2


def written(values, tmp_path, **options):
    """Values read back of a series whose volume has the given extreme values."""
    volume, headers = enlarged(source_series(tmp_path / "source", **options), (1, 1, 1))
    volume[0, 0, 0, : len(values)] = torch.tensor(values)
    write_dicom_series(volume, tmp_path / "derived", headers)
    return volume, LoadVolumed("image").load(tmp_path / "derived"), pydicom.dcmread(tmp_path / "derived" / "0001.dcm")


def test_ringing_below_an_unsigned_ct(tmp_path):
    """It is kept in Hounsfield units, stored signed."""
    volume, read, header = written([-1500.0, 3000.0], tmp_path, modality="CT")
    assert (header.RescaleSlope, header.RescaleIntercept, header.PixelRepresentation) == (1, -1024, 1)
    torch.testing.assert_close(read.as_tensor(), volume.as_tensor().round(), rtol=0, atol=0)


def test_a_ct_beyond_16_bits(tmp_path):
    volume, read, header = written([-40000.0, 50000.0], tmp_path, modality="CT")
    assert header.RescaleSlope == pytest.approx(90000 / 65535)
    assert (read - volume).abs().max() <= 90000 / 65535 * 0.5001


@pytest.mark.parametrize("signed", [False, True])
def test_extremes_of_mr(tmp_path, signed):
    volume, read, header = written([-333.3, 123456.7], tmp_path, signed=signed)
    span = float(volume.max() - volume.min())
    assert header.PixelRepresentation == int(signed) and (read - volume).abs().max() <= span / 65535 * 0.5005


def test_zero_stays_zero(tmp_path):
    volume, read, _ = written([0.0, 0.3], tmp_path)
    assert bool(((volume == 0) == (read == 0)).all()) and int((volume == 0).sum()) > 0


def test_a_constant_volume(tmp_path):
    for value in (0.0, -7.5, 1e-6):
        folder = tmp_path / str(value)
        volume, headers = enlarged(source_series(folder / "source"), (1, 1, 1))
        write_dicom_series(torch.full_like(volume, value), folder / "derived", headers)
        read = LoadVolumed("image").load(folder / "derived")
        assert read.shape == volume.shape and read.numpy() == pytest.approx(np.full(read.shape, value), rel=1e-6)


def test_one_slice(tmp_path):
    source = source_series(tmp_path / "source", SAGITTAL)
    for path in sorted(source.iterdir())[1:]:
        path.unlink()
    volume, headers = derive(source, tmp_path / "derived", (4, 4, 1))
    assert len(headers) == 1
    read = LoadVolumed("image").load(tmp_path / "derived")
    assert (
        np.abs(outer_corners(read.affine, read.shape[1:]) - outer_corners(volume.affine, volume.shape[1:])).max() < 1e-3
    )


def enhanced(folder):
    """The series of source_series as one enhanced MR file, as scanners of two makers write it."""
    source_series(folder / "classic", OBLIQUE, edit=rescaled(0.5, -3))
    slices = one_series(folder / "classic").headers()
    paths = sorted((folder / "classic").iterdir(), key=lambda p: int(pydicom.dcmread(p).InstanceNumber))
    whole = copy.deepcopy(pydicom.dcmread(paths[0]))
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
                 "RescaleIntercept", "EchoTime", "RepetitionTime", "EchoTrainLength", "ScanningSequence", "ScanOptions",
                 "SequenceVariant", "SliceLocation", "AcquisitionMatrix"):  # fmt: skip
        delattr(whole, name)
    whole.SOPClassUID, whole.SOPInstanceUID, whole.NumberOfFrames = EnhancedMRImageStorage, generate_uid(), len(slices)
    whole.EchoPulseSequence, whole.PixelPresentation, whole.VolumetricProperties = "GRADIENT", "MONOCHROME", "VOLUME"

    def group(**values):
        item = Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        return [item]

    shared = Dataset()
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=slices[0].ImageOrientationPatient)
    shared.PixelMeasuresSequence = group(PixelSpacing=[1.1, 0.9], SliceThickness=3.6)
    shared.PixelValueTransformationSequence = group(RescaleSlope=0.5, RescaleIntercept=-3, RescaleType="US")
    shared.MREchoSequence = group(EffectiveEchoTime=4.5)
    shared.MRTimingAndRelatedParametersSequence = group(RepetitionTime=700, FlipAngle=30, EchoTrainLength=3)
    shared.MRModifierSequence = group(
        InversionRecovery="YES", InversionTimes=[900.0], Spoiling="RF", SteadyStatePulseSequence="NONE"
    )
    shared.MRFOVGeometrySequence = group(InPlanePhaseEncodingDirection="COLUMN")
    whole.SharedFunctionalGroupsSequence, frames = [shared], []
    for header in slices:
        frame = Dataset()
        frame.PlanePositionSequence = group(ImagePositionPatient=header.ImagePositionPatient)
        frame.MRImageFrameTypeSequence = group(FrameType=["ORIGINAL", "PRIMARY", "T1", "NONE"])
        frames.append(frame)
    whole.PerFrameFunctionalGroupsSequence = frames
    pixels = {pydicom.dcmread(p).SOPInstanceUID: pydicom.dcmread(p).PixelData for p in paths}
    whole.PixelData = b"".join(pixels[h.SOPInstanceUID] for h in slices)
    (folder / "enhanced").mkdir()
    save(whole, folder / "enhanced" / "all.dcm")
    return folder / "enhanced"


def test_enhanced_becomes_classic(tmp_path):
    source = enhanced(tmp_path)
    volume, headers = derive(source, tmp_path / "derived")
    check_readers(volume, tmp_path / "derived", tmp_path)
    first = headers[0]
    assert first.SOPClassUID == MRImageStorage and first.ImageType == ["DERIVED", "SECONDARY", "T1", "NONE"]
    assert (first.EchoTime, first.RepetitionTime, first.FlipAngle, first.EchoTrainLength) == (4.5, 700, 30, 3)
    assert (first.ScanningSequence, first.SequenceVariant) == (["GR", "IR"], "SP") and first.InversionTime == 900
    assert (first.InPlanePhaseEncodingDirection, first.SliceThickness, str(first.PatientName)) == ("COL", 3.6, NAME)
    assert not [
        e for e in first if "FunctionalGroups" in e.keyword or e.keyword in ("EchoPulseSequence", "NumberOfFrames")
    ]
    assert [h.SourceImageSequence[0].ReferencedFrameNumber for h in headers] == list(range(1, 8))
    _, thin = derive(source, tmp_path / "thin", (1, 1, 2))
    assert len(thin[0].SourceImageSequence) == 1 and "ReferencedFrameNumber" not in thin[0].SourceImageSequence[0]


def test_series_without_a_common_frame_of_reference(tmp_path):
    """As de-identification may leave it."""
    source = source_series(tmp_path / "source", edit=lambda n, h: setattr(h, "FrameOfReferenceUID", generate_uid()))
    _, headers = derive(source, tmp_path / "derived")
    assert len({h.FrameOfReferenceUID for h in headers}) == 1


def refuse(volume, headers, folder, *words):
    with pytest.raises(ValueError) as caught:
        write_dicom_series(volume, folder, headers)
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value
    assert not folder.exists() and not [p for p in folder.parent.iterdir() if p.name.startswith(".")]


def test_refused(tmp_path):
    volume, headers = enlarged(source_series(tmp_path / "source"), (1, 1, 1))
    out = tmp_path / "out"
    broken = volume.clone()
    broken[0, 0, 0, 0] = np.nan
    refuse(broken, headers, out, "NaN")
    refuse(torch.cat([volume, volume]), headers, out, "(2, ")
    shear = torch.eye(4, dtype=torch.float64)
    shear[0, 1] = 0.05
    refuse(MetaTensor(volume.as_tensor(), affine=volume.affine @ shear), headers, out, "perpendicular", "NIfTI")
    refuse(volume, [], out, "no DICOM headers")
    for name, value, word in (
        ("SOPClassUID", PositronEmissionTomographyImageStorage, "Positron"),
        ("PatientID", "another", "PatientID"),
        ("SeriesInstanceUID", "1.2", "SeriesInstanceUID"),
        ("ImagePositionPatient", None, "its place"),
    ):
        changed = copy.deepcopy(headers)
        for header in changed[0:7] if name == "SOPClassUID" else changed[3:4]:
            setattr(header, name, value)
        refuse(volume, changed, out, word)


def test_nothing_is_lost(tmp_path, monkeypatch):
    volume, headers = enlarged(source_series(tmp_path / "source"), (1, 1, 1))
    out = tmp_path / "out"
    out.mkdir()
    write_dicom_series(volume, out, headers)  # an empty folder will do
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(FileExistsError, match="not empty"):
        write_dicom_series(volume, out, headers)
    with pytest.raises(FileExistsError, match=r"source: holds 0.dcm, which is no slice of a derived series"):
        write_dicom_series(volume, tmp_path / "source", headers, overwrite=True)
    with monkeypatch.context() as patch:
        saved = []

        def failing(dataset, path):
            if len(saved) == 3:
                raise OSError("disk full")
            saved.append(path)
            path.touch()

        patch.setattr(dicom_writer, "_save", failing)
        for folder in (out, tmp_path / "new"):
            saved.clear()
            with pytest.raises(OSError, match="disk full"):
                write_dicom_series(volume, folder, headers, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    write_dicom_series(volume, out, headers, overwrite=True)
    assert len(list(out.iterdir())) == 7 and (out / "0001.dcm").read_bytes() != first["0001.dcm"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.txt"):
        write_dicom_series(volume, out, headers, overwrite=True)
    assert (out / "notes.txt").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_that_is_read_only(tmp_path):
    volume, headers = enlarged(source_series(tmp_path / "source"), (1, 1, 1))
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="nothing can be written"):
        write_dicom_series(volume, tmp_path / "locked" / "out", headers)


def complaints(path):
    """Error lines of dciodvfy."""
    run = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    return {line for line in (run.stdout + run.stderr).splitlines() if "Error" in line}


needs_dciodvfy = pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (Debian: dicom3tools) is not here")


@needs_dciodvfy
@pytest.mark.parametrize("modality", ["MR", "CT", "enhanced"])
def test_dciodvfy(tmp_path, modality):
    source = enhanced(tmp_path) if modality == "enhanced" else source_series(tmp_path / "source", modality=modality)
    if modality != "enhanced":
        assert not complaints(source / "0.dcm")
    derive(source, tmp_path / "derived", (4, 4, 1))
    derive(tmp_path / "derived", tmp_path / "twice", (1, 1, 2))
    for folder in ("derived", "twice"):
        for path in sorted((tmp_path / folder).iterdir())[::4]:
            assert not complaints(path)
        run = subprocess.run(["dcentvfy", *map(str, (tmp_path / folder).iterdir())], capture_output=True, text=True)
        assert run.returncode == 0 and not run.stdout + run.stderr  # one patient, study, series, frame of reference


@pytest.mark.skipif(not shutil.which("dcmftest"), reason="dcmftest (Debian: dcmtk) is not here")
def test_dcmtk(tmp_path):
    derive(source_series(tmp_path / "source"), tmp_path / "derived")
    files = sorted(map(str, (tmp_path / "derived").iterdir()))
    run = subprocess.run(["dcmftest", *files], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.count("yes:") == len(files)
    dump = subprocess.run(["dcmdump", "-q", files[0]], capture_output=True, text=True, encoding="latin-1")
    assert dump.returncode == 0 and "RESEARCH ONLY" in dump.stdout and not dump.stderr


@needs_data
@pytest.mark.parametrize(
    ("archive", "factors"),
    [("chest_ct_dicom/dicom_20slices.zip", (1, 1, 2)), ("brain_t1_thick_dicom/dicom_35slices.zip", (2, 2, 1))],
)
def test_real_series(tmp_path, archive, factors):
    with zipfile.ZipFile(DATA / archive) as file:
        file.extractall(tmp_path / "source")
    source = next(p.parent for p in (tmp_path / "source").rglob("*") if p.is_file())
    for path in one_series(source).files[6:]:
        Path(path).unlink()  # whole series take a minute
    volume, headers = derive(source, tmp_path / "derived", factors)
    check_readers(volume, tmp_path / "derived", tmp_path)
    original = one_series(source).headers()[0]
    assert (headers[0].PatientID, headers[0].StudyInstanceUID) == (original.PatientID, original.StudyInstanceUID)
    if shutil.which("dciodvfy"):
        assert not complaints(tmp_path / "derived" / "0005.dcm")


@pytest.mark.parametrize("which", ["all", "one"])
@pytest.mark.parametrize("factors", [(4, 4, 1), (1, 1, 2)])
def test_a_source_without_sop_instance_uid(tmp_path, which, factors):
    """Some anonymisers drop it: the series is written without references to its source's images."""
    source = source_series(tmp_path / "source")
    for path in sorted(source.iterdir())[: None if which == "all" else 1]:
        header = pydicom.dcmread(path)
        del header.SOPInstanceUID, header.file_meta.MediaStorageSOPInstanceUID
        header.save_as(path, enforce_file_format=False)
    volume, headers = derive(source, tmp_path / "derived", factors)
    assert len(headers) == volume.shape[3] and not any("SourceImageSequence" in header for header in headers)
    derived = one_series(tmp_path / "derived")
    assert sorted(derived.shape) == sorted(volume.shape[1:])
    assert abs(derived.read().mean() - float(volume.mean())) < 0.1
