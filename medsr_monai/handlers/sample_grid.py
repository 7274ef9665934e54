"""What a generator has learnt, to look at."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from monai.handlers import TensorBoardHandler
from torch import nn
from torchvision.utils import make_grid

from medsr_monai.handlers.process_group import process_number

__all__ = ["SampleGrid"]


class SampleGrid(TensorBoardHandler):
    """Write a grid of generated images to TensorBoard, always from the same latents.

    Args:
        network: latents [B, style_dim] -> images [B, C, H, W] in [0, 1], such as the moving average of a generator.
        style_dim: channels of a latent.
        log_dir: folder of the events.
        count: images.
        columns: images in a row.
        interval: epochs between two grids.
        seed: of the latents.
        tag: name of the images.

    Only the first process writes.
    """

    def __init__(
        self,
        network: nn.Module,
        style_dim: int,
        log_dir: str = "./runs",
        *,
        count: int = 32,
        columns: int = 8,
        interval: int = 1,
        seed: int = 0,
        tag: str = "samples",
    ) -> None:
        self.enabled = process_number() == 0
        if self.enabled:  # the writer makes its file at once
            super().__init__(log_dir=log_dir)
        self.network = network
        self.latents = torch.randn(count, style_dim, generator=torch.Generator().manual_seed(seed))
        self.columns = columns
        self.interval = interval
        self.tag = tag

    def attach(self, engine: Engine) -> None:
        """Write after every ``interval``-th epoch."""
        if self.enabled:
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
            engine.add_event_handler(Events.COMPLETED, lambda _: self.close())

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        device = next(self.network.parameters()).device
        images = [self.network(z.to(device)) for z in self.latents.split(self.columns)]
        grid = make_grid(torch.cat(images).clamp(0, 1).cpu(), nrow=self.columns)
        self._writer.add_image(self.tag, grid, engine.state.epoch)
