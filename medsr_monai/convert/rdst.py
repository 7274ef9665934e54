"""Reads RDST (arXiv 2302.11184): the authors' checkpoints of any size and scale, also with global feature fusion."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

from torch import Tensor

from medsr_monai.convert.state_dict import count, require_identity_mean_shift, upsampling_scale
from medsr_monai.convert.swin_layer import swin_layer_table
from medsr_monai.networks.fast_rdst import RDST

TABLE = {
    "sub_mean.*": None,  # identity, checked by build
    "add_mean.*": None,  # identity, checked by build
    "head.*": "head.*",
    "patch_embed.norm.*": "embed_norm.*",
    **swin_layer_table("body.*.body.*.body.blocks.*", "blocks.*.blocks.*.layers.*"),
    "body.*.body.*.tail.*.*": "blocks.*.blocks.*.bottleneck.*.*",
    "body.*.conv.*": "blocks.*.fusion.*",
    "norm.*": "norm.*",
    "conv_after_body.*": "conv_after_body.*",
    "bottleneck.*.*": "global_fusion.*.*",
    "tail.0.*.*": "upsample.*.*",
    "tail.1.*": "last.*",
}
GFF_TABLE = {**TABLE, "norm.*": None, "conv_after_body.*": None}
"""Names for the variant with global feature fusion, which allocates these two layers and never uses them."""


def table(state: Mapping[str, Tensor]) -> Mapping[str, str | None]:
    """Return their names and ours: `GFF_TABLE` for a checkpoint with global feature fusion, `TABLE` for others."""
    return GFF_TABLE if _fuses_globally(state) else TABLE


def build(state: Mapping[str, Tensor]) -> RDST:
    """Build the network that these tensors belong to.

    Raises:
        ValueError: the checkpoint's MeanShift layers change intensities (they do not in any published run).
        KeyError: a tensor that tells a hyper-parameter is missing.
    """
    require_identity_mean_shift(state)
    block = "body.0.body.0.body.blocks.0"
    embed_dim, in_channels = state["head.weight"].shape[:2]
    num_dense_blocks = count("body.0.body.", state)
    bias_rows, num_heads = state[f"{block}.attn.relative_position_bias_table"].shape
    return RDST(
        in_channels=in_channels,
        out_channels=state["tail.1.weight"].shape[0],
        scale=upsampling_scale("tail.0.", state),
        embed_dim=embed_dim,
        growth_rate=(state["body.0.conv.weight"].shape[1] - embed_dim) // num_dense_blocks,
        num_heads=num_heads,
        window_size=(isqrt(bias_rows) + 1) // 2,
        # Built for images no larger than one window, their layers have no mask and never shift.
        shift_size=None if any(name.endswith(".attn_mask") for name in state) else 0,
        mlp_ratio=state[f"{block}.mlp.fc1.weight"].shape[0] / embed_dim,
        num_blocks=count("body.", state),
        num_dense_blocks=num_dense_blocks,
        layers_per_block=count("body.0.body.0.body.blocks.", state),
        global_feature_fusion=_fuses_globally(state),
    )


def _fuses_globally(state: Mapping[str, Tensor]) -> bool:
    return "bottleneck.0.weight" in state
