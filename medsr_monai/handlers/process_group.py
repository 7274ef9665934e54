"""Training in several processes: how they join, tell themselves apart, share what they have and part."""

from __future__ import annotations

import os
import time

import torch.distributed as dist

__all__ = ["gathered", "join_process_group", "leave_process_group", "process_count", "process_number"]


def join_process_group(backend: str) -> None:
    """Join the processes that torchrun has started, on one node or several, also within a Slurm job.

    In a Slurm job ignite takes ``SLURM_LOCALID`` for the process's number on its node, and fails where it is not set
    (in the batch script itself). It is the number of srun's task: 0 for all processes of a node's torchrun. So it is
    set to torchrun's number here.

    Args:
        backend: backend of torch.distributed, nccl or gloo.
    """
    os.environ["SLURM_LOCALID"] = os.environ["LOCAL_RANK"]
    dist.init_process_group(backend, init_method="env://")


def process_number() -> int:
    """Return the number of this process among those of a training: 0 for the first one, or the only one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def process_count() -> int:
    """Return the number of processes of a training: 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(part: object) -> list:
    """Return what each process of a training has handed over here, in the order of their numbers, to all of them."""
    parts: list = [part] * process_count()
    if len(parts) > 1:
        dist.all_gather_object(parts, part)
    return parts


def leave_process_group(seconds: float = 1.0) -> None:
    """Wait for all processes, destroy the process group, and give its threads time to let go of the last tensors.

    As long as a ``DistributedDataParallel`` network exists, Gloo's threads outlive the group. They free the tensors of
    the last collective under Python's lock, and one that still waits for it when Python shuts down aborts the whole
    process ("terminate called without an active exception", exit code -6), after a training that went well.

    Args:
        seconds: how long this process then sleeps, which leaves Python's lock free.
    """
    dist.barrier()
    dist.destroy_process_group()
    time.sleep(seconds)
