"""Fixed filters that change the size of an image without aliasing: binomial low-pass and Haar wavelet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def haar(x: Tensor) -> Tensor:
    """Apply one level of the orthonormal Haar wavelet transform: [B, C, H, W] -> [B, 4C, H / 2, W / 2], H and W even.

    The bands follow each other, each with all channels: twice the mean, the difference of rows, that of columns and
    that of both, where a difference is the first minus the second. The sum of squares is kept.
    """
    a, b = x[..., ::2, ::2], x[..., ::2, 1::2]
    c, d = x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return torch.cat([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 2


def binomial_kernel() -> Tensor:
    """Return the outer product of [1, 3, 3, 1] with itself, divided so that its sum is 1: [4, 4]."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return torch.outer(line, line)


class BinomialFilter(nn.Module):
    """Pad with zeros, filter every channel with `binomial_kernel`, and keep every `stride`-th sample.

    [B, C, H, W] -> [B, C, (H + 2 * padding - 4) // stride + 1, the same of W].
    """

    def __init__(self, *, stride: int = 1, padding: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding
        self.register_buffer("kernel", binomial_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.expand(x.shape[1], 1, 4, 4)
        return F.conv2d(x, kernel, stride=self.stride, padding=self.padding, groups=x.shape[1])


class BinomialUpsample(nn.Module):
    """Double H and W by zeros between the samples and `binomial_kernel` times 4: [B, C, H, W] -> [B, C, 2H, 2W]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", 4 * binomial_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.expand(x.shape[1], 1, 4, 4)
        return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=x.shape[1])
