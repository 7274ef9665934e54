"""Training of a generator of images from latents, as StyleGAN2 and StyleSwin are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import Trainer
from monai.inferers import Inferer, SimpleInferer
from monai.utils import CommonKeys
from monai.utils.enums import GanKeys
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medsr_monai.handlers.process_group import process_count, process_number

__all__ = ["StyleGANTrainer"]


class StyleGANTrainer(Trainer):
    """Train a generator and a discriminator in turns, with a lazy penalty on the discriminator's gradient.

    An iteration takes one batch of real images and makes, in this order:

    1. a step of the discriminator on the loss of real and generated images, plus the consistency of both where there
       is one, its gradient clipped;
    2. at the first iteration and every ``penalty_interval`` later ones, a step of the discriminator on the penalty
       alone, times ``penalty_interval``, not clipped;
    3. a step of the generator on images from other latents.

    All random numbers come from ``seed`` and the iteration, so that a resumed training draws the same ones as an
    uninterrupted one. Several processes share a batch: the latents are those that one process would draw for all of it,
    and process k of n takes numbers k, k + n and so on. The generator may be wrapped in ``DistributedDataParallel``.
    The discriminator must not be, since the wrapper does not know of the penalty's second derivative: its gradients are
    averaged here, and its weights are those of the first process.

    ``engine.state.output`` holds MONAI's ``GanKeys``: reals, fakes, latents (of the generator's step), g_loss and
    d_loss. It also holds ``loss`` (g_loss, for the handlers that print it), ``penalty`` (that of the latest penalty
    step, nan before the first) and ``consistency`` (0 if there is none).

    Args:
        device: device of the networks.
        max_epochs: number of passes through the data.
        train_data_loader: loader of dictionaries with ``image`` [B, C, H, W].
        g_network: generator, latents [B, style_dim] -> images [B, C, H, W].
        g_optimizer, d_optimizer: optimisers of the generator and of the discriminator. With n = ``penalty_interval``
            the discriminator makes (n + 1) / n steps for each of the generator, because of step 2: scale its rate by
            n / (n + 1) and raise its betas to that power.
        d_network: discriminator, images -> logits [B, 1].
        g_loss_function: the generator's loss, of (fake logits).
        d_loss_function: the discriminator's loss, of (real logits, fake logits).
        style_dim: number of channels of a latent, which is drawn from N(0, I).
        penalty: the penalty, of (discriminator, real images), such as :class:`medsr_monai.losses.R1Penalty`; None
            leaves step 2 out.
        penalty_interval: number of iterations from one penalty step to the next.
        consistency: loss of (discriminator, images, their logits, random numbers [B, consistency.count] in [0, 1)),
            such as :class:`medsr_monai.losses.BalancedConsistencyLoss`; None leaves it out.
        clip_norm: largest norm of the discriminator's gradient in step 1; None does not clip.
        seed: seed of the latents and of the consistency's random numbers.
        g_inferer: how latents pass through ``g_network``; MONAI's ``SimpleInferer`` by default.
        train_handlers: MONAI's and ignite's handlers, which have ``attach``.

    Raises:
        ValueError: the data have fewer images than a batch.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        g_network: nn.Module,
        g_optimizer: torch.optim.Optimizer,
        d_network: nn.Module,
        d_optimizer: torch.optim.Optimizer,
        *,
        g_loss_function: Callable[[Tensor], Tensor],
        d_loss_function: Callable[[Tensor, Tensor], Tensor],
        style_dim: int,
        penalty: Callable[[nn.Module, Tensor], Tensor] | None = None,
        penalty_interval: int = 16,
        consistency: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor] | None = None,
        clip_norm: float | None = 5.0,
        seed: int = 0,
        g_inferer: Inferer | None = None,
        train_handlers: Sequence | None = None,
    ) -> None:
        self.g_network = g_network
        self.g_optimizer = g_optimizer
        self.d_network = d_network
        self.d_optimizer = d_optimizer
        self.g_loss_function = g_loss_function
        self.d_loss_function = d_loss_function
        self.style_dim = style_dim
        self.penalty = penalty
        self.penalty_interval = penalty_interval
        self.consistency = consistency
        self.clip_norm = clip_norm
        self.seed = seed
        self.g_inferer = SimpleInferer() if g_inferer is None else g_inferer
        self.last_penalty = torch.tensor(torch.nan)
        super().__init__(device, max_epochs, train_data_loader, handlers=train_handlers, decollate=False)
        if not len(train_data_loader):
            raise ValueError("there are fewer training images than one batch: lower batch_size, or add volumes")
        self.add_event_handler(Events.STARTED, self._share_discriminator)

    def _share_discriminator(self) -> None:
        if process_count() > 1:
            for tensor in self.d_network.state_dict().values():
                dist.broadcast(tensor, src=0)

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> dict[str, Tensor]:
        real = batchdata[CommonKeys.IMAGE].to(engine.state.device, non_blocking=engine.non_blocking)
        count = len(real)
        random = torch.Generator().manual_seed((self.seed * 1_000_003 + engine.state.iteration) % 2**32)
        self.g_network.train()
        self.d_network.train()

        self.d_network.requires_grad_(True)
        with torch.no_grad():
            fake = self.g_inferer(self._draw(torch.randn, count, self.style_dim, random), self.g_network)
        d_loss, consistency = self._discriminator_step(real, fake, random)
        if self.penalty is not None and (engine.state.iteration - 1) % self.penalty_interval == 0:
            self._penalty_step(real)

        self.d_network.requires_grad_(False)
        latents = self._draw(torch.randn, count, self.style_dim, random)
        fake = self.g_inferer(latents, self.g_network)
        g_loss = self.g_loss_function(self.d_network(fake))
        self.g_optimizer.zero_grad()
        g_loss.backward()
        self.g_optimizer.step()
        return {
            GanKeys.REALS: real,
            GanKeys.FAKES: fake.detach(),
            GanKeys.LATENTS: latents,
            GanKeys.GLOSS: g_loss.detach(),
            GanKeys.DLOSS: d_loss,
            CommonKeys.LOSS: g_loss.detach(),
            "penalty": self.last_penalty,
            "consistency": consistency,
        }

    def _draw(self, draw: Callable[..., Tensor], count: int, dim: int, random: torch.Generator) -> Tensor:
        """Draw the random numbers [count, dim] of this process's part of the batch."""
        processes = process_count()
        numbers = draw(processes * count, dim, generator=random)
        return numbers[process_number() :: processes].to(self.state.device)

    def _discriminator_step(self, real: Tensor, fake: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        real_logits, fake_logits = self.d_network(real), self.d_network(fake)
        loss = self.d_loss_function(real_logits, fake_logits)
        consistency = torch.zeros_like(loss)
        if self.consistency is not None:
            for images, logits in ((fake, fake_logits), (real, real_logits)):
                numbers = self._draw(torch.rand, len(images), self.consistency.count, random)
                consistency = consistency + self.consistency(self.d_network, images, logits, numbers)
        self._backward(loss + consistency)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.d_network.parameters(), self.clip_norm)
        self.d_optimizer.step()
        return loss.detach(), consistency.detach()

    def _penalty_step(self, real: Tensor) -> None:
        penalty = self.penalty(self.d_network, real)
        self._backward(self.penalty_interval * penalty)
        self.d_optimizer.step()
        self.last_penalty = penalty.detach()

    def _backward(self, loss: Tensor) -> None:
        """Compute the discriminator's gradients, averaged over the processes."""
        self.d_optimizer.zero_grad()
        loss.backward()
        if process_count() > 1:
            gradients = [p.grad for p in self.d_network.parameters()]
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient) / process_count())
