"""RCAN: residual channel attention network (arXiv 1807.02758), and the variant that the RDST paper measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.convolutional import ConvolutionalNetwork
from medsr_monai.networks.blocks.residual import ResidualGroup, convolution


class AdaptiveConvolution(nn.Module):
    """Two 3x3 convolutions, and for every value a frozen 1x1 convolution chooses one: [B, channels, H, W] -> the same.

    The choice reads the transposed image [B, C, W, H] as if it were [B, C, H, W], as the authors' code does: another
    place decides. It is hard, hence passes no gradient, and the 1x1 convolution keeps its random weights; here it is
    frozen, since DistributedDataParallel would wait for its gradient.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.choice = nn.Conv2d(channels, channels, 1).requires_grad_(False)
        self.below = nn.Conv2d(channels, channels, 3, padding=1)
        self.above = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # Not `choice < 0`: the sigmoid of a tiny negative number rounds to 0.5.
        below = torch.sigmoid(self.choice(x.transpose(2, 3).reshape(x.shape))) < 0.5
        return torch.where(below, self.below(x), self.above(x))


@records_arguments
class RCAN(ConvolutionalNetwork):
    """Residual channel attention network: groups of residual blocks that weigh their channels, then an up-sampler.

    15.6 million weights at x4. Attributes, the other arguments and errors are those of `ConvolutionalNetwork`.

    Args:
        num_groups: residual groups.
        num_blocks: residual channel attention blocks in each group.
        reduction: the attention works on channels // reduction numbers.
    """

    convolution: ClassVar[Callable[[int], nn.Module]] = staticmethod(convolution)  # inside the blocks

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int | Sequence[int] = 4,
        *,
        channels: int = 64,
        num_groups: int = 10,
        num_blocks: int = 20,
        reduction: int = 16,
    ) -> None:
        groups = [ResidualGroup(channels, num_blocks, reduction, self.convolution) for _ in range(num_groups)]
        body = nn.Sequential(*groups, nn.Conv2d(channels, channels, 3, padding=1))
        super().__init__(in_channels, out_channels, scale, channels, body)


@records_arguments
class RCANAda(RCAN):
    """The RCAN that the RDST paper (arXiv 2302.11184) measured: each convolution of a block is two, chosen by value.

    32.0 million weights at x4, of which the 1.7 million that choose are never trained (see `AdaptiveConvolution`).
    Attributes, arguments and errors are those of `RCAN`.
    """

    convolution = AdaptiveConvolution
