"""Colour images through networks of one channel: the luma is super-resolved, the colours are interpolated.

Detail is in the luma (JPEG files keep colours at half the resolution, and the eye does not mind); one run of the
network does for three channels, and no coloured seams come up between channels that were sharpened apart.
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
"""Weights of red, green and blue, ITU-R BT.601, as JPEG has them."""


class SplitLumad(MapTransform):
    """Keep the luma of a colour picture, [3, X, Y, 1] to [1, X, Y, 1]; what colour adds to it goes to ``chroma_key``.

    Volumes and grey pictures stay as they are. A picture whose three channels are equal has chroma zero, and fares as
    the grey one.

    Args:
        keys: ``MetaTensor`` volumes; pictures are those of :func:`medsr_monai.data.load_picture`.
        chroma_key: channels minus luma [3, X, Y, 1], for :class:`MergeChromad`.
    """

    def __init__(
        self, keys: KeysCollection = "image", chroma_key: str = "chroma", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.chroma_key = chroma_key

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if "picture" not in image.meta or image.shape[0] != 3:
                continue
            luma = (image * torch.tensor(LUMA).view(3, 1, 1, 1)).sum(dim=0, keepdim=True)
            d[self.chroma_key] = (image - luma).as_tensor()
            d[key] = luma
        return d


class MergeChromad(MapTransform):
    """Undo :class:`SplitLumad` on its super-resolved luma, with the chroma enlarged by bicubic interpolation.

    Does nothing where there is no chroma.

    Args:
        keys: super-resolved luma [1, X, Y, 1], in the input's units.
        chroma_key: see :class:`SplitLumad`.
    """

    def __init__(
        self, keys: KeysCollection = "pred", chroma_key: str = "chroma", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.chroma_key = chroma_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        d = dict(data)
        if self.chroma_key in d:
            for key in self.key_iterator(d):
                chroma = d[self.chroma_key][..., 0][None].to(d[key].device)
                size = d[key].shape[1:3]
                d[key] = d[key] + F.interpolate(chroma, size=size, mode="bicubic", align_corners=False)[0, ..., None]
        return d
