"""Colour images for networks of one channel: the luma is super-resolved, and the colours are interpolated.

Detail is in the luma (JPEG files keep colours at half the resolution, and the eye does not mind). One run of the
network is enough for three channels, and no coloured seams appear, as between channels that are sharpened apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

__all__ = ["MergeChromad", "SplitLumad"]

LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in the luma, by ITU-R BT.601 as in JPEG."""
CHROMA = "chroma"
"""Key of the channels less the luma [3, X, Y, 1], from SplitLumad to MergeChromad."""


class SplitLumad(MapTransform):
    """Keep the luma [1, X, Y, 1] of a colour picture [3, X, Y, 1]; what colour adds to it goes to key ``chroma``.

    Volumes and grey pictures stay as they are. A picture whose three channels are equal has zero chroma, so its result
    is that of the grey picture.

    Args:
        keys: keys of ``MetaTensor`` volumes; pictures are those of :func:`medsr_monai.data.load_picture`.
    """

    def __init__(self, keys: KeysCollection = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if "picture" not in image.meta or image.shape[0] != 3:
                continue
            luma = (image * torch.tensor(LUMA).view(3, 1, 1, 1)).sum(dim=0, keepdim=True)
            d[CHROMA] = (image - luma).as_tensor()
            d[key] = luma
        return d


class MergeChromad(MapTransform):
    """Add the chroma of :class:`SplitLumad`, enlarged by bicubic interpolation, to a super-resolved luma.

    Items without chroma stay as they are.

    Args:
        keys: keys of super-resolved lumas [1, X, Y, 1], in the input's units.
    """

    def __init__(self, keys: KeysCollection = "pred", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        if CHROMA in d:
            for key in self.key_iterator(d):
                chroma = d[CHROMA][..., 0][None].to(d[key].device)
                size = d[key].shape[1:3]
                d[key] = d[key] + F.interpolate(chroma, size=size, mode="bicubic", align_corners=False)[0, ..., None]
        return d
