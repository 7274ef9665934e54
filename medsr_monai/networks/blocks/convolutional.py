"""What the convolutional networks have in common, which is everything around the body."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medsr_monai.networks.blocks.upsample import Upsample, scale_per_axis


class ConvolutionalNetwork(nn.Module):
    """A 3x3 convolution, a body whose result is added to its input, an up-sampler and a last 3x3 convolution.

    An image [B, in_channels, H, W] of any H, W >= 1 becomes [B, out_channels, H * rows, W * columns]. Networks differ
    in their body.

    Attributes:
        scale_factors: (rows, columns) by which the output is larger.
        size_multiple, minimum_size: 1, any size will do.
        arguments: of the networks, the config entry that builds one again (see `records_arguments`).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        scale: 1, 2, 3, 4 or 8, or one of them per slice axis such as [1, 4].
        channels: width of the body.
        body: [B, channels, H, W] -> [B, channels, H, W].

    Raises:
        ValueError: the scale is not supported.
    """

    size_multiple = 1
    minimum_size = 1

    def __init__(
        self, in_channels: int, out_channels: int, scale: int | Sequence[int], channels: int, body: nn.Module
    ) -> None:
        super().__init__()
        self.scale_factors = scale_per_axis(scale)
        self.head = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.body = body
        self.upsample = Upsample(channels, scale)
        self.last = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns]."""
        shallow = self.head(x)
        return self.last(self.upsample(self.body(shallow) + shallow))
