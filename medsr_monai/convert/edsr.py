"""EDSR (arXiv 1707.02921): checkpoints of the RDST paper's code, and others of the authors' names without MeanShift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from medsr_monai.convert.state_dict import count, require_identity_mean_shift, upsampling_scale
from medsr_monai.networks.comparison.edsr import EDSR

TABLE = {
    "sub_mean.*": None,  # identity, checked by build
    "add_mean.*": None,  # identity, checked by build
    "head.0.*": "head.*",
    "body.*.body.0.*": "body.*.conv1.*",
    "body.*.body.2.*": "body.*.conv2.*",
    "body.*.*": "body.*.*",  # the convolution after the blocks
    "tail.0.*.*": "upsample.*.*",
    "tail.1.*": "last.*",
}


def table(state: Mapping[str, Tensor]) -> Mapping[str, str | None]:
    """Return their names and ours: `TABLE` for every checkpoint."""
    return TABLE


def build(state: Mapping[str, Tensor]) -> EDSR:
    """Build the EDSR that these tensors belong to: with ReLUs and a residual weight of 0.1, which they do not tell."""
    return _build(state, negative_slope=0.0, res_scale=0.1)


def build_lite(state: Mapping[str, Tensor]) -> EDSR:
    """Build the EDSR-lite that these tensors belong to: leaky ReLUs of slope 0.2, and a residual weight of 1."""
    return _build(state, negative_slope=0.2, res_scale=1.0)


def _build(state: Mapping[str, Tensor], **arguments: Any) -> EDSR:
    require_identity_mean_shift(state)
    channels, in_channels = state["head.0.weight"].shape[:2]
    return EDSR(
        in_channels=in_channels,
        out_channels=state["tail.1.weight"].shape[0],
        scale=upsampling_scale("tail.0.", state),
        channels=channels,
        num_blocks=count("body.", state) - 1,
        **arguments,
    )
