"""The memory and the time that super-resolving a volume will take, by any inferer's plan."""

from __future__ import annotations

import copy
import math
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medsr_monai.data.stored_volume import CHUNK_BYTES
from medsr_monai.inferers import InferencePlan
from medsr_monai.inferers.slice_batches import RESULTS

__all__ = [
    "activation_bytes",
    "free_gpu_bytes",
    "peak_memory",
    "resident_bytes",
    "seconds_per_pixel",
    "slices_that_fit",
]

FLOAT = 4
"""The bytes of a voxel: all volumes are float32."""
READ = 3.5
"""While an input of unknown type is read and scaled in float64, this many float32 volumes of its size are held."""
SLAB_BUFFERS = 5
"""This many copies of a slab are held at most, among them the gathered, the restored and the written one.

Tiles need one more, in which overlaps are counted.
"""
PART_BUFFERS = 3
"""While an output on disk is read part by part and written again, this many copies of a part are held beside it."""
NOISE_BYTES, NOISE_SLICES = 36, 64
"""The bytes that estimating the noise takes for a voxel of the slices it uses, and how many slices it uses at most."""
RESIDUAL_BYTES, RESIDUAL_VOXELS = 20, 2**22
"""The bytes that the residual takes for each voxel of a slab, in float64, and the voxels of a slab.

A slab has at least one slice, which may be larger.
"""
PICTURE = 64 * 2**20
"""The bytes that drawing the quality picture takes."""
KERNELS = 8 * 2**20
"""The bytes of libraries' code that is loaded only when it is first used."""
HEAP = 128 * 2**20
"""The C library keeps at most this many bytes that were used, instead of giving them back to the system."""
GPU_SHARE = 0.8
"""The part of a GPU's free memory that is planned for, since the operators' own scratch is not counted."""
MOST_SLICES = 64
"""The largest number of slices at a time on a GPU; more make it no faster."""
COUNTED_SIDE = 64
"""Activations of large slices are extrapolated from smaller ones, whose sides have at least this many pixels."""
TIMED_SIDE = 32
"""The slice that is timed has sides of at least this many pixels."""


def peak_memory(
    resident: int,
    plan: InferencePlan,
    activations: int,
    channels: int = 1,
    *,
    slab_batch: int | None = None,
    heap: int = HEAP,
    read: float | None = None,
    enforced: bool = False,
    picture: bool = True,
) -> int:
    """Estimate the largest number of bytes of main memory that the process holds on a CPU.

    It is that of the step that takes most: reading and scaling the input, the network, the output's intensities, the
    noise, the residual or the picture. Each step is a sum of float32 volumes of the input's size and of the output's.

    Args:
        resident: bytes of a process that has loaded the same libraries and the network, see :func:`resident_bytes`.
        plan: the inferer's plan of the volume.
        activations: bytes of one batch of slices, see :func:`activation_bytes`.
        channels: channels of the volume.
        slab_batch: slices at a time, where the output is made slab by slab in a file; None where it is in memory.
        heap: bytes of the activations that the C library keeps at most; 0 where it was told to keep none.
        read: bytes held while the input is read, where they are known.
        enforced: whether consistency with the input is enforced, which makes a second output.
        picture: whether a quality picture is drawn.
    """
    inputs = FLOAT * channels * math.prod(plan.shape)
    output = FLOAT * channels * math.prod(plan.new_shape)
    plane = FLOAT * channels * max(math.prod(plan.new_shape) // side for side in plan.new_shape)
    noise = NOISE_BYTES * max(math.prod(plan.shape) // n * min(n, NOISE_SLICES) for n in plan.shape)
    slab = min(max(RESIDUAL_VOXELS, plane // FLOAT), output // FLOAT)
    residual = RESIDUAL_BYTES * slab
    if slab_batch is None:
        made, kept = (plan.volumes + plan.tiled) * output, output
        steps = [2 * output, 2 * output if enforced else 0]
    else:
        residual += FLOAT * slab  # read from disk
        slices = max(output // plan.new_shape[one.axis] for one in plan.passes)
        made, kept = (SLAB_BUFFERS + plan.tiled) * slab_batch * slices, 0
        read_again = 1 if plan.in_one_go else len(plan.passes)
        steps = [(read_again + PART_BUFFERS) * min(max(CHUNK_BYTES, plane), output)]
    needs = [
        READ * inputs if read is None else max(read, 2 * inputs),
        inputs + made + activations,
        *(inputs + step for step in steps),
        2 * inputs + kept * (1 + enforced) + max(inputs, noise, residual),
        2 * inputs + kept + (PICTURE if picture else 0),
    ]
    return int(resident + KERNELS + min(activations, heap) + max(needs))


def resident_bytes() -> int | None:
    """Read the bytes of main memory that this process holds now; None on systems without /proc."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 2**10


class _LiveTensors(TorchDispatchMode):
    """Bytes of the tensors that operators make, while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.now = 0
        self.alive: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.alive:
                self.alive[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, key)
        return made

    def _free(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


def activation_bytes(network: nn.Module, shape: Sequence[int], device: torch.device | str = "cpu") -> int:
    """Count the bytes that a network's forward pass holds at most: its input and activations, not its weights.

    Nothing is computed: a copy of the network runs on the meta device, and every tensor is counted as long as it lives.
    Of large slices this is done for three smaller ones, and what their pixels and what their sides take is carried on:
    all networks here work in windows, tiles or pixel by pixel, some with strips along the borders.

    Args:
        network: the network, in eval mode.
        shape: the shape [B, C, H, W] of the input.
        device: where it would run. On a CPU some networks work on a part at a time, which grows with the threads.
    """
    shadow = copy.deepcopy(network).to("meta")
    if torch.device(device).type != "cpu":
        for module in shadow.modules():
            if hasattr(module, "works_in_chunks"):
                module.works_in_chunks = False
    batch, channels, rows, columns = shape
    multiple = getattr(network, "size_multiple", 1)
    side = _up(math.ceil(COUNTED_SIDE * math.sqrt(torch.get_num_threads())), multiple)
    high, wide = _up(rows, multiple) / side, _up(columns, multiple) / side
    if high * wide <= 4:
        return _live_bytes(shadow, shape)
    one, two, four = (_live_bytes(shadow, (batch, channels, h * side, w * side)) for h, w in ((1, 1), (1, 2), (2, 2)))
    area, length = four - 2 * two + one, 3 * two - 2 * one - four
    return int(one + area * (high * wide - 1) + length * (high + wide - 2))


def _live_bytes(network: nn.Module, shape: Sequence[int]) -> int:
    with torch.inference_mode(), _LiveTensors() as live:
        network(torch.empty(tuple(shape), device="meta"))
    return live.peak


def slices_that_fit(network: nn.Module, plan: InferencePlan, free: int, channels: int = 1) -> int:
    """Count the slices that a GPU takes at a time: at least one, at most MOST_SLICES and all that a pass has.

    The part GPU_SHARE of the free memory is filled with the activations of the slices, counted in float32, and with the
    output, unless that is gathered elsewhere for lack of room.

    Args:
        network: the network, in eval mode.
        plan: the inferer's plan of the volume.
        free: bytes of the GPU's memory that are free.
        channels: channels of the volume.
    """
    output = RESULTS * FLOAT * channels * math.prod(plan.new_shape)
    room = GPU_SHARE * free - (output if output <= free else 0)
    sizes = {(one.rows, one.columns) for one in plan.passes}
    largest = max(activation_bytes(network, (1, channels, *size), "cuda") for size in sizes)
    return max(1, min(int(room // largest), MOST_SLICES, max(one.count for one in plan.passes)))


def free_gpu_bytes(device: torch.device | str) -> int:
    """Count the bytes of a GPU that are free: those that nobody holds, and those that torch holds for later use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def seconds_per_pixel(network: nn.Module, channels: int = 1, batch: int = 1) -> float:
    """Time the network on a small slice, on its device, after a run to warm up; the result is for one input pixel.

    Args:
        network: the network, in eval mode.
        channels: channels of the input.
        batch: slices at a time.
    """
    side = _up(TIMED_SIDE, getattr(network, "size_multiple", 1))
    device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
    image = torch.rand(batch, channels, side, side, device=device)
    seconds = math.inf
    with torch.inference_mode():
        for _ in range(2):
            start = time.perf_counter()
            network(image)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - start
    return seconds / (batch * side * side)


def _up(size: int, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple
