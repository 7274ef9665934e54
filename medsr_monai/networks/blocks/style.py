"""StyleSwin's parts (arXiv 2112.10762): from a latent to styles, and from a learned constant and styles to features."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
import torch.nn.functional as F
from monai.networks.blocks import MLPBlock
from torch import Tensor, nn

from medsr_monai.networks.blocks.equalized import EqualLinear
from medsr_monai.networks.blocks.window_attention import (
    SplitWindowAttention,
    shifted_windows,
    window_partition,
    window_reverse,
)

SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""Heights and widths of the images that StyleSwin's and TransMRSR's networks can be built for."""


def widths(size: int, channel_multiplier: int = 1, channels: Sequence[int] | None = None) -> list[int]:
    """Return the channels at the resolutions 4, 8, ..., `size`: `channels` if given, else StyleSwin's table.

    The table has 512 channels up to 32, and 256, 128, 64, 32 and 16 times channel_multiplier at 64, 128, 256, 512 and
    1024.

    Raises:
        ValueError: size is not one of `SIZES`; channels is not one number per resolution.
    """
    if size not in SIZES:
        raise ValueError(f"size is {size}: expected a power of two out of {list(SIZES)}; pad or crop the images to it.")
    resolutions = [2**i for i in range(2, size.bit_length())]
    if channels is None:
        return [512 if resolution <= 32 else 16384 // resolution * channel_multiplier for resolution in resolutions]
    if len(channels) != len(resolutions):
        raise ValueError(
            f"channels has {len(channels)} numbers for size {size}: expected {len(resolutions)}, "
            f"one for each of the resolutions {resolutions}."
        )
    return [int(c) for c in channels]


def heads_per_width(
    channels: Sequence[int], num_heads: Sequence[int] | None = None, argument: str = "num_heads"
) -> list[int]:
    """Return the attention heads for each width: `num_heads` if given, else one for 32 channels and at least 4.

    `argument` is what the message of an error calls num_heads.

    Raises:
        ValueError: num_heads and channels differ in length.
    """
    if num_heads is None:
        return [max(c // 32, 4) for c in channels]
    if len(num_heads) != len(channels):
        raise ValueError(
            f"{argument} has {len(num_heads)} numbers: expected {len(channels)}, "
            f"one for each of the widths {list(channels)}."
        )
    return [int(n) for n in num_heads]


def sinusoidal_position_encoding(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Encode the place of every pixel: [height, width, channels], float32.

    The first half of the channels tells the column and the second the row, both counted from 1. Each half has the sines
    and then the cosines of the place times 10000 ** (-k / (h - 1)), for k = 0 ... h - 1 and h = channels / 4.
    `channels` is a multiple of 4, at least 8.
    """
    count = channels // 4
    frequencies = torch.exp(torch.arange(count, device=device) * (-log(10000.0) / (count - 1)))
    columns = torch.arange(1, width + 1, device=device)[:, None] * frequencies
    rows = torch.arange(1, height + 1, device=device)[:, None] * frequencies
    columns = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(height, -1, -1)
    rows = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, width, -1)
    return torch.cat([columns, rows], dim=2)


def truncate(w: Tensor, centre: Tensor, psi: float) -> Tensor:
    """Move latents towards a centre: psi = 1 leaves them, psi = 0 gives the centre (StyleGAN, arXiv 1812.04948, B)."""
    return centre + psi * (w - centre)


class PixelNorm(nn.Module):
    """Divide a latent [B, C] by the root of its mean square; 1e-8 is added under the root."""

    def forward(self, z: Tensor) -> Tensor:
        return z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)


class MappingNetwork(nn.Sequential):
    """From a normal latent z to a style latent w: [B, style_dim] -> [B, style_dim] (StyleGAN's mapping network)."""

    def __init__(self, style_dim: int, layers: int) -> None:
        linear = [EqualLinear(style_dim, style_dim, lr_mul=0.01, activate=True) for _ in range(layers)]
        super().__init__(PixelNorm(), *linear)


class AdaptiveInstanceNorm(nn.Module):
    """Normalise each channel over all tokens of a sample, then scale and shift it as the style says.

    The scale is used as it comes out of the linear layer, without 1 added, and its bias starts at 0, as the authors do.
    """

    def __init__(self, dim: int, style_dim: int) -> None:
        super().__init__()
        self.style = EqualLinear(style_dim, 2 * dim)

    def forward(self, windows: Tensor, latent: Tensor) -> Tensor:
        """Normalise tokens [B, windows, N, dim] under a latent [B, style_dim]."""
        variance, mean = torch.var_mean(windows, dim=(1, 2), correction=0, keepdim=True)
        scale, shift = self.style(latent)[:, None, None].chunk(2, dim=-1)
        return (windows - mean) * torch.rsqrt(variance + 1e-5) * scale + shift


class StyleSwinBlock(nn.Module):
    """Attention in plain and shifted windows, then a perceptron, each behind an adaptive instance normalisation.

    Args:
        dim: channels of a token.
        style_dim: channels of a latent.
        num_heads: attention heads, an even divisor of dim.
        window_size: side of the window.
        shift_size: shift of the second half of the heads.
        mlp_ratio: hidden width of the perceptron, as a multiple of dim.

    Raises:
        ValueError: num_heads is odd or does not divide dim.
    """

    def __init__(
        self, dim: int, style_dim: int, num_heads: int, window_size: int, shift_size: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.norm1 = AdaptiveInstanceNorm(dim, style_dim)
        self.attn = SplitWindowAttention(dim, num_heads, window_size, shift_size)
        self.norm2 = AdaptiveInstanceNorm(dim, style_dim)
        self.mlp = MLPBlock(dim, int(dim * mlp_ratio), dropout_mode="vista3d")

    def forward(self, windows: Tensor, latent: Tensor, shifted: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Transform tokens [B, windows, N, dim] under a latent [B, style_dim]; `shifted` is `shifted_windows`."""
        windows = windows + self.attn(self.norm1(windows, latent), shifted)
        return windows + self.mlp(self.norm2(windows, latent))


class TokenUpsample(nn.Module):
    """Double a token map bilinearly, change its width and add a learned multiple of the position encoding.

    [B, H, W, dim] -> [B, 2H, 2W, out_dim]. The multiple starts at 0. out_dim is a multiple of 4, at least 8.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.reduction = nn.Linear(dim, out_dim, bias=False)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2.0, mode="bilinear", align_corners=False)
        x = self.reduction(self.norm(x.permute(0, 2, 3, 1)))
        places = sinusoidal_position_encoding(x.shape[1], x.shape[2], x.shape[3], x.device)
        return x + self.alpha * places.to(self.alpha.dtype)


class StyleSwinLayer(nn.Module):
    """Two StyleSwin blocks at one resolution, followed by an upsampling unless `out_dim` is None.

    [B, H, W, dim] -> [B, 2H, 2W, out_dim], or [B, H, W, dim] where there is no upsampling.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int | None,
        style_dim: int,
        num_heads: int,
        window_size: int,
        shift_size: int,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift_size = shift_size
        self.blocks = nn.ModuleList(
            StyleSwinBlock(dim, style_dim, num_heads, window_size, shift_size, mlp_ratio) for _ in range(2)
        )
        self.upsample = nn.Identity() if out_dim is None else TokenUpsample(dim, out_dim)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Transform a token map under the latents [B, 2, style_dim] of the two blocks."""
        b, height, width, _ = x.shape
        shifted = shifted_windows(height, width, self.window_size, self.shift_size, x.device)
        windows = window_partition(x, self.window_size).unflatten(0, (b, -1))
        for i, block in enumerate(self.blocks):
            windows = block(windows, latents[:, i], shifted)
        return self.upsample(window_reverse(windows.flatten(0, 1), self.window_size, height, width))


class StyleSwinDecoder(nn.Module):
    """Draw feature maps from a learned 4x4 constant, styled by two latents a layer.

    Args:
        channels: widths at the resolutions 4, 8, ..., which are multiples of 4, at least 8.
        num_heads: attention heads of each, even divisors of the widths.
        style_dim: channels of a latent.
        window_size: side of the windows; where the resolution is lower, one window covers everything.
        mlp_ratio: hidden width of the perceptrons, as a multiple of their input.
        modulated_half: which half of the channels the conditions of `forward` change, "first" or "second".

    Attributes:
        num_latents: latents of one sample, two per layer.

    Raises:
        ValueError: a width or a number of heads does not fit, or modulated_half is another word.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_heads: Sequence[int],
        style_dim: int,
        window_size: int = 8,
        mlp_ratio: float = 4.0,
        modulated_half: str = "first",
    ) -> None:
        super().__init__()
        if any(c % 4 or c < 8 for c in channels):
            raise ValueError(f"channels are {list(channels)}: expected multiples of 4, at least 8, for the positions.")
        if modulated_half not in ("first", "second"):
            raise ValueError(f"modulated_half is {modulated_half!r}: expected 'first' or 'second'.")
        self.modulates_first = modulated_half == "first"
        self.constant = nn.Parameter(torch.randn(1, channels[0], 4, 4))
        self.layers = nn.ModuleList()
        for i, (dim, out_dim, heads) in enumerate(zip(channels, [*channels[1:], None], num_heads, strict=True)):
            resolution = 4 * 2**i
            window = min(window_size, resolution)
            shift = window // 2 if resolution > window else 0
            self.layers.append(StyleSwinLayer(dim, out_dim, style_dim, heads, window, shift, mlp_ratio))
        self.num_latents = 2 * len(self.layers)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, latents: Tensor, conditions: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Decode latents [B, num_latents, style_dim].

        Args:
            latents: styles; layer k takes the latents 2k and 2k + 1.
            conditions: for each of the first layers, or none, a scale and a shift [B, channels / 2, H, W] of half of
                the channels that enter it; the other half stays as it is.

        Returns:
            The output of each layer [B, H, W, channels], from coarse to fine: all but the last upsampled already.
        """
        x = self.constant.permute(0, 2, 3, 1).expand(latents.shape[0], -1, -1, -1)
        features: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            if i < len(conditions):
                scale, shift = conditions[i]
                x = self._modulate(x, scale.permute(0, 2, 3, 1), shift.permute(0, 2, 3, 1))
            x = layer(x, latents[:, 2 * i : 2 * i + 2])
            features.append(x)
        return features

    def _modulate(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        if self.modulates_first:
            first = first * scale + shift
        else:
            second = second * scale + shift
        return torch.cat([first, second], dim=-1)
