"""DICOM files: recognise them, and read those that are single images."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from medsr_monai.data.dicom.pixels import decoded_pixels
from medsr_monai.data.dicom.slices import PREAMBLE, DicomFiles, begins_as_dicom, read_slices
from medsr_monai.suffixes import VOLUME_SUFFIXES

__all__ = ["holds_dicom", "is_dicom_file", "is_dicom_folder", "is_flat_image", "read_dicom_image"]


def is_dicom_folder(path: str | os.PathLike) -> bool:
    """Say whether a path is a folder that directly holds DICOM files and no volume of another kind."""
    folder = Path(path)
    if not folder.is_dir():
        return False
    files = [file for file in folder.iterdir() if not file.name.startswith(".")]
    return not any(file.name.lower().endswith(VOLUME_SUFFIXES) for file in files) and any(map(is_dicom_file, files))


def is_dicom_file(path: str | os.PathLike) -> bool:
    """Say whether a path is a file that begins as DICOM files do, whatever its name."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return begins_as_dicom(file.read(PREAMBLE))


def holds_dicom(folder: str | os.PathLike) -> bool:
    """Say whether DICOM files lie in a folder or below it, behind links too."""
    with DicomFiles(folder) as files:
        return any(is_dicom_file(Path(folder) / name) for name in files.names())


def is_flat_image(path: str | os.PathLike) -> bool:
    """Say whether a DICOM file or folder holds images that do not state their place, and so are no part of a volume.

    So it is with ultrasound, endoscopy and X-rays.
    """
    with DicomFiles(path) as files:
        slices = read_slices(files).slices
    return bool(slices) and not any(item.position for item in slices)


def read_dicom_image(path: str | os.PathLike) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Read the stored pixels [rows, columns] or [rows, columns, 3] of a DICOM file, and their width and height in mm.

    Rescale slope and intercept are not applied. Of MONOCHROME1, whose low values are bright, the inverse is returned.
    The size is PixelSpacing, or None. Pixels are uint8 or uint16; signed if there are negative ones.

    Raises:
        ValueError: not a DICOM image, several frames, a palette, more than 16 bits, or a compression that no installed
            library reads.
    """
    try:
        with DicomFiles(path) as files, files.open(Path(path).name) as file:
            header = pydicom.dcmread(file, force=is_dicom_file(path))
    except (InvalidDicomError, OSError, ValueError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read as a DICOM image ({error}): damaged or misnamed?") from error
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
