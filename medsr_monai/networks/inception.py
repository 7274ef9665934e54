"""Features of Inception-v3 (arXiv 1512.00567) for the Frechet inception distance."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 299
"""Height and width of the images that Inception-v3 was trained on, to which all images are resized."""


class InceptionFeatures(nn.Module):
    """torchvision's Inception-v3 up to its last pooling, with random weights; see `load_inception_features`.

    RGB images [B, 3, H, W] in [0, 1], of any size, become features [B, 2048]. They are resized to 299x299 (bilinear,
    antialiased, without keeping the aspect) and mapped to [-1, 1], as torchvision's weights want it: torchvision
    normalises by ImageNet's mean and deviation and undoes that by its ``transform_input``, which comes to the same.
    """

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import inception_v3

        # its own initialisation draws from a truncated normal distribution for most of a minute
        self.inception = inception_v3(weights=None, aux_logits=False, init_weights=False, transform_input=False)
        self.inception.fc = nn.Identity()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features [B, 2048] of RGB images [B, 3, H, W] in [0, 1]."""
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
        return self.inception(2 * x - 1)


def load_inception_features(path: str | os.PathLike | None) -> InceptionFeatures:
    """Build `InceptionFeatures` with torchvision's trained weights from a local file; nothing is downloaded.

    Args:
        path: torchvision's state dict, such as inception_v3_google-0cc3c7bd.pth.

    Raises:
        FileNotFoundError: there is no path, or no file there; the message says where the weights are published.
        ValueError: the file does not hold Inception-v3's weights.
    """
    if path is None or not os.path.isfile(path):
        raise FileNotFoundError(
            f"inception_path is {path}: expected a file with torchvision's Inception-v3 weights; download "
            "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth and give its path."
        )
    network = InceptionFeatures()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.inception.load_state_dict({name: state[name] for name in network.inception.state_dict()})
    except Exception as error:  # pickle, zip and torch raise many kinds
        raise ValueError(
            f"{path}: not the weights of torchvision's Inception-v3, expected Conv2d_1a_3x3.conv.weight and on"
        ) from error
    return network
