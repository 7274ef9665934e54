import copy
import json

import pytest
import torch
from monai.bundle import ConfigParser

from medsr_monai.networks import NETWORKS, StyleSwinGenerator

SMALL = dict(size=16, style_dim=12, mapping_layers=2, channels=[16, 8, 8], num_heads=[4, 2, 2])


def small(**arguments):
    """A small generator that depends on its latent as a trained one does."""
    torch.manual_seed(0)
    network = StyleSwinGenerator(**{**SMALL, **arguments}).eval()
    for name, parameter in network.named_parameters():
        if not name.startswith("mapping"):
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def latents(count=2, seed=1):
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "arguments, count",
    [
        (dict(size=256, out_channels=3), 40_628_048),
        (dict(size=256), 40_623_924),
        (dict(size=256, out_channels=3, channel_multiplier=2), 48_929_512),
        (dict(size=128, out_channels=3), 40_255_681),
        (dict(size=64, out_channels=3), 39_299_762),
        (dict(size=32, out_channels=3), 36_535_963),
    ],
)
def test_parameter_counts(arguments, count):
    with torch.device("meta"):
        network = StyleSwinGenerator(**arguments)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("size, out_channels", [(16, 1), (32, 3), (64, 1)])
def test_image_shape(size, out_channels):
    resolutions = size.bit_length() - 2
    network = small(size=size, out_channels=out_channels, channels=[8] * resolutions, num_heads=[2] * resolutions)
    assert network.num_latents == 2 * resolutions
    with torch.no_grad():
        image = network(latents())
    assert image.shape == (2, out_channels, size, size) and image.isfinite().all()


@pytest.mark.parametrize("size", [128, 256, 512, 1024])
def test_large_sizes_build_and_run_on_shapes_alone(size):
    with torch.device("meta"):
        assert StyleSwinGenerator(size)(torch.randn(1, 512)).shape == (1, 1, size, size)


def test_latents_make_the_image():
    network = small()
    with torch.no_grad():
        a, b = network(latents()), network(latents(seed=2))
        assert torch.equal(a, network(latents()))
        assert (a - b).abs().max() > 1e-2
        torch.testing.assert_close(network(latents()[:1]), a[:1], atol=1e-5, rtol=0)


def test_one_style_is_the_same_style_for_every_block():
    network = small()
    with torch.no_grad():
        w = network.mapping(latents())
        torch.testing.assert_close(network.synthesis(w), network(latents()))
        plus = w.unsqueeze(1).repeat(1, network.num_latents, 1)
        torch.testing.assert_close(network.synthesis(plus), network.synthesis(w))
        plus[:, -1] += 1
        assert (network.synthesis(plus) - network.synthesis(w)).abs().max() > 1e-3


def test_truncation():
    network, centre = small(), torch.randn(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(network(latents(), psi=0.0, centre=centre)[1:], network.synthesis(centre))
        w = 0.3 * network.mapping(latents()) + 0.7 * centre
        torch.testing.assert_close(network(latents(), 0.3, centre), network.synthesis(w), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"psi is 0.5 without a centre: expected a latent w"):
        network(latents(), psi=0.5)


def test_mean_latent_is_reproducible():
    network = small()
    mean = network.mean_latent(64, torch.Generator().manual_seed(5))
    z = torch.randn(64, 12, generator=torch.Generator().manual_seed(5))
    assert mean.shape == (1, 12) and not mean.requires_grad
    torch.testing.assert_close(mean, network.mapping(z).mean(0, keepdim=True))
    assert torch.equal(mean, network.mean_latent(64, torch.Generator().manual_seed(5)))


def test_gradients_reach_latent_and_every_parameter():
    network = StyleSwinGenerator(**SMALL).train()
    z = latents().requires_grad_()
    network(z).square().mean().backward()
    assert z.grad.abs().sum() > 0
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_state_dict_and_arguments_build_it_again(tmp_path):
    network = small(out_channels=3)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    definition = json.loads(json.dumps(network.arguments))
    again = ConfigParser({"network_def": definition}).get_parsed_content("network_def").eval()
    assert again.arguments == network.arguments
    again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    with torch.no_grad():
        assert torch.equal(network(latents()), again(latents()))
        assert torch.equal(network(latents()), copy.deepcopy(network)(latents()))


def test_chosen_widths_are_recorded():
    with torch.device("meta"):
        arguments = NETWORKS["StyleSwinGenerator"](64).arguments
        assert arguments["channels"] == [512, 512, 512, 512, 256] and arguments["num_heads"] == [16, 16, 16, 16, 8]
        assert StyleSwinGenerator(**{k: v for k, v in arguments.items() if k != "_target_"}).arguments == arguments


def test_bfloat16_stays_close():
    network = small()
    with torch.no_grad():
        expected = network(latents())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lowered = network(latents())
    assert (lowered.float() - expected).abs().max() <= 0.05 * expected.abs().max()
