"""Running statistics that differ between processes, made equal."""

from __future__ import annotations

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from medsr_monai.handlers.process_group import process_count

__all__ = ["BroadcastBuffers"]


class BroadcastBuffers:
    """Copy the first process's buffers of a network to all processes when the engine starts.

    ``DistributedDataParallel`` does so before each training step only. After the last one the running statistics of
    batch normalisation differ, and a validation shared by the processes would score a network that is saved nowhere.

    Args:
        network: the network, which is the same in all processes. In a single process nothing happens.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Copy at the engine's start."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        if process_count() > 1:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)
