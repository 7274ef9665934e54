"""SwinIR (arXiv 2108.10257), made of spandrel's parts.

spandrel is MIT-licensed, its SwinIR the authors' own code under Apache-2.0. It is installed with the extra `compare`
and imported when a network is built.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.padding import pad_to_multiple
from medsr_monai.networks.blocks.upsample import PixelShuffle, Upsample, scale_per_axis

UPSAMPLERS = ("", "pixelshuffledirect", "pixelshuffle")
"""How features become an image, in the words of SwinIR's authors; see `SwinIR`."""


@records_arguments
class SwinIR(nn.Module):
    """SwinIR: residual groups of Swin transformer layers, then an up-sampler.

    An image [B, in_channels, H, W] of any H, W >= 1 becomes [B, out_channels, H * rows, W * columns]. The defaults are
    those of the RDST paper (arXiv 2302.11184), 11.5 million weights at x4; SwinIR-lite has `embed_dim=60` and four
    groups, 0.9 million. Inside, the image is padded to a multiple of the window at the bottom and right;
    the padding is cropped off the output. Of three input channels the authors' mean colour of photographs is subtracted
    first and added last.

    Attributes:
        scale_factors: (rows, columns) by which the output is larger.
        size_multiple: the window; inputs of such a size need no padding.
        minimum_size: the smallest H and W, 1.
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, equal to in_channels.
        scale: 1, 2, 3, 4 or 8, or one of them per slice axis such as [1, 4].
        embed_dim: width between the groups; a multiple of every number of heads.
        depths: Swin layers of each group.
        num_heads: attention heads of the layers of each group.
        window_size: side of the attention windows.
        mlp_ratio: hidden width of the perceptrons, as a multiple of their input.
        shifted: shift every second layer's windows by half a window. The RDST paper's code builds SwinIR without.
        upsampler: "pixelshuffledirect", one convolution and pixel shuffle (by default above scale 1); "pixelshuffle",
            the classical one in steps with 64 channels; "", a last convolution whose result is added to the input (by
            default at scale 1, and only there).
        drop_path_rate: probability in training of leaving out the last layer; it rises linearly from 0 at the first.
        img_range: the network sees intensities times this; 255 for the authors' JPEG models.

    Raises:
        ImportError: spandrel is not installed.
        ValueError: scale or upsampler is not supported; out_channels differs from in_channels; or num_heads has not one
            number a group, or one that does not divide embed_dim.
    """

    minimum_size = 1

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int | Sequence[int] = 4,
        *,
        embed_dim: int = 180,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        shifted: bool = True,
        upsampler: str | None = None,
        drop_path_rate: float = 0.1,
        img_range: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale_factors = rows, columns = scale_per_axis(scale)
        if upsampler is None:
            upsampler = "" if rows == columns == 1 else "pixelshuffledirect"
        if upsampler not in UPSAMPLERS or (upsampler == "" and rows * columns > 1):
            raise ValueError(
                f"upsampler is {upsampler!r} at scale {scale}: expected one of {UPSAMPLERS}, and '' at scale 1 only; "
                "leave it out for the usual one."
            )
        if in_channels != out_channels:
            raise ValueError(
                f"SwinIR keeps its channels: in_channels is {in_channels} and out_channels {out_channels}, "
                "expected equal numbers; set out_channels to in_channels."
            )
        if len(depths) != len(num_heads) or any(embed_dim % heads for heads in num_heads):
            raise ValueError(
                f"num_heads is {list(num_heads)}: expected {len(depths)} divisors of embed_dim = {embed_dim}, one for "
                "each of depths."
            )
        try:
            from spandrel.architectures.SwinIR import SwinIR as SpandrelSwinIR
        except ImportError as error:
            raise ImportError("SwinIR is made of spandrel's parts: pip install 'medsr_monai[compare]'") from error
        self.upsampler = upsampler
        self.size_multiple = window_size
        with torch.device("cpu"):  # it computes its drop rates with tensors, of which the meta device has no values
            self.network = SpandrelSwinIR(
                # No larger than a window, and it does not shift; all other sizes are the same.
                img_size=2 * window_size if shifted else window_size,
                in_chans=in_channels,
                embed_dim=embed_dim,
                depths=list(depths),
                num_heads=list(num_heads),
                window_size=window_size,
                mlp_ratio=mlp_ratio,
                drop_path_rate=drop_path_rate,
                upscale=max(rows, columns),  # it only crops to this; the up-sampler is set below
                img_range=img_range,
                upsampler=upsampler,
            )
            if upsampler == "pixelshuffle":
                self.network.upsample = Upsample(self.network.conv_last.in_channels, scale)
            elif upsampler == "pixelshuffledirect":
                self.network.upsample = nn.Sequential(
                    nn.Conv2d(embed_dim, rows * columns * out_channels, 3, padding=1), PixelShuffle(rows, columns)
                )
        self.network.to(torch.get_default_device())
        for module in self.network.modules():  # masks and indices are computed: weights do not depend on a size
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns]."""
        rows, columns = self.scale_factors
        # spandrel pads by reflection, which small images do not have enough pixels for.
        y = self.network(pad_to_multiple(x, self.size_multiple))
        return y[:, :, : x.shape[2] * rows, : x.shape[3] * columns]
