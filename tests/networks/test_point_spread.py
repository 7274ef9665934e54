"""Networks that are told the point spread of their input."""

import copy

import pytest
import torch
from bundle_copies import TINY, save_weights, tiny_network
from torch import nn

from medsr_monai.exchange.run import ExportedNetwork
from medsr_monai.exchange.write import export_network
from medsr_monai.networks import RDST
from medsr_monai.transforms import PointSpread, encode_point_spread
from medsr_monai.weights.load import transfer_weights

GAUSSIAN, BOX = (encode_point_spread(PointSpread(kind, 1.2))[None] for kind in ("gaussian", "box"))


@pytest.fixture
def told():
    network = tiny_network(scale=[1, 4], psf_channels=GAUSSIAN.shape[1]).eval()
    nn.init.normal_(network.psf_embedding.layers[-1].weight, std=0.1)
    return network


def test_it_starts_as_the_network_that_was_never_told(tmp_path):
    old, new = tiny_network(scale=[1, 4]).eval(), tiny_network(seed=1, scale=[1, 4], psf_channels=11).eval()
    kept = transfer_weights(new, save_weights(old, tmp_path / "old.pt"))
    assert all(name.startswith("psf_embedding.") for name in kept)
    x = torch.rand(2, 1, 9, 7)
    assert torch.equal(old(x), new(x)) and torch.equal(new(x), new(x, GAUSSIAN))


def test_it_listens_image_by_image(told):
    x = torch.rand(2, 1, 9, 7)
    both = told(x, torch.cat([GAUSSIAN, BOX]))
    torch.testing.assert_close(both[:1], told(x[:1], GAUSSIAN), rtol=0, atol=1e-6)
    torch.testing.assert_close(both[1:], told(x[1:], BOX), rtol=0, atol=1e-6)
    torch.testing.assert_close(told(x, GAUSSIAN), told(x, GAUSSIAN.expand(2, -1)), rtol=0, atol=1e-6)
    assert (told(x, GAUSSIAN) - told(x, BOX)).abs().max() > 1e-3


def test_unknown_is_all_zeros(told):
    x = torch.rand(1, 1, 8, 8)
    assert torch.equal(told(x), told(x, encode_point_spread(None)[None]))
    assert (told(x) - told(x, BOX)).abs().max() > 1e-3


def test_the_sum_is_that_of_the_embedding(told):
    """The first features get one number a channel, everywhere the same."""
    features = torch.rand(2, 12, 5, 4)
    added = told.psf_embedding(features, torch.cat([GAUSSIAN, BOX])) - features
    expected = told.psf_embedding.layers(torch.cat([GAUSSIAN, BOX]))
    torch.testing.assert_close(added, expected[:, :, None, None].expand_as(added), rtol=0, atol=1e-6)


def test_gradients_reach_the_embedding(told):
    told.train()(torch.rand(2, 1, 8, 8), torch.cat([GAUSSIAN, BOX])).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in told.psf_embedding.layers[-1].parameters())


def test_a_network_that_is_not_told_refuses():
    with pytest.raises(ValueError, match="psf is given to a network that is not told: build it with psf_channels"):
        RDST(**TINY)(torch.rand(1, 1, 8, 8), BOX)


@pytest.mark.parametrize("suffix", [pytest.param("onnx", marks=pytest.mark.slow), "ts"])
def test_exported_networks_are_told_too(told, tmp_path, suffix):
    pytest.importorskip("onnxruntime" if suffix == "onnx" else "torch")
    for parameter in told.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    file = tmp_path / f"told.{suffix}"
    export_network(copy.deepcopy(told), file, "onnx" if suffix == "onnx" else "torchscript")
    exported, x = ExportedNetwork(file, trust_code=True), torch.rand(3, 1, 9, 7)
    assert exported.psf_channels == 11
    with torch.no_grad():
        for psf in (None, BOX, torch.cat([GAUSSIAN, BOX, GAUSSIAN])):
            torch.testing.assert_close(exported(x, psf), told(x, psf), rtol=0, atol=1e-5)
