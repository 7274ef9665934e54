"""HAN: holistic attention network (arXiv 2008.08767)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.convolutional import ConvolutionalNetwork
from medsr_monai.networks.blocks.holistic_attention import HolisticAttention
from medsr_monai.networks.blocks.residual import ResidualGroup


class HolisticBody(nn.Module):
    """Residual groups and a convolution, whose outputs attend to each other: [B, channels, H, W] -> the same."""

    def __init__(self, channels: int, num_groups: int, num_blocks: int, reduction: int) -> None:
        super().__init__()
        self.groups = nn.ModuleList(ResidualGroup(channels, num_blocks, reduction) for _ in range(num_groups))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = HolisticAttention(num_groups + 1, channels)

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for group in self.groups:
            x = group(x)
            outputs.insert(0, x)
        outputs.insert(0, self.conv(x))
        return self.attention(outputs)


@records_arguments
class HAN(ConvolutionalNetwork):
    """Holistic attention network: RCAN's groups, whose outputs attend to each other, then an up-sampler.

    The defaults are those of the RDST paper (arXiv 2302.11184), 64.2 million weights at x4; its own paper has 64
    channels. Attributes, the other arguments and errors are those of `ConvolutionalNetwork`.

    Args:
        num_groups: residual groups.
        num_blocks: residual channel attention blocks in each group.
        reduction: the channel attention works on channels // reduction numbers.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int | Sequence[int] = 4,
        *,
        channels: int = 128,
        num_groups: int = 10,
        num_blocks: int = 20,
        reduction: int = 16,
    ) -> None:
        body = HolisticBody(channels, num_groups, num_blocks, reduction)
        super().__init__(in_channels, out_channels, scale, channels, body)
