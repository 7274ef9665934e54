"""One layer of a Swin Transformer, on tokens that are already cut into windows."""

from __future__ import annotations

from monai.networks.blocks import MLPBlock
from torch import Tensor, nn

from medsr_monai.networks.blocks.window_attention import WindowAttention, regroup


class SwinLayer(nn.Module):
    """Windowed self-attention, then a two-layer perceptron, each normalised first and added to its input.

    Source: Swin Transformer, arXiv 2103.14030, equation 3.

    Args:
        dim: channels of a token, a multiple of num_heads.
        num_heads: attention heads.
        window_size: side of the window.
        shift_size: how far the windows are moved right and down, 0 <= shift_size < window_size.
        mlp_ratio: hidden width of the perceptron, as a multiple of dim.
        attention_scale: factor of the attention scores; by default (dim / num_heads) ** -0.5.

    Raises:
        ValueError: num_heads does not divide dim.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        shift_size: int = 0,
        mlp_ratio: float = 2.0,
        attention_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift_size = shift_size
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size, attention_scale)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, int(dim * mlp_ratio), dropout_mode="vista3d")

    def forward(self, windows: Tensor, shifted: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Transform the tokens of windows [B, windows, N, dim]; `shifted` is `shifted_windows` of the image."""
        to_shifted, from_shifted, mask = shifted
        y = self.norm1(windows)
        if self.shift_size > 0:
            y = regroup(y, to_shifted)
            y = regroup(self.attn(y, mask), from_shifted)
        else:
            y = self.attn(y)
        windows = windows + y
        return windows + self.mlp(self.norm2(windows))
