"""Truncation of a generator's styles, by hand."""

import pytest
import torch

from medsr_monai.inferers import TruncationInferer
from medsr_monai.networks import StyleSwinGenerator


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = StyleSwinGenerator(16, style_dim=8, mapping_layers=2, channels=[8, 8, 8]).eval()
    for parameter in [*network.decoder.parameters(), *network.to_image.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def test_styles_are_drawn_towards_the_mean(network):
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        centre = network.mapping(torch.randn(500, 8, generator=torch.Generator().manual_seed(4))).mean(0)
        w = network.mapping(z)
        expected = network.synthesis(centre + 0.7 * (w - centre))
        torch.testing.assert_close(TruncationInferer(0.7, 500, seed=4)(z, network), expected)
        torch.testing.assert_close(TruncationInferer()(z, network), network.synthesis(w))
    assert not torch.allclose(expected, network.synthesis(w))


@pytest.mark.parametrize("psi", [-0.1, 1.5])
def test_psi_is_a_fraction(psi):
    with pytest.raises(ValueError, match=f"psi is {psi}: expected 0"):
        TruncationInferer(psi)
