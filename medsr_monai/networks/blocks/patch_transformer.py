"""Vision transformer on the patches of a feature map, for any size of the map."""

from __future__ import annotations

import torch.nn.functional as F
from monai.networks.blocks import MLPBlock, SABlock
from torch import Tensor, nn

from medsr_monai.networks.blocks.padding import pad_to_multiple


class TransformerLayer(nn.Module):
    """Self-attention, then a two-layer perceptron, each normalised first and added to its input (ViT, equations 2, 3).

    MONAI's TransformerBlock is not used, because it carries a norm for cross-attention that never gets a gradient.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size)
        self.attn = SABlock(hidden_size, num_heads, qkv_bias=True, use_flash_attention=True)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.mlp = MLPBlock(hidden_size, int(hidden_size * mlp_ratio), dropout_mode="vista3d")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchTransformer(nn.Module):
    """Vision transformer that relates the patches of a feature map: [B, C, H, W] -> [B, C, H, W] for any H and W.

    The map is padded to a multiple of the patch, cut into patches that become tokens, transformed, unfolded again,
    cropped, smoothed by a 3x3 convolution and added to the input. The place of a token is told by a depth-wise 3x3
    convolution over the grid of tokens, in place of a table that would fix the size. Attention is torch's fused one:
    no matrix of all pairs of tokens is held.

    Source: ViT, arXiv 2010.11929, section 3.1; position: conditional encoding, arXiv 2102.10882, section 3.3.

    Args:
        channels: C.
        hidden_size: channels of a token, a multiple of num_heads.
        patch_size: side of a patch.
        num_layers: transformer layers.
        num_heads: attention heads of each layer.
        mlp_ratio: hidden width of the perceptrons, as a multiple of hidden_size.

    Raises:
        ValueError: num_heads does not divide hidden_size.
    """

    def __init__(
        self,
        channels: int,
        hidden_size: int,
        patch_size: int = 4,
        num_layers: int = 4,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(
                f"num_heads is {num_heads}, which does not divide hidden_size {hidden_size}: expected a divisor of "
                f"{hidden_size}, choose another num_heads or hidden_size."
            )
        self.patch_size = patch_size
        self.embed = nn.Conv2d(channels, hidden_size, patch_size, stride=patch_size)
        self.position = nn.Conv2d(hidden_size, hidden_size, 3, padding=1, groups=hidden_size)
        self.layers = nn.ModuleList(TransformerLayer(hidden_size, num_heads, mlp_ratio) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.unfold = nn.Linear(hidden_size, channels * patch_size**2)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Add to [B, C, H, W] what its patches learn from each other."""
        height, width = x.shape[2], x.shape[3]
        grid = self.embed(pad_to_multiple(x, self.patch_size))
        grid = grid + self.position(grid)
        tokens = grid.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens)
        patches = self.unfold(self.norm(tokens)).transpose(1, 2)
        patches = patches.reshape(x.shape[0], -1, grid.shape[2], grid.shape[3])
        return x + self.conv(F.pixel_shuffle(patches, self.patch_size)[:, :, :height, :width])
