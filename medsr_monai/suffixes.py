"""Suffixes of the files that are read and written, apart from what reads them: checks of names import nothing."""

from __future__ import annotations

__all__ = ["GZIP_SUFFIXES", "NIFTI_SUFFIXES", "PAIR_SUFFIX", "PICTURE_SUFFIXES", "QUALITY_SUFFIX", "VOLUME_SUFFIXES"]

NIFTI_SUFFIXES = (".nii", ".nii.gz")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".mgz", ".mgh")
"""Of NIfTI and FreeSurfer volumes. DICOM files are known by their content."""
GZIP_SUFFIXES = (".gz", ".mgz")
"""Of files that gzip compresses."""
PAIR_SUFFIX = ".img"
"""Of the file that holds the voxels of an Analyze or NIfTI pair. It is read where it is named, never searched for."""
PICTURE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
"""Of pictures that are read and written. A DICOM file is known by its content and is never written as a picture."""
QUALITY_SUFFIX = ".quality.png"
"""Of the picture beside an output, which shows how good it is. No search takes it for an input or a result."""
