"""Reads EDSR (arXiv 1707.02921): checkpoints of the RDST paper's code, and others whose MeanShift changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from medsr_monai.convert.state_dict import HEAD_AND_TAIL, count, head_and_tail
from medsr_monai.networks.comparison.edsr import EDSR

TABLE = {
    **HEAD_AND_TAIL,
    "body.*.body.0.*": "body.*.conv1.*",
    "body.*.body.2.*": "body.*.conv2.*",
    "body.*.*": "body.*.*",  # the convolution after the blocks
}


def build(state: Mapping[str, Tensor], *, negative_slope: float = 0.0, res_scale: float = 0.1) -> EDSR:
    """Build the network that these tensors belong to.

    Args:
        state: their tensors.
        negative_slope: slope of the leaky ReLU: 0, a plain ReLU, or 0.2 for EDSR-lite of the RDST paper.
        res_scale: factor of a block's convolutions: 0.1 as in the large network, or 1 for EDSR-lite.

    Raises:
        ValueError: the checkpoint's MeanShift layers change intensities.
        KeyError: a tensor that tells a hyper-parameter is missing.
    """
    return EDSR(
        **head_and_tail(state),
        num_blocks=count("body.", state) - 1,
        negative_slope=negative_slope,
        res_scale=res_scale,
    )
