"""The size of a network: its weights, and the multiply-accumulate operations (MACs) of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_macs", "count_macs_as_published", "count_parameters", "count_parameters_as_published"]

COUNTED = (nn.Conv2d, nn.Conv3d, nn.Linear, nn.LayerNorm)
"""The layers with weights that the RDST paper's networks have and its counter knows."""


def count_parameters(network: nn.Module) -> int:
    """Return the number of weights, trained and frozen."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_parameters_as_published(network: nn.Module) -> int:
    """Return the number of weights that the RDST paper (arXiv 2302.11184) would print.

    Only those of 2D and 3D convolutions, linear layers and LayerNorm are counted: not those that any other module holds
    itself, such as position bias tables and the weights of residual branches, nor those of subclasses of these layers.
    """
    return sum(count_parameters(module) for module in network.modules() if type(module) in COUNTED)


def count_macs(network: nn.Module, shape: Sequence[int]) -> int:
    """Return the MACs of all convolutions, linear layers and matrix products, those of attention included.

    They are half of what `torch.utils.flop_counter.FlopCounterMode` counts in one forward pass. Layers that a network
    computes as one (its `merges_layers`) count one by one.

    Args:
        network: a network in eval mode; on the meta device nothing is computed, however large it is.
        shape: shape [B, C, H, W] of the input, which is made on the network's device.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        _forward(network, shape)
    return counter.get_total_flops() // 2


def count_macs_as_published(network: nn.Module, shape: Sequence[int]) -> int:
    """Return the number of operations that the RDST paper (arXiv 2302.11184) prints as MACs.

    Its counter is thop with a rule for LayerNorm. 2D and 3D convolutions and linear layers count their MACs, LayerNorm
    2 for each value, adaptive average pooling 1 + the values averaged for each result, softmax 3n - 1 for each n
    values. The matrix products of attention, which `count_macs` has, are not counted, nor are subclasses of the layers.

    Args:
        network: a network in eval mode; on the meta device nothing is computed, however large it is.
        shape: shape [B, C, H, W] of the input, which is made on the network's device.
    """
    total = 0

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal total
        if type(module) is nn.LayerNorm:
            total += 2 * inputs[0].numel()
        elif type(module) is nn.Linear:
            total += output.numel() * module.in_features
        elif type(module) is nn.AdaptiveAvgPool2d:
            total += output.numel() + inputs[0].numel()
        else:
            total += output.numel() * module.weight[0].numel()

    counted = (*COUNTED, nn.AdaptiveAvgPool2d)
    hooks = [module.register_forward_hook(add) for module in network.modules() if type(module) in counted]
    try:
        with _SoftmaxOperations() as softmax:
            _forward(network, shape)
    finally:
        for hook in hooks:
            hook.remove()
    return total + softmax.total


class _SoftmaxOperations(TorchDispatchMode):
    """Counts 3n - 1 operations for every softmax over n values, wherever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::_softmax", "aten::_safe_softmax"):
            values, n = args[0].numel(), args[0].shape[args[1]]
            self.total += values // n * (3 * n - 1)
        return func(*args, **(kwargs or {}))


def _forward(network: nn.Module, shape: Sequence[int]) -> None:
    """Run a network on zeros, with attention as separate products and softmax, which every counter knows."""
    parameter = next(network.parameters(), torch.empty(0))
    x = torch.zeros(tuple(shape), device=parameter.device, dtype=parameter.dtype)
    # the counter of torch wants a gradient function of views of weights that a module is given, and there is none here
    trained = [one for one in network.parameters() if one.requires_grad]
    merging = [module for module in network.modules() if getattr(module, "merges_layers", False)]
    for module in merging:
        module.merges_layers = False
    for one in trained:
        one.requires_grad_(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            network(x)
    finally:
        for module in merging:
            module.merges_layers = True
        for one in trained:
            one.requires_grad_(True)
