"""Reads SwinIR (arXiv 2108.10257): the authors' checkpoints, and those that the RDST paper's code makes.

The authors' real-world checkpoints are refused: their up-sampler of nearest neighbours, or their groups of three
convolutions, make other networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

from torch import Tensor

from medsr_monai.convert.state_dict import count, upsampling_scale
from medsr_monai.convert.swin_layer import swin_layer_table
from medsr_monai.networks.comparison.swinir import SwinIR

_LAYER = "layers.*.residual_group.blocks.*"
TABLE = {
    # spandrel keeps the authors' names
    **{theirs: ours and f"network.{theirs}" for theirs, ours in swin_layer_table(_LAYER, _LAYER).items()},
    "conv_first.*": "network.conv_first.*",
    "patch_embed.norm.*": "network.patch_embed.norm.*",
    "layers.*.conv.*": "network.layers.*.conv.*",
    "norm.*": "network.norm.*",
    "conv_after_body.*": "network.conv_after_body.*",
    "conv_before_upsample.0.*": "network.conv_before_upsample.0.*",
    "upsample.*.*": "network.upsample.*.*",
    "conv_last.*": "network.conv_last.*",
}


def build(state: Mapping[str, Tensor]) -> SwinIR:
    """Build the network that these tensors belong to.

    Raises:
        KeyError: a tensor that tells a hyper-parameter is missing.
        ImportError: spandrel is not installed.
    """
    embed_dim, channels = state["conv_first.weight"].shape[:2]
    depths = [count(f"layers.{i}.residual_group.blocks.", state) for i in range(count("layers.", state))]
    first_layer = "layers.0.residual_group.blocks.0"
    window_size = (isqrt(state[f"{first_layer}.attn.relative_position_bias_table"].shape[0]) + 1) // 2
    if "conv_before_upsample.0.weight" in state:
        upsampler, scale = "pixelshuffle", upsampling_scale("upsample.", state)
    elif "upsample.0.weight" in state:
        upsampler, scale = "pixelshuffledirect", isqrt(state["upsample.0.weight"].shape[0] // channels)
    else:
        upsampler, scale = "", 1
    return SwinIR(
        in_channels=channels,
        out_channels=channels,
        scale=scale,
        embed_dim=embed_dim,
        depths=depths,
        num_heads=[
            state[f"layers.{i}.residual_group.blocks.0.attn.relative_position_bias_table"].shape[1]
            for i in range(len(depths))
        ],
        window_size=window_size,
        mlp_ratio=state[f"{first_layer}.mlp.fc1.weight"].shape[0] / embed_dim,
        # Built for images no larger than one window, their layers have no mask and never shift.
        shifted=any(name.endswith(".attn_mask") for name in state),
        upsampler=upsampler,
        img_range=255.0 if window_size == 7 else 1.0,  # the JPEG models, alone with this window
    )
