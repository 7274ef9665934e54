"""The common part of losses that compare images through a trained network."""

from __future__ import annotations

from torch import Tensor, nn


class FrozenPriorLoss(nn.Module):
    """Compare two images by what a network makes of them; the network is never changed.

    From here on its weights ask for no gradients, and it is in eval mode whenever it is used, whoever calls `train()`,
    so that its running statistics stay as they are. Subclasses say in `compare` what is compared.

    Args:
        network: the trained network, called a prior.

    Raises:
        ValueError: when called: the images differ in shape.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenPriorLoss:
        """Leave the network in eval mode."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, pred: Tensor, label: Tensor) -> Tensor:
        """Compare the super-resolved ``pred`` with ``label``, both [B, C, H, W] in the intensities of the network."""
        if pred.shape != label.shape:
            raise ValueError(f"pred is {tuple(pred.shape)} and label {tuple(label.shape)}: expected equal shapes.")
        self.network.eval()  # whoever else holds the network may have switched it
        return self.compare(pred, label)

    def compare(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the loss, a scalar whose gradients reach ``pred`` only."""
        raise NotImplementedError
