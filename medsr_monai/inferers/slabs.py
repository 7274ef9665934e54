"""Inference a few slices at a time, for outputs that are too large for the memory."""

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
        axis: the array axis, 0 to 2, along which slabs follow each other.
        start: position of the slab's first slice along this axis.
        pred: the slab [C', X', Y', Z'], which is whole along the other axes.
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
    """Return an iterator over the slabs of an inferer's output for each plane; the mean of the planes is the output.

    A slab is a batch of slices. The network gets the same batches as when the inferer is called with the whole volume.
    The output of a PlaneInferer is bit-identical. In that of a ThroughPlaneInferer interpolation adds up in another
    order, which float32 rounds (below 1e-6 of the range). If memory runs out, the inferer takes fewer slices from then
    on, as it does for whole volumes.

    Args:
        inferer: the inferer.
        image: the volume [C, X, Y, Z].
        network: the network, see the inferer.
        device: device of the network; slabs are brought to the CPU.

    Raises:
        ValueError, MemoryError: what the inferer raises when called.
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
