"""The names of a Swin layer's tensors in official checkpoints."""

from __future__ import annotations

from collections.abc import Mapping


def swin_layer_table(theirs: str, ours: str) -> Mapping[str, str | None]:
    """Return the names of a `SwinLayer`'s tensors: theirs behind one prefix, ours behind the other."""
    return {
        f"{theirs}.attn_mask": None,  # computed for every size
        f"{theirs}.attn.relative_position_index": None,  # computed
        f"{theirs}.attn.relative_position_bias_table": f"{ours}.attn.relative_position_bias_table",
        f"{theirs}.attn.qkv.*": f"{ours}.attn.qkv.*",
        f"{theirs}.attn.proj.*": f"{ours}.attn.proj.*",
        f"{theirs}.norm1.*": f"{ours}.norm1.*",
        f"{theirs}.norm2.*": f"{ours}.norm2.*",
        f"{theirs}.mlp.fc1.*": f"{ours}.mlp.linear1.*",
        f"{theirs}.mlp.fc2.*": f"{ours}.mlp.linear2.*",
    }
