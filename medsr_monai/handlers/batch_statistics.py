"""Batch statistics that differ between processes, made equal."""

from __future__ import annotations

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

__all__ = ["BroadcastBuffers"]


class BroadcastBuffers:
    """Give every process the first one's buffers of a network when the engine starts.

    ``DistributedDataParallel`` does it before each training step only, so after the last one running statistics of
    batch normalisation differ, and a validation shared by the processes would score a network that is nowhere saved.

    Args:
        network: the same in all processes; nothing happens in a single one.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Broadcast at the engine's start."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        if dist.is_available() and dist.is_initialized():
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)
