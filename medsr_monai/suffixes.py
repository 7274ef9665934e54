"""Suffixes of the files that are read and written, apart from what reads them: checks of names import nothing."""

from __future__ import annotations

__all__ = [
    "GZIP_SUFFIXES",
    "NIFTI_SUFFIXES",
    "PAIR_SUFFIXES",
    "PICTURE_SUFFIXES",
    "QUALITY_SUFFIX",
    "READ_PICTURE_SUFFIXES",
    "UNREAD_SUFFIXES",
    "VOLUME_SUFFIXES",
]

NIFTI_SUFFIXES = (".nii", ".nii.gz")
PAIR_SUFFIXES = (".img", ".hdr", ".img.gz", ".hdr.gz")
"""Of the files that hold the voxels and the header of an Analyze or NIfTI pair."""
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".mgz", ".mgh", *PAIR_SUFFIXES)
"""Of NIfTI and FreeSurfer volumes and pairs. DICOM files are known by their content."""
UNREAD_SUFFIXES = (
    *(".nrrd", ".nhdr", ".mha", ".mhd", ".mnc", ".mnc.gz", ".mif", ".mif.gz", ".gipl", ".gipl.gz", ".vti"),
    *(".par", ".rec", ".head", ".brik", ".brik.gz", ".mgh.gz", ".zip"),
)
"""Of images that are not read, and of zips, which may hold some: a search names them."""
GZIP_SUFFIXES = (".gz", ".mgz")
"""Of files that gzip compresses."""
PICTURE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
"""Of pictures that are read and written. A DICOM file is known by its content and is never written as a picture."""
READ_PICTURE_SUFFIXES = (*PICTURE_SUFFIXES, ".bmp", ".gif", ".jp2", ".j2k", ".webp", ".mpo")
"""Of pictures that are read."""
QUALITY_SUFFIX = ".quality.png"
"""Of the picture beside an output, which shows how good it is. No search takes it for an input or a result."""
