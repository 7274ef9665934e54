"""RDST as everybody runs it: the network of `rdst`, computed faster.

On a CPU its Swin layers work on a few windows at a time, and everywhere its last two convolutions are computed as one.
This is what was tried with torch 2.15 on an AMD EPYC (Zen 4), for RDST-E x4 beside `tests/networks/plain_rdst.py`.
`medsr benchmark --reference` has measured all that was kept together; the rest was timed operation by operation.

| tried | brought | kept |
|---|---|---|
| last two convolutions as one (`shuffle_and_convolve`) | most of the gain at 40x32 pixels | yes |
| one window layout throughout, masks for wrapped windows only | some | yes |
| chunks, inference | most of the gain at 160x160: linear layers find their input in the cache | yes |
| chunks, attention's backward pass by hand | most of the gain of training | yes |
| 320, 640, 2560 tokens a chunk, or all, in place of 1280 | nothing beyond noise, all at once slower | no |
| attention's products transposed, as heads are narrow | faster in training, with bfloat16, with two threads | yes |
| moved windows of all kinds at once, each with its mask | some, where there are few windows | in inference |
| oneDNN's linear layer, or a 1x1 convolution, for MKL's | now slower, now faster | no |
| bfloat16 by autocast (`--precision bfloat16`) | faster where the CPU has it, with a measured error | option |

At 40x32 all windows are one chunk, and with float32 and one thread nothing brought more than the merged convolutions.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medsr_monai.networks import rdst
from medsr_monai.networks.blocks.upsample import pixel_shuffle
from medsr_monai.networks.blocks.window_attention import (
    position_bias,
    shifted_windows,
    window_partition,
    window_reverse,
)
from medsr_monai.networks.blocks.window_chunks import ChunkPlan, chunk_plan, chunks_help, in_chunks, swin_layer


class RDST(rdst.RDST):
    """Residual Dense Swin Transformer (arXiv 2302.11184), computed faster than `rdst.RDST` writes it down.

    Arguments, shapes, errors, the other attributes, state dict and recorded `arguments` are those of `rdst.RDST`, and
    the results agree to 1e-5.

    Attributes:
        merges_layers: compute the last two convolutions as one (see `shuffle_and_convolve`), True by default. Their
            forward hooks are then not called.
        works_in_chunks: compute a few windows at a time on a CPU (see `blocks.window_chunks`), True by default; it
            needs merges_layers. The forward hooks of blocks and Swin layers are then not called.
    """

    __constants__ = (*rdst.RDST.__constants__, "enlarges")

    @functools.wraps(rdst.RDST.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.merges_layers = True
        self.works_in_chunks = True
        self.enlarges = len(self.upsample) > 0 and self.size_multiple > 1

    def extract(self, tokens: Tensor) -> list[Tensor]:
        """Extract deep features as `rdst.RDST.extract` does, in chunks where these help."""
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript looks into no `and`)
            if self.works_in_chunks and self.merges_layers and chunks_help(tokens):
                return self.extract_in_chunks(tokens)
        # TorchScript knows no super(): the rest repeats rdst.RDST.extract
        shifted = shifted_windows(tokens.shape[1], tokens.shape[2], self.size_multiple, self.shift_size, tokens.device)
        outputs: list[Tensor] = []
        for block in self.blocks:
            tokens = block(tokens, shifted)
            outputs.append(tokens)
        return outputs

    @torch.jit.unused
    def extract_in_chunks(self, tokens: Tensor) -> list[Tensor]:
        """Extract deep features in chunks: the output of every block, each [B, H, W, embed_dim] as `tokens` is."""
        batch, height, width, _ = tokens.shape
        plan = chunk_plan(batch, height, width, self.size_multiple, self.shift_size, tokens.device)
        outputs = []
        for block in self.blocks:
            tokens = residual_block(block, tokens, plan)
            outputs.append(tokens)
        return outputs

    def reconstruct(self, features: Tensor) -> Tensor:
        """Reconstruct an image as `rdst.RDST.reconstruct` does, by merged convolutions where there are two."""
        if self.enlarges and self.merges_layers:
            for i, layer in enumerate(self.upsample):
                if i < len(self.upsample) - 2:
                    features = layer(features)
            conv, shuffle = self.upsample[-2], self.upsample[-1]
            bias, last_bias = conv.bias, self.last.bias
            assert bias is not None and last_bias is not None  # TorchScript cannot know
            return shuffle_and_convolve(
                features, conv.weight, bias, self.last.weight, last_bias, shuffle.rows, shuffle.columns
            )
        return self.last(self.upsample(features))


def residual_block(block: rdst.ResidualDenseSwinBlock, x: Tensor, plan: ChunkPlan) -> Tensor:
    """Run a residual dense block with its Swin layers in chunks: [B, H, W, dim] -> [B, H, W, dim]."""
    _, height, width, dim = x.shape
    windows = window_partition(x, block.window_size)
    if torch.is_grad_enabled():
        for dense in block.blocks:
            windows = torch.cat([windows, dense_growth(dense, windows, plan)], dim=-1)
    else:  # all growth is written into one tensor, which saves the copies of concatenation
        first, windows = windows, windows.new_empty(*windows.shape[:2], block.fusion.in_channels)
        windows[..., :dim] = first
        for dense in block.blocks:
            growth = dense_growth(dense, windows[..., :dim], plan)
            windows[..., dim : dim + growth.shape[-1]] = growth
            dim += growth.shape[-1]
    y = window_reverse(windows, block.window_size, height, width)
    return x + block.fusion(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def dense_growth(block: rdst.DenseSwinBlock, windows: Tensor, plan: ChunkPlan) -> Tensor:
    """Compute in chunks what a dense block appends: windows [windows, N, dim] -> [windows, N, growth_rate]."""
    moved = False
    for layer in block.layers:
        shifts = layer.shift_size > 0
        bias = position_bias(layer.attn.relative_position_bias_table, layer.attn.index)
        if shifts:
            bias = bias + plan.masks.unsqueeze(1)
        places = None if shifts == moved else plan.to_moved if shifts else plan.from_moved
        bottleneck = block.bottleneck if layer is block.layers[-1] else None
        run = functools.partial(swin_layer, layer=layer, bias=bias, bottleneck=bottleneck)
        windows = in_chunks(run, windows, plan.moved if shifts else plan.plain, places)
        moved = shifts
    return windows.flatten(0, 1).index_select(0, plan.from_moved).view(windows.shape) if moved else windows


def merge_with_shuffled(
    weight: Tensor, bias: Tensor, last_weight: Tensor, last_bias: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Merge a 3x3 convolution, a pixel shuffle and a 3x3 convolution into one 5x5 convolution before a pixel shuffle.

    Without an activation between them they are one linear map, except at the borders. Where the last convolution makes
    few channels, the merged one needs a twentieth of their operations. Gradients flow to all four tensors.

    Args:
        weight, bias: first convolution, [C * rows * columns, in_channels, 3, 3] and [C * rows * columns].
        last_weight, last_bias: last convolution, [out_channels, C, 3, 3] and [out_channels].
        rows, columns: factors of the pixel shuffle.

    Returns:
        weight [out_channels * rows * columns, in_channels, 5, 5] and bias [out_channels * rows * columns].
    """
    out, channels = last_weight.shape[:2]
    phases: list[Tensor] = []
    for row in range(rows):
        for column in range(columns):
            # the second convolution as one of the pixels before the shuffle, for each pixel that one of them becomes
            places = [columns + column - 1, 2 * columns - column - 2, rows + row - 1, 2 * rows - row - 2]
            taps = F.pad(last_weight, places).view(out, channels, 3, rows, 3, columns)
            phases.append(taps.permute(0, 1, 3, 5, 2, 4).reshape(out, -1, 3, 3))
    coarse = torch.stack(phases, dim=1).flatten(0, 1)
    merged_bias = last_bias.repeat_interleave(rows * columns) + coarse.sum((2, 3)) @ bias
    return F.conv_transpose2d(coarse, weight), merged_bias


def shuffle_and_convolve(
    x: Tensor, weight: Tensor, bias: Tensor, last_weight: Tensor, last_bias: Tensor, rows: int, columns: int
) -> Tensor:
    """Apply a 3x3 convolution, a pixel shuffle and a 3x3 convolution as one, merged by `merge_with_shuffled`.

    [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns], for H and W of at least 2. The outermost pixels,
    for which the last convolution pads with zeros, are computed one layer after the other from strips of x. Arguments
    as of `merge_with_shuffled`.
    """
    high, wide = 2 if rows > 1 else 3, 2 if columns > 1 else 3
    strips: list[Tensor] = []
    for strip in (x[:, :, :high], x[:, :, -high:], x[:, :, :, :wide], x[:, :, :, -wide:]):
        strip = pixel_shuffle(F.conv2d(strip, weight, bias, padding=1), rows, columns)
        strips.append(F.conv2d(strip, last_weight, last_bias, padding=1))
    top, bottom, left, right = strips
    weight, bias = merge_with_shuffled(weight, bias, last_weight, last_bias, rows, columns)
    y = pixel_shuffle(F.conv2d(x, weight, bias, padding=2), rows, columns)
    y = torch.cat([top[:, :, :1], y[:, :, 1:-1], bottom[:, :, -1:]], dim=2)
    return torch.cat([left[:, :, :, :1], y[:, :, :, 1:-1], right[:, :, :, -1:]], dim=3)
