"""StyleSwin: a generator of images made of shifted-window attention (arXiv 2112.10762), in pure PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.filters import BinomialUpsample
from medsr_monai.networks.blocks.style import MappingNetwork, StyleSwinDecoder, heads_per_width, truncate, widths


class ToImage(nn.Module):
    """Read an image off a token map by a 1x1 convolution: [B, H, W, dim] -> [B, out_channels, H, W]."""

    def __init__(self, dim: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_channels, 1)
        self.bias = nn.Parameter(torch.zeros(1, out_channels, 1, 1))  # beside the convolution's own, as the authors do
        nn.init.xavier_normal_(self.conv.weight, gain=0.02)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)) + self.bias


@records_arguments
class StyleSwinGenerator(nn.Module):
    """StyleSwin generator: normal latents become images, the prior of TransMRSR.

    Latents z [B, style_dim] from N(0, I) become images [B, out_channels, size, size] in the range of the images that
    it was trained on. It draws no random numbers of its own: the same z gives the same image.

    Attributes:
        channels, num_heads: widths and heads in use, at the resolutions 4, 8, ..., size.
        num_latents: style latents of one image, 2 * (log2(size) - 1).
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        size: height and width of the images: 16, 32, 64, 128, 256, 512 or 1024.
        out_channels: channels of the images, such as 1 for grey and 3 for colour.
        style_dim: channels of a latent.
        mapping_layers: layers between z and w.
        channel_multiplier: factor of the widths at resolutions over 32 (the authors take 1, and 2 for their best).
        channels: widths at the resolutions 4, 8, ..., size, in place of the authors' table (512, 512, 512, 512, 256,
            128, 64, 32, 16, over 32 times channel_multiplier); multiples of 4, at least 8.
        num_heads: attention heads at these resolutions, even divisors of the widths; by default one for 32 channels,
            at least 4.
        window_size: side of the attention windows; where the resolution is lower, one window covers everything.
        mlp_ratio: hidden width of the perceptrons, as a multiple of their input.

    Raises:
        ValueError: the size is not supported, a list has another length than the resolutions, or widths or heads do not
            fit.
    """

    def __init__(
        self,
        size: int = 256,
        out_channels: int = 1,
        *,
        style_dim: int = 512,
        mapping_layers: int = 8,
        channel_multiplier: int = 1,
        channels: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        window_size: int = 8,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.channels = widths(size, channel_multiplier, channels)
        self.num_heads = heads_per_width(self.channels, num_heads)
        self.style_dim = style_dim
        self.mapping = MappingNetwork(style_dim, mapping_layers)
        self.decoder = StyleSwinDecoder(self.channels, self.num_heads, style_dim, window_size, mlp_ratio)
        self.num_latents = self.decoder.num_latents
        # Every layer but the last has been upsampled, and so narrowed to the next width, when it is read.
        self.to_image = nn.ModuleList(ToImage(dim, out_channels) for dim in [*self.channels[1:], self.channels[-1]])
        self.upsample = BinomialUpsample()

    def forward(self, z: Tensor, psi: float = 1.0, centre: Tensor | None = None) -> Tensor:
        """Generate images [B, out_channels, size, size] from latents z [B, style_dim].

        Args:
            z: normal random numbers, drawn by the caller.
            psi: truncation: 1 keeps the variety of the training images, 0 gives the image of the centre.
            centre: where truncation leads, a latent w [1, style_dim] or one per sample, such as that of `mean_latent`;
                needed where psi is not 1.

        Raises:
            ValueError: psi is not 1 and there is no centre.
        """
        w = self.mapping(z)
        if psi != 1:
            if centre is None:
                raise ValueError(f"psi is {psi} without a centre: expected a latent w, such as mean_latent(4096).")
            w = truncate(w, centre, psi)
        return self.synthesis(w)

    def synthesis(self, w: Tensor) -> Tensor:
        """Generate images from style latents w [B, style_dim], or w+ [B, num_latents, style_dim] with one per block."""
        if w.dim() == 2:
            w = w.unsqueeze(1).expand(-1, self.num_latents, -1)
        conditions: list[tuple[Tensor, Tensor]] = []
        features = self.decoder(w, conditions)
        image = torch.zeros([], dtype=w.dtype, device=w.device)
        for i, to_image in enumerate(self.to_image):
            # The last two layers have the same resolution.
            if 0 < i < len(features) - 1:
                image = self.upsample(image)
            image = image + to_image(features[i])
        return image

    @torch.no_grad()
    def mean_latent(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return the mean style latent w of `count` random z: [1, style_dim].

        `generator` draws them on the device of the weights; by default PyTorch's own generator there does.
        """
        weight = self.decoder.constant
        z = torch.randn(count, self.style_dim, generator=generator, device=weight.device, dtype=weight.dtype)
        return self.mapping(z).mean(dim=0, keepdim=True)
