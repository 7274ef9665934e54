"""TransMRSR: super-resolution of brain MRI around a StyleSwin generator trained before (arXiv 2306.06669)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.equalized import EqualConv2d, EqualLinear, ScaledLeakyReLU
from medsr_monai.networks.blocks.padding import margins, pad_to_size
from medsr_monai.networks.blocks.residual import ResidualBlock
from medsr_monai.networks.blocks.style import StyleSwinDecoder, heads_per_width, truncate, widths
from medsr_monai.networks.blocks.swin_layer import SwinLayer
from medsr_monai.networks.blocks.tiles import cut_into_tiles, join_tiles, tile_starts, tile_weights
from medsr_monai.networks.blocks.upsample import enlarge, scale_per_axis
from medsr_monai.networks.blocks.window_attention import shifted_windows, window_partition, window_reverse

TRUNCATIONS = ("nearest", "farthest", "none")
"""Which centroid a latent is drawn to; see `TransMRSR`."""


def convolutional_features(in_channels: int, dim: int) -> nn.Sequential:
    """Build a 3x3 convolution, a ReLU and two residual blocks: [B, in_channels, H, W] -> [B, dim, H, W]."""
    conv = nn.Conv2d(in_channels, dim, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), ResidualBlock(dim, 0.0, 1.0), ResidualBlock(dim, 0.0, 1.0))


class PatchMerging(nn.Module):
    """Join squares of 2x2 tokens into one: [B, H, W, dim] -> [B, H / 2, W / 2, out_dim] (Swin, section 3.1)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        # Column by column, each from top to bottom, is the order of Swin's weights.
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class EncoderLevel(nn.Module):
    """Two Swin layers and a 3x3 convolution, added to their input, then a patch merging.

    [B, resolution, resolution, dim] -> [B, resolution / 2, resolution / 2, out_dim]. The second layer shifts its
    windows, unless one window covers everything.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        resolution: int,
        num_heads: int,
        window_size: int,
        mlp_ratio: float,
        attention_scale: float | None,
    ) -> None:
        super().__init__()
        self.window_size = min(window_size, resolution)
        self.shift_size = self.window_size // 2 if resolution > self.window_size else 0
        self.layers = nn.ModuleList(
            SwinLayer(dim, num_heads, self.window_size, shift, mlp_ratio, attention_scale)
            for shift in (0, self.shift_size)
        )
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.downsample = PatchMerging(dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        b, height, width, _ = x.shape
        shifted = shifted_windows(height, width, self.window_size, self.shift_size, x.device)
        y = window_partition(x, self.window_size).unflatten(0, (b, -1))
        for layer in self.layers:
            y = layer(y, shifted)
        y = window_reverse(y.flatten(0, 1), self.window_size, height, width)
        return self.downsample(x + self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class ConditionNet(nn.Sequential):
    """Scale or shift of half of a decoder layer's channels, from the encoder: [B, dim, H, W] -> [B, dim / 2, H, W]."""

    def __init__(self, dim: int, initial_value: float = 0.0) -> None:
        last = EqualConv2d(dim, dim // 2, 3, padding=1)
        nn.init.constant_(last.bias, initial_value)
        super().__init__(EqualConv2d(dim, dim, 3, padding=1), ScaledLeakyReLU(), last)


@records_arguments
class TransMRSR(nn.Module):
    """TransMRSR: a Swin encoder finds the latents and the features by which a StyleSwin decoder draws the sharp image.

    An image [B, in_channels, H, W], usually interpolated to the target grid before (`scale=1`), becomes
    [B, out_channels, H * rows, W * columns]. The network works on size x size pixels: smaller images are padded evenly
    inside by repeating their border, where the authors pad with background, and cropped again; larger ones are cut
    into tiles which overlap by at least a quarter and fade into each other. Intensities are neither scaled nor clipped;
    they are in the range of the images that the prior was trained on.

    To start a training, build the network, then call `load_prior` with the weights of a `StyleSwinGenerator` and the
    centroids of its latents, and initialise nothing after that. Until centroids are loaded (by `load_prior`,
    `load_centroids`, or with a state dict), a network with truncation refuses to run.

    Attributes:
        scale_factors: (rows, columns) by which the output is larger.
        size_multiple: `size`; inputs of such a size, after `scale`, need no padding.
        minimum_size: the smallest H and W, 1.
        channels, num_heads, encoder_heads: widths and heads in use.
        encoder_attention_scale: as given; None where each level has its own.
        centroids: centres of the truncation, [num_centroids, style_dim], part of the state dict; None without
            truncation.
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        scale: 1 for images on the target grid; 2, 3, 4 or 8, or one per slice axis such as [1, 4], for images which
            are to be interpolated to it (bicubic) inside the network.
        size: height and width that the network works on: 16, 32, 64, 128, 256, 512 or 1024.
        style_dim: channels of a latent.
        channel_multiplier: factor of the widths at resolutions over 32.
        channels: widths at the resolutions 4, 8, ..., size, in place of StyleSwin's table; multiples of 4, at least 8.
        num_heads: attention heads of the decoder at these resolutions, even divisors of the widths; by default one for
            32 channels, at least 4.
        encoder_heads: attention heads of the encoder at the resolutions size, size / 2, ..., 8; by default those of
            the decoder there. The authors' code gives the encoder the decoder's list in the order from 4 upwards, at
            size 256 [16, 16, 16, 16, 8, 4], evidently by mistake.
        encoder_attention_scale: factor of the encoder's attention scores; by default Swin's, (channels of a head) to
            the power of -0.5. The authors' code has 1.
        window_size: side of the attention windows.
        mlp_ratio: hidden width of the perceptrons, as a multiple of their input.
        truncation: draw each latent to the "nearest" centroid, as the paper says, to the "farthest", as the authors'
            code does, or not at all ("none").
        psi: share of its distance to the centroid that a latent keeps, 0 to 1.
        num_centroids: centroids of the prior's latents.
        encoder_features: scale and shift half of the decoder's features by encoder features of all resolutions
            (channel-wise scale and shift, CWSS).
        modulated_half: "first" half of the channels is scaled and shifted, or the "second", as GFP-GAN does.
        initial_scale: what these scales are centred at before training: 0 as the authors do, 1 as GFP-GAN does.
        feature_skip: add the first features to the decoder's.
        global_residual: add the input, so that the network predicts what is missing in it.

    Raises:
        ValueError: scale or size is not supported; a list has another length than the resolutions; widths or heads do
            not fit; truncation or modulated_half is another word; psi is outside 0 to 1; num_centroids is below 1; or
            global_residual is set and in_channels differs from out_channels.
    """

    minimum_size = 1

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int | Sequence[int] = 1,
        *,
        size: int = 256,
        style_dim: int = 512,
        channel_multiplier: int = 1,
        channels: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        encoder_heads: Sequence[int] | None = None,
        encoder_attention_scale: float | None = None,
        window_size: int = 8,
        mlp_ratio: float = 4.0,
        truncation: str = "nearest",
        psi: float = 0.9,
        num_centroids: int = 8,
        encoder_features: bool = True,
        modulated_half: str = "first",
        initial_scale: float = 0.0,
        feature_skip: bool = True,
        global_residual: bool = True,
    ) -> None:
        super().__init__()
        if truncation not in TRUNCATIONS:
            raise ValueError(f"truncation is {truncation!r}: expected one of {list(TRUNCATIONS)}.")
        if not 0 <= psi <= 1:
            raise ValueError(f"psi is {psi}: expected 0 (all latents become centroids) to 1 (they stay as they are).")
        if num_centroids < 1:
            raise ValueError(f"num_centroids is {num_centroids}: expected at least 1; for none, truncation 'none'.")
        if global_residual and in_channels != out_channels:
            raise ValueError(
                f"global_residual adds {in_channels} input channels to {out_channels} output channels: expected equal "
                "numbers; set out_channels to in_channels, or global_residual to false."
            )
        self.scale_factors = scale_per_axis(scale)
        self.size = self.size_multiple = size
        self.out_channels = out_channels
        self.channels = widths(size, channel_multiplier, channels)
        self.num_heads = heads_per_width(self.channels, num_heads)
        fine_to_coarse = self.channels[:0:-1]  # of the encoder's inputs, at size, size / 2, ..., 8
        encoder_heads = self.num_heads[:0:-1] if encoder_heads is None else encoder_heads
        self.encoder_heads = heads_per_width(fine_to_coarse, encoder_heads, "encoder_heads")
        self.encoder_attention_scale = encoder_attention_scale
        self.style_dim = style_dim
        self.truncation = truncation
        self.psi = psi
        self.encoder_features = encoder_features
        self.feature_skip = feature_skip
        self.global_residual = global_residual

        dim, coarse = self.channels[-1], self.channels[0]
        self.shallow = convolutional_features(in_channels, dim)
        self.embed_norm = nn.LayerNorm(dim)
        self.encoder = nn.ModuleList(
            EncoderLevel(*dims, size // 2**i, heads, window_size, mlp_ratio, encoder_attention_scale)
            for i, (*dims, heads) in enumerate(
                zip(fine_to_coarse, [*fine_to_coarse[1:], coarse], self.encoder_heads, strict=True)
            )
        )
        self.encoder_norm = nn.LayerNorm(coarse)
        self.num_latents = 2 * len(self.channels)
        self.to_latents = EqualLinear(16 * coarse, self.num_latents * style_dim, lr_mul=0.01, activate=True)
        # In the decoder's order, from coarse to fine: at 4, 8, ..., size / 2.
        conditioned = self.channels[:-1] if encoder_features else []
        self.to_scale = nn.ModuleList(ConditionNet(c, initial_scale) for c in conditioned)
        self.to_shift = nn.ModuleList(ConditionNet(c) for c in conditioned)
        self.deep = convolutional_features(dim, dim)
        self.last = nn.Conv2d(dim, out_channels, 1)
        for module in self.modules():  # all but the decoder, which comes after this and initialises itself
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.decoder = StyleSwinDecoder(
            self.channels, self.num_heads, style_dim, window_size, mlp_ratio, modulated_half
        )
        self.has_centroids = False
        centroids = None if truncation == "none" else torch.full((num_centroids, style_dim), torch.nan)
        self.register_buffer("centroids", centroids)
        self.register_load_state_dict_post_hook(_look_for_centroids)

    @torch.jit.unused
    def load_prior(self, prior: Mapping[str, Tensor], centroids: Tensor | None = None, *, freeze: bool = False) -> None:
        """Take over the decoder of a generator, after every initialisation.

        Args:
            prior: state dict of a `StyleSwinGenerator` with the same size, widths, heads and style_dim. Its mapping
                network and image layers have no place here.
            centroids: of the generator's latents w, [num_centroids, style_dim]; None leaves those that are here.
            freeze: keep the decoder as it is in training.

        Raises:
            ValueError: tensors do not fit; one line names the first of them, and nothing is changed.
        """
        theirs = {name.removeprefix("decoder."): value for name, value in prior.items() if name.startswith("decoder.")}
        ours = self.decoder.state_dict()
        names = sorted(ours.keys() | theirs.keys())
        shapes = [(n, _shape(theirs.get(n)), _shape(ours.get(n))) for n in names]
        differing = [f"decoder.{n} is {a} in the prior and {b} here" for n, a, b in shapes if a != b]
        if differing:
            raise ValueError(
                f"The prior does not fit, {len(differing)} tensors differ: {'; '.join(differing[:3])}. Expected the "
                "state dict of a StyleSwinGenerator with this network's size, channels, num_heads and style_dim."
            )
        if centroids is not None:
            self.load_centroids(centroids)
        self.decoder.load_state_dict(theirs)
        if freeze:
            self.decoder.requires_grad_(False)

    @torch.jit.unused
    def load_centroids(self, centroids: Tensor) -> None:
        """Set the centres of the truncation: latents w of the prior, [num_centroids, style_dim].

        Raises:
            ValueError: the shape is another, a number is not finite, or the network does not truncate.
        """
        if self.centroids is None:
            raise ValueError("This network was built with truncation 'none': centroids have no use in it.")
        if centroids.shape != self.centroids.shape or not centroids.isfinite().all():
            raise ValueError(
                f"The centroids are {tuple(centroids.shape)}: expected finite numbers {tuple(self.centroids.shape)}, "
                "num_centroids latents w of style_dim; cluster the latents of the prior that this network uses."
            )
        self.centroids.copy_(centroids)
        self.has_centroids = True

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns].

        Raises:
            RuntimeError: the network truncates, but no centroids were loaded.
        """
        rows, columns = self.scale_factors
        height, width = x.shape[2] * rows, x.shape[3] * columns
        if rows * columns > 1:
            x = enlarge(x, rows, columns)
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript looks into no `and`)
            if torch.compiler.is_compiling():
                return self._super_resolve_any_size(x)
        x = pad_to_size(x, self.size)
        if x.shape[2] == self.size and x.shape[3] == self.size:
            y = self._super_resolve(x)
        else:
            y = self._super_resolve_tiles(x)
        top, left = margins(height, self.size)[0], margins(width, self.size)[0]
        return y[:, :, top : top + height, left : left + width]

    def _super_resolve_tiles(self, x: Tensor) -> Tensor:
        """Super-resolve images larger than `size`, one tile after the other."""
        size, overlap = self.size, self.size // 4
        weights = tile_weights(size, x.device)
        y = torch.zeros([x.shape[0], self.out_channels, x.shape[2], x.shape[3]], device=x.device, dtype=x.dtype)
        total = torch.zeros([x.shape[2], x.shape[3]], device=x.device, dtype=x.dtype)
        for i in tile_starts(x.shape[2], size, overlap):
            for j in tile_starts(x.shape[3], size, overlap):
                tile = self._super_resolve(x[:, :, i : i + size, j : j + size])
                y[:, :, i : i + size, j : j + size] += weights * tile
                total[i : i + size, j : j + size] += weights
        return y / total

    @torch.jit.unused
    def _super_resolve_any_size(self, x: Tensor) -> Tensor:
        """Super-resolve images of any size, padded or in tiles, without a condition, so that one export does all."""
        tiles, row_shares, column_shares = cut_into_tiles(x, self.size, self.size // 4)
        return join_tiles(self._super_resolve(tiles), row_shares, column_shares)

    def _super_resolve(self, x: Tensor) -> Tensor:
        """Super-resolve images of size x size."""
        shallow = self.shallow(x)
        tokens = self.embed_norm(shallow.permute(0, 2, 3, 1))
        features: list[Tensor] = []
        for level in self.encoder:
            tokens = level(tokens)
            features.append(tokens)
        latents = self.to_latents(self.encoder_norm(tokens).flatten(1)).unflatten(1, (self.num_latents, self.style_dim))
        conditions: list[tuple[Tensor, Tensor]] = []
        for i, (to_scale, to_shift) in enumerate(zip(self.to_scale, self.to_shift)):  # noqa: B905 (TorchScript)
            feature = features[-1 - i].permute(0, 3, 1, 2)
            conditions.append((to_scale(feature), to_shift(feature)))
        y = self.decoder(self._truncate(latents), conditions)[-1].permute(0, 3, 1, 2)
        if self.feature_skip:
            y = y + shallow
        y = self.last(self.deep(y))
        return y + x if self.global_residual else y

    def _truncate(self, latents: Tensor) -> Tensor:
        """Draw each latent [B, num_latents, style_dim] towards a centroid."""
        centroids = self.centroids
        if centroids is None:
            return latents
        if not self.has_centroids:
            raise RuntimeError(
                "TransMRSR has no centroids to truncate to: load_prior(state_dict, centroids), load trained weights, "
                "or build it with truncation 'none'."
            )
        distances = (latents.unsqueeze(2) - centroids).square().sum(-1)
        chosen = distances.argmax(-1) if self.truncation == "farthest" else distances.argmin(-1)
        return truncate(latents, centroids[chosen], self.psi)


def _look_for_centroids(network: TransMRSR, _: object) -> None:
    if network.centroids is not None:
        network.has_centroids = bool(network.centroids.isfinite().all())


def _shape(tensor: Tensor | None) -> tuple[int, ...] | str:
    return "absent" if tensor is None else tuple(tensor.shape)
