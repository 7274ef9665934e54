"""Pixels of DICOM slices: decoded, rescaled slice by slice, stacked to a volume."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import itk
import numpy as np
import pydicom
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from medsr_monai.data.dicom.slices import DicomFiles, DicomSlice, TooLargeError, check_unpacked
from medsr_monai.errors import first_line

__all__ = ["codec_problem", "decoded_pixels", "read_stack"]

HTJ2K = "1.2.840.10008.1.2.4.20"
"""The beginning of the UIDs of the transfer syntaxes of high-throughput JPEG 2000."""
CODECS = 'pip install "medsr_monai[dicom]"'
ITK_SYNTAXES = (
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    RLELossless,
)
"""The compressed transfer syntaxes that ITK decodes."""
PIXEL_TAGS = (
    "SamplesPerPixel PlanarConfiguration NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit "
    "PixelRepresentation PixelData"
)


def codec_problem(syntax: UID) -> str | None:
    """Say why pixels of a transfer syntax cannot be decoded here, and what to do; None where they can."""
    if not syntax.is_transfer_syntax or syntax.is_private:
        return f"of the unknown transfer syntax {syntax}: export the series uncompressed"
    if not syntax.is_encapsulated or syntax in ITK_SYNTAXES or _pydicom_decodes(syntax):
        return None
    remedy = f"{CODECS}, or decompress" if syntax.startswith(HTJ2K) else "decompress"
    return f"compressed as {syntax.name}, which no installed library decodes: {remedy} the series first"


def _pydicom_decodes(syntax: UID) -> bool:
    try:
        from pydicom.pixels import get_decoder
    except ImportError:  # pydicom 2
        handlers = pydicom.config.pixel_data_handlers
        return any(h.is_available() and h.supports_transfer_syntax(syntax) for h in handlers)
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def read_stack(files: DicomFiles, slices: Sequence[DicomSlice]) -> np.ndarray:
    """Read the voxels [X, Y, Z] (columns, rows, slices) of slices of one size; float32, each slice rescaled.

    RescaleSlope and RescaleIntercept are those of each slice. MONOCHROME1, which says that a viewer shows low values
    bright, changes no value.

    Raises:
        ValueError: pixels are missing, truncated or cannot be decoded; names the file.
    """
    stack = None
    pixels, read = None, None
    for number, item in enumerate(slices):
        if read != item.file:
            with files.open(item.file) as file:
                pixels, read = decoded_pixels(pydicom.dcmread(file, force=True), item.file), item.file
        plane = pixels[item.frame] if item.frame is not None and pixels.ndim == 3 else pixels
        stated = (item.rows, item.columns)
        if plane.shape != stated:  # pydicom takes surplus pixels for further frames
            raise ValueError(f"{item.file}: {plane.shape} pixels, its header states {stated}: damaged file?")
        if stack is None:
            stack = np.empty((*plane.shape[::-1], len(slices)), dtype=np.float32)
        # in double precision, as slopes of PET need it
        stack[..., number] = (plane * np.float64(item.slope) + item.intercept).T
    return stack


def decoded_pixels(header: pydicom.Dataset, name: str | os.PathLike) -> np.ndarray:
    """Decode the stored values [rows, columns] or [frames, rows, columns]; colours give RGB [rows, columns, 3].

    They are decoded by pydicom's decoders, or by ITK where pydicom has none.

    Args:
        header: a DICOM file with its pixels.
        name: what errors call it.

    Raises:
        ValueError: pixels are missing, truncated or compressed in a way that no installed library decodes.
    """
    if "TransferSyntaxUID" not in header.file_meta:  # pydicom has guessed it
        implicit = header.original_encoding[0]
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    syntax = header.file_meta.TransferSyntaxUID
    if problem := codec_problem(syntax):
        raise ValueError(f"{name}: {problem}")
    try:
        # decoders take the memory that the header states before they look at the pixels
        frame = int(header.Rows) * int(header.Columns) * int(header.get("SamplesPerPixel") or 1)
        check_unpacked(frame * int(header.get("NumberOfFrames") or 1) * int(header.BitsAllocated) // 8)
        if syntax.is_encapsulated and not _pydicom_decodes(syntax):
            return _decoded_by_itk(header)
        if header.get("SamplesPerPixel", 1) == 1:
            return header.pixel_array
        from pydicom.pixels import pixel_array  # of pydicom 3, which turns YBR to RGB

        return pixel_array(header)
    except MemoryError:
        raise
    except TooLargeError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # codecs raise many kinds
        reason = first_line(error)
        raise ValueError(f"{name}: cannot be read to its end ({reason}): damaged file?") from error


def _decoded_by_itk(header: pydicom.Dataset) -> np.ndarray:
    """ITK holds the codecs that pydicom has only with further packages, but reads nothing else than files."""
    plain = pydicom.Dataset()
    for keyword in PIXEL_TAGS.split():
        if keyword in header:
            plain[keyword] = header[keyword]
    plain.file_meta = header.file_meta
    plain.SOPClassUID = header.get("SOPClassUID") or SecondaryCaptureImageStorage
    plain.SOPInstanceUID = header.get("SOPInstanceUID") or generate_uid()
    grey = header.get("SamplesPerPixel", 1) == 1
    # of MONOCHROME1 ITK would invert the values
    plain.PhotometricInterpretation = "MONOCHROME2" if grey else header.PhotometricInterpretation
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pixels.dcm"  # without the patient
        plain.save_as(path, enforce_file_format=True)
        pixels = itk.array_from_image(itk.imread(str(path), imageio=itk.GDCMImageIO.New()))
    frames = int(header.get("NumberOfFrames") or 1)
    shape = (header.Rows, header.Columns) if frames == 1 else (frames, header.Rows, header.Columns)
    return pixels.reshape(shape if grey else (*shape, 3))
