"""Volumes on disk and the 2D slices that networks train on."""

from .datalists import (
    check_subjects,
    list_pairs,
    own_datalist,
    split_labelled,
    split_subjects,
    split_volumes,
    subject_name,
    volumes_by_subject,
    write_datalist,
)
from .datasets import SliceDataset, SliceSampler
from .dicom.attributes import check_sources
from .dicom.images import is_dicom_file, is_dicom_folder, is_flat_image, read_dicom_image
from .dicom.series import DicomSeries, find_series, one_series
from .dicom.slices import DicomSlice, is_zip
from .dicom.writer import check_series_folder, save_dicom_slices, write_dicom_series
from .find import (
    find_pictures,
    find_volumes,
    holds_volumes,
    list_volumes,
    pair_of,
    sample_volume,
    volume_name,
)
from .label_detection import is_label_map
from .label_maps import LoadLabeld
from .label_server import CheckRequest, server_volumes
from .pictures import (
    PICTURE_SUFFIXES,
    QUALITY_SUFFIX,
    check_format,
    is_picture,
    load_picture,
    output_suffix,
    stored_values,
    with_slices,
    write_picture,
)
from .prefetch import PrefetchLoader
from .public_datasets import PUBLIC_DATASETS, PublicDataset, prepare_datalist
from .read import (
    LoadVolumed,
    check_grid,
    check_image,
    check_nifti,
    check_same_grid,
    check_values,
    image_affine,
    read_grid,
    replace_nan,
)
from .results import match_results
from .samples import SaveSampled, list_latents
from .stored_volume import StoredVolume
from .write import NiftiWriter, SaveVolumed, describe_volume, write_stored, write_volume, write_voxels
