"""RDST as one would write it from its paper, without any work on speed: what `medsr_monai.networks.RDST` is held to.

Every Swin layer cuts its token map into windows and puts it together again, shifts by `torch.roll`, adds a mask to the
scores of every window, and dense blocks append by concatenation. Attention is PyTorch's fused
`scaled_dot_product_attention`, and the mask is computed once a forward pass. Parameters have the names of
`medsr_monai.networks.RDST`, so that one loads the other's `state_dict`. `tests/networks/test_speed.py` holds it to the
goldens; `medsr benchmark --reference tests/networks/plain_rdst.py:PlainRDST` measures the networks beside it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def partition(x: Tensor, window: int) -> Tensor:
    """[B, H, W, C] -> [B * windows, window ** 2, C]."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, c)


def reverse(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """[B * windows, window ** 2, C] -> [B, H, W, C]."""
    x = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def attention_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """-100 between tokens of a window that a roll brought together from different regions: [windows, N, N]."""
    region = torch.zeros(1, height, width, 1)
    number = 0
    for rows in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
        for columns in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
            region[:, rows, columns] = number
            number += 1
    region = partition(region, window).squeeze(-1)
    return torch.where(region[:, None, :] == region[:, :, None], 0.0, -100.0)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        rows, columns = rows.flatten(), columns.flatten()
        down = rows[:, None] - rows[None, :] + window - 1
        right = columns[:, None] - columns[None, :] + window - 1
        self.register_buffer("index", down * (2 * window - 1) + right, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        count, n, c = x.shape
        q, k, v = self.qkv(x).view(count, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1).unsqueeze(0)
        if mask is not None:
            bias = bias + mask.repeat(count // mask.shape[0], 1, 1).unsqueeze(1)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(count, n, c))


class SwinLayer(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential()
        self.mlp.add_module("linear1", nn.Linear(dim, int(dim * mlp_ratio)))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("linear2", nn.Linear(int(dim * mlp_ratio), dim))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        _, h, w, _ = x.shape
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = self.attn(partition(y, self.window), mask if self.shift else None)
        y = reverse(y, self.window, h, w)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class DenseSwinBlock(nn.Module):
    def __init__(self, dim: int, growth: int, heads: int, window: int, shift: int, ratio: float, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SwinLayer(dim, heads, window, shift * (i % 2), ratio) for i in range(layers))
        narrow = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, growth))
        self.bottleneck = narrow if dim != growth else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = x
        for layer in self.layers:
            y = layer(y, mask)
        return torch.cat([x, self.bottleneck(y)], dim=-1)


class ResidualDenseSwinBlock(nn.Module):
    def __init__(
        self, dim: int, growth: int, heads: int, window: int, shift: int, ratio: float, blocks: int, layers: int
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            DenseSwinBlock(dim + i * growth, growth, heads, window, shift, ratio, layers) for i in range(blocks)
        )
        self.fusion = nn.Conv2d(dim + blocks * growth, dim, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = x
        for block in self.blocks:
            y = block(y, mask)
        return x + self.fusion(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PlainRDST(nn.Module):
    """Builds from the `arguments` of `medsr_monai.networks.RDST`, whose docstring describes them."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scale: int,
        embed_dim: int,
        growth_rate: int,
        num_heads: int,
        window_size: int,
        shift_size: int,
        mlp_ratio: float,
        num_blocks: int,
        num_dense_blocks: int,
        layers_per_block: int,
        global_feature_fusion: bool,
        bicubic_residual: bool,
        psf_channels: int,
    ) -> None:
        super().__init__()
        assert not psf_channels, "the paper's network is not told"
        self.scale, self.window, self.shift = scale, window_size, shift_size
        self.bicubic_residual = bicubic_residual
        self.head = nn.Conv2d(in_channels, embed_dim, 3, padding=1)
        self.embed_norm = nn.LayerNorm(embed_dim)
        self.blocks = nn.ModuleList(
            ResidualDenseSwinBlock(
                *(embed_dim, growth_rate, num_heads, window_size, shift_size, mlp_ratio),
                *(num_dense_blocks, layers_per_block),
            )
            for _ in range(num_blocks)
        )
        self.global_fusion = None
        if global_feature_fusion:
            self.global_fusion = nn.Sequential(
                nn.Linear(num_blocks * embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
            )
        else:
            self.norm = nn.LayerNorm(embed_dim)
            self.conv_after_body = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)
        upsample = []
        for factor in {1: [], 2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}[scale]:
            upsample += [nn.Conv2d(embed_dim, embed_dim * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
        self.upsample = nn.Sequential(*upsample)
        self.last = nn.Conv2d(embed_dim, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        _, _, height, width = x.shape
        padded = F.pad(x, (0, -width % self.window, 0, -height % self.window), mode="reflect")
        shallow = self.head(padded)
        mask = None
        if self.shift:
            mask = attention_mask(*padded.shape[2:], self.window, self.shift).to(x.device, x.dtype)
        y = self.embed_norm(shallow.permute(0, 2, 3, 1))
        outputs = []
        for block in self.blocks:
            y = block(y, mask)
            outputs.append(y)
        if self.global_fusion is not None:
            deep = self.global_fusion(torch.cat(outputs, dim=-1)).permute(0, 3, 1, 2)
        else:
            deep = self.conv_after_body(self.norm(y).permute(0, 3, 1, 2))
        y = self.last(self.upsample(shallow + deep))[:, :, : height * self.scale, : width * self.scale]
        if self.bicubic_residual:
            y = y + F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)
        return y
