"""The kinds of volumes that Python callers have, and the one kind that this package computes with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import SpaceKeys

from medsr_monai.data import LoadVolumed, NiftiWriter, check_grid, check_image, check_values, image_affine, replace_nan
from medsr_monai.errors import MedsrError, naming

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

    Volume = str | os.PathLike | SpatialImage | MetaTensor | tuple[np.ndarray | torch.Tensor, np.ndarray | torch.Tensor]

__all__ = ["like", "name_of", "to_volume"]

NAME = "the volume"
"""What messages call a volume that has no file."""


def to_volume(
    volume: Volume,
    frame: int | None = None,
    *,
    pictures: bool = False,
    label_maps: bool = False,
    nan_value: float | None = None,
) -> MetaTensor:
    """A volume of any kind as a ``MetaTensor`` [1, X, Y, Z], float32, on the CPU, with its affine in RAS millimetres.

    The caller's volume is never changed. What a path and the nibabel image of the same file give is equal bit by bit.

    Args:
        volume: one of

            - the path of a NIfTI or FreeSurfer file, of a DICOM folder or of a zip file with one;
            - a nibabel image, whose header may state its unit of length;
            - a ``MetaTensor`` [X, Y, Z] or [1, X, Y, Z];
            - a pair (array, affine): a NumPy array or tensor of real numbers [X, Y, Z] or [1, X, Y, Z], and 4x4, from
              voxel indices to millimetres in RAS+ (as nibabel has it).
        frame: of a path or nibabel image with four axes, counted from 0.
        pictures: read the paths of pictures too, as volumes [C, X, Y, 1].
        label_maps: take label maps too, which are refused otherwise.
        nan_value: what takes the place of NaN; None leaves it.

    Raises:
        MedsrError: one line: another kind, no 3D volume, or a geometry that no scan has.
    """
    name = name_of(volume)
    with naming(name):
        if isinstance(volume, (str, os.PathLike)):
            kinds = {"pictures": pictures, "label_maps": label_maps}
            return LoadVolumed("image", frame=frame, nan_value=nan_value, **kinds).load(volume)
        if isinstance(volume, nibabel.spatialimages.SpatialImage):
            made = _of_image(volume, frame, name)
        elif frame not in (None, 0):
            raise MedsrError(f"frame {frame} asked for, an array is a volume of frame 0 only")
        elif isinstance(volume, MetaTensor):
            space = volume.meta.get("space", SpaceKeys.RAS)
            if space != SpaceKeys.RAS:
                raise MedsrError(f"its affine is in {space}, expected RAS: load it with affine_lps_to_ras=True")
            made = _of_array(volume.as_tensor(), volume.affine, volume.meta, name)
        elif isinstance(volume, tuple) and len(volume) == 2:
            made = _of_array(*volume, {}, name)
        else:
            kind = type(volume).__name__
            raise MedsrError(
                f"it is of type {kind}, expected a path, a nibabel image, a MetaTensor or a pair (array, affine)"
            )
        if nan_value is not None:
            replace_nan(name, made[0].numpy(), nan_value)
        if not label_maps:
            check_values(name, made[0].numpy(), getattr(volume, "header", None))
        return made


def name_of(volume: Volume) -> str:
    """What messages call a volume: its path, that of the file that it was read from, or "the volume"."""
    if isinstance(volume, (str, os.PathLike)):
        return os.fspath(volume)
    if isinstance(volume, nibabel.spatialimages.SpatialImage):
        return volume.get_filename() or NAME
    return str(volume.meta.get("filename_or_obj", NAME)) if isinstance(volume, MetaTensor) else NAME


def like(result: MetaTensor, volume: Volume) -> Any:
    """A result [C, X, Y, Z] as the kind of volume that it was made of.

    A path gives a nibabel image, equal to the file that the command would write; so does a nibabel image. A
    ``MetaTensor`` and a pair get what they came as: with or without the channel, tensor or NumPy array, on its device.

    Args:
        result: float32, with its affine.
        volume: what :func:`to_volume` was given.
    """
    if isinstance(volume, MetaTensor):
        made = result if volume.ndim == 4 else result[0]
        return made.to(volume.device)
    if isinstance(volume, tuple):
        array, affine = volume
        voxels = result.as_tensor() if np.ndim(array) == 4 else result.as_tensor()[0]
        made = voxels.to(array.device) if isinstance(array, torch.Tensor) else voxels.numpy()
        return made, result.affine.to(affine) if isinstance(affine, torch.Tensor) else result.affine.numpy()
    writer = NiftiWriter(output_dtype=np.float32)
    writer.set_data_array(result, channel_dim=0)
    writer.set_metadata(result.meta, resample=False)
    return writer.image()


def _of_image(image: SpatialImage, frame: int | None, name: str) -> MetaTensor:
    """A nibabel image, read as a file of it is."""
    if isinstance(image.header, nibabel.AnalyzeHeader) and not isinstance(image.header, nibabel.Nifti1Header):
        raise MedsrError("an Analyze image does not hold its orientation: convert it to NIfTI with the right one")
    check_image(image, name, frame)
    voxels = np.asanyarray(image.dataobj)
    # further axes have one entry each, and that of the frames as many as there are
    voxels = voxels.reshape(*voxels.shape[:3], -1)[..., frame or 0]
    meta = {} if name == NAME else {"filename_or_obj": name}
    return _of_array(voxels, image_affine(image), meta, name)


def _of_array(
    array: np.ndarray | torch.Tensor,
    affine: np.ndarray | torch.Tensor,
    meta: dict,
    name: str,
) -> MetaTensor:
    """Voxels [X, Y, Z] or [1, X, Y, Z] with their affine, checked and copied."""
    voxels = array.detach().cpu() if isinstance(array, torch.Tensor) else np.asanyarray(array)
    affine = np.array(affine.detach().cpu().numpy() if isinstance(affine, torch.Tensor) else affine, dtype=np.float64)
    if voxels.ndim == 3:
        voxels = voxels[None]
    if voxels.ndim != 4 or voxels.shape[0] != 1 or 0 in voxels.shape:
        raise MedsrError(f"an array of shape {tuple(array.shape)}, expected [X, Y, Z] or [1, X, Y, Z]")
    if affine.shape != (4, 4):
        raise MedsrError(f"an affine of shape {affine.shape}, expected 4x4")
    # laid out as the voxels of a file: sums are rounded in the order in which numbers lie
    if isinstance(voxels, np.ndarray):
        if voxels.dtype.kind not in "biuf":
            raise MedsrError(f"voxels are {voxels.dtype}, expected real numbers")
        voxels = torch.from_numpy(np.array(voxels, dtype=np.float32, order="C"))
    elif voxels.is_complex():
        raise MedsrError(f"voxels are {voxels.dtype}, expected real numbers")
    else:
        voxels = voxels.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    check_grid(affine, voxels.shape[1:], name)
    meta = {name: value for name, value in meta.items() if name != "affine"}
    meta |= {"spatial_shape": np.array(voxels.shape[1:]), "original_affine": affine.copy(), "space": SpaceKeys.RAS}
    meta["original_channel_dim"] = float("nan")  # without it MONAI's writers take a single slice for 2D
    return MetaTensor(voxels, affine=torch.from_numpy(affine), meta=meta)
