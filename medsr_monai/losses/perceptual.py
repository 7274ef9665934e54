"""Content loss: the features of a network for natural images compared."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VGGContentLoss(nn.Module):
    """Mean squared difference between the VGG features of two images (SRGAN, arXiv 1609.04802, equation 5).

    Images of 3 channels go in as they are, those of 1 channel three times over; of any other number each channel goes
    in alone and the losses are summed, as in the RDST authors' code. Nothing is rescaled. Gradients reach ``pred``
    only: the network is frozen by this class, in eval mode and without gradients for its weights.

    Args:
        network: features of an RGB image [B, 3, H, W] in [0, 1], such as
            :func:`medsr_monai.networks.load_vgg19_features`, where VGG22 and VGG54 are chosen.

    Raises:
        ValueError: images of different shapes.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> VGGContentLoss:
        """Leave the network in eval mode."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, pred: Tensor, label: Tensor) -> Tensor:
        """Compare the super-resolved ``pred`` with ``label``, both [B, C, H, W] in about [0, 1]."""
        if pred.shape != label.shape:
            raise ValueError(f"pred is {tuple(pred.shape)} and label {tuple(label.shape)}: expected equal shapes.")
        channels = pred.shape[1]
        with torch.no_grad():
            target = self.network(_as_rgb(label))
        loss = F.mse_loss(self.network(_as_rgb(pred)), target)
        # one pass over all channels as a batch: its mean is 1/channels of the sum of the channels' means
        return loss if channels == 3 else loss * channels


def _as_rgb(image: Tensor) -> Tensor:
    return image if image.shape[1] == 3 else image.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
