"""DICOM files: recognise them, and read those that are single images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pydicom.misc
from pydicom.errors import InvalidDicomError

from medsr_monai.data.dicom.pixels import decoded_pixels

__all__ = ["is_dicom_file", "is_dicom_folder", "is_flat_image", "read_dicom_image"]


def _headers(folder: str | os.PathLike) -> list[pydicom.Dataset]:
    headers = []
    files = [Path(folder)] if Path(folder).is_file() else Path(folder).iterdir()
    for path in sorted(p for p in files if p.is_file() and not p.name.startswith(".")):
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


def is_dicom_file(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a file that begins as DICOM files do, whatever its name."""
    path = Path(path)
    return path.is_file() and bool(pydicom.misc.is_dicom(path))


def is_flat_image(path: str | os.PathLike) -> bool:
    """Whether what a DICOM file or folder holds is no part of a volume: images that do not state their place.

    So it is with ultrasound, endoscopy and X-rays.
    """
    headers = _headers(path)
    return bool(headers) and not any(h.get("ImagePositionPatient") for h in headers)


def read_dicom_image(path: str | os.PathLike) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Stored pixels [rows, columns] or [rows, columns, 3] of a DICOM file, and their width and height in mm.

    Rescale slope and intercept are not applied. Of MONOCHROME1, whose low values are bright, the inverse is returned.
    The size is PixelSpacing, or None. Pixels are uint8 or uint16; signed if there are negative ones.

    Raises:
        ValueError: not a DICOM image, several frames, a palette, more than 16 bits, or a compression that no installed
            library reads.
    """
    try:
        header = pydicom.dcmread(path)
    except (InvalidDicomError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a DICOM image: damaged or misnamed?") from error
    if "PixelData" not in header:
        raise ValueError(f"{path}: a DICOM file without an image (a DICOMDIR or a report?)")
    if int(header.get("NumberOfFrames", 1)) > 1:
        raise ValueError(f"{path}: DICOM with {header.NumberOfFrames} frames, save each as an image of its own")
    photometric = str(header.get("PhotometricInterpretation"))
    if photometric == "PALETTE COLOR":
        raise ValueError(f"{path}: DICOM with a colour palette, convert it to RGB first")
    pixels = decoded_pixels(header, path)
    if pixels.dtype.kind not in "ui" or header.BitsStored > 16:
        raise ValueError(f"{path}: DICOM with {header.BitsStored} bits a pixel, expected up to 16")
    if photometric == "MONOCHROME1":
        pixels = (2**header.BitsStored - 1 if header.PixelRepresentation == 0 else -1) - pixels
    if pixels.min() >= 0:
        pixels = pixels.astype(np.uint8 if header.BitsAllocated == 8 else np.uint16)
    edges = header.get("PixelSpacing")
    return pixels, (float(edges[1]), float(edges[0])) if edges and min(map(float, edges)) > 0 else None
