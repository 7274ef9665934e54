"""Reads TransMRSR (arXiv 2306.06669): checkpoints of the authors' code, of any size and width."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from medsr_monai.convert.styleswin import decoder_arguments, decoder_table
from medsr_monai.convert.swin_layer import swin_layer_table
from medsr_monai.networks.transmrsr import TransMRSR

TABLE = {
    "centroids": "centroids",  # not theirs: an argument of load_official
    "conv2d.conv_L1.*": "shallow.0.*",
    "conv2d.blk_L1.0.*.*": "shallow.2.*.*",
    "conv2d.blk_L1.1.*.*": "shallow.3.*.*",
    "patch_embed.norm.*": "embed_norm.*",
    **swin_layer_table("layers.*.residual_group.blocks.*", "encoder.*.layers.*"),
    "layers.*.conv.*": "encoder.*.conv.*",
    "layers.*.downsample.norm.*": "encoder.*.downsample.norm.*",
    "layers.*.downsample.reduction.weight": "encoder.*.downsample.reduction.weight",
    "norm.*": "encoder_norm.*",
    "final_layers.*": "to_latents.*",
    **decoder_table("generator.", "decoder."),
    "conv_deep.conv_L1.*": "deep.0.*",
    "conv_deep.blk_L1.0.*.*": "deep.2.*.*",
    "conv_deep.blk_L1.1.*.*": "deep.3.*.*",
    "conv_last.*": "last.*",
    "MAB.**": None,  # never used, like the next one
    "fusion_convs.**": None,
}


def table(state: Mapping[str, Tensor]) -> Mapping[str, str | None]:
    """Return their names and ours: they number the conditions from fine to coarse, we from coarse to fine."""
    levels = _levels(state)
    conditions = {
        f"condition_{kind}.{level}.*.*": f"to_{kind}.{levels - 1 - level}.*.*"
        for kind in ("scale", "shift")
        for level in range(levels)
    }
    return {**TABLE, **conditions}


def build(
    state: Mapping[str, Tensor], *, encoder_attention_scale: float | None = 1.0, truncation: str = "farthest"
) -> TransMRSR:
    """Build the network that these tensors belong to; like the authors' it truncates if there are `centroids`.

    Args:
        state: their tensors, and `centroids`, [centroids, style_dim].
        encoder_attention_scale: factor of the encoder's attention before the softmax; 1 as in the authors' code.
        truncation: which centroid latents are drawn to: "farthest" as in the authors' code, "nearest" or "none".

    Raises:
        ValueError: an argument that the network refuses.
        KeyError: a tensor that tells a hyper-parameter is missing.
    """
    layers = [f"layers.{level}.residual_group.blocks.0" for level in range(_levels(state))]
    centroids = state.get("centroids")
    return TransMRSR(
        in_channels=state["conv2d.conv_L1.weight"].shape[1],
        out_channels=state["conv_last.weight"].shape[0],
        **decoder_arguments("generator.", state),
        encoder_heads=[state[f"{layer}.attn.relative_position_bias_table"].shape[1] for layer in layers],
        encoder_attention_scale=encoder_attention_scale,
        truncation="none" if centroids is None else truncation,
        num_centroids=8 if centroids is None else len(centroids),
    )


def _levels(state: Mapping[str, Tensor]) -> int:
    return sum(name.startswith("layers.") and name.endswith(".downsample.reduction.weight") for name in state)
