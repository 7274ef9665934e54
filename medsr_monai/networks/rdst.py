"""RDST: Residual Dense Swin Transformer for super-resolution of medical images (arXiv 2302.11184)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.padding import pad_to_multiple
from medsr_monai.networks.blocks.point_spread import PointSpreadEmbedding
from medsr_monai.networks.blocks.swin_layer import SwinLayer
from medsr_monai.networks.blocks.upsample import Upsample, enlarge, require_equal_channels, scale_per_axis
from medsr_monai.networks.blocks.window_attention import shifted_windows, window_partition, window_reverse


class DenseSwinBlock(nn.Module):
    """Swin layers whose result, narrowed to `growth_rate` channels, is appended to their input (the paper's DSTB).

    Tokens of windows [B, windows, N, dim] become [B, windows, N, dim + growth_rate]. Every second layer shifts its
    windows; `shifted` is `shifted_windows` of the token map.
    """

    def __init__(
        self,
        dim: int,
        growth_rate: int,
        num_heads: int,
        window_size: int,
        shift_size: int,
        mlp_ratio: float,
        layers: int,
    ) -> None:
        super().__init__()
        shifts = [shift_size if i % 2 else 0 for i in range(layers)]
        self.layers = nn.ModuleList(SwinLayer(dim, num_heads, window_size, shift, mlp_ratio) for shift in shifts)
        # The authors leave out the bottleneck where there is nothing to narrow.
        narrow = dim != growth_rate
        self.bottleneck = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, growth_rate)) if narrow else nn.Identity()

    def forward(self, x: Tensor, shifted: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        y = x
        for layer in self.layers:
            y = layer(y, shifted)
        return torch.cat([x, self.bottleneck(y)], dim=-1)


class ResidualDenseSwinBlock(nn.Module):
    """Dense Swin blocks, one after the other, fused by a 3x3 convolution and added to their input (the paper's RDSTB).

    Token maps [B, H, W, dim] keep their shape; H and W are multiples of the window.
    """

    def __init__(
        self,
        dim: int,
        growth_rate: int,
        num_heads: int,
        window_size: int,
        shift_size: int,
        mlp_ratio: float,
        num_dense_blocks: int,
        layers_per_block: int,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.blocks = nn.ModuleList(
            DenseSwinBlock(
                dim + i * growth_rate, growth_rate, num_heads, window_size, shift_size, mlp_ratio, layers_per_block
            )
            for i in range(num_dense_blocks)
        )
        self.fusion = nn.Conv2d(dim + num_dense_blocks * growth_rate, dim, 3, padding=1)

    def start_as_identity(self) -> None:
        """Let the block return its input until training changes its fusion."""
        nn.init.zeros_(self.fusion.weight)
        nn.init.zeros_(self.fusion.bias)

    def forward(self, x: Tensor, shifted: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        b, height, width, _ = x.shape
        y = window_partition(x, self.window_size).unflatten(0, (b, -1))
        for block in self.blocks:
            y = block(y, shifted)
        y = window_reverse(y.flatten(0, 1), self.window_size, height, width)
        return x + self.fusion(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@records_arguments
class RDST(nn.Module):
    """Residual Dense Swin Transformer, and with `num_blocks=4` the authors' light RDST-E.

    An image [B, in_channels, H, W] of any H, W >= 1 becomes [B, out_channels, H * rows, W * columns]. Inside, it is
    padded to a multiple of the window at the bottom and right; the padding is cropped off the output. Intensities are
    neither scaled nor clipped: the authors train on [0, 1].

    On CPU, float32 agrees with float64 to 1e-5, channels_last with the contiguous layout to 1e-5, and autocast with
    float32 to 3 % (bfloat16) and 0.5 % (float16) of the largest output.

    Attributes:
        scale_factors: (rows, columns) by which the output is larger.
        size_multiple: the window; inputs of such a size need no padding.
        minimum_size: the smallest H and W, 1.
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        scale: 1, 2, 3, 4 or 8, or one of them per slice axis such as [1, 4].
        embed_dim: width between the blocks; a multiple of num_heads.
        growth_rate: channels that every dense block adds; a multiple of num_heads.
        num_heads: attention heads of every Swin layer.
        window_size: side of the attention windows.
        shift_size: shift of every second layer's windows; by default half the window, 0 for no shift.
        mlp_ratio: hidden width of the perceptrons, as a multiple of their input.
        num_blocks: residual dense blocks.
        num_dense_blocks: dense blocks in each of them.
        layers_per_block: Swin layers in each dense block.
        global_feature_fusion: fuse the outputs of all blocks by two linear layers (the authors' GFF variant), in place
            of the LayerNorm and convolution after the last block.
        psf_channels: length of the vector that tells the network the point spread of its input (see
            :func:`medsr_monai.transforms.encode_point_spread`, which makes 11 numbers); 0 for a network that is not
            told, as the paper's is.
        bicubic_residual: add the bicubic enlargement of the input to the output and start with a last convolution of
            zeros, so that an untrained network is exactly bicubic.

    Raises:
        ValueError: scale is not supported; num_heads does not divide a width; shift_size is outside [0, window_size);
            or bicubic_residual is set and in_channels differs from out_channels.
    """

    __constants__ = ("global_feature_fusion", "is_told")  # TorchScript compiles only the branch that is built
    minimum_size = 1

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int | Sequence[int] = 4,
        *,
        embed_dim: int = 60,
        growth_rate: int = 30,
        num_heads: int = 6,
        window_size: int = 8,
        shift_size: int | None = None,
        mlp_ratio: float = 2.0,
        num_blocks: int = 8,
        num_dense_blocks: int = 3,
        layers_per_block: int = 2,
        global_feature_fusion: bool = False,
        bicubic_residual: bool = False,
        psf_channels: int = 0,
    ) -> None:
        super().__init__()
        shift_size = window_size // 2 if shift_size is None else shift_size
        if not 0 <= shift_size < window_size:
            raise ValueError(
                f"shift_size is {shift_size}: expected 0 <= shift_size < window_size = {window_size}; "
                "leave it out for half a window."
            )
        if bicubic_residual:
            require_equal_channels(in_channels, out_channels)
        self.scale_factors = scale_per_axis(scale)
        self.size_multiple = window_size
        self.shift_size = shift_size
        self.bicubic_residual = bicubic_residual

        self.psf_channels = psf_channels
        self.is_told = psf_channels > 0

        self.head = nn.Conv2d(in_channels, embed_dim, 3, padding=1)
        if self.is_told:
            self.psf_embedding = PointSpreadEmbedding(psf_channels, embed_dim)
        self.embed_norm = nn.LayerNorm(embed_dim)
        self.blocks = nn.ModuleList(
            ResidualDenseSwinBlock(
                embed_dim,
                growth_rate,
                num_heads,
                window_size,
                shift_size,
                mlp_ratio,
                num_dense_blocks,
                layers_per_block,
            )
            for _ in range(num_blocks)
        )
        self.global_feature_fusion = global_feature_fusion
        if global_feature_fusion:
            self.global_fusion = nn.Sequential(
                nn.Linear(num_blocks * embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
            )
        else:
            self.norm = nn.LayerNorm(embed_dim)
            self.conv_after_body = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)
        self.upsample = Upsample(embed_dim, scale)
        self.last = nn.Conv2d(embed_dim, out_channels, 3, padding=1)

        for module in self.modules():  # convolutions keep PyTorch's default, as the authors do
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self.is_told:
            self.psf_embedding.start_as_identity()
        if bicubic_residual:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, psf: Tensor | None = None) -> Tensor:
        """Super-resolve [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns].

        Args:
            x: images.
            psf: point spread of each image, [B, psf_channels], or of all of them, [1, psf_channels]; None or zeros if
                it is unknown.

        Raises:
            ValueError: a point spread is given to a network that is not told.
        """
        rows, columns = self.scale_factors
        shallow = self.head(pad_to_multiple(x, self.size_multiple))
        if self.is_told:
            shallow = self.psf_embedding(shallow, psf)
        elif psf is not None:
            raise ValueError("psf is given to a network that is not told: build it with psf_channels")
        outputs = self.extract(self.embed_norm(shallow.permute(0, 2, 3, 1)))
        if self.global_feature_fusion:
            deep = self.global_fusion(torch.cat(outputs, dim=-1)).permute(0, 3, 1, 2)
        else:
            deep = self.conv_after_body(self.norm(outputs[-1]).permute(0, 3, 1, 2))
        # The sum has the memory layout of its first term, in which the next convolutions are faster.
        y = self.reconstruct(deep + shallow)[:, :, : x.shape[2] * rows, : x.shape[3] * columns]
        if self.bicubic_residual:
            y = y + enlarge(x, rows, columns)
        return y

    def extract(self, tokens: Tensor) -> list[Tensor]:
        """Extract deep features: the output of every residual dense block, each [B, H, W, embed_dim] as `tokens` is."""
        shifted = shifted_windows(tokens.shape[1], tokens.shape[2], self.size_multiple, self.shift_size, tokens.device)
        outputs: list[Tensor] = []
        for block in self.blocks:
            tokens = block(tokens, shifted)
            outputs.append(tokens)
        return outputs

    def reconstruct(self, features: Tensor) -> Tensor:
        """Reconstruct an image: features [B, embed_dim, H, W] -> [B, out_channels, H * rows, W * columns]."""
        return self.last(self.upsample(features))
