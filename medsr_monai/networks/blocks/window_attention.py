"""Self-attention inside square windows of a token map [B, H, W, C], for any H and W that the window divides.

Pure functions first: cut into windows and back, regroup for a shift, index the position bias, attend; then the module.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Cut a token map into windows: [B, H, W, C] -> [B * windows, window_size ** 2, C]; undone by `window_reverse`.

    Windows go row by row, and so do the tokens of a window. H and W are multiples of window_size.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // window_size, window_size, w // window_size, window_size, c)
    return x.transpose(2, 3).reshape(-1, window_size * window_size, c)


def window_reverse(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Put windows together again: [B * windows, window_size ** 2, C] -> [B, height, width, C]."""
    c = windows.shape[-1]
    x = windows.view(-1, height // window_size, width // window_size, window_size, window_size, c)
    return x.transpose(2, 3).reshape(-1, height, width, c)


def shift_mask(
    height: int,
    width: int,
    window_size: int,
    shift_size: int,
    device: torch.device | None = None,
    windows: Tensor | None = None,
) -> Tensor:
    """Mask what a cyclic shift brought together in one window: [windows, N, N], where N = window_size ** 2.

    The mask is 0 where two tokens of a window, after a roll by -shift_size along both axes, come from the same side of
    the image, and -100 where one of them was wrapped around an edge (Swin, arXiv 2103.14030, section 3.2). `windows`
    selects some windows by number.
    """
    rows = torch.arange(height, device=device) >= height - shift_size
    columns = torch.arange(width, device=device) >= width - shift_size
    side = 2 * rows[:, None].long() + columns[None, :].long()
    side = window_partition(side[None, :, :, None], window_size).squeeze(-1)
    if windows is not None:
        side = side[windows]
    apart = side[:, :, None] != side[:, None, :]
    return torch.zeros(apart.shape, device=device).masked_fill(apart, -100.0)


def shifted_windows(
    height: int, width: int, window_size: int, shift_size: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Tell how the tokens of `window_partition` regroup into windows moved by shift_size down and to the right.

    They are the windows of a roll by -shift_size and a partition, except that those which wrap around an edge come
    last, because only they need a mask.

    Returns:
        to_shifted: for every token of the moved windows its place in the partition, [H * W].
        from_shifted: the inverse, [H * W].
        mask: `shift_mask` of the wrapped windows, [wrapped windows, N, N].
    """
    places = torch.arange(height * width, device=device).view(-1, window_size * window_size, 1)
    places = window_reverse(places, window_size, height, width)
    places = window_partition(torch.roll(places, (-shift_size, -shift_size), (1, 2)), window_size)
    windows = torch.arange(places.shape[0], device=device).view(height // window_size, width // window_size)
    wrapped = torch.cat([windows[:-1, -1], windows[-1]])
    to_shifted = places[torch.cat([windows[:-1, :-1].flatten(), wrapped])].flatten()
    mask = shift_mask(height, width, window_size, shift_size, device, wrapped)
    return to_shifted, torch.argsort(to_shifted), mask


def relative_position_index(window_size: int) -> Tensor:
    """Number the row of the position bias table for every pair of tokens of a window: [N, N], N = window_size ** 2.

    Query (i, j) and key (k, l) read row (i - k + w - 1) * (2w - 1) + (j - l + w - 1) of a table of (2w - 1) ** 2 rows,
    where w is window_size (Swin, arXiv 2103.14030, section 3.2).
    """
    i = torch.arange(window_size)
    offset = i[:, None] - i[None, :] + window_size - 1
    index = offset[:, None, :, None] * (2 * window_size - 1) + offset[None, :, None, :]
    return index.reshape(window_size**2, window_size**2)


def regroup(windows: Tensor, places: Tensor) -> Tensor:
    """Regroup the tokens of windows [B, windows, N, ...]: token i of the result is token places[i] of the input.

    `places` is `to_shifted` or `from_shifted` of `shifted_windows`; the one undoes the other.
    """
    return windows.flatten(1, 2).index_select(1, places).view(windows.shape)


def position_bias(table: Tensor, index: Tensor) -> Tensor:
    """Look `relative_position_index` up in a table [(2w - 1) ** 2, heads]: a bias for scores, [1, heads, N, N]."""
    n = index.shape[0]
    return table.t().index_select(1, index.flatten()).view(1, table.shape[1], n, n)


def attend(qkv: Tensor, bias: Tensor, scale: float | None = None) -> Tensor:
    """Compute scaled dot-product attention inside windows.

    Args:
        qkv: queries, keys and values [B, windows, N, 3, heads, channels of a head].
        bias: added to the scores, [windows or 1, heads, N, N].
        scale: factor of the scores before the bias; by default (channels of a head) ** -0.5.

    Returns:
        [B, windows, N, heads * channels of a head].
    """
    b, count, n, _, heads, c = qkv.shape
    q, k, v = qkv.flatten(0, 1).permute(2, 0, 3, 1, 4).unbind(0)
    if bias.shape[0] > 1:
        bias = bias.repeat(b, 1, 1, 1)
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=scale)
    return x.transpose(1, 2).reshape(b, count, n, heads * c)


def attend_masked(qkv: Tensor, bias: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Compute `attend` with a bias [1, heads, N, N], and a mask [m, N, N] added to the scores of the last m windows."""
    count = qkv.shape[1]
    # A network that is exported for all sizes can have no branch that depends on one.
    if not torch.compiler.is_compiling() and mask.shape[0] == count:
        return attend(qkv, bias + mask.unsqueeze(1), scale)
    # All unmasked windows share one small bias, where one per window would be read from memory in every layer.
    free = count - mask.shape[0]
    x, y = attend(qkv[:, :free], bias, scale), attend(qkv[:, free:], bias + mask.unsqueeze(1), scale)
    return torch.cat([x, y], dim=1)


class WindowAttention(nn.Module):
    """Multi-head self-attention of the tokens of each window, with relative position bias (Swin, equation 4).

    Args:
        dim: channels of a token, a multiple of num_heads.
        num_heads: attention heads.
        window_size: side of the window.
        scale: factor of the scores before the bias; by default (dim / num_heads) ** -0.5.

    Raises:
        ValueError: num_heads does not divide dim.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, scale: float | None = None) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"num_heads is {num_heads}, which does not divide the {dim} channels: expected a divisor of {dim}, "
                "choose other heads, or another width (embed_dim, growth_rate, channels)."
            )
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5 if scale is None else scale
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("index", relative_position_index(window_size), persistent=False)

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within windows [B, windows, N, dim]; a mask [m, N, N] is added to the scores of the last m of them."""
        b, count, n, c = windows.shape
        qkv = self.qkv(windows).view(b, count, n, 3, self.num_heads, c // self.num_heads)
        bias = position_bias(self.relative_position_bias_table, self.index)
        x = attend(qkv, bias, self.scale) if mask is None else attend_masked(qkv, bias, mask, self.scale)
        return self.proj(x)


class SplitWindowAttention(nn.Module):
    """Window attention with half of the heads in plain windows and half in shifted ones (StyleSwin, section 3.2).

    One projection makes the queries, keys and values of all heads; each half has a relative position bias of its own.
    Source: "double attention" of StyleSwin, arXiv 2112.10762.

    Args:
        dim: channels of a token, a multiple of num_heads.
        num_heads: attention heads, an even number; the first half attends in plain windows.
        window_size: side of the window.
        shift_size: how far the windows of the second half are moved right and down; 0 where the map is one window.

    Raises:
        ValueError: num_heads is odd or does not divide dim.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, shift_size: int) -> None:
        super().__init__()
        if num_heads % 2 or dim % num_heads:
            raise ValueError(
                f"num_heads is {num_heads} for {dim} channels: expected an even divisor of {dim}, "
                "choose another num_heads or channels."
            )
        self.num_heads = num_heads
        self.shift_size = shift_size
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.plain_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads // 2))
        self.shifted_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads // 2))
        nn.init.trunc_normal_(self.plain_bias_table, std=0.02)
        nn.init.trunc_normal_(self.shifted_bias_table, std=0.02)
        self.register_buffer("index", relative_position_index(window_size), persistent=False)

    def forward(self, windows: Tensor, shifted: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Attend within windows [B, windows, N, dim]; `shifted` is `shifted_windows` of the map."""
        b, count, n, c = windows.shape
        qkv = self.qkv(windows).view(b, count, n, 3, self.num_heads, c // self.num_heads)
        plain, moved = qkv.chunk(2, dim=4)
        bias = position_bias(self.shifted_bias_table, self.index)
        if self.shift_size > 0:
            to_shifted, from_shifted, mask = shifted
            moved = regroup(attend_masked(regroup(moved, to_shifted), bias, mask), from_shifted)
        else:
            moved = attend(moved, bias)
        plain = attend(plain, position_bias(self.plain_bias_table, self.index))
        return self.proj(torch.cat([plain, moved], dim=-1))
