"""A small DICOM series of oblique slices, and where its tags place it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from processes import in_order
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def make_series(
    folder: Path, edit: Callable[[int, FileDataset], object] = lambda number, header: None, count: int = 4
) -> Path:
    """A series of oblique slices, 4 mm apart, 1.5 mm between rows, 2 mm between columns."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for number in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
        header.Modality, header.PatientID, header.PatientName = "MR", "phantom", "Phantom"
        header.SeriesDescription, header.SeriesNumber, header.InstanceNumber = "t1", 3, number + 1
        header.ImageOrientationPatient = [0.8, 0.6, 0, -0.6, 0.8, 0]
        header.ImagePositionPatient = [-10, -20, 30 + 4 * number]
        header.PixelSpacing, header.SliceThickness = [1.5, 2], 4
        header.Rows, header.Columns, header.SamplesPerPixel = 8, 9, 1
        header.PhotometricInterpretation, header.PixelRepresentation = "MONOCHROME2", 0
        header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
        header.PixelData = (np.arange(72, dtype="<u2") * 7 % 61 + 100 * number).tobytes()
        edit(number, header)
        header.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def stated_corners(folder: Path) -> np.ndarray:
    """Of a series by its tags, DICOM PS3.3 C.7.6.2.1.1, in RAS."""
    headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in sorted(folder.glob("*.dcm"))]
    places = np.array([h.ImagePositionPatient for h in headers], float)
    row, column = np.array(headers[0].ImageOrientationPatient, float).reshape(2, 3)
    across = np.cross(row, column)
    first, last = places[(places @ across).argmin()], places[(places @ across).argmax()]
    step = (last - first) / (len(places) - 1)
    height, width = map(float, headers[0].PixelSpacing)
    points = [
        first + i * width * row + j * height * column + k * step
        for i in (-0.5, headers[0].Columns - 0.5)
        for j in (-0.5, headers[0].Rows - 0.5)
        for k in (-0.5, len(places) - 0.5)
    ]
    return in_order(np.array(points) * [-1, -1, 1])
