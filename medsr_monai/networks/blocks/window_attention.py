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
    """Mask that keeps apart what a cyclic shift brought together in one window: [windows, N, N], N = window_size ** 2.

    0 where two tokens of a window, after a roll by -shift_size along both axes, come from the same side of the image,
    and -100 where one of them was wrapped around an edge (Swin, arXiv 2103.14030, section 3.2). `windows` selects some
    windows by number.
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
    """How the tokens of `window_partition` regroup into windows moved by shift_size down and to the right.

    The same as a roll by -shift_size and a partition, except that the windows which wrap around an edge come last,
    because only they need a mask.

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
    """Row of the relative position bias table for every pair of tokens of a window: [N, N], N = window_size ** 2.

    Query (i, j) and key (k, l) read row (i - k + w - 1) * (2w - 1) + (j - l + w - 1) of a table of (2w - 1) ** 2 rows.
    """
    i = torch.arange(window_size)
    offset = i[:, None] - i[None, :] + window_size - 1
    index = offset[:, None, :, None] * (2 * window_size - 1) + offset[None, :, None, :]
    return index.reshape(window_size**2, window_size**2)


def attend(qkv: Tensor, bias: Tensor) -> Tensor:
    """Scaled dot-product attention inside windows.

    Args:
        qkv: queries, keys and values [B, windows, N, 3, heads, channels of a head].
        bias: added to the scores, [windows or 1, heads, N, N].

    Returns:
        [B, windows, N, heads * channels of a head].
    """
    b, count, n, _, heads, c = qkv.shape
    q, k, v = qkv.flatten(0, 1).permute(2, 0, 3, 1, 4).unbind(0)
    if bias.shape[0] > 1:
        bias = bias.repeat(b, 1, 1, 1)
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    return x.transpose(1, 2).reshape(b, count, n, heads * c)


class WindowAttention(nn.Module):
    """Multi-head self-attention of the tokens of each window, with relative position bias (Swin, equation 4).

    Args:
        dim: channels of a token, a multiple of num_heads.
        num_heads: attention heads.
        window_size: side of the window.

    Raises:
        ValueError: num_heads does not divide dim.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"num_heads is {num_heads}, which does not divide the {dim} channels: expected a divisor of {dim}, "
                "choose another num_heads, embed_dim or growth_rate."
            )
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("index", relative_position_index(window_size), persistent=False)

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within windows [B, windows, N, dim]; a mask [m, N, N] is added to the scores of the last m of them."""
        b, count, n, c = windows.shape
        qkv = self.qkv(windows).view(b, count, n, 3, self.num_heads, c // self.num_heads)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1).unsqueeze(0)
        if mask is None:
            x = attend(qkv, bias)
        elif mask.shape[0] == count:
            x = attend(qkv, bias + mask.unsqueeze(1))
        else:
            # All unmasked windows share one small bias, where one per window would be read from memory in every layer.
            free = count - mask.shape[0]
            x = torch.cat([attend(qkv[:, :free], bias), attend(qkv[:, free:], bias + mask.unsqueeze(1))], dim=1)
        return self.proj(x)
