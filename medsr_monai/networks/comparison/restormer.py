"""Restormer (arXiv 2111.09881), made of MONAI's parts."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.restormer import Restormer as MonaiRestormer
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.padding import pad_to_multiple
from medsr_monai.networks.blocks.upsample import enlarge, scale_per_axis


@records_arguments
class Restormer(nn.Module):
    """Restormer on an image that is enlarged bicubically first: a U-shaped transformer that attends between channels.

    An image [B, in_channels, H, W] of any H, W >= 1 becomes [B, out_channels, H * rows, W * columns]. MONAI's network
    of this name normalises every channel over the image and does not add its input; as in the paper, here LayerNorm
    acts on the channels of each pixel, and the (enlarged) image is added to the output. 26.1 million weights. Inside,
    the image is padded to the size that the levels need, and the padding is cropped off the output.

    Attributes:
        scale_factors: (rows, columns) by which the output is larger.
        size_multiple: by which the levels divide H and W of the enlarged image, 8 for four of them.
        minimum_size: the smallest H and W, 1.
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, equal to in_channels.
        scale: 1, 2, 3, 4 or 8, or one of them per slice axis such as [1, 4].
        channels: width of the first level, doubled at each of the others.
        depths: transformer blocks of each level, two levels at least.
        num_heads: attention heads of each level.
        num_refinement_blocks: transformer blocks after the last level.
        mlp_ratio: hidden width of the gated feed-forward layers, as a multiple of their input.

    Raises:
        ValueError: the scale is not supported; out_channels differs from in_channels; or depths has fewer than two
            levels, or num_heads not one number a level.
    """

    minimum_size = 1

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int | Sequence[int] = 4,
        *,
        channels: int = 48,
        depths: Sequence[int] = (4, 6, 6, 8),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        num_refinement_blocks: int = 4,
        mlp_ratio: float = 2.66,
    ) -> None:
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(
                f"Restormer adds its input to its output: in_channels is {in_channels} and out_channels "
                f"{out_channels}, expected equal numbers; set out_channels to in_channels."
            )
        if len(depths) < 2 or len(depths) != len(num_heads):
            raise ValueError(
                f"depths is {list(depths)} and num_heads {list(num_heads)}: expected one number of each a level, and "
                "two levels at least."
            )
        self.scale_factors = scale_per_axis(scale)
        self.size_multiple = 2 ** (len(depths) - 1)
        self.network = MonaiRestormer(
            spatial_dims=2,
            in_channels=in_channels,
            out_channels=out_channels,
            dim=channels,
            num_blocks=tuple(depths),
            heads=tuple(num_heads),
            num_refinement_blocks=num_refinement_blocks,
            ffn_expansion_factor=mlp_ratio,
            bias=False,
            layer_norm_use_bias=True,
            flash_attention=False,  # it would give all heads one mean temperature
        )
        for name, module in list(self.network.named_modules()):
            if isinstance(module, nn.InstanceNorm2d):
                self.network.set_submodule(name, LayerNorm2d(module.num_features, eps=1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns]."""
        rows, columns = self.scale_factors
        x = enlarge(x, rows, columns)
        height, width = x.shape[2:]
        # MONAI's code wants more than one pixel at the lowest level.
        return self.network(pad_to_multiple(x, self.size_multiple, least=2))[:, :, :height, :width] + x
