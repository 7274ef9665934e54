"""Hyper-parameters read off the names and shapes of a state dict's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt, prod

import torch
from torch import Tensor


def count(prefix: str, state: Mapping[str, Tensor]) -> int:
    """Return how many different parts, such as numbers of blocks, follow a prefix such as "body."."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def upsampling_scale(prefix: str, state: Mapping[str, Tensor]) -> int:
    """Return the scale of an up-sampler of convolutions and pixel shuffles, whose names start with the prefix."""
    weights = [value for name, value in state.items() if name.startswith(prefix) and name.endswith(".weight")]
    return prod(isqrt(weight.shape[0] // weight.shape[1]) for weight in weights)


def require_identity_mean_shift(state: Mapping[str, Tensor]) -> None:
    """Check that the layers sub_mean and add_mean, which no network here has, leave intensities as they are.

    Raises:
        ValueError: such a layer changes intensities.
    """
    for name in ("sub_mean", "add_mean"):
        weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
        if weight is not None and not torch.equal(weight.flatten(1), torch.eye(len(weight), dtype=weight.dtype)):
            raise ValueError(_NO_IDENTITY.format(name=f"{name}.weight", expected="the identity matrix"))
        if bias is not None and bias.any():
            raise ValueError(_NO_IDENTITY.format(name=f"{name}.bias", expected="zeros"))


_NO_IDENTITY = (
    "{name} changes intensities, and the networks here have no such layer: expected {expected}. "
    "Fold it into the first (sub_mean) or last (add_mean) convolution, or normalise the images instead."
)
