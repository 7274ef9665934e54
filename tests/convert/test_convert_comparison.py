"""The networks to compare with compute what their authors' code computes, from their weights."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from medsr_monai.convert import FAMILIES, load_official
from medsr_monai.networks import NETWORKS

HERE = Path(__file__).parents[1] / "golden"
SHARED = Path(__file__).parents[3] / "shared" / "golden"
needs_spandrel = pytest.mark.skipif(
    importlib.util.find_spec("spandrel") is None, reason="SwinIR needs spandrel, which is not installed"
)
CONVOLUTIONAL = {
    "edsr_x4": ("edsr", {}),
    "edsr_lite_x2": ("edsr", dict(negative_slope=0.2, res_scale=1.0)),
    "rdn_x4": ("rdn", {}),
    "rcan_x4": ("rcan_ada", {}),
    "han_x4": ("han", {}),
    "convnet_x4": ("convnet", {}),
}
SWINIR = ["swinir_classical_x4", "swinir_classical_w8_x2", "swinir_light_x2", "swinir_rgb_light_x2"]


def read(path):
    """Arrays of a golden, and the authors' state dict."""
    if not path.exists():
        pytest.skip(f"{path} is not part of the repository")
    with np.load(path) as arrays:
        arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "config"}
    return arrays, {name[3:]: value for name, value in arrays.items() if name.startswith("sd/")}


def deviation(network, arrays, suffix=""):
    with torch.no_grad():
        out = network.double()(arrays[f"input{suffix}"].double())
    return (out - arrays[f"output{suffix}_f64"]).abs().max().item()


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_golden(name):
    family, arguments = CONVOLUTIONAL[name]
    arrays, state = read(HERE / f"{name}.npz")
    network = load_official(state, family, **arguments)
    assert not network.training
    assert deviation(network, arrays) <= 1e-10
    # The adaptive RCAN's choices flip in float32, where a value comes too close to the threshold.
    if family != "rcan_ada":
        with torch.no_grad():
            torch.testing.assert_close(network.float()(arrays["input"]), arrays["output"], atol=1e-6, rtol=0)


@needs_spandrel
@pytest.mark.parametrize("name", SWINIR)
def test_golden_swinir(name):
    arrays, state = read(SHARED / f"{name}.npz")
    network = load_official(state, "swinir")
    assert not network.training and not network.network.training  # no dropped paths
    assert max(deviation(network, arrays), deviation(network, arrays, "_b")) <= 1e-12  # float64; processors differ
    # Its state dict has no tensor that depends on the size of training images.
    assert network.state_dict().keys() == dict(network.named_parameters()).keys()


def spoil_order(state):
    width = state["F0.bias"].numel()
    weight = state["bottleneck.0.weight"]
    state["bottleneck.0.weight"] = torch.cat(weight.split(width, dim=1)[::-1], dim=1)


def spoil_choice(state):
    for name in state:
        if ".conv0." in name:
            state[name] = -state[name]


def spoil_gate(name):
    def spoil(state):
        state[name] = torch.zeros_like(state[name])

    return spoil


@pytest.mark.parametrize(
    "name, arguments, spoil",
    [
        ("edsr_x4", dict(negative_slope=0.2), None),
        ("edsr_x4", dict(res_scale=1.0), None),
        ("rdn_x4", dict(negative_slope=0.0), None),
        ("rdn_x4", {}, spoil_order),
        ("rcan_x4", {}, spoil_choice),
        ("han_x4", {}, spoil_gate("la.gamma")),
        ("han_x4", {}, spoil_gate("csa.gamma")),
        ("convnet_x4", {}, spoil_gate("body.2.gamma")),
    ],
)
def test_golden_would_notice(name, arguments, spoil):
    arrays, state = read(HERE / f"{name}.npz")
    if spoil:
        spoil(state)
    assert deviation(load_official(state, CONVOLUTIONAL[name][0], **arguments), arrays) > 1e-7


def test_golden_would_notice_the_transposed_choice():
    arrays, state = read(HERE / "rcan_x4.npz")
    network = load_official(state, "rcan_ada").double()
    x = arrays["input"].double()
    with torch.no_grad():
        transposed = network(x.transpose(2, 3)).transpose(2, 3)
        assert (transposed - arrays["output_f64"]).abs().max() > 1e-7


def official(network, family, parts, parts_of_part):
    """The state dict that the authors' code would write for this network: the table read backwards."""
    names = {f"body.{i}.": None for i in range(parts)} | {f"body.0.body.{i}.": None for i in range(parts_of_part)}
    state = {}
    for name, value in network.state_dict().items():
        for theirs, ours in FAMILIES[family].table_for(names).items():
            match = ours and re.fullmatch(ours.replace(".", r"\.").replace("*", "([^.]+)"), name)
            if match:
                state[theirs.replace("*", "{}").format(*match.groups())] = value
    if getattr(network, "arguments", {}).get("shifted"):
        state["layers.0.residual_group.blocks.1.attn_mask"] = torch.zeros(1)
    return state


GROUPS = dict(channels=8, num_groups=2, num_blocks=3, reduction=4)
SWIN = dict(embed_dim=12, depths=[2, 3], num_heads=[3, 2], window_size=4, mlp_ratio=1.5)


@pytest.mark.parametrize(
    "family, name, arguments, parts, parts_of_part",
    [
        ("edsr", "EDSR", dict(channels=8, num_blocks=2), 3, 0),
        ("rdn", "RDN", dict(channels=8, growth_rate=4, num_layers=2, num_blocks=3), 3, 2),
        ("rcan", "RCAN", GROUPS, 3, 4),
        ("rcan_ada", "RCANAda", GROUPS, 3, 4),
        ("han", "HAN", GROUPS, 3, 4),
        ("convnet", "ConvNetLite", dict(channels=8, num_blocks=2), 2, 0),
        pytest.param("swinir", "SwinIR", dict(upsampler="pixelshuffle", **SWIN), 0, 0, marks=needs_spandrel),
        pytest.param("swinir", "SwinIR", dict(shifted=False, **SWIN), 0, 0, marks=needs_spandrel),
    ],
)
@pytest.mark.parametrize("scale, channels", [(1, 4), (2, 1), (3, 1), (8, 1)])
def test_every_variant_is_inferred(family, name, arguments, parts, parts_of_part, scale, channels):
    if scale == 1 and "upsampler" in arguments:
        arguments = {**arguments, "upsampler": ""}
    network = NETWORKS[name](channels, channels, scale, **arguments).eval()
    again = load_official(official(network, family, parts, parts_of_part), family)
    assert again.arguments == network.arguments
    x = torch.rand(1, channels, 5, 6)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))


@pytest.mark.parametrize("name", ["edsr_x4", "rdn_x4", "rcan_x4", "han_x4"])
def test_a_mean_shift_that_does_something_is_refused(name):
    state = read(HERE / f"{name}.npz")[1]
    state["add_mean.bias"] = torch.tensor([0.4])
    with pytest.raises(ValueError, match=r"add_mean.bias changes intensities"):
        load_official(state, CONVOLUTIONAL[name][0])


def test_mean_shift_of_convnet_is_unused():
    arrays, state = read(HERE / "convnet_x4.npz")
    state["add_mean.bias"] = torch.tensor([0.4])
    assert deviation(load_official(state, "convnet"), arrays) <= 1e-10


def test_variants_are_told_apart():
    with pytest.raises(ValueError, match=r"not known to the table of 'rcan'.* of a variant"):
        load_official(read(HERE / "rcan_x4.npz")[1], "rcan")
    with pytest.raises(ValueError, match=r"not known to the table of 'rcan'.*la.gamma"):
        load_official(read(HERE / "han_x4.npz")[1], "rcan")
