"""Features of VGG19 (arXiv 1409.1556) for a content loss."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

LAYERS = {"VGG22": 8, "VGG54": 35}
"""How many of torchvision's layers lead up to VGGij, the j-th convolution before the i-th pooling, not activated."""
NUM_LAYERS = 37
"""How many layers torchvision's VGG19 has before its classifier."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue, with which torchvision's weights were trained."""


class VGG19Features(nn.Module):
    """torchvision's VGG19 up to one layer, with random weights; see `load_vgg19_features` for trained ones.

    RGB images [B, 3, H, W] in [0, 1], of 16 pixels or more a side, become features of ImageNet-normalised images: VGG22
    [B, 128, H // 2, W // 2] or VGG54 [B, 512, H // 16, W // 16], before the activation.

    Attributes:
        features: torchvision's layers, by their numbers there.

    Args:
        layer: "VGG22" (conv2_2) or "VGG54" (conv5_4), or the number of torchvision's 37 layers to keep, such as 14 for
            those up to the activation of conv3_2.

    Raises:
        ValueError: there is no such layer.
    """

    def __init__(self, layer: str | int = "VGG54") -> None:
        super().__init__()
        count = LAYERS.get(layer, layer)
        if not (isinstance(count, int) and 1 <= count <= NUM_LAYERS):
            raise ValueError(f"layer is {layer!r}: expected one of {', '.join(LAYERS)}, or 1 to {NUM_LAYERS} layers.")
        from torchvision.models import vgg19

        with torch.device("meta"):  # the classifier is not needed, and would be 500 MB
            features = vgg19(weights=None).features[:count]
        self.features = features.to_empty(device="cpu")
        for module in self.features:
            if isinstance(module, nn.Conv2d):  # torchvision's initialisation
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.ReLU):
                module.inplace = False
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features of RGB images [B, 3, H, W] in [0, 1]."""
        return self.features((x - self.mean) / self.std)


def load_vgg19_features(path: str | os.PathLike | None, layer: str | int = "VGG54") -> VGG19Features:
    """Build `VGG19Features` with torchvision's trained weights from a local file; nothing is downloaded.

    Args:
        path: torchvision's state dict, such as vgg19-dcbb9e9d.pth.
        layer: see `VGG19Features`.

    Raises:
        FileNotFoundError: there is no path, or no file there; the message says where the weights are published.
        ValueError: the file does not hold VGG19's weights, or there is no such layer.
    """
    network = VGG19Features(layer)
    if path is None or not os.path.isfile(path):
        raise FileNotFoundError(
            f"vgg_path is {path}: expected a file with torchvision's VGG19 weights; download "
            "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth and give its path."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict({name: state[name] for name in network.state_dict()})
    except Exception as error:  # pickle, zip and torch raise many kinds
        raise ValueError(
            f"{path}: not the weights of torchvision's VGG19, expected features.0.weight and on"
        ) from error
    return network.eval()
