"""Volumes on disk and the 2D slices that networks train on."""

from .datasets import SliceDataset, SliceSampler
from .dicom import check_series, is_dicom_folder
from .volumes import (
    LoadVolumed,
    NiftiWriter,
    SaveVolumed,
    check_nifti,
    find_volumes,
    list_volumes,
    sample_volume,
    split_volumes,
    volume_name,
)
