"""Volumes super-resolved a few slices at a time, for outputs that are too large for the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from monai.data import MetaTensor
from tqdm import tqdm

from medsr_monai.inferers.plane import PlaneInferer
from medsr_monai.inferers.through_plane import ThroughPlaneInferer

__all__ = ["Slab", "slab_passes"]


class Slab(NamedTuple):
    """Some slices of an inferer's output.

    Attributes:
        axis: array axis, 0 to 2, along which slabs follow each other.
        start: place of its first slice along this axis.
        pred: [C', X', Y', Z'], whole along the other axes.
    """

    axis: int
    start: int
    pred: torch.Tensor


def slab_passes(
    inferer: PlaneInferer | ThroughPlaneInferer,
    image: MetaTensor,
    network: Callable[..., torch.Tensor],
    device: torch.device | str = "cpu",
) -> list[Iterator[Slab]]:
    """What an inferer makes of a volume, slab by slab: one iterator for each plane, whose mean is the output.

    A slab is a slice batch. The network sees the same batches as when the inferer is called with the whole volume. In a
    plane the output is bit-identical; through it, interpolation adds up in another order, which float32 rounds (below
    1e-6 of the range). Where memory runs out the inferer learns it, as it does for whole volumes.

    Args:
        inferer: in one plane, or through it.
        image: [C, X, Y, Z].
        network: see the inferer.
        device: where the network is; slabs are brought to the CPU.

    Raises:
        ValueError, MemoryError: as calling the inferer does.
    """
    plan = inferer.plan(image.affine, image.shape[1:])
    return [
        _slabs(inferer.of_plane(one.plane, image), inferer.slices, one.axis, image, network, device)
        for one in plan.passes
    ]


def _slabs(
    inferer: PlaneInferer | ThroughPlaneInferer,
    learner: PlaneInferer,
    axis: int,
    image: MetaTensor,
    network: Callable[..., torch.Tensor],
    device: torch.device | str,
) -> Iterator[Slab]:
    slices = inferer.slices
    count, start = image.shape[axis + 1], 0
    slices.sw_batch_size = learner.sw_batch_size
    with tqdm(total=count, unit="slice", disable=not learner.progress) as bar:
        while start < count:
            size = min(slices.sw_batch_size, count - start)
            part = MetaTensor(image.as_tensor().narrow(axis + 1, start, size)).copy_meta_from(image)
            pred = inferer(part[None].to(device), network)[0].cpu()
            learner.sw_batch_size = slices.sw_batch_size
            yield Slab(axis, start, pred.as_tensor() if isinstance(pred, MetaTensor) else pred)
            start += size
            bar.update(size)
