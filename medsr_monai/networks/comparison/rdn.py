"""RDN: residual dense network (arXiv 1802.08797)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.convolutional import ConvolutionalNetwork


class ResidualDenseBlock(nn.Module):
    """Convolutions that each see all before them, fused by a 1x1 convolution and added to the input (RDB).

    [B, channels, H, W] -> [B, channels, H, W]; arguments as of `RDN`.
    """

    def __init__(self, channels: int, growth_rate: int, num_layers: int, negative_slope: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels + i * growth_rate, growth_rate, 3, padding=1), nn.LeakyReLU(negative_slope)
            )
            for i in range(num_layers)
        )
        self.fusion = nn.Conv2d(channels + num_layers * growth_rate, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = torch.cat([y, layer(y)], dim=1)
        return x + self.fusion(y)


class DenseBody(nn.Module):
    """A convolution, then residual dense blocks whose outputs are all fused: [B, channels, H, W] -> the same."""

    def __init__(
        self, channels: int, growth_rate: int, num_layers: int, num_blocks: int, negative_slope: float
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResidualDenseBlock(channels, growth_rate, num_layers, negative_slope) for _ in range(num_blocks)
        )
        self.fusion = nn.Sequential(
            nn.Conv2d(num_blocks * channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        outputs: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return self.fusion(torch.cat(outputs, dim=1))


@records_arguments
class RDN(ConvolutionalNetwork):
    """Residual dense network: densely connected blocks whose outputs are all fused, then an up-sampler.

    The defaults are those of the RDST paper (arXiv 2302.11184), 5.8 million weights at x4; the network of its own paper
    has ReLUs (`negative_slope=0.0`). Attributes, the other arguments and errors are those of `ConvolutionalNetwork`.

    Args:
        growth_rate: channels that every convolution of a block adds.
        num_layers: convolutions in each block.
        num_blocks: residual dense blocks.
        negative_slope: of the leaky ReLU after these convolutions; 0 is a plain ReLU.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int | Sequence[int] = 4,
        *,
        channels: int = 64,
        growth_rate: int = 32,
        num_layers: int = 6,
        num_blocks: int = 20,
        negative_slope: float = 0.2,
    ) -> None:
        body = DenseBody(channels, growth_rate, num_layers, num_blocks, negative_slope)
        super().__init__(in_channels, out_channels, scale, channels, body)
