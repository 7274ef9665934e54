"""Small NIfTI files that tests write."""

import struct

import nibabel
import numpy as np

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
