"""Generated images in TensorBoard, which show what a generator has learnt."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from monai.handlers import TensorBoardHandler
from torch import nn
from torchvision.utils import make_grid

from medsr_monai.handlers.process_group import process_number

__all__ = ["SampleGrid"]

IMAGES, COLUMNS = 32, 8
"""Number of images in a grid and in a row of it; a row is generated at a time."""


class SampleGrid(TensorBoardHandler):
    """Write a grid of 32 generated images to TensorBoard, always from the same latents. Only the first process writes.

    Args:
        network: latents [B, style_dim] -> images [B, C, H, W] in [0, 1], such as the moving average of a generator.
        style_dim: number of channels of a latent.
        log_dir: folder of TensorBoard's event files.
        interval: number of epochs from one grid to the next.
        seed: seed of the latents.
    """

    def __init__(
        self,
        network: nn.Module,
        style_dim: int,
        log_dir: str = "./runs",
        *,
        interval: int = 1,
        seed: int = 0,
    ) -> None:
        self.enabled = process_number() == 0
        if self.enabled:  # the writer makes its file at once
            super().__init__(log_dir=log_dir)
        self.network = network
        self.latents = torch.randn(IMAGES, style_dim, generator=torch.Generator().manual_seed(seed))
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Write a grid after every ``interval``-th epoch."""
        if self.enabled:
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
            engine.add_event_handler(Events.COMPLETED, lambda _: self.close())

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        device = next(self.network.parameters()).device
        images = [self.network(z.to(device)) for z in self.latents.split(COLUMNS)]
        grid = make_grid(torch.cat(images).clamp(0, 1).cpu(), nrow=COLUMNS)
        self._writer.add_image("samples", grid, engine.state.epoch)
