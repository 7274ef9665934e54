"""StyleSwin's discriminator, which tells real images from generated ones (arXiv 2112.10762)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.equalized import BiasedLeakyReLU, EqualConv2d, EqualLinear
from medsr_monai.networks.blocks.filters import BinomialFilter, haar
from medsr_monai.networks.blocks.style import widths

STDDEV_GROUP = 4
"""How many samples of a batch `minibatch_stddev` compares with each other."""


def minibatch_stddev(x: Tensor) -> Tensor:
    """Append a channel that tells how much the samples of a batch differ: [B, C, H, W] -> [B, C + 1, H, W].

    Groups of 4 samples, or of all where the batch is smaller, share the standard deviation over the group, averaged
    over C, H and W (Progressive GAN, arXiv 1710.10196, section 3).

    Raises:
        ValueError: the batch is larger than 4 and no multiple of 4.
    """
    b, _, h, w = x.shape
    group = min(b, STDDEV_GROUP)
    if b % group:
        raise ValueError(
            f"The batch is {b}, which the discriminator compares in groups of {STDDEV_GROUP}: expected up to "
            f"{STDDEV_GROUP} or a multiple of it; change batch_size, or drop the last batch with drop_last."
        )
    variance = x.unflatten(0, (group, b // group)).var(dim=0, correction=0)
    deviation = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3), keepdim=True)
    return torch.cat([x, deviation.repeat(group, 1, h, w)], dim=1)


class ConvLeakyReLU(nn.Module):
    """Convolution, bias and scaled leaky ReLU, with equalised learning rate or spectral normalisation.

    [B, in_channels, H, W] -> [B, out_channels, H', W'], where H' and W' are those of `torch.nn.Conv2d`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, padding: int, spectral: bool
    ) -> None:
        super().__init__()
        if spectral:
            conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
            self.conv = spectral_norm(conv)
        else:
            self.conv = EqualConv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.act = BiasedLeakyReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class DownBlock(nn.Module):
    """3x3 convolution, blur, 3x3 convolution with stride 2: [B, in_channels, H, W] -> [B, out_channels, H/2, W/2]."""

    def __init__(self, in_channels: int, out_channels: int, spectral: bool) -> None:
        super().__init__()
        self.conv1 = ConvLeakyReLU(in_channels, in_channels, 3, stride=1, padding=1, spectral=spectral)
        self.blur = BinomialFilter(padding=2)
        self.conv2 = ConvLeakyReLU(in_channels, out_channels, 3, stride=2, padding=0, spectral=spectral)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.blur(self.conv1(x)))


@records_arguments
class StyleSwinDiscriminator(nn.Module):
    """StyleSwin's wavelet discriminator: images [B, in_channels, size, size] -> logits [B, 1], high for real ones.

    The image enters at every resolution as its Haar bands, which are added to the features there (StyleSwin, arXiv
    2112.10762, section 3.4; SWAGAN, arXiv 2102.06108). Twice differentiable, as the R1 penalty needs.

    Attributes:
        channels: widths in use.
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        size: height and width of the images: 16, 32, 64, 128, 256, 512 or 1024.
        in_channels: channels of the images.
        channel_multiplier: factor of the widths at resolutions over 32.
        channels: widths at the resolutions 4, 8, ..., size, in place of the table of `StyleSwinGenerator`. The first
            features have the width of `size`, though half its resolution, and that of size / 2 is not used, as in the
            authors' code.
        spectral_normalization: divide each weight by its largest singular value (arXiv 1802.05957), in place of the
            equalised learning rate.

    Raises:
        ValueError: the size is not supported, or channels and resolutions differ in number.
    """

    def __init__(
        self,
        size: int = 256,
        in_channels: int = 1,
        *,
        channel_multiplier: int = 2,
        channels: Sequence[int] | None = None,
        spectral_normalization: bool = False,
    ) -> None:
        super().__init__()
        self.channels = widths(size, channel_multiplier, channels)
        self.size = size
        spectral = spectral_normalization
        # From fine to coarse: at size / 2, size / 4, ..., 4.
        dims = [self.channels[-1], *self.channels[-3::-1]]
        self.from_image = nn.ModuleList(
            ConvLeakyReLU(4 * in_channels, dim, 1, stride=1, padding=0, spectral=spectral) for dim in dims
        )
        self.blocks = nn.ModuleList(DownBlock(dim, out_dim, spectral) for dim, out_dim in pairwise(dims))
        self.downsample = BinomialFilter(stride=2, padding=1)
        coarse = dims[-1]
        self.final_conv = ConvLeakyReLU(coarse + 1, coarse, 3, stride=1, padding=1, spectral=spectral)
        if spectral:
            hidden, last = spectral_norm(nn.Linear(16 * coarse, coarse)), spectral_norm(nn.Linear(coarse, 1))
        else:
            hidden, last = EqualLinear(16 * coarse, coarse, bias=False), EqualLinear(coarse, 1)
        self.final_linear = nn.Sequential(hidden, BiasedLeakyReLU(coarse), last)

    def forward(self, image: Tensor) -> Tensor:
        """Rate images: [B, in_channels, size, size] -> logits [B, 1].

        Raises:
            ValueError: the images have another size, or the batch is larger than 4 and no multiple of 4.
        """
        if image.shape[2] != self.size or image.shape[3] != self.size:
            raise ValueError(
                f"The images are {image.shape[2]} x {image.shape[3]}: expected {self.size} x {self.size}; "
                "pad or crop them, or build the discriminator with another size."
            )
        x = self.from_image[0](haar(image))
        for block, from_image in zip(self.blocks, self.from_image[1:], strict=True):
            image = self.downsample(image)
            x = block(x) + from_image(haar(image))
        x = self.final_conv(minibatch_stddev(x))
        return self.final_linear(x.flatten(1))
