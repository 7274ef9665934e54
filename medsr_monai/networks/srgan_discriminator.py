"""The discriminator of SRGAN (arXiv 1609.04802), without batch normalisation by default, as WGAN-GP needs it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments


@records_arguments
class SRGANDiscriminator(nn.Module):
    """SRGAN's discriminator: images [B, in_channels, *image_size] -> [B, 1], without a last activation.

    Eight 3x3 convolutions without bias, every second of stride 2, are followed by two linear layers. For images of
    1 x 96 x 96 they have 23,558,721 parameters, as the RDST authors count.

    Attributes:
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        in_channels: channels of the images.
        image_size: H and W, one number for both or two.
        channels: width of the first two convolutions; it doubles at every further pair.
        hidden_channels: width of the hidden linear layer.
        batch_norm: normalise after every convolution but the first, as SRGAN does. A gradient penalty does not allow
            it, because its critic must look at each image alone.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int | Sequence[int] = 96,
        *,
        channels: int = 64,
        hidden_channels: int = 1024,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.image_size = ensure_tuple_rep(image_size, 2)
        height, width = self.image_size
        layers: list[nn.Module] = []
        before = in_channels
        for i in range(8):
            after, stride = channels * 2 ** (i // 2), 1 + i % 2
            layers.append(nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False))
            if batch_norm and i:
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.LeakyReLU(0.2))
            height, width, before = -(-height // stride), -(-width // stride), after
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(before * height * width, hidden_channels), nn.LeakyReLU(0.2), nn.Linear(hidden_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Judge images: [B, in_channels, *image_size] -> [B, 1].

        Raises:
            ValueError: the images have another size.
        """
        if x.shape[2] != self.image_size[0] or x.shape[3] != self.image_size[1]:
            raise ValueError(
                f"images are {x.shape[2]}x{x.shape[3]} and the discriminator was built for {self.image_size[0]}x"
                f"{self.image_size[1]}: give image_size the size of the patches."
            )
        return self.classifier(torch.flatten(self.features(x), 1))
