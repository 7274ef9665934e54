"""Content loss: the features of a network for natural images compared."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medsr_monai.losses.frozen_prior import FrozenPriorLoss


class VGGContentLoss(FrozenPriorLoss):
    """Mean squared difference between the VGG features of two images (SRGAN, arXiv 1609.04802, equation 5).

    Images of 3 channels go in as they are, those of 1 channel three times over; of any other number each channel goes
    in alone and the losses are summed, as in the RDST authors' code. Nothing is rescaled. Gradients reach ``pred``
    only; the network is frozen for good and stays in eval mode (see `FrozenPriorLoss`).

    Args:
        network: features of an RGB image [B, 3, H, W] in [0, 1], such as
            :func:`medsr_monai.networks.load_vgg19_features`, where VGG22 and VGG54 are chosen.

    Raises:
        ValueError: images of different shapes.
    """

    def compare(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the mean squared difference of the features."""
        channels = pred.shape[1]
        with torch.no_grad():
            target = self.network(_as_rgb(label))
        loss = F.mse_loss(self.network(_as_rgb(pred)), target)
        # one pass over all channels as a batch: its mean is 1/channels of the sum of the channels' means
        return loss if channels == 3 else loss * channels


def _as_rgb(image: Tensor) -> Tensor:
    return image if image.shape[1] == 3 else image.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
