"""MINet: multi-stage integration network for two MR contrasts (arXiv 2105.08949)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.holistic_attention import HolisticAttention
from medsr_monai.networks.blocks.residual import ResidualGroup
from medsr_monai.networks.blocks.upsample import enlarge, scale_per_axis


@records_arguments
class MINet(nn.Module):
    """Multi-stage integration network: another contrast of the same slice, at full resolution, guides the enlargement.

    An image [B, in_channels, H, W] of any H, W >= 1, and its reference [B, reference_channels, H * rows, W * columns],
    become [B, out_channels, H * rows, W * columns]. The image is enlarged bicubically first; two chains of RCAN's
    groups, one for each input, meet after every group in a 1x1 convolution, and the outputs of all stages of both
    attend to each other as in HAN. Written from the paper's description; the authors' checkpoints are not read.

    Attributes:
        scale_factors: (rows, columns) by which the output is larger.
        size_multiple, minimum_size: 1, any size will do.
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        in_channels: channels of the image.
        out_channels: channels of the output.
        scale: 1, 2, 3, 4 or 8, or one of them per slice axis such as [1, 4].
        reference_channels: channels of the reference; by default as many as the image has.
        channels: width between the blocks.
        num_groups: residual groups in each chain, the stages.
        num_blocks: residual channel attention blocks in each group.
        reduction: the channel attention works on channels // reduction numbers.

    Raises:
        ValueError: the scale is not supported.
    """

    size_multiple = 1
    minimum_size = 1

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int | Sequence[int] = 4,
        *,
        reference_channels: int | None = None,
        channels: int = 64,
        num_groups: int = 6,
        num_blocks: int = 6,
        reduction: int = 16,
    ) -> None:
        super().__init__()
        self.scale_factors = scale_per_axis(scale)
        self.reference_channels = in_channels if reference_channels is None else reference_channels
        self.head = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.reference_head = nn.Conv2d(self.reference_channels, channels, 3, padding=1)
        self.groups = nn.ModuleList(ResidualGroup(channels, num_blocks, reduction) for _ in range(num_groups))
        self.reference_groups = nn.ModuleList(ResidualGroup(channels, num_blocks, reduction) for _ in range(num_groups))
        self.integrations = nn.ModuleList(nn.Conv2d(2 * channels, channels, 1) for _ in range(num_groups))
        self.conv_after_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = HolisticAttention(2 * num_groups + 1, channels)
        self.last = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, reference: Tensor | None = None) -> Tensor:
        """Super-resolve [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns].

        Args:
            x: the image.
            reference: the other contrast on the grid of the output, [B, reference_channels, H * rows, W * columns].
                Without one the enlarged image guides itself, so that a study with one contrast can be processed; a
                network that was trained with references then works outside what it has learnt.

        Raises:
            ValueError: the reference lies on another grid than the output, or has another number of channels; or none
                is given though it has other channels than the image.
        """
        rows, columns = self.scale_factors
        x = enlarge(x, rows, columns)
        guide = x if reference is None else reference
        if guide.shape[1] != self.reference_channels or guide.shape[2:] != x.shape[2:]:
            raise ValueError(
                f"The reference is {list(guide.shape)}: expected {self.reference_channels} channels on the grid of the "
                f"output, {list(x.shape[2:])}; resample it to that grid first."
            )
        shallow = self.head(x)
        y = shallow
        guide = self.reference_head(guide)
        outputs: list[Tensor] = []
        stages = zip(self.groups, self.reference_groups, self.integrations)  # noqa: B905, TorchScript has no strict
        for group, reference_group, integration in stages:
            guide = reference_group(guide)
            y = integration(torch.cat([group(y), guide], dim=1))
            outputs.insert(0, guide)
            outputs.insert(0, y)
        outputs.insert(0, self.conv_after_body(y))
        return self.last(self.attention(outputs) + shallow)
