"""Centroids of a known mixture, stored beside the weights."""

import pytest
import torch
from torch import nn

from medsr_monai.engines import cluster_latents, store_centroids
from medsr_monai.networks import Bicubic, StyleSwinGenerator
from medsr_monai.weights.load import load_network, save_atomically

CENTRES = torch.tensor([[5.0, 0.001, 3.0], [-5.0, 0.002, 3.0], [0.0, 0.009, 3.0]])


class Mixture(nn.Module):
    """Three narrow clusters; the second channel, a thousandth of the first, is needed to tell them apart."""

    def forward(self, z):
        chosen = (z[:, 0] > -0.43).long() + (z[:, 0] > 0.43).long()
        return CENTRES[chosen] + torch.tensor([0.1, 1e-4, 0.0]) * z


def by_first(centroids):
    return centroids[centroids[:, 0].argsort()]


def test_the_centres_of_a_mixture_are_found():
    centroids = by_first(cluster_latents(Mixture(), 3, 5000, 3))
    # the mean of each third of z is within 1.1 of 0
    torch.testing.assert_close(centroids, by_first(CENTRES), rtol=0, atol=0.15)
    torch.testing.assert_close(centroids[:, 1], by_first(CENTRES)[:, 1], rtol=0, atol=1e-4)


def test_channels_are_standardised():
    """Two clusters that differ in a channel of tiny scale only, beside noise of a large scale."""

    class Tiny(nn.Module):
        def forward(self, z):
            return torch.stack([100 * z[:, 0].clamp(-1, 1), 1e-3 * z[:, 1].sign()], dim=1)

    centroids = cluster_latents(Tiny(), 2, 4000, 2)
    torch.testing.assert_close(centroids[:, 1].sort().values, torch.tensor([-1e-3, 1e-3]), rtol=0, atol=1e-6)


def test_the_same_seeds_give_the_same_centroids():
    mapping = StyleSwinGenerator(16, style_dim=8, mapping_layers=2, channels=[8, 8, 8]).mapping
    first = cluster_latents(mapping, 8, 500, 4)
    assert torch.equal(cluster_latents(mapping, 8, 500, 4), first)
    assert not torch.equal(cluster_latents(mapping, 8, 500, 4, seed=1), first)
    assert not torch.equal(cluster_latents(mapping, 8, 500, 4, random_state=1), first)


def test_centroids_are_added_to_the_weights(tmp_path):
    network = StyleSwinGenerator(16, style_dim=8, mapping_layers=2, channels=[8, 8, 8])
    path = tmp_path / "model.pt"
    save_atomically({"network": network.arguments, "model": network.state_dict()}, path)
    centroids = store_centroids(path, 200, 3)
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"network", "model", "centroids"} and content["network"] == network.arguments
    assert torch.equal(content["centroids"], centroids) and centroids.shape == (3, 8)
    for name, tensor in load_network(path).state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])
    assert torch.equal(store_centroids(path, 200, 3), centroids)


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(ValueError, match="8 clusters of 5 latents: expected 1 to 5"):
        cluster_latents(Mixture(), 3, 5, 8)
    save_atomically({"network": Bicubic(scale=2).arguments, "model": {}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"holds a medsr_monai\.networks\.Bicubic, expected a .*StyleSwinGenerator"):
        store_centroids(tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        store_centroids(tmp_path / "other.pt")
