"""Reads ConvNetSR, the ConvNeXt that RDST is compared with: checkpoints of the RDST paper's code."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from medsr_monai.convert.state_dict import count, upsampling_scale
from medsr_monai.networks.comparison.convnet import ConvNetSR

TABLE = {
    "sub_mean.*": None,  # their forward pass does not use it
    "add_mean.*": None,  # nor this
    "head.0.*": "head.*",
    "body.*.gamma": "body.*.gamma",
    "body.*.dwconv.*": "body.*.depthwise.*",
    "body.*.norm.*": "body.*.norm.*",
    "body.*.pwconv1.*": "body.*.mlp.linear1.*",
    "body.*.pwconv2.*": "body.*.mlp.linear2.*",
    "tail.0.*.*": "upsample.*.*",
    "tail.1.*": "last.*",
}


def build(state: Mapping[str, Tensor]) -> ConvNetSR:
    """Build the network that these tensors belong to.

    Raises:
        KeyError: a tensor that tells a hyper-parameter is missing.
    """
    channels, in_channels = state["head.0.weight"].shape[:2]
    return ConvNetSR(
        in_channels=in_channels,
        out_channels=state["tail.1.weight"].shape[0],
        scale=upsampling_scale("tail.0.", state),
        channels=channels,
        num_blocks=count("body.", state),
    )
