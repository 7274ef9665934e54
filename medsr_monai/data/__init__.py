"""Volumes on disk and the 2D slices that networks train on."""

from .datalists import list_pairs, split_labelled
from .datasets import SliceDataset, SliceSampler
from .dicom.attributes import check_sources
from .dicom.images import is_dicom_file, is_dicom_folder, is_flat_image, read_dicom_image
from .dicom.series import DicomSeries, find_series, one_series
from .dicom.slices import DicomSlice, is_zip
from .dicom.writer import check_series_folder, save_dicom_slices, write_dicom_series
from .own_volumes import own_datalist
from .pictures import (
    PICTURE_SUFFIXES,
    QUALITY_SUFFIX,
    check_format,
    find_pictures,
    is_picture,
    load_picture,
    output_suffix,
    stored_values,
    with_slices,
    write_picture,
)
from .prefetch import PrefetchLoader
from .public_datasets import PUBLIC_DATASETS, PublicDataset, prepare_datalist, write_datalist
from .read import (
    LoadLabeld,
    LoadVolumed,
    NiftiWriter,
    SaveVolumed,
    check_nifti,
    check_same_grid,
    check_subjects,
    find_volumes,
    holds_volumes,
    list_volumes,
    read_grid,
    sample_volume,
    split_subjects,
    split_volumes,
    subject_name,
    volume_name,
    volumes_by_subject,
)
from .results import match_results
from .samples import SaveSampled, list_latents
from .stored_volume import StoredVolume, write_stored
from .write import describe_volume, write_volume, write_voxels
