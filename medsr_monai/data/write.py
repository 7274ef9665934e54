"""Volumes and pictures written to disk, whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelWriter
from monai.data.folder_layout import default_name_formatter
from monai.transforms import SaveImage, SaveImaged

from medsr_monai.atomic import check_named, written_atomically
from medsr_monai.data.find import volume_name
from medsr_monai.data.gzip_stream import write_gzip
from medsr_monai.data.pictures import output_suffix, write_picture
from medsr_monai.data.read import MAX_FORMS_APART, forms_apart
from medsr_monai.data.stored_volume import StoredVolume
from medsr_monai.errors import naming
from medsr_monai.suffixes import NIFTI_SUFFIXES
from medsr_monai.transforms.geometry import describe_grid, format_edges, spacing

__all__ = ["NiftiWriter", "SaveVolumed", "describe_volume", "write_stored", "write_volume", "write_voxels"]

NIFTI1_LONGEST = 32767
"""The largest number of voxels along a side that NIfTI-1 holds."""


class NiftiWriter(NibabelWriter):
    """NIfTI writer that never leaves half a file: it writes to a temporary name and renames it when all is on disk.

    A name that ends in ``.gz`` is compressed by several threads, see :func:`medsr_monai.data.gzip_stream.write_gzip`.

    sform, qform and units (mm) are set; the code of the qform is 0 where it cannot hold the affine, which is slightly
    sheared then. A side of more than 32767 voxels makes it NIfTI-2, since NIfTI-1 holds none.
    """

    def set_data_array(
        self, data_array: torch.Tensor, channel_dim: int | None = 0, squeeze_end_dims: bool = True, **kwargs: object
    ) -> None:
        """Take a volume; ``squeeze_end_dims`` drops a single channel, never a spatial axis of one voxel."""
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False, **kwargs)
        if squeeze_end_dims and channel_dim is not None and self.data_obj.shape[-1] == 1:
            self.data_obj = self.data_obj[..., 0]

    def image(self, **kwargs: object) -> nibabel.Nifti1Image:
        """Make the image that is written, with its header."""
        affine = np.eye(4) if self.affine is None else np.asarray(self.affine, dtype=float)
        kind = nibabel.Nifti2Image if max(self.data_obj.shape) > NIFTI1_LONGEST else nibabel.Nifti1Image
        image = kind(np.asarray(self.data_obj, dtype=self.output_dtype), affine, **kwargs)
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        if forms_apart(image.header, image.shape[:3]) > MAX_FORMS_APART * min(image.header.get_zooms()[:3]):
            image.set_qform(affine, code=0)
        return image

    def write(self, filename: str | os.PathLike, verbose: bool = False, **kwargs: object) -> None:
        with written_nifti(filename) as stream:
            self.image(**kwargs).to_stream(stream)


@contextlib.contextmanager
def written_nifti(path: str | os.PathLike) -> Iterator[io.RawIOBase]:
    """Give a stream for the bytes of a NIfTI file, which gets its name when all are on disk; ``.gz`` is compressed."""
    with (
        written_atomically(path) as partial,
        write_gzip(partial) if partial.suffix == ".gz" else partial.open("wb") as stream,
    ):
        yield stream


def _name_parts(meta: dict, saver: SaveImage) -> dict:
    """MONAI takes what follows the last dot of a DICOM folder's name for a suffix, and its parent for its place."""
    parts = default_name_formatter(meta, saver)
    path = Path(str(parts["subject"]))
    name, root = f"{volume_name(path)}.nii.gz", saver.folder_layout.data_root_dir
    is_root = bool(root) and path.resolve() == Path(root).resolve()
    return parts | {"subject": str(path / name if is_root else path.with_name(name))}


class SaveVolumed(SaveImaged):
    """MONAI's ``SaveImaged`` for one NIfTI file per volume, in the grid that the volume has.

    ``<output_dir>/<folders below data_root_dir>/<name>_<postfix>.nii.gz``; what was read from a picture can be written
    as one, ``.png``, or ``.tif`` if it was TIFF.

    Args:
        keys: the keys of ``MetaTensor`` volumes [C, X, Y, Z].
        output_dir: the folder to write to, made if missing.
        output_postfix: what is appended to the input's name.
        data_root_dir: the folder below which the input's folders are kept in the output.
        overwrite: replace an existing file.
        output_dtype: the type of the voxels in the file.
        pictures: write pictures by :func:`medsr_monai.data.write_picture`, in the type that their pixels had.

    Raises:
        FileExistsError: the file is there and ``overwrite`` is False.
        ValueError: ``output_dir`` is empty.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str,
        output_postfix: str = "sr",
        data_root_dir: str = "",
        overwrite: bool = False,
        output_dtype: type = np.float32,
        pictures: bool = False,
    ) -> None:
        check_named(output_dir, "output_dir")
        super().__init__(
            keys,
            output_dir=output_dir,
            output_postfix=output_postfix,
            output_ext=".nii.gz",
            output_dtype=output_dtype,
            resample=False,
            separate_folder=False,
            data_root_dir=data_root_dir,
            output_name_formatter=_name_parts,
            writer=NiftiWriter,
            print_log=False,
        )
        self.overwrite = overwrite
        self.pictures = pictures

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        pictures = {}
        for key in self.key_iterator(data):
            meta = data[key].meta
            parts = self.saver.fname_formatter(meta, self.saver)
            path = Path(self.saver.folder_layout.filename(**parts))
            if self.pictures and "picture" in meta:
                name = path.name.removesuffix(".nii.gz") + output_suffix(meta["filename_or_obj"])
                path = pictures[key] = path.with_name(name)
            if path.exists() and not self.overwrite:
                raise FileExistsError(f"{path}: exists, choose another output_dir or set overwrite to true")
        d = dict(data)
        for key in self.key_iterator(d):
            if key in pictures:
                write_picture(d[key], pictures[key])
            else:
                d[key] = self.saver(d[key])
        return d


def write_stored(volume: StoredVolume, path: str | os.PathLike) -> None:
    """Write a stored volume as :class:`medsr_monai.data.NiftiWriter` writes one in memory, plane by plane."""
    if volume.shape[0] > 1:
        raise ValueError(f"{volume.shape[0]} channels: only volumes of one channel are written from disk")
    writer = NiftiWriter(output_dtype=np.float32)
    writer.data_obj = np.broadcast_to(np.float32(0), volume.shape[1:])  # takes no memory
    writer.affine = np.asarray(volume.affine)
    header = writer.image().header
    header.set_slope_inter(1, 0)
    with written_nifti(path) as file:
        header.write_to(file)
        file.write(bytes(header.get_data_offset() - file.tell()))
        for _, part in volume.chunks():
            file.write(part[0].permute(2, 1, 0).contiguous().numpy())


def write_volume(volume: MetaTensor, path: Path) -> None:
    """Write a volume as the path's suffix says. Missing folders are made, and errors name the file."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_voxels(volume, path)


def write_voxels(volume: MetaTensor | StoredVolume, path: Path) -> None:
    """Write a volume as the path's suffix says. Errors do not name the file, which may be a temporary one."""
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
    """Say in words how many voxels of which size a volume has, or pixels of a picture."""
    if "picture" in volume.meta:
        size = f" of {format_edges(spacing(volume.affine)[:2])} mm" if volume.meta["picture_spacing"] == "file" else ""
        return f"{volume.shape[1]}x{volume.shape[2]} pixels{size}"
    return describe_grid(volume.affine, volume.shape[1:])
