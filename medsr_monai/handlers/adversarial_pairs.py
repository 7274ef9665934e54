"""MONAI's AdversarialTrainer, trained on pairs of an image and its label."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from monai.utils.enums import AdversarialIterationEvents, AdversarialKeys

from medsr_monai.handlers.process_group import process_count

__all__ = ["AdversarialPairs"]


class AdversarialPairs:
    """Make ``AdversarialTrainer`` train image-to-label networks, such as those for super-resolution.

    - The discriminator's real images are the labels. The trainer by itself takes the network's input, which is of
      another size here.
    - ``engine.state.output["loss"]`` is the generator's loss, for the handlers that print it.
    - ``engine.state_dict()`` holds numbers only, as that of every trainer does. The networks and optimisers, which this
      trainer adds as objects, belong to the state of :class:`TrainingCheckpoints`.

    Attach it before the handlers that read these.

    Raises:
        RuntimeError: when the engine starts in several processes, whose discriminators would drift apart.
    """

    def attach(self, engine: Engine) -> None:
        """Change the engine's state at its start and its output after each forward pass and loss."""
        engine.register_events(*AdversarialIterationEvents)  # the trainer does so only after attaching its handlers
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(AdversarialIterationEvents.GENERATOR_FORWARD_COMPLETED, self.show_labels)
        engine.add_event_handler(AdversarialIterationEvents.GENERATOR_LOSS_COMPLETED, self.sum_losses)

    def start(self, engine: Engine) -> None:
        """Refuse several processes, and leave objects out of the engine's state."""
        if process_count() > 1:
            raise RuntimeError(
                f"adversarial training runs in 1 process, not in {process_count()}: leave out multi_gpu_train"
            )
        engine.state_dict_user_keys.clear()

    def show_labels(self, engine: Engine) -> None:
        """Give the discriminator the labels as real images."""
        engine.state.output[AdversarialKeys.REALS] = engine.state.output[CommonKeys.LABEL]

    def sum_losses(self, engine: Engine) -> None:
        """Write the sum of the generator's losses under ``loss``."""
        output = engine.state.output
        output[CommonKeys.LOSS] = output[AdversarialKeys.RECONSTRUCTION_LOSS] + output[AdversarialKeys.GENERATOR_LOSS]
