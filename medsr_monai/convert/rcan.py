"""Reads RCAN (arXiv 1807.02758), the RDST paper's adaptive variant of it, and HAN (arXiv 2008.08767) built on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from medsr_monai.convert.state_dict import count, require_identity_mean_shift, upsampling_scale
from medsr_monai.networks.comparison.han import HAN
from medsr_monai.networks.comparison.rcan import RCAN, RCANAda

_AROUND = {
    "sub_mean.*": None,  # identity, checked by build
    "add_mean.*": None,  # identity, checked by build
    "head.0.*": "head.*",
    "tail.0.*.*": "upsample.*.*",
    "tail.1.*": "last.*",
}
_ATTENTION = {
    "body.*.body.*.body.3.conv_du.0.*": "body.*.body.*.attention.fc1.*",
    "body.*.body.*.body.3.conv_du.2.*": "body.*.body.*.attention.fc2.*",
    "body.*.body.*.*": "body.*.body.*.*",  # the convolution after the blocks of a group
    "body.*.*": "body.*.*",  # the convolution after the groups
}
TABLE = {
    **_AROUND,
    "body.*.body.*.body.0.*": "body.*.body.*.conv1.*",
    "body.*.body.*.body.2.*": "body.*.body.*.conv2.*",
    **_ATTENTION,
}
ADA_TABLE = {
    **_AROUND,
    "body.*.body.*.body.0.conv0.*": "body.*.body.*.conv1.choice.*",
    "body.*.body.*.body.0.conv1.*": "body.*.body.*.conv1.below.*",
    "body.*.body.*.body.0.conv2.*": "body.*.body.*.conv1.above.*",
    "body.*.body.*.body.2.conv0.*": "body.*.body.*.conv2.choice.*",
    "body.*.body.*.body.2.conv1.*": "body.*.body.*.conv2.below.*",
    "body.*.body.*.body.2.conv2.*": "body.*.body.*.conv2.above.*",
    **_ATTENTION,
}


def table_han(state: Mapping[str, Tensor]) -> Mapping[str, str | None]:
    """Return HAN's names and ours.

    In HAN RCAN's body is a module of its own, and the convolution after its groups has a name instead of a number.
    """
    after_groups = f"body.{count('body.', state) - 1}.*"
    body = {name: ours and ours.replace("body.", "body.groups.", 1) for name, ours in TABLE.items() if "body" in name}
    return {
        **_AROUND,
        after_groups: "body.conv.*",
        **{name: ours for name, ours in body.items() if name != "body.*.*"},
        "la.gamma": "body.attention.layer.gamma",
        "last_conv.*": "body.attention.layer.conv.*",
        "csa.gamma": "body.attention.channel_spatial.gamma",
        "csa.conv.*": "body.attention.channel_spatial.conv.*",
        "last.*": "body.attention.fusion.*",
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
