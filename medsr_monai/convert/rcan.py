"""Reads RCAN (arXiv 1807.02758), the RDST paper's adaptive variant of it, and HAN (arXiv 2008.08767) built on it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from medsr_monai.convert.state_dict import HEAD_AND_TAIL, count, head_and_tail
from medsr_monai.networks.comparison.han import HAN
from medsr_monai.networks.comparison.rcan import RCAN, RCANAda

_ATTENTION = {
    "body.*.body.*.body.3.conv_du.0.*": "body.*.body.*.attention.fc1.*",
    "body.*.body.*.body.3.conv_du.2.*": "body.*.body.*.attention.fc2.*",
    "body.*.body.*.*": "body.*.body.*.*",  # the convolution after the blocks of a group
    "body.*.*": "body.*.*",  # the convolution after the groups
}
TABLE = {
    **HEAD_AND_TAIL,
    "body.*.body.*.body.0.*": "body.*.body.*.conv1.*",
    "body.*.body.*.body.2.*": "body.*.body.*.conv2.*",
    **_ATTENTION,
}
ADA_TABLE = {
    **HEAD_AND_TAIL,
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
        **HEAD_AND_TAIL,
        after_groups: "body.conv.*",
        **{name: ours for name, ours in body.items() if name != "body.*.*"},
        "la.gamma": "body.attention.layer.gamma",
        "last_conv.*": "body.attention.layer.conv.*",
        "csa.gamma": "body.attention.channel_spatial.gamma",
        "csa.conv.*": "body.attention.channel_spatial.conv.*",
        "last.*": "body.attention.fusion.*",
    }


def _build(network: type[nn.Module], state: Mapping[str, Tensor]) -> nn.Module:
    around = head_and_tail(state)
    return network(
        **around,
        num_groups=count("body.", state) - 1,
        num_blocks=count("body.0.body.", state) - 1,
        reduction=around["channels"] // state["body.0.body.0.body.3.conv_du.0.weight"].shape[0],
    )


build, build_ada, build_han = (partial(_build, network) for network in (RCAN, RCANAda, HAN))
"""Functions that build the RCAN, the adaptive variant or the HAN that a checkpoint's tensors belong to."""
