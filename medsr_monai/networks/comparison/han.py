"""HAN: holistic attention network (arXiv 2008.08767)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.holistic_attention import ChannelSpatialAttention, LayerAttention
from medsr_monai.networks.blocks.residual import ResidualGroup
from medsr_monai.networks.blocks.upsample import Upsample, scale_per_axis


@records_arguments
class HAN(nn.Module):
    """Holistic attention network: RCAN's groups, whose outputs attend to each other, then an up-sampler.

    An image [B, in_channels, H, W] of any H, W >= 1 becomes [B, out_channels, H * rows, W * columns]. The defaults are
    those of the RDST paper (arXiv 2302.11184), 64.2 million weights at x4; its own paper has 64 channels.

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
        reduction: the channel attention works on channels // reduction numbers.

    Raises:
        ValueError: unsupported scale.
    """

    size_multiple = 1
    minimum_size = 1

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
        super().__init__()
        self.scale_factors = scale_per_axis(scale)
        self.head = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.groups = nn.ModuleList(ResidualGroup(channels, num_blocks, reduction) for _ in range(num_groups))
        self.conv_after_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.layer_attention = LayerAttention(num_groups + 1, channels)
        self.channel_spatial_attention = ChannelSpatialAttention()
        self.fusion = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.upsample = Upsample(channels, scale)
        self.last = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns]."""
        shallow = self.head(x)
        y = shallow
        outputs: list[Tensor] = []  # newest first
        for group in self.groups:
            y = group(y)
            outputs.insert(0, y)
        y = self.conv_after_body(y)
        outputs.insert(0, y)
        attended = torch.cat([self.channel_spatial_attention(y), self.layer_attention(torch.stack(outputs, 1))], dim=1)
        return self.last(self.upsample(self.fusion(attended) + shallow))
