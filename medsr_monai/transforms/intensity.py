"""Intensity scaling of a volume to about [0, 1] and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey

__all__ = ["INTENSITY_MODES", "RestoreIntensityd", "ScaleVolumed", "intensity_range"]

INTENSITY_MODES = ("percentile", "minmax")
LOW, HIGH = "intensity_low", "intensity_high"


def intensity_range(
    volume: torch.Tensor, mode: str = "percentile", lower: float = 0.1, upper: float = 99.9
) -> tuple[float, float]:
    """Intensities of a volume that are mapped to 0 and 1.

    Args:
        volume: any shape, finite values.
        mode: ``minmax`` (the RDST paper's), or ``percentile``, which a few hot voxels cannot move. Where the two
            percentiles coincide (nearly all voxels are equal), the minimum and the maximum are taken.
        lower, upper: percentiles in [0, 100].

    Raises:
        ValueError: for an unknown mode, NaN or infinite voxels, or a constant volume.
    """
    if mode not in INTENSITY_MODES:
        raise ValueError(f"intensity mode is {mode!r}, expected one of {', '.join(INTENSITY_MODES)}")
    flat = torch.as_tensor(volume).detach().flatten()
    bad = int((~torch.isfinite(flat)).sum())
    if bad:
        raise ValueError(f"{bad} of {flat.numel()} voxels are NaN or infinite: replace them before super-resolution")
    low, high = float(flat.min()), float(flat.max())
    if low == high:
        raise ValueError(f"every voxel is {low:g}: a constant volume holds nothing to super-resolve")
    if mode == "percentile":
        # kthvalue has no size limit, torch.quantile has
        ranks = [1 + round(p / 100 * (flat.numel() - 1)) for p in (lower, upper)]
        p_low, p_high = (float(flat.kthvalue(rank).values) for rank in ranks)
        if p_low < p_high:
            low, high = p_low, p_high
    return low, high


class ScaleVolumed(MapTransform):
    """Map the :func:`intensity_range` of each volume to [0, 1]; nothing is clipped, so it can be undone exactly.

    The range goes into the volume's metadata, from where :class:`RestoreIntensityd` takes it.

    Args:
        keys: ``MetaTensor`` volumes [C, X, Y, Z], float.
        mode: see :func:`intensity_range`, whose errors it raises, with the file's name.
    """

    def __init__(self, keys: KeysCollection, mode: str = "percentile", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mode = mode

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            try:
                low, high = intensity_range(d[key], self.mode)
            except ValueError as error:
                raise ValueError(f"{d[key].meta.get(ImageMetaKey.FILENAME_OR_OBJ, key)}: {error}") from error
            d[key] = (d[key] - low) / (high - low)
            d[key].meta.update({LOW: low, HIGH: high})
        return d


class RestoreIntensityd(MapTransform):
    """Undo :class:`ScaleVolumed` with the range found in the metadata of ``ref_key``.

    Raises:
        ValueError: where ``ref_key`` was never scaled.
    """

    def __init__(self, keys: KeysCollection = "pred", ref_key: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ref_key = ref_key

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        d = dict(data)
        meta = d[self.ref_key].meta
        if LOW not in meta:
            raise ValueError(f"{self.ref_key!r} carries no {LOW}: put ScaleVolumed into its preprocessing")
        low, high = float(meta[LOW]), float(meta[HIGH])
        for key in self.key_iterator(d):
            d[key] = d[key] * (high - low) + low
        return d
