"""Reads RDN (arXiv 1802.08797): checkpoints of the RDST paper's code."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from medsr_monai.convert.state_dict import HEAD_AND_TAIL, count, head_and_tail
from medsr_monai.networks.comparison.rdn import RDN

TABLE = {
    **HEAD_AND_TAIL,
    "F0.*": "body.first.*",
    "body.*.body.*.body.0.*": "body.blocks.*.layers.*.0.*",
    "body.*.bottle_neck.*": "body.blocks.*.fusion.*",
    "bottleneck.*.*": "body.fusion.*.*",
}


def build(state: Mapping[str, Tensor], *, negative_slope: float = 0.2) -> RDN:
    """Build the network that these tensors belong to.

    Args:
        state: their tensors.
        negative_slope: slope of the leaky ReLU: 0.2 as in the RDST paper's code, or 0 for a plain ReLU.

    Raises:
        ValueError: the checkpoint's MeanShift layers change intensities.
        KeyError: a tensor that tells a hyper-parameter is missing.
    """
    return RDN(
        **head_and_tail(state),
        growth_rate=state["body.0.body.0.body.0.weight"].shape[0],
        num_layers=count("body.0.body.", state),
        num_blocks=count("body.", state),
        negative_slope=negative_slope,
    )
