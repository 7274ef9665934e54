"""How a network's weights begin, where a paper says something else than its authors' code does."""

from __future__ import annotations

from torch import nn

__all__ = ["initialize_weights"]

SCHEMES = ("code", "kaiming_uniform")


def initialize_weights(network: nn.Module, scheme: str = "code") -> nn.Module:
    """Draw the weights of a network anew, in place, and return it.

    Args:
        network: any network.
        scheme: "code" leaves the network as it was built, as the authors' code does (RDST: convolutions PyTorch's
            default, linear layers and position biases normal with a deviation of 0.02); "kaiming_uniform" draws the
            weights of all convolutions and linear layers by ``torch.nn.init.kaiming_uniform_``, as the sentence of the
            RDST paper (arXiv 2302.11184) has it; biases stay.

    Raises:
        ValueError: another scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"initialization is {scheme!r}, expected one of {', '.join(SCHEMES)}")
    if scheme == "kaiming_uniform":
        for module in network.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.kaiming_uniform_(module.weight)
    return network
