"""Windows in chunks: values and gradients as of all at once, less memory, and each window's own mask."""

import copy

import pytest
import torch

from medsr_monai.networks import RDST
from medsr_monai.networks.blocks import window_chunks
from medsr_monai.networks.blocks.window_attention import attend, shift_mask, window_partition
from medsr_monai.networks.blocks.window_chunks import chunk_plan
from medsr_monai.upscaling.plan import _LiveTensors, activation_bytes


def network_like_trained(**arguments):
    torch.manual_seed(0)
    network = RDST(**{"embed_dim": 12, "growth_rate": 6, "num_heads": 2, "window_size": 4, "scale": 2} | arguments)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return network


@pytest.mark.parametrize("grid", [(3, 2), (1, 3), (2, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("most", [1, 4, 100])
def test_plan_is_a_roll_with_its_masks(monkeypatch, grid, most):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(window_chunks, "TOKENS", most * 16)
    height, width, window, shift = 4 * grid[0], 4 * grid[1], 4, 1
    plan = chunk_plan(3, height, width, window, shift)
    image = torch.rand(3, height, width, 1)
    rolled = window_partition(torch.roll(image, (-shift, -shift), (1, 2)), window)
    moved = window_partition(image, window).flatten()[plan.to_moved]
    torch.testing.assert_close(moved[plan.from_moved], window_partition(image, window).flatten(), atol=0, rtol=0)
    masks = shift_mask(height, width, window, shift).repeat(3, 1, 1)
    expected = {tuple(one.flatten().tolist()): mask for one, mask in zip(rolled, masks, strict=True)}
    assert len(expected) == len(rolled)
    for chunks in (plan.plain, plan.moved):
        assert [chunk.first for chunk in chunks] == [0] + [chunk.last for chunk in chunks[:-1]]
        assert chunks[-1].last == len(rolled)
        assert all(sum(n for n, _ in chunk.parts) == chunk.last - chunk.first <= most for chunk in chunks)
    kinds = [kind for chunk in plan.moved for number, kind in chunk.parts for _ in range(number)]
    for one, kind in zip(moved.view(-1, window**2), kinds, strict=True):
        assert torch.equal(plan.masks[kind], expected[tuple(one.tolist())])
    assert {kind for chunk in plan.plain for _, kind in chunk.parts} == {0}


@pytest.mark.parametrize("most", [1, 3, 1000])
@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (dict(num_blocks=2), (2, 1, 12, 8)),
        (dict(num_blocks=1, global_feature_fusion=True, layers_per_block=3), (1, 1, 9, 5)),
        (dict(num_blocks=1, shift_size=0), (1, 1, 8, 8)),
        (dict(num_blocks=1, growth_rate=12, layers_per_block=1), (3, 1, 4, 4)),
    ],
    ids=str,
)
def test_equals_all_windows_at_once(monkeypatch, arguments, shape, most):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(window_chunks, "TOKENS", most * 16)
    network = network_like_trained(**arguments).double()
    x = torch.rand(shape, dtype=torch.float64)
    outputs, grads = [], []
    for chunks in (True, False):
        network.works_in_chunks = chunks
        network.zero_grad()
        image = x.clone().requires_grad_()
        out = network(image)
        out.sin().sum().backward()
        with torch.inference_mode():
            inferred = network(x)
        torch.testing.assert_close(inferred, out.detach(), atol=1e-11, rtol=0)
        outputs.append(inferred.clone())
        grads.append({"image": image.grad} | {name: p.grad for name, p in network.named_parameters()})
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-11, rtol=0)
    for name, grad in grads[1].items():
        torch.testing.assert_close(grads[0][name], grad, atol=1e-9 * max(1, grad.abs().max().item()), rtol=0)


def test_attention_and_its_gradient():
    torch.manual_seed(0)
    qkv = torch.randn(5, 4, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    parts = ((2, 0), (1, 2), (2, 1))
    out = window_chunks.attend(qkv, bias, 0.7, parts)
    each = attend(qkv.unsqueeze(0), bias[[0, 0, 2, 1, 1]], 0.7)[0]
    torch.testing.assert_close(out, each, atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(lambda *args: window_chunks.attend(*args, 0.7, parts), (qkv, bias))


@pytest.mark.parametrize("grad", [False, True])
def test_half_precision(monkeypatch, grad):
    """Autocast rounds the same products; in training that of attention is PyTorch's, whose backward pass knows it."""
    monkeypatch.setattr(window_chunks, "TOKENS", 48)
    network, x = network_like_trained(num_blocks=1), torch.rand(2, 1, 12, 8)
    outs = []
    with torch.set_grad_enabled(grad):
        for chunks in (True, False):
            network.works_in_chunks = chunks
            with torch.autocast("cpu", torch.bfloat16):
                outs.append(network(x))
            if grad:
                outs[-1].float().sum().backward()
    torch.testing.assert_close(outs[0], outs[1], atol=0.03 * outs[1].abs().max().item(), rtol=0)


def test_memory_is_less_and_the_estimate_knows(monkeypatch):
    """On the meta device one chunk stands for all: as many bytes as tensors live on the CPU."""
    monkeypatch.setattr(window_chunks, "TOKENS", 128)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # with more of them chunks are larger
    network = network_like_trained(num_blocks=1).eval()
    shape = (1, 1, 64, 64)
    with torch.inference_mode(), _LiveTensors() as live:
        network(torch.empty(shape))
    found, at_once = activation_bytes(network, shape), activation_bytes(network, shape, "cuda")
    assert found == pytest.approx(live.peak, rel=0.02) and found < 0.8 * at_once
    other = copy.deepcopy(network)
    other.works_in_chunks = False
    assert activation_bytes(other, shape) == at_once and network.works_in_chunks
