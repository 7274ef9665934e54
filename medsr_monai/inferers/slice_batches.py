"""Runs a 2D network on whole slices of a volume, batch by batch, and chooses where the results are gathered."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from tqdm import tqdm

__all__ = ["enlarge_slices", "result_device", "to_device"]

RESULTS = 3.3
"""A result is gathered on a GPU that has room for this many volumes of its size: itself and the copies that follow."""


def enlarge_slices(
    volume: torch.Tensor,
    network: Callable[[torch.Tensor], torch.Tensor],
    batch: int,
    *,
    progress: bool = False,
    sw_device: torch.device | str | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Run a network on whole slices, bit by bit as MONAI's sliding window does with windows of their size.

    Every voxel is written once, so there is no count map and no blending, and the result is the only buffer. (MONAI's
    own buffered mode refuses networks that enlarge.)

    On a GPU, of which this has not been measured for want of one, the volume arrives by an asynchronous copy from
    pinned memory, and the result is gathered there if there is room, else in pinned main memory, to which each batch is
    copied without the process waiting for it; the GPU does so before it goes on with the next batch.

    Args:
        volume: [N, C, D, H, W], which is cut along D.
        network: [B, C, H, W] -> [B, C', H', W'].
        batch: number of slices at a time; the last batch may have fewer.
        progress: whether a bar with the time left is shown.
        sw_device: device on which slices are computed; None for the volume's.
        device: device on which the result is gathered; None for the volume's, or main memory if it does not fit there.

    Returns:
        [N, C', D, H', W'] of the volume's type; with several channels it is not contiguous.
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
    """Bring a tensor to a device; from main memory to a GPU through pinned memory, without waiting for the copy."""
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def result_device(nbytes: int, device: torch.device) -> torch.device:
    """Return where a result of ``nbytes`` that is computed on ``device`` is gathered: there, or in main memory."""
    if device.type != "cuda" or RESULTS * nbytes <= torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")


def _empty(
    shape: tuple[int, ...], dtype: torch.dtype, computed: torch.device, device: torch.device | str | None
) -> torch.Tensor:
    """Return a buffer for what is computed on ``computed``; it is pinned if a GPU copies to main memory."""
    device = result_device(math.prod(shape) * dtype.itemsize, computed) if device is None else torch.device(device)
    pinned = computed.type == "cuda" and device.type == "cpu"
    return torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)
