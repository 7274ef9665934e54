"""Reads StyleSwin (arXiv 2112.10762): the authors' generators and discriminators of any size and width."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

from torch import Tensor

from medsr_monai.networks.discriminators import StyleSwinDiscriminator
from medsr_monai.networks.styleswin import StyleSwinGenerator

GENERATOR_WRAPPERS = ("g_ema", "g")
"""Keys under which the authors' checkpoints hold the generator: its moving average is preferred to the raw weights."""
DISCRIMINATOR_WRAPPERS = ("d",)
"""Key under which the authors' checkpoints hold the discriminator."""


def decoder_table(theirs: str, ours: str) -> Mapping[str, str | None]:
    """Return the names of a decoder's constant input and layers: theirs behind one prefix, ours behind the other."""
    block, our_block = f"{theirs}layers.*.blocks.*", f"{ours}layers.*.blocks.*"
    upsample, our_upsample = f"{theirs}layers.*.upsample", f"{ours}layers.*.upsample"
    return {
        f"{theirs}input.input": f"{ours}constant",
        f"{block}.attn_mask2": None,  # computed for every size
        f"{block}.attn.*.relative_position_index": None,  # computed
        f"{block}.attn.0.relative_position_bias_table": f"{our_block}.attn.plain_bias_table",
        f"{block}.attn.1.relative_position_bias_table": f"{our_block}.attn.shifted_bias_table",
        f"{block}.qkv.*": f"{our_block}.attn.qkv.*",
        f"{block}.proj.*": f"{our_block}.attn.proj.*",
        f"{block}.norm1.style.*": f"{our_block}.norm1.style.*",
        f"{block}.norm2.style.*": f"{our_block}.norm2.style.*",
        f"{block}.mlp.fc1.*": f"{our_block}.mlp.linear1.*",
        f"{block}.mlp.fc2.*": f"{our_block}.mlp.linear2.*",
        f"{upsample}.sin_pos_embed._float_tensor": None,  # uninitialised memory, never read
        f"{upsample}.alpha": f"{our_upsample}.alpha",
        f"{upsample}.norm.*": f"{our_upsample}.norm.*",
        f"{upsample}.reduction.weight": f"{our_upsample}.reduction.weight",
    }


TABLE = {
    "style.*.*": "mapping.*.*",
    **decoder_table("", "decoder."),
    "to_rgbs.*.bias": "to_image.*.bias",
    "to_rgbs.*.conv.*": "to_image.*.conv.*",
    "to_rgbs.*.upsample.kernel": None,  # fixed
}

_SPECTRAL = {"weight_orig": "original", "weight_u": "0._u", "weight_v": "0._v"}


def discriminator_table(state: Mapping[str, Tensor]) -> Mapping[str, str | None]:
    """Return their names and ours for a discriminator.

    The names differ between discriminators with an equalised learning rate and those with spectral normalisation.
    """
    convolutions = {
        "from_rgbs.*.conv": "from_image.*",
        "convs.*.conv1": "blocks.*.conv1",
        "convs.*.conv2": "blocks.*.conv2",
        "final_conv": "final_conv",
    }
    names: dict[str, str | None] = {"convs.*.conv2.0.kernel": None}  # fixed, as are the next ones
    for theirs in ("dwt.*", "from_rgbs.*.dwt.*", "from_rgbs.*.iwt.*", "from_rgbs.*.downsample.kernel"):
        names[theirs] = None
    linears = {"final_linear.0": "final_linear.0"}
    if _spectral(state):
        linears["final_linear.2"] = "final_linear.2"
        names["final_linear.0.bias"] = "final_linear.0.bias"
        names["final_linear.1.bias"] = "final_linear.1.bias"
        names["final_linear.2.bias"] = "final_linear.2.bias"
    else:
        linears["final_linear.1"] = "final_linear.2"
        names["final_linear.0.bias"] = "final_linear.1.bias"
        names["final_linear.1.bias"] = "final_linear.2.bias"
    weights = dict(linears)
    for theirs, ours in convolutions.items():
        blurred = theirs.endswith("conv2")  # the blur is the first of its three parts
        weights[f"{theirs}.{1 if blurred else 0}"] = f"{ours}.conv"
        names[f"{theirs}.{2 if blurred else 1}.bias"] = f"{ours}.act.bias"
    for theirs, ours in weights.items():
        if _spectral(state):
            names.update({f"{theirs}.{a}": f"{ours}.parametrizations.weight.{b}" for a, b in _SPECTRAL.items()})
        else:
            names[f"{theirs}.weight"] = f"{ours}.weight"
    return names


def build(state: Mapping[str, Tensor]) -> StyleSwinGenerator:
    """Build the generator that these tensors belong to.

    Raises:
        KeyError: a tensor that tells a hyper-parameter is missing.
    """
    return StyleSwinGenerator(
        **decoder_arguments("", state),
        out_channels=state["to_rgbs.0.conv.weight"].shape[0],
        mapping_layers=sum(name.startswith("style.") and name.endswith(".weight") for name in state),
    )


def decoder_arguments(prefix: str, state: Mapping[str, Tensor]) -> dict[str, object]:
    """Read a decoder's size, channels, heads, windows and latents off its tensors, whose names start with a prefix."""
    block = "layers.{}.blocks.0"
    constant = state[f"{prefix}input.input"]
    layers = sum(name.endswith(".blocks.0.qkv.weight") and name.startswith(f"{prefix}layers.") for name in state)
    names = [f"{prefix}{block.format(i)}" for i in range(layers)]
    tables = [state[f"{name}.attn.0.relative_position_bias_table"] for name in names]
    fc1 = state[f"{prefix}layers.0.blocks.0.mlp.fc1.weight"]
    return dict(
        size=2 ** (layers + 1),
        style_dim=state[f"{prefix}layers.0.blocks.0.norm1.style.weight"].shape[1],
        channels=[constant.shape[1], *(state[f"{name}.qkv.weight"].shape[1] for name in names[1:])],
        num_heads=[2 * table.shape[1] for table in tables],
        window_size=max(isqrt(table.shape[0]) + 1 for table in tables) // 2,
        mlp_ratio=fc1.shape[0] / fc1.shape[1],
    )


def build_discriminator(state: Mapping[str, Tensor]) -> StyleSwinDiscriminator:
    """Build the discriminator that these tensors belong to.

    Raises:
        KeyError: a tensor that tells a hyper-parameter is missing.
    """
    weight = "weight_orig" if _spectral(state) else "weight"
    levels = sum(name.startswith("from_rgbs.") and name.endswith(f"conv.0.{weight}") for name in state)
    dims = [state[f"from_rgbs.{i}.conv.0.{weight}"].shape[0] for i in range(max(levels, 1))]
    return StyleSwinDiscriminator(
        size=2 ** (levels + 2),
        in_channels=state[f"from_rgbs.0.conv.0.{weight}"].shape[1] // 4,
        # That of size / 2 is not used by anything, so it is not in the checkpoint either.
        channels=[*dims[:0:-1], dims[0], dims[0]],
        spectral_normalization=_spectral(state),
    )


def _spectral(state: Mapping[str, Tensor]) -> bool:
    return any(name.endswith(".weight_orig") for name in state)
