"""MONAI's AdversarialTrainer on pairs of an image and its label."""

from __future__ import annotations

import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from monai.utils.enums import AdversarialIterationEvents, AdversarialKeys

__all__ = ["AdversarialPairs"]


class AdversarialPairs:
    """Make ``AdversarialTrainer`` train image-to-label networks, such as those for super-resolution.

    - The discriminator's real images are the labels; the trainer alone takes the network's input for them, which is of
      another size here.
    - ``engine.state.output["loss"]`` is the generator's loss on CPU too, for the handlers that print it.
    - ``engine.state_dict()`` holds numbers only, as every trainer's; the networks and optimisers, which this trainer
      adds as objects, belong to :class:`TrainingCheckpoints`' state.

    Attach it before the handlers that read these.

    Raises:
        RuntimeError: several processes, whose discriminators would drift apart.
    """

    def attach(self, engine: Engine) -> None:
        """Follow the engine's start and its losses."""
        engine.register_events(*AdversarialIterationEvents)  # the trainer does so only after attaching its handlers
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(AdversarialIterationEvents.GENERATOR_FORWARD_COMPLETED, self.show_labels)
        engine.add_event_handler(AdversarialIterationEvents.GENERATOR_LOSS_COMPLETED, self.sum_losses)

    def start(self, engine: Engine) -> None:
        """Leave objects out of the engine's state."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise RuntimeError(
                f"adversarial training runs in 1 process, not in {dist.get_world_size()}: leave out multi_gpu_train"
            )
        engine.state_dict_user_keys.clear()

    def show_labels(self, engine: Engine) -> None:
        """Give the discriminator the labels for real images."""
        engine.state.output[AdversarialKeys.REALS] = engine.state.output[CommonKeys.LABEL]

    def sum_losses(self, engine: Engine) -> None:
        """Write the generator's loss."""
        output = engine.state.output
        output[CommonKeys.LOSS] = output[AdversarialKeys.RECONSTRUCTION_LOSS] + output[AdversarialKeys.GENERATOR_LOSS]
