"""Weights of one scale, or of fewer blocks, as the start of another network."""

import logging

import pytest
import torch
from bundle_copies import TINY
from ignite.engine import Engine

from medsr_monai.handlers import WeightsLoader
from medsr_monai.networks import RDST, NetworkArguments
from medsr_monai.weights.load import save_atomically, transfer_weights


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    network = RDST(scale=4, **TINY)
    path = tmp_path / "x4.pt"
    save_atomically({"network": NetworkArguments(network).state_dict(), "model": network.state_dict()}, path)
    return path


@pytest.mark.parametrize(
    ("scale", "kept"),
    [(2, []), (3, ["upsample.0.bias", "upsample.0.weight"]), ([1, 4], ["upsample."])],
)
def test_what_fits_is_taken_and_the_rest_keeps_its_first_values(weights, scale, kept):
    theirs = torch.load(weights, weights_only=True)["model"]
    network = RDST(scale=scale, **TINY)
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    names = transfer_weights(network, weights)
    assert all(any(name.startswith(start) for start in kept) for name in names) and bool(names) == bool(kept)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, first[name] if name in names else theirs[name]), name
    assert network(torch.rand(1, 1, 8, 8)).isfinite().all()


def test_further_blocks_start_as_identity(weights):
    """The deeper network gives what the other gave, and its new blocks learn."""
    other = RDST(scale=4, **TINY)
    other.load_state_dict(torch.load(weights, weights_only=True)["model"])
    network = RDST(scale=4, **TINY | {"num_blocks": 3})
    kept = transfer_weights(network, weights)
    assert {".".join(name.split(".")[:2]) for name in kept} == {"blocks.1", "blocks.2"}
    x = torch.rand(1, 1, 16, 8)
    torch.testing.assert_close(network(x), other(x), rtol=0, atol=0)
    network(x).mean().backward()
    assert network.blocks[2].fusion.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"embed_dim": 24}, "embed_dim is 12 in the weights and 24 in network_def"),
        ({"bicubic_residual": True}, "bicubic_residual is False in the weights and True"),
        ({"num_blocks": 0}, "num_blocks is 1 in the weights and 0 in network_def"),
    ],
)
def test_another_network_is_refused(weights, sizes, message):
    network = RDST(scale=2, **TINY | sizes)
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=rf"x4\.pt: .*{message}") as raised:
        transfer_weights(network, weights)
    assert "scale" not in str(raised.value)
    assert all(torch.equal(tensor, first[name]) for name, tensor in network.state_dict().items())


def test_a_file_without_arguments_is_refused(tmp_path):
    save_atomically({"network": 3, "model": {}}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt: "):
        transfer_weights(RDST(**TINY), tmp_path / "odd.pt")


def test_a_training_says_what_begins_anew(weights, caplog):
    network = RDST(scale=3, **TINY)
    engine = Engine(lambda engine, batch: None)
    WeightsLoader(str(weights), network, transfer=True).attach(engine)
    with caplog.at_level(logging.INFO):
        engine.run([0])
    assert "everything fits but upsample.0.bias, upsample.0.weight" in caplog.text
    refusing = Engine(lambda engine, batch: None)
    WeightsLoader(str(weights), network).attach(refusing)
    with pytest.raises(ValueError, match="scale is 4 in the weights and 3"):
        refusing.run([0])
