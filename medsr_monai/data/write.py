"""Volumes and pictures written to disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from monai.data import MetaTensor

from medsr_monai.data.pictures import write_picture
from medsr_monai.data.read import NiftiWriter
from medsr_monai.data.stored_volume import StoredVolume, write_stored
from medsr_monai.errors import naming
from medsr_monai.transforms.geometry import describe_grid, format_edges, spacing

__all__ = ["describe_volume", "write_volume", "write_voxels"]

NIFTI_SUFFIXES = (".nii", ".nii.gz")


def write_volume(volume: MetaTensor, path: Path) -> None:
    """Write a volume as the path's suffix says, folders too; errors name the file."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_voxels(volume, path)


def write_voxels(volume: MetaTensor | StoredVolume, path: Path) -> None:
    """Write a volume as the path's suffix says; errors do not name the file, which may be a temporary one."""
    if isinstance(volume, StoredVolume):
        write_stored(volume, path)
        return
    if not path.name.endswith(NIFTI_SUFFIXES):
        write_picture(volume, path)
        return
    writer = NiftiWriter(output_dtype=np.float32)
    writer.set_data_array(volume, channel_dim=0)
    writer.set_metadata(volume.meta, resample=False)
    writer.write(path)


def describe_volume(volume: MetaTensor | StoredVolume) -> str:
    if "picture" in volume.meta:
        size = f" of {format_edges(spacing(volume.affine)[:2])} mm" if volume.meta["picture_spacing"] == "file" else ""
        return f"{volume.shape[1]}x{volume.shape[2]} pixels{size}"
    return describe_grid(volume.affine, volume.shape[1:])
