"""RDST computes what the authors' code computes, from their own weights."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from medsr_monai.convert import FAMILIES, load_official
from medsr_monai.networks import RDST

HERE = Path(__file__).parents[1] / "golden"
SHARED = Path(__file__).parents[3] / "shared" / "golden"
GOLDENS = [HERE / "rdst_x4.npz", *(SHARED / f"rdst_{name}.npz" for name in ("x2", "x4", "w8_x4", "c4_g24_x3"))]
SMALL = dict(embed_dim=12, growth_rate=6, num_heads=3, window_size=4, num_blocks=2, num_dense_blocks=2)


def read(path):
    """Arrays of a golden, and the authors' state dict."""
    if not path.exists():
        pytest.skip(f"{path} is not part of the repository")
    with np.load(path) as arrays:
        arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "config"}
    return arrays, {name[3:]: value for name, value in arrays.items() if name.startswith("sd/")}


@pytest.fixture
def state():
    return read(HERE / "rdst_x4.npz")[1]


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_golden(path):
    arrays, state = read(path)
    network = load_official(state, "rdst")
    assert not network.training
    for suffix in ("", "_b"):
        if f"input{suffix}" not in arrays:
            continue
        x = arrays[f"input{suffix}"]
        with torch.no_grad():
            single = network.float()(x)
            double = network.double()(x.double())
        torch.testing.assert_close(single, arrays[f"output{suffix}"], atol=1e-5, rtol=0)
        torch.testing.assert_close(double, arrays[f"output{suffix}_f64"], atol=1e-10, rtol=0)


@pytest.mark.parametrize("spoil", ["flip the bias tables", "no shift", "drop the mask", "LayerNorm eps"])
def test_golden_would_notice(spoil, monkeypatch):
    arrays, state = read(HERE / "rdst_x4.npz")
    if spoil == "flip the bias tables":
        state = {name: value.flip(0) if name.endswith("bias_table") else value for name, value in state.items()}
    if spoil == "no shift":
        state = {name: value for name, value in state.items() if not name.endswith("attn_mask")}
    if spoil == "drop the mask":
        mask = "medsr_monai.networks.blocks.window_attention.shift_mask"
        monkeypatch.setattr(mask, lambda h, w, n, s, device, windows=range(4): torch.zeros(len(windows), n * n, n * n))
    network = load_official(state, "rdst")
    if spoil == "LayerNorm eps":
        for module in network.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = 1e-6
    with torch.no_grad():
        assert (network(arrays["input"]) - arrays["output"]).abs().max() > 1e-4


def test_hyper_parameters_are_read_off(state):
    arguments = load_official(state, "rdst").arguments
    assert arguments == RDST(scale=4, embed_dim=24, growth_rate=12, num_heads=4, window_size=4, num_blocks=2).arguments


def official(network):
    """The state dict that the authors' code would write for this network: the table read backwards."""
    table = FAMILIES["rdst"].table_for({"bottleneck.0.weight": None} if network.global_feature_fusion else {})
    state = {}
    for name, value in network.state_dict().items():
        for theirs, ours in table.items():
            match = ours and re.fullmatch(ours.replace(".", r"\.").replace("*", "([^.]+)"), name)
            if match:
                state[theirs.replace("*", "{}").format(*match.groups())] = value
    channels = network.head.in_channels
    for shift in ("sub_mean", "add_mean"):
        state |= {f"{shift}.weight": torch.eye(channels)[:, :, None, None], f"{shift}.bias": torch.zeros(channels)}
    if network.shift_size:
        state["body.0.body.0.body.blocks.1.attn_mask"] = torch.zeros(1)
    return state


@pytest.mark.parametrize(
    "arguments",
    [
        dict(scale=1),
        dict(scale=2, shift_size=0),
        dict(scale=8, in_channels=4, out_channels=4),
        dict(scale=3, layers_per_block=4, num_dense_blocks=1, mlp_ratio=1.5),
        dict(global_feature_fusion=True),
    ],
)
def test_every_variant_is_inferred(arguments):
    network = RDST(**{**SMALL, **arguments}).eval()
    again = load_official(official(network), "rdst")
    assert again.arguments == network.arguments
    x = torch.rand(1, network.head.in_channels, 5, 6)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))


def test_unused_layers_of_the_gff_variant_are_dropped():
    network = RDST(global_feature_fusion=True, **SMALL)
    unused = {"norm.weight": torch.ones(12), "norm.bias": torch.ones(12), "conv_after_body.bias": torch.ones(12)}
    again = load_official({**official(network), **unused}, "rdst")
    assert again.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("name, value", [("sub_mean.bias", 0.1), ("add_mean.bias", 0.1), ("sub_mean.weight", 2.0)])
def test_a_mean_shift_that_does_something_is_refused(state, name, value):
    state[name] = torch.full_like(state[name], value)
    with pytest.raises(ValueError, match=f"{name} changes intensities"):
        load_official(state, "rdst")
