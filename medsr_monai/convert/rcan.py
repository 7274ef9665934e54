"""RCAN (arXiv 1807.02758), the RDST paper's adaptive variant of it, and HAN (arXiv 2008.08767), built on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from medsr_monai.convert.state_dict import count, require_identity_mean_shift, upsampling_scale
from medsr_monai.networks.comparison.han import HAN
from medsr_monai.networks.comparison.rcan import RCAN, RCANAda

_BLOCK, _OUR_BLOCK = "body.*.body.*.body", "groups.*.blocks.*"


def table(state: Mapping[str, Tensor]) -> Mapping[str, str | None]:
    """Return RCAN's names and ours; the last part of the body, and of each group in it, is a convolution."""
    return {
        "sub_mean.*": None,  # identity, checked by build
        "add_mean.*": None,  # identity, checked by build
        "head.0.*": "head.*",
        f"{_BLOCK}.0.*": f"{_OUR_BLOCK}.conv1.*",
        f"{_BLOCK}.2.*": f"{_OUR_BLOCK}.conv2.*",
        f"{_BLOCK}.3.conv_du.0.*": f"{_OUR_BLOCK}.attention.fc1.*",
        f"{_BLOCK}.3.conv_du.2.*": f"{_OUR_BLOCK}.attention.fc2.*",
        f"body.*.body.{count('body.0.body.', state) - 1}.*": "groups.*.conv.*",
        f"body.{count('body.', state) - 1}.*": "conv_after_body.*",
        "tail.0.*.*": "upsample.*.*",
        "tail.1.*": "last.*",
    }


def table_ada(state: Mapping[str, Tensor]) -> Mapping[str, str | None]:
    """Return the adaptive variant's names and ours: RCAN's, with three convolutions in the place of each of a block."""
    names = dict(table(state))
    for theirs, ours in ((0, "conv1"), (2, "conv2")):
        del names[f"{_BLOCK}.{theirs}.*"]
        for number, part in enumerate(("choice", "below", "above")):
            names[f"{_BLOCK}.{theirs}.conv{number}.*"] = f"{_OUR_BLOCK}.{ours}.{part}.*"
    return names


def table_han(state: Mapping[str, Tensor]) -> Mapping[str, str | None]:
    """Return HAN's names and ours: RCAN's, and those of its two attentions."""
    return {
        **table(state),
        "la.gamma": "layer_attention.gamma",
        "last_conv.*": "layer_attention.conv.*",
        "csa.gamma": "channel_spatial_attention.gamma",
        "csa.conv.*": "channel_spatial_attention.conv.*",
        "last.*": "fusion.*",
    }


def build(state: Mapping[str, Tensor]) -> RCAN:
    """Build the RCAN that these tensors belong to."""
    return RCAN(**_arguments(state))


def build_ada(state: Mapping[str, Tensor]) -> RCANAda:
    """Build the adaptive variant that these tensors belong to."""
    return RCANAda(**_arguments(state))


def build_han(state: Mapping[str, Tensor]) -> HAN:
    """Build the HAN that these tensors belong to."""
    return HAN(**_arguments(state))


def _arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    require_identity_mean_shift(state)
    channels, in_channels = state["head.0.weight"].shape[:2]
    return {
        "in_channels": in_channels,
        "out_channels": state["tail.1.weight"].shape[0],
        "scale": upsampling_scale("tail.0.", state),
        "channels": channels,
        "num_groups": count("body.", state) - 1,
        "num_blocks": count("body.0.body.", state) - 1,
        "reduction": channels // state["body.0.body.0.body.3.conv_du.0.weight"].shape[0],
    }
