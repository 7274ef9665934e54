"""Whole slices of a volume through a 2D network, batch by batch, and where the results are gathered."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from tqdm import tqdm

__all__ = ["enlarge_slices", "result_device", "to_device"]

RESULTS = 3.3
"""Volumes of the result's size that a GPU must have room for to gather it there: itself, and what follows copies."""


def enlarge_slices(
    volume: torch.Tensor,
    network: Callable[[torch.Tensor], torch.Tensor],
    batch: int,
    *,
    progress: bool = False,
    sw_device: torch.device | str | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """What MONAI's sliding window makes of windows that are whole slices, in its order, bit by bit.

    Every voxel is written once: there is no count map and no blending, and the result is the only buffer. (MONAI's own
    buffered mode refuses networks that enlarge.)

    On a GPU, of which this has not been measured for want of one, the volume arrives by an asynchronous copy from
    pinned memory, and the result is gathered there if there is room, else in pinned main memory, to which each batch is
    copied without the process waiting for it; the GPU does so before it goes on with the next batch.

    Args:
        volume: [N, C, D, H, W], to be cut along D.
        network: [B, C, H, W] to [B, C', H', W'].
        batch: slices at a time; the last batch may have fewer.
        progress: show a bar with the time left.
        sw_device: where the slices are computed; None for the volume's device.
        device: where the result is gathered; None for the volume's device, or main memory if it does not fit there.

    Returns:
        [N, C', D, H', W'] of the volume's type; of several channels not contiguous.
    """
    count, depth = volume.shape[0], volume.shape[2]
    sw_device = volume.device if sw_device is None else torch.device(sw_device)
    if device is None and volume.device != sw_device:
        device = volume.device
    volume = to_device(volume, sw_device)
    starts, out = range(0, count * depth, batch), None
    for start in tqdm(starts) if progress else starts:
        numbers = range(start, min(start + batch, count * depth))
        slices = [volume[number // depth, :, number % depth][None] for number in numbers]
        pred = network(torch.cat(slices) if batch > 1 else slices[0])
        if out is None:
            out = _empty((count * depth, *pred.shape[1:]), volume.dtype, pred.device, device)
        out[start : numbers.stop].copy_(pred, non_blocking=True)
    if out.is_pinned():
        torch.cuda.synchronize(sw_device)
    return out.unflatten(0, (count, depth)).movedim(1, 2)


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor on a device; from main memory to a GPU by way of pinned memory, without waiting for the copy."""
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def result_device(nbytes: int, device: torch.device) -> torch.device:
    """Where a result of this size is gathered that is computed on ``device``: there, or in main memory."""
    if device.type != "cuda" or RESULTS * nbytes <= torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")


def _empty(
    shape: tuple[int, ...], dtype: torch.dtype, computed: torch.device, device: torch.device | str | None
) -> torch.Tensor:
    """Buffer of a result that is computed on ``computed``: pinned where it is copied from a GPU to main memory."""
    device = result_device(math.prod(shape) * dtype.itemsize, computed) if device is None else torch.device(device)
    pinned = computed.type == "cuda" and device.type == "cpu"
    return torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)
