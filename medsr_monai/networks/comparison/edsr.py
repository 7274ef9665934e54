"""EDSR: enhanced deep residual network (arXiv 1707.02921)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.convolutional import ConvolutionalNetwork
from medsr_monai.networks.blocks.residual import ResidualBlock


@records_arguments
class EDSR(ConvolutionalNetwork):
    """Enhanced deep residual network: residual blocks without normalisation, then an up-sampler.

    The defaults are the large network of its paper, 43.1 million weights at x4; EDSR-lite of the RDST paper (arXiv
    2302.11184) has `channels=64, num_blocks=16, negative_slope=0.2, res_scale=1.0`, 1.5 million. Attributes, the other
    arguments and errors are those of `ConvolutionalNetwork`.

    Args:
        num_blocks: residual blocks.
        negative_slope: of the leaky ReLU in each block; 0 is a plain ReLU.
        res_scale: weight of a block's convolutions beside its input.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int | Sequence[int] = 4,
        *,
        channels: int = 256,
        num_blocks: int = 32,
        negative_slope: float = 0.0,
        res_scale: float = 0.1,
    ) -> None:
        blocks = [ResidualBlock(channels, negative_slope, res_scale) for _ in range(num_blocks)]
        body = nn.Sequential(*blocks, nn.Conv2d(channels, channels, 3, padding=1))
        super().__init__(in_channels, out_channels, scale, channels, body)
