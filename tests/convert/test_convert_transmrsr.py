"""TransMRSR computes what the authors' code computes, from their own weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medsr_monai.convert import load_official
from medsr_monai.networks import StyleSwinGenerator, TransMRSR

GOLDEN = Path(__file__).parents[1] / "golden" / "transmrsr_small.npz"  # the first image of the authors' run
OUTPUTS = {"farthest": "output_code_farthest", "nearest": "output_paper_nearest", "none": "output_no_truncation"}


@pytest.fixture(scope="module")
def golden():
    """Arrays of the golden in float64, and the authors' state dict."""
    with np.load(GOLDEN) as arrays:
        arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "config"}
    state = {name[3:]: value for name, value in arrays.items() if name.startswith("sd/")}
    return {name: value.double() for name, value in arrays.items() if not name.startswith("sd/")}, state


def load(golden, truncation, **arguments):
    arrays, state = golden
    if truncation != "none":
        arguments = {"centroids": arrays["centers"].float(), "truncation": truncation, **arguments}
    return load_official(state, "transmrsr", **arguments).double()


def close(value, expected):
    """To 1e-5 of each element, and 1e-6 of the largest: the goldens are float64 results, rounded to float32."""
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("truncation", OUTPUTS)
def test_golden(golden, truncation):
    arrays, network = golden[0], load(golden, truncation)
    assert not network.training
    with torch.no_grad():
        close(network(arrays["x"]), arrays[OUTPUTS[truncation]])


def test_farthest_is_the_default_with_centroids(golden):
    arrays, state = golden
    network = load_official(state, "transmrsr", centroids=arrays["centers"].float()).double()
    assert network.arguments["truncation"] == "farthest" and network.arguments["encoder_attention_scale"] == 1.0
    assert load_official(state, "transmrsr").arguments["truncation"] == "none"
    with torch.no_grad():
        close(network(arrays["x"]), arrays["output_code_farthest"])


@pytest.mark.parametrize("truncation", ["farthest", "nearest"])
def test_golden_features(golden, truncation):
    arrays, network = golden[0], load(golden, truncation)
    encoded, decoded, seen = [], [], {}
    for level in network.encoder:
        level.register_forward_hook(lambda _, i, o: encoded.append(o))
    for layer in network.decoder.layers:
        layer.register_forward_hook(lambda _, i, o: decoded.append(o))
    for name in ("shallow", "encoder_norm", "to_latents"):
        network.get_submodule(name).register_forward_hook(lambda _, i, o, name=name: seen.__setitem__(name, o))
    network.decoder.register_forward_pre_hook(lambda _, arguments: seen.__setitem__("decoder", arguments))
    with torch.no_grad():
        network(arrays["x"])
    latents, conditions = seen["decoder"]

    close(seen["shallow"], arrays["feat/shallow"])
    close(seen["encoder_norm"].flatten(1, 2), arrays["feat/enc_tokens_4x4"])
    close(seen["to_latents"].view(1, 8, 32), arrays["feat/latent_raw"])
    close(latents, arrays[f"feat/latent_trunc_{truncation}"])
    for i in range(3):
        close(encoded[i].flatten(1, 2), arrays[f"feat/enc{i}"])
        scale, shift = conditions[2 - i]  # the golden counts from fine to coarse
        close(scale, arrays[f"feat/scale{i}"])
        close(shift, arrays[f"feat/shift{i}"])
    if truncation == "farthest":  # the golden's decoder features are of this run
        for i in range(3):
            close(decoded[i].permute(0, 3, 1, 2), arrays[f"feat/dec{i}"])
        close(decoded[3].flatten(1, 2), arrays["feat/dec3"])


@pytest.mark.parametrize("arguments", [dict(encoder_attention_scale=None), dict(truncation="nearest")])
def test_golden_would_notice(golden, arguments):
    arrays, network = golden[0], load(golden, **{"truncation": "farthest", **arguments})
    with torch.no_grad(), pytest.raises(AssertionError, match="not close"):
        close(network(arrays["x"]), arrays["output_code_farthest"])


def test_hyper_parameters_are_read_off(golden):
    arguments = load(golden, "nearest").arguments
    shared = dict(size=32, style_dim=32, channels=[32, 32, 32, 16], num_heads=[4, 4, 4, 4])
    expected = TransMRSR(3, 3, **shared, encoder_heads=[4, 4, 4], encoder_attention_scale=1.0, truncation="nearest")
    assert arguments == expected.arguments


def test_unused_layers_and_computed_buffers_are_dropped(golden):
    arrays, state = golden
    extra = {
        "MAB.conv.0.body.weight": torch.ones(3),
        "fusion_convs.2.weight": torch.ones(3),
        "layers.0.residual_group.blocks.1.attn_mask": torch.ones(16, 64, 64),
        "layers.0.residual_group.blocks.1.attn.relative_position_index": torch.ones(64, 64),
        "generator.layers.2.blocks.0.attn_mask2": torch.ones(4, 64, 64),
        "generator.layers.2.blocks.0.attn.1.relative_position_index": torch.ones(64, 64),
    }
    network = load_official({"state_dict": {**state, **extra}}, "transmrsr").double()
    with torch.no_grad():
        close(network(arrays["x"]), arrays["output_no_truncation"])


def test_prior_of_an_official_generator_fits_its_names(golden):
    """The decoder of a TransMRSR checkpoint is that of a StyleSwin generator without mapping and image layers."""
    network = load(golden, "nearest")
    shared = {k: network.arguments[k] for k in ("size", "style_dim", "channels", "num_heads")}
    generator = StyleSwinGenerator(out_channels=3, mapping_layers=2, **shared)
    generator.decoder.load_state_dict(network.decoder.state_dict())
    fresh = TransMRSR(3, 3, **shared)
    fresh.load_prior(generator.state_dict(), golden[0]["centers"])
    assert torch.equal(fresh.decoder.constant, golden[1]["generator.input.input"])
    assert torch.equal(fresh.centroids.double(), golden[0]["centers"])


def test_options_are_checked(golden):
    with pytest.raises(ValueError, match=r"\['psi'\]: 'transmrsr' takes tensors and \['encoder_attention_scale', 'tr"):
        load(golden, "none", psi=0.5)
    with pytest.raises(ValueError, match=r"1 tensors not known to the table of 'transmrsr'.*centers"):
        load(golden, "none", centers=golden[0]["centers"])
