"""Non-local block: every pixel gathers from all others what resembles it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class NonLocal(nn.Module):
    """Embedded-Gaussian non-local block: [B, C, H, W] -> [B, C, H, W] for any H and W.

    Pixel i receives x_i + W sum_j a_ij g(x_j): row i of a is the softmax over all pixels j of theta(x_i) . phi(x_j),
    and theta, phi, g and W are 1x1 convolutions. W starts at zero, so that an untrained block hands on its input.

    The (H * W) ** 2 numbers a_ij are never held together: torch's fused attention works through them in tiles, forward
    and backward, on the CPU, and on CUDA in float32, float16 and bfloat16 (not in float64). With the default
    inner_channels, inference needs at most 8 times the memory of the input beside it. The time still grows with
    (H * W) ** 2: at 512 x 512 it is some minutes on one CPU core, and a quarter of that with subsample=2. In ONNX the
    block is a product, a softmax and a product, and the whole matrix is held.

    Source: Non-local Neural Networks, arXiv 1711.07971, equations 1, 4 and 6; without its batch normalisation.

    Args:
        channels: C.
        inner_channels: channels that are compared and gathered; by default half of C.
        subsample: side of the max-pooling of phi and g, so that pixels gather from 1 / subsample ** 2 as many places.

    Raises:
        ValueError: subsample is below 1.
    """

    def __init__(self, channels: int, inner_channels: int | None = None, subsample: int = 1) -> None:
        super().__init__()
        if subsample < 1:
            raise ValueError(f"subsample is {subsample}: expected 1 (every pixel) or more, such as 2.")
        inner_channels = max(1, channels // 2) if inner_channels is None else inner_channels
        self.subsample = subsample
        self.theta = nn.Conv2d(channels, inner_channels, 1)
        self.phi = nn.Conv2d(channels, inner_channels, 1)
        self.g = nn.Conv2d(channels, inner_channels, 1)
        self.out = nn.Conv2d(inner_channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def gather(self, x: Tensor) -> Tensor:
        """Average g over all pixels by their similarity: [B, C, H, W] -> [B, inner channels, H, W]."""
        phi, g = self.phi(x), self.g(x)
        if self.subsample > 1:
            phi = F.max_pool2d(phi, self.subsample, ceil_mode=True)
            g = F.max_pool2d(g, self.subsample, ceil_mode=True)
        # One head; the fused kernels take only tokens whose channels lie side by side, else the whole matrix is built.
        query, key, value = [y.flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for y in (self.theta(x), phi, g)]
        y = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return y.squeeze(1).transpose(1, 2).reshape(x.shape[0], -1, x.shape[2], x.shape[3])

    def forward(self, x: Tensor) -> Tensor:
        """Add to every pixel of [B, C, H, W] what it gathers."""
        return x + self.out(self.gather(x))
