"""Intensities of a volume, scaled to about [0, 1] and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey

from medsr_monai.transforms.geometry import plane_axis

__all__ = ["INTENSITY_MODES", "RestoreIntensityd", "ScaleVolumed", "intensity_range"]

INTENSITY_MODES = ("percentile", "minmax")
"""The ways in which an intensity range is chosen, see :func:`intensity_range`."""
PERCENTILES = (0.1, 99.9)
"""The percentiles that are mapped to 0 and 1; single hot voxels lie beyond them."""
LOW, HIGH = "intensity_low", "intensity_high"
"""Keys of the metadata under which a volume's intensity range is kept."""


def intensity_range(volume: torch.Tensor, mode: str = "percentile") -> tuple[float, float]:
    """Return the intensities of a volume that are mapped to 0 and 1.

    Args:
        volume: finite values of any shape.
        mode: ``minmax``, as in the RDST paper, or ``percentile`` for the PERCENTILES, which a few hot voxels cannot
            move. If both percentiles are equal, because nearly all voxels are, the minimum and the maximum are taken.

    Raises:
        ValueError: the mode is unknown, voxels are NaN or infinite, or the volume is constant.
    """
    if mode not in INTENSITY_MODES:
        raise ValueError(f"intensity mode is {mode!r}, expected one of {', '.join(INTENSITY_MODES)}")
    # voxels in the order in which they lie in memory, so that nothing is copied
    flat = torch.as_tensor(volume).detach().cpu().numpy().ravel(order="K")
    low, high = float(flat.min()), float(flat.max())
    if not np.isfinite([low, high]).all():
        bad = flat.size - int(np.isfinite(flat).sum())
        remedy = ", or give --nan-value, such as 0" if np.isnan(flat).any() else ""
        raise ValueError(
            f"{bad} of {flat.size} voxels are NaN or infinite: replace them before super-resolution{remedy}"
        )
    if low == high:
        raise ValueError(f"every voxel is {low:g}: a constant volume holds nothing to super-resolve")
    if mode == "percentile":
        ranks = [round(p / 100 * (flat.size - 1)) for p in PERCENTILES]
        p_low, p_high = np.partition(flat, ranks)[ranks].tolist()
        if p_low < p_high:
            low, high = p_low, p_high
    return low, high


def _chosen(volume: MetaTensor, slices: Mapping[str, Sequence[int]]) -> torch.Tensor:
    """Return the voxels [C, N] of the chosen slices."""
    image = volume.as_tensor()
    axes = {plane: plane_axis(volume.affine, plane) + 1 for plane, positions in slices.items() if len(positions)}
    if not axes:
        return image.flatten(1)
    return torch.cat([image.index_select(a, torch.as_tensor(slices[p])).flatten(1) for p, a in axes.items()], dim=1)


def _per_channel(values: torch.Tensor, volume: torch.Tensor) -> torch.Tensor:
    """Return values [C], one for each channel, shaped to be combined with a volume [C, ...]."""
    if values.numel() != volume.shape[0]:
        raise ValueError(f"ranges of {values.numel()} channels cannot be applied to {volume.shape[0]} channels")
    return values.reshape(-1, *(1,) * (volume.ndim - 1)).to(volume.dtype).to(volume.device)


class ScaleVolumed(MapTransform):
    """Map the :func:`intensity_range` of each volume to [0, 1]; nothing is clipped, so it can be undone exactly.

    Each channel has its own range. If an item chooses its ``slices`` (positions by plane, see
    :class:`medsr_monai.data.SliceDataset`), only these are measured, as in the RDST paper. The range goes into the
    volume's metadata, from where :class:`RestoreIntensityd` takes it.

    Args:
        keys: keys of ``MetaTensor`` volumes [C, X, Y, Z] of floats.
        mode: see :func:`intensity_range`.

    Raises:
        ValueError: what :func:`intensity_range` raises, with the file's name.
    """

    def __init__(self, keys: KeysCollection, mode: str = "percentile", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mode = mode

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            name = d[key].meta.get(ImageMetaKey.FILENAME_OR_OBJ, key)
            try:
                measured = _chosen(d[key], d["slices"]) if d.get("slices") else d[key].as_tensor()
                ranges = [intensity_range(channel, self.mode) for channel in measured]
            except (ValueError, IndexError) as error:
                raise ValueError(f"{name}: {error}") from error
            low, high = torch.tensor(ranges, dtype=torch.float64).T
            d[key] = (d[key] - _per_channel(low, d[key])).div_(_per_channel(high - low, d[key]))
            d[key].meta.update({LOW: low, HIGH: high})
        return d


class RestoreIntensityd(MapTransform):
    """Undo :class:`ScaleVolumed` with the range that the metadata of another volume hold.

    Args:
        keys: keys of ``MetaTensor`` volumes [C, X, Y, Z].
        ref_key: key of the volume that was scaled.

    Raises:
        ValueError: the volume of ``ref_key`` was never scaled, or its number of channels is another.
    """

    def __init__(self, keys: KeysCollection = "pred", ref_key: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ref_key = ref_key

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        d = dict(data)
        meta = d[self.ref_key].meta
        if LOW not in meta:
            raise ValueError(f"{self.ref_key!r} carries no {LOW}: put ScaleVolumed into its preprocessing")
        low, high = meta[LOW], meta[HIGH]
        for key in self.key_iterator(d):
            # the product is a new volume already, to which is added in place
            d[key] = (d[key] * _per_channel(high - low, d[key])).add_(_per_channel(low, d[key]))
        return d
