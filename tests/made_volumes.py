"""Small NIfTI and DICOM files that tests write."""

import struct

import nibabel
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

AFFINE = np.array([[-1.5, 0, 0, 40], [0, 2.0, 0, -30], [0, 0, 2.5, 7], [0, 0, 0, 1]])


def values(shape=(7, 6, 5), dtype=np.float32):
    return (np.random.default_rng(0).random(shape) * 200).astype(dtype)


def save(path, data=None, affine=AFFINE, **header):
    image = nibabel.Nifti1Image(values() if data is None else data, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def patch(path, offset, layout, *numbers):
    """Overwrite header fields of an uncompressed NIfTI file."""
    raw = bytearray(path.read_bytes())
    raw[offset : offset + struct.calcsize(layout)] = struct.pack(layout, *numbers)
    path.write_bytes(raw)
    return path


def save_study(folder, count=4):
    """A series of axial slices of 8x6 voxels of 2x1x3 mm, a file each."""
    folder.mkdir()
    uid = generate_uid()
    for number in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        header.StudyInstanceUID, header.SeriesInstanceUID, header.Modality = uid, uid, "MR"
        header.InstanceNumber, header.SliceThickness, header.PixelSpacing = number + 1, 3, [1, 2]
        header.ImagePositionPatient, header.ImageOrientationPatient = [0, 0, 3 * number], [1, 0, 0, 0, 1, 0]
        header.Rows, header.Columns, header.SamplesPerPixel, header.PhotometricInterpretation = 6, 8, 1, "MONOCHROME2"
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.PixelRepresentation = 15, 0
        header.PixelData = np.random.default_rng(number).integers(0, 900, (6, 8)).astype(np.uint16).tobytes()
        header.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder
