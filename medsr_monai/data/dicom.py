"""DICOM series: recognise one and refuse what cannot be read as one rectangular volume."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

__all__ = ["check_series", "is_dicom_folder"]

GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
POSITION_TOLERANCE = 0.1
"""Largest deviation of a slice position from an even, perpendicular stack, as a fraction of the slice distance."""


def _headers(folder: str | os.PathLike) -> list[pydicom.Dataset]:
    headers = []
    for path in sorted(p for p in Path(folder).iterdir() if p.is_file() and not p.name.startswith(".")):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except (InvalidDicomError, OSError):
            continue
        if "Rows" in header:
            headers.append(header)
    return headers


def is_dicom_folder(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a folder that directly holds DICOM images and no file that is a NIfTI volume."""
    folder = Path(path)
    if not folder.is_dir() or any(p.name.endswith((".nii", ".nii.gz")) for p in folder.iterdir()):
        return False
    for file in folder.iterdir():
        if file.is_file():
            try:
                pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPClassUID"])
            except (InvalidDicomError, OSError):
                continue
            return True
    return False


def check_series(folder: str | os.PathLike) -> int:
    """Refuse a DICOM folder whose slices are not one evenly spaced, perpendicular stack.

    Returns:
        The number of slices.

    Raises:
        ValueError: no image, several series, multi-frame or colour files, missing geometry, missing or duplicate
            slices, uneven gaps, or gantry tilt; one line naming what and where.
    """
    headers = _headers(folder)
    if not headers:
        raise ValueError(
            f"{folder}: DICOM files without an image (a DICOMDIR or a report?), give the folder of a series"
        )
    series = {h.get("SeriesInstanceUID") for h in headers}
    if len(series) > 1:
        names = sorted({str(h.get("SeriesDescription", "no description")) for h in headers})
        raise ValueError(f"{folder}: {len(series)} DICOM series mixed ({', '.join(names)}), put each in its own folder")
    if any(int(h.get("NumberOfFrames", 1)) > 1 for h in headers):
        raise ValueError(f"{folder}: multi-frame DICOM, convert it to NIfTI first (dcm2niix)")
    if any(int(h.get("SamplesPerPixel", 1)) > 1 for h in headers):
        raise ValueError(f"{folder}: DICOM in colour, only grey-scale volumes can be super-resolved")
    if any(not h.get(tag) for h in headers for tag in GEOMETRY):
        raise ValueError(f"{folder}: DICOM without {', '.join(GEOMETRY)} in every file, no geometry can be known")
    orientations = np.array([h.ImageOrientationPatient for h in headers], dtype=float)
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise ValueError(f"{folder}: DICOM slices of different orientations (a localiser?), keep one stack")
    if len({(h.Rows, h.Columns, *map(float, h.PixelSpacing)) for h in headers}) > 1:
        raise ValueError(f"{folder}: DICOM slices of different size or pixel spacing, keep one stack")
    if len(headers) < 2:
        return len(headers)
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    positions = np.array([h.ImagePositionPatient for h in headers], dtype=float)
    positions = positions[np.argsort(positions @ normal)]
    steps = np.diff(positions, axis=0)
    gaps = steps @ normal
    gap = float(np.median(gaps))
    if gap <= 0 or gaps.min() < POSITION_TOLERANCE * gap:
        raise ValueError(f"{folder}: several DICOM slices at one position, keep one of each")
    if np.abs(gaps - gap).max() > POSITION_TOLERANCE * gap:
        raise ValueError(
            f"{folder}: DICOM slices are unevenly spaced ({gaps.min():.2f} to {gaps.max():.2f} mm): "
            "slices are missing, or resample to an even grid first"
        )
    sideways = np.linalg.norm(steps - gaps[:, None] * normal, axis=1)
    if sideways.max() > POSITION_TOLERANCE * gap:
        angle = np.degrees(np.arctan2(np.median(sideways), gap))
        raise ValueError(f"{folder}: DICOM slices are sheared by {angle:.1f} degrees (gantry tilt), correct it first")
    return len(headers)
