"""Swin layers on a few windows at a time, so that what one operation writes, the next finds in the CPU's cache.

`chunk_plan` divides the windows of a batch into chunks, `swin_layer` and `attend` compute one chunk, and `in_chunks`
computes all of them. `fast_rdst` puts them together, and tells what each of them brought.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medsr_monai.networks.blocks import window_attention
from medsr_monai.networks.blocks.swin_layer import SwinLayer

TOKENS = 1280
"""The most tokens that a chunk has for each thread of torch, chosen by measuring (see `fast_rdst`)."""


class Chunk(NamedTuple):
    """Some neighbouring windows out of all windows of a batch.

    Attributes:
        first, last: numbers of the first window and of the one behind the last.
        parts: (how many windows, which kind of mask in `ChunkPlan.masks`), in the windows' order.
    """

    first: int
    last: int
    parts: tuple[tuple[int, int], ...]


class ChunkPlan(NamedTuple):
    """How the windows of a batch are moved, masked and divided; made by `chunk_plan`.

    Attributes:
        to_moved: for every token of the moved windows its place among the tokens of the plain ones, [B * H * W].
        from_moved: the inverse, [B * H * W].
        masks: what is added to the scores of moved windows inside the map, at its right edge, at its bottom edge and
            in its corner, [4, N, N].
        plain, moved: the chunks of the plain and of the moved windows.
    """

    to_moved: Tensor
    from_moved: Tensor
    masks: Tensor
    plain: list[Chunk]
    moved: list[Chunk]


def chunks_help(x: Tensor) -> bool:
    """Tell whether chunks make the work on a tensor faster: on a CPU they do, unless it is traced or compiled.

    The meta device, on which memory is estimated, stands for a CPU.
    """
    return x.device.type in ("cpu", "meta") and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def chunk_plan(
    batch: int, height: int, width: int, window_size: int, shift_size: int, device: torch.device | None = None
) -> ChunkPlan:
    """Divide the windows of `batch` token maps of height x width tokens into chunks.

    Moved windows are numbered so that those with the same mask stand together, whichever map they belong to.
    """
    n, rows, columns = window_size**2, height // window_size, width // window_size
    places = torch.arange(height * width, device=device).view(-1, n, 1)
    places = window_attention.window_reverse(places, window_size, height, width)
    places = torch.roll(places, (-shift_size, -shift_size), (1, 2))
    places = window_attention.window_partition(places, window_size).view(rows, columns, n)
    kinds = [places[:-1, :-1], places[:-1, -1:], places[-1:, :-1], places[-1:, -1:]]
    images = torch.arange(batch, device=device).view(-1, 1) * (height * width)
    to_moved = torch.cat([(images + kind.reshape(1, -1)).flatten() for kind in kinds])
    from_moved = torch.empty_like(to_moved)
    from_moved[to_moved] = torch.arange(len(to_moved), device=device)
    masks = window_attention.shift_mask(2 * window_size, 2 * window_size, window_size, shift_size, device)
    counts = [batch * kind.shape[0] * kind.shape[1] for kind in kinds]
    most = max(1, TOKENS * torch.get_num_threads() // n)
    return ChunkPlan(to_moved, from_moved, masks, _divided([sum(counts)], most), _divided(counts, most))


def _divided(counts: Sequence[int], most: int) -> list[Chunk]:
    """Divide counts[0] windows of kind 0, counts[1] of kind 1 and so on into nearly equal chunks of `most` at most."""
    total = sum(counts)
    number = -(-total // most)
    borders = [total * i // number for i in range(number + 1)]
    starts = [sum(counts[:kind]) for kind in range(len(counts))]
    chunks = []
    for first, last in pairwise(borders):
        parts = [
            (min(last, start + count) - max(first, start), kind)
            for kind, (start, count) in enumerate(zip(starts, counts, strict=True))
        ]
        chunks.append(Chunk(first, last, tuple(part for part in parts if part[0] > 0)))
    return chunks


def _attention(qkv: Tensor, scores: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute attention by products that are ordered for heads of few channels.

    A product [N, N] x [N, c] with few channels c costs up to three times its transpose, [c, N] x [N, N].

    Args:
        qkv: as `attend` has it.
        scores: what is added to the scores, [windows * heads, N, N]; it becomes the weights.
        scale: factor of the scores before that.

    Returns:
        The result as `attend` has it; queries, keys and values, each [windows * heads, N, c]; and the weights.
    """
    w, n, _, heads, c = qkv.shape
    q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, w * heads, n, c).unbind(0)
    scores.baddbmm_(q, k.transpose(1, 2), alpha=scale)
    weights = torch.softmax(scores, -1, out=scores)
    out = torch.bmm(v.transpose(1, 2), weights.transpose(1, 2))
    return out.view(w, heads, c, n).permute(0, 3, 1, 2).reshape(w, n, heads * c), q, k, v, weights


class _Attention(torch.autograd.Function):
    """`_attention`, which keeps its weights for the backward pass."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, scale: float) -> Tensor:
        out, *kept = _attention(qkv, bias.repeat(qkv.shape[0], 1, 1), scale)
        ctx.save_for_backward(*kept)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        q, k, v, weights = ctx.saved_tensors
        w, n, _ = grad.shape
        c = q.shape[-1]
        heads = q.shape[0] // w
        grad = grad.view(w, n, heads, c).permute(0, 2, 3, 1).reshape(w * heads, c, n)
        grads = grad.new_empty(3, w * heads, c, n)
        torch.bmm(grad, weights, out=grads[2])
        scores = torch.bmm(grad.transpose(1, 2), v.transpose(1, 2))
        scores = torch._softmax_backward_data(scores, weights, -1, scores.dtype)
        torch.bmm(k.transpose(1, 2), scores.transpose(1, 2), out=grads[0])
        torch.bmm(q.transpose(1, 2), scores, out=grads[1])
        grads[:2].mul_(ctx.scale)
        return grads.view(3, w, heads, c, n).permute(1, 4, 0, 2, 3), scores.view(w, heads, n, n).sum(0), None


def attend(qkv: Tensor, bias: Tensor, scale: float, parts: Sequence[tuple[int, int]]) -> Tensor:
    """Compute attention inside windows of several kinds, as `window_attention.attend` does for one kind.

    Args:
        qkv: queries, keys and values [windows, N, 3, heads, channels of a head].
        bias: what is added to the scores in each kind of windows, [kinds, heads, N, N].
        scale: factor of the scores before the bias.
        parts: how many windows have which kind (see `Chunk`).

    Returns:
        [windows, N, heads * channels of a head].
    """
    # PyTorch's own keeps float32 inside for float16, which is too coarse for scores
    if not torch.is_grad_enabled() and qkv.dtype != torch.float16:
        kinds = torch.tensor([kind for count, kind in parts for _ in range(count)], device=qkv.device)
        return _attention(qkv, bias.to(qkv.dtype).index_select(0, kinds).flatten(0, 1), scale)[0]
    split = _split(qkv, parts)
    if torch.is_grad_enabled() and not torch.is_autocast_enabled(qkv.device.type):
        outs = [_Attention.apply(part, bias[kind], scale) for part, kind in split]
    else:
        outs = [window_attention.attend(part.unsqueeze(0), bias[kind : kind + 1], scale)[0] for part, kind in split]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _split(x: Tensor, parts: Sequence[tuple[int, int]]) -> list[tuple[Tensor, int]]:
    if len(parts) == 1:
        return [(x, parts[0][1])]
    return [(part, kind) for part, (_, kind) in zip(x.split([count for count, _ in parts]), parts, strict=True)]


def swin_layer(
    windows: Tensor,
    parts: Sequence[tuple[int, int]],
    *,
    layer: SwinLayer,
    bias: Tensor,
    bottleneck: nn.Module | None = None,
) -> Tensor:
    """Run a Swin layer on windows [windows, N, dim] that stand where it wants them, plain or moved.

    Args:
        windows: the tokens.
        parts: as `attend` has them.
        layer: the layer.
        bias: as `attend` has it.
        bottleneck: what narrows the tokens after the layer, if anything does.

    Returns:
        [windows, N, dim], or what the bottleneck makes of it.
    """
    attention = layer.attn
    w, n, dim = windows.shape
    qkv = attention.qkv(layer.norm1(windows)).view(w, n, 3, attention.num_heads, dim // attention.num_heads)
    windows = windows + attention.proj(attend(qkv, bias, attention.scale, parts))
    windows = windows + layer.mlp(layer.norm2(windows))
    return windows if bottleneck is None else bottleneck(windows)


def in_chunks(
    function: Callable[[Tensor, Sequence[tuple[int, int]]], Tensor],
    windows: Tensor,
    chunks: Sequence[Chunk],
    places: Tensor | None = None,
) -> Tensor:
    """Call a function with each chunk of windows [windows, N, C] and its `parts`, and join the results.

    `places`, if given, regroups the tokens first: token i is token places[i] of `windows`.
    """
    n, c = windows.shape[1:]
    if len(chunks) == 1 or torch.is_grad_enabled():
        if places is not None:
            windows = windows.flatten(0, 1).index_select(0, places).view(-1, n, c)
        if len(chunks) == 1:
            return function(windows, chunks[0].parts)
        # split, not slices, each of which would have a gradient as large as all windows
        sizes = [chunk.last - chunk.first for chunk in chunks]
        return torch.cat(
            [function(part, chunk.parts) for part, chunk in zip(windows.split(sizes), chunks, strict=True)]
        )
    if windows.is_meta:  # nothing is computed, and one chunk takes the memory of any
        chunks = [max(chunks, key=lambda chunk: (len(chunk.parts), chunk.last - chunk.first))]
    result = None
    for chunk in chunks:
        if places is None:
            part = windows[chunk.first : chunk.last]
        else:
            part = windows.flatten(0, 1).index_select(0, places[chunk.first * n : chunk.last * n]).view(-1, n, c)
        part = function(part, chunk.parts)
        if result is None:
            result = part.new_empty(len(windows), *part.shape[1:])
        result[chunk.first : chunk.last] = part
        del part  # it would live on beside the next one
    return result
