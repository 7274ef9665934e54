"""Hyper-parameters read off the names and shapes of a state dict's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt, prod

import torch
from torch import Tensor

HEAD_AND_TAIL = {
    "sub_mean.*": None,  # identity, checked by head_and_tail
    "add_mean.*": None,  # identity, checked by head_and_tail
    "head.0.*": "head.*",
    "tail.0.*.*": "upsample.*.*",
    "tail.1.*": "last.*",
}
"""Their names and ours around the body of the convolutional networks in the RDST paper's code."""


def count(prefix: str, state: Mapping[str, Tensor]) -> int:
    """Return how many different parts, such as numbers of blocks, follow a prefix such as "body."."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def upsampling_scale(prefix: str, state: Mapping[str, Tensor]) -> int:
    """Return the scale of an up-sampler of convolutions and pixel shuffles, whose names start with the prefix."""
    weights = [value for name, value in state.items() if name.startswith(prefix) and name.endswith(".weight")]
    return prod(isqrt(weight.shape[0] // weight.shape[1]) for weight in weights)


def head_and_tail(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the arguments that the layers of `HEAD_AND_TAIL` tell: channels and scale.

    Raises:
        ValueError: the checkpoint's MeanShift layers change intensities.
    """
    require_identity_mean_shift(state)
    channels, in_channels = state["head.0.weight"].shape[:2]
    return {
        "in_channels": in_channels,
        "out_channels": state["tail.1.weight"].shape[0],
        "scale": upsampling_scale("tail.0.", state),
        "channels": channels,
    }


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
