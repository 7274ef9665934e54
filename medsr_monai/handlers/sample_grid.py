"""Generated images in TensorBoard, which show what a generator has learnt."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from monai.handlers import TensorBoardHandler
from torch import nn
from torchvision.utils import make_grid

from medsr_monai.handlers.process_group import process_number

__all__ = ["SampleGrid"]


class SampleGrid(TensorBoardHandler):
    """Write a grid of generated images to TensorBoard, always from the same latents. Only the first process writes.

    Args:
        network: latents [B, style_dim] -> images [B, C, H, W] in [0, 1], such as the moving average of a generator.
        style_dim: number of channels of a latent.
        log_dir: folder of TensorBoard's event files.
        count: number of images.
        columns: number of images in a row of the grid.
        interval: number of epochs from one grid to the next.
        seed: seed of the latents.
        tag: name of the grid in TensorBoard.
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
        """Write a grid after every ``interval``-th epoch."""
        if self.enabled:
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
            engine.add_event_handler(Events.COMPLETED, lambda _: self.close())

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        device = next(self.network.parameters()).device
        images = [self.network(z.to(device)) for z in self.latents.split(self.columns)]
        grid = make_grid(torch.cat(images).clamp(0, 1).cpu(), nrow=self.columns)
        self._writer.add_image(self.tag, grid, engine.state.epoch)
