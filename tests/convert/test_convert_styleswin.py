"""StyleSwin computes what the authors' code computes, from their own weights."""

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from medsr_monai.convert import load_official
from medsr_monai.networks.blocks.filters import haar
from medsr_monai.networks.blocks.style import sinusoidal_position_encoding

HERE = Path(__file__).parents[1] / "golden"

both_discriminators = pytest.mark.parametrize("name", ["styleswin_disc_small", "styleswin_disc_sn_small"])


def read(path):
    """Arrays of a golden in float64, and the authors' state dict."""
    with np.load(path) as arrays:
        arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "config"}
    state = {name[3:]: value for name, value in arrays.items() if name.startswith("sd/")}
    return {name: value.double() for name, value in arrays.items() if not name.startswith("sd/")}, state


def close(value, expected, atol=1e-6):
    """To 1e-5 of each element, and 1e-6 of the largest: the goldens are float64 results, rounded to float32."""
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=atol * expected.abs().max().item())


def generator():
    arrays, state = read(HERE / "styleswin_small.npz")
    return arrays, load_official(state, "styleswin").double()


def test_generator_golden():
    arrays, network = generator()
    assert not network.training
    features = []
    for layer in network.decoder.layers:
        layer.register_forward_hook(lambda _, i, o: features.append(o.flatten(1, 2)))
    with torch.no_grad():
        close(network(arrays["z"]), arrays["output"])
        for i, feature in enumerate(features):
            close(feature, arrays[f"feat/layer{i}"])
        w = network.mapping(arrays["z"])
        close(w.unsqueeze(1).expand(-1, network.num_latents, -1), arrays["latent"])
        # the authors' run has not rounded the mean
        close(network(arrays["z"], psi=0.7, centre=arrays["mean_w"]), arrays["output_trunc07"], atol=2e-6)


def test_mean_latent_golden():
    arrays, network = generator()
    torch.manual_seed(1)
    close(torch.randn(2, 32).double(), arrays["z"])
    with torch.no_grad():
        close(network.mapping(torch.randn(512, 32).double()).mean(0, keepdim=True), arrays["mean_w"])


@pytest.mark.parametrize(
    "spoil", ["flip the bias tables", "swap the halves", "drop the mask", "transpose the positions", "LayerNorm eps"]
)
def test_golden_would_notice(spoil, monkeypatch):
    arrays, state = read(HERE / "styleswin_small.npz")
    if spoil == "flip the bias tables":
        state = {name: value.flip(0) if name.endswith("bias_table") else value for name, value in state.items()}
    if spoil == "swap the halves":
        swapped = str.maketrans("01", "10")
        state = {
            re.sub(r"attn\.[01]", lambda m: m.group().translate(swapped), name): value for name, value in state.items()
        }
    if spoil == "drop the mask":
        mask = "medsr_monai.networks.blocks.window_attention.shift_mask"
        monkeypatch.setattr(mask, lambda h, w, n, s, device, windows: torch.zeros(len(windows), n * n, n * n))
    if spoil == "transpose the positions":
        places = "medsr_monai.networks.blocks.style.sinusoidal_position_encoding"
        monkeypatch.setattr(places, lambda *arguments: sinusoidal_position_encoding(*arguments).transpose(0, 1))
    network = load_official(state, "styleswin").double()
    if spoil == "LayerNorm eps":
        for module in network.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = 1e-3
    with torch.no_grad(), pytest.raises(AssertionError, match="not close"):
        close(network(arrays["z"]), arrays["output"])


def test_hyper_parameters_are_read_off():
    arguments = generator()[1].arguments
    assert arguments == {
        "_target_": "medsr_monai.networks.StyleSwinGenerator",
        "size": 32,
        "out_channels": 3,
        "style_dim": 32,
        "mapping_layers": 2,
        "channel_multiplier": 1,
        "channels": [32, 32, 32, 16],
        "num_heads": [4, 4, 4, 4],
        "window_size": 8,
        "mlp_ratio": 4.0,
    }


@both_discriminators
def test_discriminator_golden(name):
    """Output for three batch sizes, gradient of the images, and the mean of its sum of squares (R1)."""
    arrays, state = read(HERE / f"{name}.npz")
    network = load_official(state, "styleswin_discriminator").double()
    assert network.arguments["spectral_normalization"] is ("sn" in name)
    assert network.size == 32 and network.channels[:2] + network.channels[3:] == [24, 20, 12]
    x = arrays["x"].requires_grad_()
    output = network(x)
    (gradient,) = torch.autograd.grad(output.sum(), x)
    close(output, arrays["output"])
    close(network(x[:2]), arrays["output_b2"])
    close(network(x[:1]), arrays["output_b1"])
    close(gradient, arrays["grad_x"])
    close(gradient.square().sum((1, 2, 3)).mean(), arrays["r1"])
    close(haar(x[:1]), arrays["haar"])


@both_discriminators
def test_discriminator_golden_would_notice(name, monkeypatch):
    arrays, state = read(HERE / f"{name}.npz")
    kept = "medsr_monai.networks.discriminators.haar"
    monkeypatch.setattr(kept, lambda x: haar(x.transpose(2, 3)).transpose(2, 3))
    with torch.no_grad(), pytest.raises(AssertionError, match="not close"):
        close(load_official(state, "styleswin_discriminator").double()(arrays["x"]), arrays["output"])


def test_training_checkpoint_with_its_options(tmp_path):
    """The averaged generator is taken, the discriminator beside it is found, the script's options are no obstacle."""
    state = read(HERE / "styleswin_small.npz")[1]
    raw = {name: torch.zeros_like(value) for name, value in state.items()}
    checkpoint = {"g": raw, "d": {}, "g_ema": state, "g_optim": {"state": {}}, "args": argparse.Namespace(size=32)}
    torch.save(checkpoint, tmp_path / "styleswin_900000.pt")
    network = load_official(tmp_path / "styleswin_900000.pt", "styleswin")
    assert torch.equal(network.decoder.constant, state["input.input"])
    del checkpoint["g_ema"]
    assert not load_official(checkpoint, "styleswin").decoder.constant.any()
    discriminator = read(HERE / "styleswin_disc_small.npz")[1]
    again = load_official({**checkpoint, "d": discriminator}, "styleswin_discriminator")
    assert torch.equal(again.final_linear[2].bias, discriminator["final_linear.1.bias"])


def test_options_of_another_family_are_refused():
    with pytest.raises(ValueError, match=r"arguments are \['truncation'\]: 'styleswin' takes tensors and nothing else"):
        load_official({}, "styleswin", truncation="nearest")
