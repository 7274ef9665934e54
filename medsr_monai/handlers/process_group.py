"""A training in several processes: which one this is, and the end."""

from __future__ import annotations

import time

import torch.distributed as dist

__all__ = ["leave_process_group", "process_number"]


def process_number() -> int:
    """Number of this process among those of a training; 0 of the first, or the only, one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def leave_process_group(seconds: float = 1.0) -> None:
    """Wait for all processes, destroy the process group, and give its threads time to let go of the last tensors.

    As long as a ``DistributedDataParallel`` network exists, Gloo's threads outlive the group. They free the tensors of
    the last collective under Python's lock, and one that still waits for it when Python shuts down aborts the whole
    process ("terminate called without an active exception", exit code -6), after a training that went well.

    Args:
        seconds: how long to stay with the lock free.
    """
    dist.barrier()
    dist.destroy_process_group()
    time.sleep(seconds)
