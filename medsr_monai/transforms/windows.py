"""Windows cut out of slices, beyond whose borders they may reach, stacked to a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cut_windows", "to_device"]


def cut_windows(images: Sequence[Tensor], corners: Sequence[tuple[int, int]], size: Sequence[int], mode: str) -> Tensor:
    """Cut windows [B, C, *size] out of images [C, H, W].

    Args:
        images: the images, of any heights and widths; each window overlaps its image.
        corners: first row and column of each window, below 0 where padding begins.
        size: rows and columns of the windows.
        mode: how ``torch.nn.functional.pad`` fills what lies beyond an image.
    """
    windows = []
    for image, corner in zip(images, corners, strict=True):
        inside = [(max(c, 0), min(c + n, side)) for c, n, side in zip(corner, size, image.shape[1:], strict=True)]
        (top, bottom), (left, right) = inside
        window = image[:, top:bottom, left:right]
        if window.shape[1:] != tuple(size):
            (up, before) = (top - corner[0], left - corner[1])
            margins = (before, size[1] - before - (right - left), up, size[0] - up - (bottom - top))
            window = F.pad(window.float()[None], margins, mode)[0].to(window.dtype)
        windows.append(window)
    return torch.stack(windows)


def to_device(batch: Tensor, device: torch.device | str) -> Tensor:
    """Move a batch to a device; to a GPU it goes from pinned memory, so that nothing waits for the copy."""
    device = torch.device(device)
    if device.type == "cuda" and batch.device.type == "cpu":
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)
