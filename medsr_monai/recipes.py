"""Functions that return a ``Compose``: what a bundle's JSON names instead of listing transforms."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from monai.transforms import AsDiscreted, CastToTyped, Compose, Transform
from monai.utils import ensure_tuple_rep

from medsr_monai.data.label_maps import LoadLabeld
from medsr_monai.data.read import LoadVolumed
from medsr_monai.data.write import SaveVolumed
from medsr_monai.transforms.colour import MergeChromad, SplitLumad
from medsr_monai.transforms.degradation import Method, RandDegraded, describe_degradation
from medsr_monai.transforms.geometry import MatchCornersd, SyncRefMetad
from medsr_monai.transforms.intensity import RestoreIntensityd, ScaleVolumed
from medsr_monai.transforms.patch_batches import PatchBatches
from medsr_monai.transforms.thick_slices import RandThickSliced

__all__ = [
    "image_patches",
    "inference_postprocessing",
    "label_map_postprocessing",
    "labelled_patches",
    "load_volume",
    "slice_pairs",
    "thick_slice_pairs",
    "thick_slice_patches",
    "training_patches",
]


def load_volume(
    key: str = "image",
    intensity: str = "percentile",
    frame: int | None = None,
    label_key: str | None = None,
    classes: int | None = None,
    pictures: bool = True,
    luma: bool = True,
    nan_value: float | None = None,
) -> Compose:
    """Read a NIfTI file, a DICOM folder or a picture as a float32 ``MetaTensor`` [1, X, Y, Z], scaled to about [0, 1].

    A list of files, such as modalities, gives [C, X, Y, Z], each channel with its own range.

    Voxels stay where they are: no reorientation, no resampling, no padding. Bad input raises the one-line errors of
    :mod:`medsr_monai.data.read`.

    Args:
        key: dictionary key that holds the path or paths.
        intensity: see :func:`medsr_monai.transforms.intensity.intensity_range`.
        frame: of a 4D file, counted from 0.
        label_key, classes: key of a label map to be read too and how many labels it may have, see
            :class:`medsr_monai.data.LoadLabeld`.
        pictures, nan_value: read pictures too, and what replaces NaN, see :class:`medsr_monai.data.LoadVolumed`.
        luma: of a colour picture keep the luma only, see :class:`medsr_monai.transforms.SplitLumad`; False gives its
            three channels, each with its own range.
    """
    labels = [] if label_key is None else [LoadLabeld(label_key, classes=classes, pictures=pictures)]
    split = [SplitLumad(key)] if luma else []
    load = LoadVolumed(key, frame=frame, pictures=pictures, nan_value=nan_value)
    return Compose([load, *split, ScaleVolumed(key, mode=intensity), *labels])


def inference_postprocessing(
    output_dir: str | None = None,
    data_root_dir: str = "",
    overwrite: bool = False,
    postfix: str = "sr",
    key: str = "pred",
    ref_key: str = "image",
) -> Compose:
    """From network output to a volume or picture on disk: geometry, intensities, colours, saving, MONAI Label.

    Args:
        output_dir, data_root_dir, overwrite, postfix: see :class:`medsr_monai.data.SaveVolumed`; ``output_dir=None``
            leaves saving to the caller.
        key, ref_key: keys of the output and of the preprocessed input.
    """
    save = []
    if output_dir is not None:
        save = [SaveVolumed(key, output_dir, postfix, data_root_dir, overwrite, pictures=True)]
    restore = [MatchCornersd(key, ref_key), RestoreIntensityd(key, ref_key), MergeChromad(key)]
    return Compose([*restore, *save, SyncRefMetad(ref_key, key)])


def label_map_postprocessing(
    classes: int,
    output_dir: str | None = None,
    data_root_dir: str = "",
    overwrite: bool = False,
    postfix: str = "seg",
    key: str = "pred",
    ref_key: str = "image",
) -> Compose:
    """From logits [classes, X, Y, Z] to a label map [1, X, Y, Z] on disk: the most probable class of every voxel.

    Labels are whole numbers, uint8 for up to 256 classes, else int32, in the grid of the input.

    Args:
        classes: background included.
        output_dir, data_root_dir, overwrite, postfix: see :class:`medsr_monai.data.SaveVolumed`; ``output_dir=None``
            leaves saving to the caller.
        key, ref_key: keys of the output and of the preprocessed input.
    """
    tensor_type, file_type = (torch.uint8, np.uint8) if classes <= 256 else (torch.int32, np.int32)
    save = []
    if output_dir is not None:
        save = [SaveVolumed(key, output_dir, postfix, data_root_dir, overwrite, output_dtype=file_type)]
    label = [AsDiscreted(key, argmax=True), CastToTyped(key, tensor_type)]
    return Compose([*label, MatchCornersd(key, ref_key), *save, SyncRefMetad(ref_key, key)])


def _range(value: float | Sequence[float] | None) -> tuple[float, float] | None:
    """Both ends; a number is its own range."""
    return None if value is None else ensure_tuple_rep(value, 2)


def labelled_patches(
    patch_size: int | Sequence[int] = 128, flips: bool = False, intensity_factor: float = 0.5
) -> PatchBatches:
    """Random patches ``image`` of 2D slices and their labels ``label``, int64, for segmentation.

    Args:
        patch_size: of the patch; the border of smaller slices is repeated.
        flips: mirror and turn them at random. Not where left and right are different labels, such as the two lungs.
        intensity_factor: see :func:`training_patches`; a network that judges super-resolved patches sees such ones.
    """
    return PatchBatches(
        ("image", "label"),
        patch_size,
        padding="replicate",
        poses=8 if flips else 1,
        intensity_factor=intensity_factor,
        brightened="image",
        dtypes={"label": torch.int64},
    )


def training_patches(
    scale: int | Sequence[int],
    patch_size: int | Sequence[int] = 96,
    method: Method | Sequence[str] = "bicubic",
    intensity_factor: float = 0.5,
    noise_std: float | Sequence[float] = (0.0, 0.0),
    fwhm: float | Sequence[float] | None = None,
) -> PatchBatches:
    """Random HR patches ``label`` of 2D slices and their degraded versions ``image``.

    Args:
        scale: factor per slice axis.
        patch_size: of the HR patch; the slice must be at least as large.
        method: see :class:`medsr_monai.transforms.RandDegraded`; of several, one is drawn for each patch.
        intensity_factor: intensities are multiplied by 1 + u, u uniform in [-intensity_factor, 0.2], since the scaled
            range of a new scanner's volume is not that of the training volumes; 0 turns this off.
        noise_std: range of the LR noise level, or one level, as a fraction of the volume's intensity range.
        fwhm: range of the Gaussian's width in HR pixels, or one, with the method "gaussian" only; None for the factor.
    """
    widths, levels = _range(fwhm), _range(noise_std)
    degrade = RandDegraded("label", "image", factors=scale, method=method, fwhm=widths, noise_std=levels)
    return PatchBatches("label", patch_size, poses=8, intensity_factor=intensity_factor, pairs=degrade)


def image_patches(patch_size: int | Sequence[int] = 64, flips: bool = True, key: str = "image") -> PatchBatches:
    """Random patches of 2D slices as they are, for the training of a generator.

    Args:
        patch_size: of the patch; smaller slices get zeros, the scaled intensity of air, on both sides.
        flips: mirror and turn them at random.
        key: of the slice.
    """
    return PatchBatches(key, patch_size, padding="constant", poses=8 if flips else 1)


def slice_pairs(
    scale: int | Sequence[int],
    method: Method | Sequence[str] = "bicubic",
    fwhm: float | Sequence[float] | None = None,
    noise_std: float | Sequence[float] = 0.0,
    conditions: Sequence[Mapping[str, object]] | None = None,
) -> Compose | dict[str, Compose]:
    """Whole slices, cropped to a multiple of ``scale`` (``label``), and their degraded versions (``image``).

    Where a slice has a label map (``segmentation``), it is cropped with it.

    Args:
        scale: factor per slice axis.
        method, fwhm, noise_std: see :class:`medsr_monai.transforms.RandDegraded`; a number instead of a range is the
            same for every slice.
        conditions: one degradation each: what it has instead of the above, ``degradation`` (the ``method``), ``fwhm``,
            ``noise_std``; an empty one is the above. The result then has one entry each, by name (see
            :func:`medsr_monai.transforms.describe_degradation`), for :class:`medsr_monai.data.SliceDataset`.

    Raises:
        ValueError: no condition, two of one name, or one with another setting.
    """
    pair = partial(RandDegraded, factors=scale)
    return _under_conditions(pair, conditions, degradation=method, fwhm=fwhm, noise_std=noise_std)


def _under_conditions(
    pair: Callable[..., Transform], conditions: Sequence[Mapping[str, object]] | None, **settings: object
) -> Compose | dict[str, Compose]:
    """One recipe, or by name one for each of the conditions."""

    def made(degradation: Method, fwhm: object, noise_std: object) -> Compose:
        degrade = pair(method=degradation, fwhm=_range(fwhm), noise_std=_range(noise_std))
        return Compose([degrade, _crop_segmentation])

    if conditions is None:
        return made(**settings)
    recipes: dict[str, Compose] = {}
    for condition in conditions:
        if unknown := sorted(set(condition) - set(settings)):
            raise ValueError(f"a condition has {', '.join(unknown)}, expected any of {', '.join(settings)}")
        chosen = settings | dict(condition)
        name = describe_degradation(*chosen.values())
        if name in recipes:
            raise ValueError(f"two conditions are {name!r}: give each once")
        recipes[name] = made(**chosen)
    if not recipes:
        raise ValueError("conditions are an empty list, expected one or more such as {'noise_std': 0.02}")
    return recipes


def _crop_segmentation(item: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
    d = dict(item)
    if "segmentation" in d:
        rows, columns = d["label"].shape[1:]
        d["segmentation"] = d["segmentation"][:, :rows, :columns]
    return d


def thick_slice_patches(
    factor: int,
    patch_size: int | Sequence[int] = 64,
    thick_axis: str | None = None,
    method: Method | Sequence[str] = "gaussian",
    intensity_factor: float = 0.0,
    fwhm: float | Sequence[float] | None = None,
    noise_std: float | Sequence[float] = (0.0, 0.0),
) -> PatchBatches:
    """Random patches ``label`` of 2D slices and what thick slices show of them, on the same grid, ``image``.

    Whole slices are degraded and interpolated, then patches are cut out, so that a patch has the phases and the borders
    that it would have in a slice. They are mirrored along both axes and never turned: the thick axis stays along the
    columns (see :class:`medsr_monai.transforms.RandThickSliced`).

    Args:
        factor, thick_axis, method, fwhm, noise_std: see :class:`medsr_monai.transforms.RandThickSliced`.
        patch_size: of the patch; smaller slices get zeros, the scaled intensity of air, on both sides.
        intensity_factor: see :func:`training_patches`.
    """
    thick = RandThickSliced(
        factor=factor, thick_axis=thick_axis, method=method, fwhm=_range(fwhm), noise_std=_range(noise_std)
    )
    return PatchBatches(
        "label", patch_size, padding="constant", poses=4, intensity_factor=intensity_factor, pairs=thick
    )


def thick_slice_pairs(
    factor: int,
    thick_axis: str | None = None,
    method: Method | Sequence[str] = "gaussian",
    fwhm: float | Sequence[float] | None = None,
    noise_std: float | Sequence[float] = 0.0,
    conditions: Sequence[Mapping[str, object]] | None = None,
) -> Compose | dict[str, Compose]:
    """Whole slices (``label``) and what thick slices show of them, on the same grid (``image``).

    Args:
        factor, thick_axis, method, fwhm, noise_std: see :class:`medsr_monai.transforms.RandThickSliced`; a number
            instead of a range is the same for every slice.
        conditions: see :func:`slice_pairs`, whose errors it raises.
    """
    pair = partial(RandThickSliced, factor=factor, thick_axis=thick_axis)
    return _under_conditions(pair, conditions, degradation=method, fwhm=fwhm, noise_std=noise_std)
