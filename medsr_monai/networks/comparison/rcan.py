"""RCAN: residual channel attention network (arXiv 1807.02758), and the variant that the RDST paper measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.residual import ResidualGroup, convolution
from medsr_monai.networks.blocks.upsample import Upsample, scale_per_axis


class AdaptiveConvolution(nn.Module):
    """Two 3x3 convolutions, and for every value a frozen 1x1 convolution chooses one: [B, channels, H, W] -> the same.

    The choice reads the transposed image [B, C, W, H] as if it were [B, C, H, W], as the authors' code does, so that
    another place decides wherever H and W differ. It is hard, hence passes no gradient, and the 1x1 convolution keeps
    its random weights: it is frozen here, where DistributedDataParallel would wait for its gradient.
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


class _ResidualChannelAttentionNetwork(nn.Module):
    """What `RCAN` and `RCANAda` share: everything but the convolutions inside the blocks."""

    size_multiple = 1
    minimum_size = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scale: int | Sequence[int],
        channels: int,
        num_groups: int,
        num_blocks: int,
        reduction: int,
        conv: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.scale_factors = scale_per_axis(scale)
        self.head = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.groups = nn.Sequential(*(ResidualGroup(channels, num_blocks, reduction, conv) for _ in range(num_groups)))
        self.conv_after_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsample = Upsample(channels, scale)
        self.last = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns]."""
        shallow = self.head(x)
        deep = self.conv_after_body(self.groups(shallow))
        return self.last(self.upsample(deep + shallow))


@records_arguments
class RCAN(_ResidualChannelAttentionNetwork):
    """Residual channel attention network: groups of residual blocks that weigh their channels, then an up-sampler.

    An image [B, in_channels, H, W] of any H, W >= 1 becomes [B, out_channels, H * rows, W * columns]. 15.6 million
    weights at x4.

    Attributes:
        scale_factors: (rows, columns) by which the output is larger.
        size_multiple, minimum_size: 1, any size will do.
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        scale: 1, 2, 3, 4 or 8, or one of them per slice axis such as [1, 4].
        channels: width between the blocks.
        num_groups: residual groups.
        num_blocks: residual channel attention blocks in each group.
        reduction: the attention works on channels // reduction numbers.

    Raises:
        ValueError: unsupported scale.
    """

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
        super().__init__(in_channels, out_channels, scale, channels, num_groups, num_blocks, reduction, convolution)


@records_arguments
class RCANAda(_ResidualChannelAttentionNetwork):
    """The RCAN that the RDST paper (arXiv 2302.11184) measured: each convolution of a block is two, chosen by value.

    32.0 million weights at x4, of which the 1.7 million that choose are never trained (see `AdaptiveConvolution`).
    Attributes, arguments and errors are those of `RCAN`.
    """

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
        super().__init__(
            in_channels, out_channels, scale, channels, num_groups, num_blocks, reduction, AdaptiveConvolution
        )
