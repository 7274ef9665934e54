"""Layers with equalised learning rate (Progressive GAN, arXiv 1710.10196, section 4.1) and their leaky ReLU.

Weights are stored with unit variance and scaled when they are used, so that all of them learn at the same speed.
"""

from __future__ import annotations

from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scaled_leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, times sqrt(2), which keeps the variance (StyleGAN2, arXiv 1912.04958)."""
    return F.leaky_relu(x, 0.2) * sqrt(2)


class ScaledLeakyReLU(nn.Module):
    """`scaled_leaky_relu` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return scaled_leaky_relu(x)


class BiasedLeakyReLU(nn.Module):
    """Add a bias to every channel, then `scaled_leaky_relu`: [B, channels, ...] -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = [1, -1] + [1] * (x.dim() - 2)
        return scaled_leaky_relu(x + self.bias.view(shape))


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate: [..., in_features] -> [..., out_features].

    Args:
        in_features, out_features: channels.
        bias: add a bias, zero at the start.
        lr_mul: factor of the learning rate. Weight and bias are used times lr_mul, and the stored weight starts at
            N(0, 1) / lr_mul.
        activate: end with `scaled_leaky_relu`.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, lr_mul: float = 1.0, activate: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_mul)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.lr_mul = lr_mul
        self.gain = lr_mul / sqrt(in_features)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias
        y = F.linear(x, self.weight * self.gain, None if bias is None else bias * self.lr_mul)
        return scaled_leaky_relu(y) if self.activate else y


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate: [B, in_channels, H, W] -> [B, out_channels, H', W'].

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as of `torch.nn.Conv2d`.
        bias: add a bias, zero at the start.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.gain = 1 / sqrt(prod(self.weight.shape[1:]))
        self.stride = stride
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.gain, self.bias, stride=self.stride, padding=self.padding)
