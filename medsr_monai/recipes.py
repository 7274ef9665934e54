"""Recipes that a bundle's JSON names instead of listing transforms: functions that put transforms together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from monai.transforms import AsDiscreted, CastToTyped, Compose, Transform, Transposed
from monai.utils import ensure_tuple_rep

from medsr_monai.data.label_maps import LoadLabeld
from medsr_monai.data.label_server import CheckRequest
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
    "own_slice_pairs",
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
    reference_key: str | None = None,
    obeyed: Iterable[str] = (),
    models: str | None = None,
) -> Compose:
    """Read a NIfTI file, a DICOM folder or a picture as a float32 ``MetaTensor`` [1, X, Y, Z], scaled to about [0, 1].

    A list of files, such as modalities, gives [C, X, Y, Z], each channel with its own range.

    Voxels stay where they are: nothing is reoriented, resampled or padded. Bad input raises the one-line errors of
    :mod:`medsr_monai.data.read`.

    Args:
        key: the dictionary key that holds the path or paths.
        intensity: the range that is scaled, see :func:`medsr_monai.transforms.intensity.intensity_range`.
        frame: the frame of a 4D file, counted from 0.
        label_key: the key of a label map to be read too; None for none.
        classes: how many labels it may have, see :class:`medsr_monai.data.LoadLabeld`.
        pictures: read pictures too, see :class:`medsr_monai.data.LoadVolumed`.
        luma: keep only the luma of a colour picture, see :class:`medsr_monai.transforms.SplitLumad`; False gives its
            three channels, each with its own range.
        nan_value: what replaces NaN, see :class:`medsr_monai.data.LoadVolumed`.
        reference_key: the key of a second contrast that is read and scaled likewise, with a range of its own; None for
            none.
        obeyed, models: what requests to MONAI Label may set, and where weights lie, see
            :class:`medsr_monai.data.CheckRequest`; without ``models`` requests are not checked.
    """
    labels = [] if label_key is None else [LoadLabeld(label_key, classes=classes, pictures=pictures)]
    split = [SplitLumad(key)] if luma else []
    load = LoadVolumed(key, frame=frame, pictures=pictures, nan_value=nan_value)
    check = [] if models is None else [CheckRequest(obeyed, models)]
    steps = [load, *split, ScaleVolumed(key, mode=intensity)]
    if reference_key is not None:
        other = load_volume(reference_key, intensity, frame, pictures=pictures, luma=luma, nan_value=nan_value)
        steps += other.transforms
    return Compose([*check, *steps, *labels])


def inference_postprocessing(
    output_dir: str | None = None,
    data_root_dir: str = "",
    overwrite: bool = False,
    postfix: str = "sr",
    key: str = "pred",
    ref_key: str = "image",
) -> Compose:
    """Turn a network's output into a volume or picture with its geometry, intensities and colours, and save it.

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
    """Turn logits [classes, X, Y, Z] into a label map [1, X, Y, Z] of the most probable classes, and save it.

    Labels are whole numbers, uint8 for up to 256 classes, else int32, in the grid of the input.

    Args:
        classes: the number of classes, background included.
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
    """Cut random patches ``image`` of 2D slices and their labels ``label``, int64, for segmentation.

    Args:
        patch_size: the size of a patch; the border of smaller slices is repeated.
        flips: mirror and turn patches at random. Leave it off where left and right have different labels, as lungs.
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
    scale: float | Sequence[float],
    patch_size: int | Sequence[int] = 96,
    method: Method | Sequence[str] = "bicubic",
    intensity_factor: float = 0.5,
    noise_std: float | Sequence[float] = (0.0, 0.0),
    fwhm: float | Sequence[float] | None = None,
    structure: float = 0.0,
    reference: bool = False,
    flips: bool = True,
) -> PatchBatches:
    """Cut random high-resolution patches ``label`` of 2D slices, with their degraded versions ``image``.

    Args:
        scale: the factor for both axes of a slice, or one for each.
        patch_size: the size of a high-resolution patch; the slice must be at least as large.
        method: see :class:`medsr_monai.transforms.RandDegraded`; of several, one is drawn for each patch.
        intensity_factor: intensities are multiplied by 1 + u, u uniform in [-intensity_factor, 0.2], since the scaled
            range of a new scanner's volume is not that of the training volumes; 0 turns this off.
        noise_std: one level, or the range of levels, of the low-resolution noise, as a fraction of the intensity range.
        fwhm: one width, or the range of widths, of the method "gaussian" in high-resolution pixels; None for the scale.
        structure: patches of little contrast are drawn anew, see :class:`medsr_monai.transforms.PatchBatches`.
        reference: cut the same patch out of ``reference``, a sharp slice of another contrast, for a network that it
            guides.
        flips: mirror and turn patches at random; the RDST paper does not.
    """
    widths, levels = _range(fwhm), _range(noise_std)
    degrade = RandDegraded("label", "image", factors=scale, method=method, fwhm=widths, noise_std=levels)
    keys = ("label", "reference") if reference else "label"
    return PatchBatches(
        keys,
        patch_size,
        poses=8 if flips else 1,
        intensity_factor=intensity_factor,
        pairs=degrade,
        structure=structure,
    )


def image_patches(patch_size: int | Sequence[int] = 64, flips: bool = True, key: str = "image") -> PatchBatches:
    """Cut random patches of 2D slices as they are, for the training of a generator.

    Args:
        patch_size: the size of a patch; smaller slices get zeros, the scaled intensity of air, on both sides.
        flips: mirror and turn patches at random.
        key: the key of the slice.
    """
    return PatchBatches(key, patch_size, padding="constant", poses=8 if flips else 1)


def slice_pairs(
    scale: int | Sequence[int],
    method: Method | Sequence[str] = "bicubic",
    fwhm: float | Sequence[float] | None = None,
    noise_std: float | Sequence[float] = 0.0,
    conditions: Sequence[Mapping[str, object]] | None = None,
) -> Compose | dict[str, Compose]:
    """Give whole slices ``label``, cropped to a multiple of ``scale``, with their degraded versions ``image``.

    Where a slice has a label map (``segmentation``) or another contrast (``reference``), these are cropped with it.

    Args:
        scale: the factor for both axes of a slice, or one for each.
        method, fwhm, noise_std: see :class:`medsr_monai.transforms.RandDegraded`; a number instead of a range is the
            same for every slice.
        conditions: several degradations. Each is a dictionary that replaces some of the settings, ``degradation`` (the
            ``method``), ``fwhm`` and ``noise_std``; an empty one keeps all. The result is then a dictionary with one
            recipe for each by its name (see :func:`medsr_monai.transforms.describe_degradation`), as
            :class:`medsr_monai.data.SliceDataset` takes it.

    Raises:
        ValueError: an empty list of conditions, two of one name, or one with an unknown setting.
    """
    pair = partial(RandDegraded, factors=scale)
    return _under_conditions(pair, conditions, degradation=method, fwhm=fwhm, noise_std=noise_std)


def own_slice_pairs(
    scale: Sequence[float],
    method: Method = "gaussian",
    noise_std: float | Sequence[float] = 0.0,
) -> dict[str, Compose]:
    """Give whole acquired slices ``label`` with what thick slices would show of them, ``image``, in both directions.

    Args:
        scale: factors of rows and columns; the slice is degraded along its columns, then along its rows, which are
            made columns.
        method, noise_std: see :func:`slice_pairs`.

    Returns:
        One recipe for ``columns`` and one for ``rows``, as :class:`medsr_monai.data.SliceDataset` takes them.
    """
    degrade = partial(RandDegraded, factors=scale, method=method, noise_std=_range(noise_std))
    return {"columns": Compose([degrade()]), "rows": Compose([Transposed("label", (0, 2, 1)), degrade()])}


def _under_conditions(
    pair: Callable[..., Transform], conditions: Sequence[Mapping[str, object]] | None, **settings: object
) -> Compose | dict[str, Compose]:
    """One recipe, or by name one for each of the conditions."""

    def made(degradation: Method, fwhm: object, noise_std: object) -> Compose:
        degrade = pair(method=degradation, fwhm=_range(fwhm), noise_std=_range(noise_std))
        return Compose([degrade, _crop_others])

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


def _crop_others(item: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
    d = dict(item)
    rows, columns = d["label"].shape[1:]
    for key in {"segmentation", "reference"} & d.keys():
        d[key] = d[key][:, :rows, :columns]
    return d


def thick_slice_patches(
    factor: int,
    patch_size: int | Sequence[int] = 64,
    thick_axis: str | None = None,
    method: Method | Sequence[str] = "gaussian",
    intensity_factor: float = 0.0,
    fwhm: float | Sequence[float] | None = None,
    noise_std: float | Sequence[float] = (0.0, 0.0),
    reference: bool = False,
    turns: bool = False,
) -> PatchBatches:
    """Cut random patches ``label`` of 2D slices, with what thick slices show of them on the same grid, ``image``.

    Whole slices are degraded and interpolated, then patches are cut out, so that a patch has the phases and the borders
    that it would have in a slice. They are mirrored along both axes and, unless ``turns``, never turned: the thick axis
    stays along the columns (see :class:`medsr_monai.transforms.RandThickSliced`).

    Args:
        factor, thick_axis, method, fwhm, noise_std: see :class:`medsr_monai.transforms.RandThickSliced`.
        patch_size: the size of a patch; smaller slices get zeros, the scaled intensity of air, on both sides.
        intensity_factor, reference: see :func:`training_patches`.
        turns: transpose half of the (square) patches, as the authors of TransMRSR do.
    """
    thick = RandThickSliced(
        factor=factor, thick_axis=thick_axis, method=method, fwhm=_range(fwhm), noise_std=_range(noise_std)
    )
    keys = ("label", "reference") if reference else "label"
    return PatchBatches(
        keys, patch_size, padding="constant", poses=8 if turns else 4, intensity_factor=intensity_factor, pairs=thick
    )


def thick_slice_pairs(
    factor: int,
    thick_axis: str | None = None,
    method: Method | Sequence[str] = "gaussian",
    fwhm: float | Sequence[float] | None = None,
    noise_std: float | Sequence[float] = 0.0,
    conditions: Sequence[Mapping[str, object]] | None = None,
) -> Compose | dict[str, Compose]:
    """Give whole slices ``label``, with what thick slices show of them on the same grid, ``image``.

    Args:
        factor, thick_axis, method, fwhm, noise_std: see :class:`medsr_monai.transforms.RandThickSliced`; a number
            instead of a range is the same for every slice.
        conditions: see :func:`slice_pairs`, whose errors it raises.
    """
    pair = partial(RandThickSliced, factor=factor, thick_axis=thick_axis)
    return _under_conditions(pair, conditions, degradation=method, fwhm=fwhm, noise_std=noise_std)
