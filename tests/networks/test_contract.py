"""What every image-to-image network of NETWORKS keeps, whatever its method. A new network costs one line in SMALL."""

import contextlib
import copy
import importlib.util
import json

import pytest
import torch
from monai.bundle import ConfigParser

from medsr_monai.networks import NETWORKS

# The smallest sensible arguments of each network, beside in_channels, out_channels and scale.
SMALL = {
    "RDST": dict(embed_dim=12, growth_rate=6, num_heads=3, window_size=4, num_blocks=1, num_dense_blocks=2),
    "RDSTE": dict(embed_dim=12, growth_rate=6, num_heads=3, window_size=4, num_blocks=2, num_dense_blocks=1),
    "RDSTGFF": dict(embed_dim=12, growth_rate=6, num_heads=3, window_size=4, num_blocks=2, num_dense_blocks=1),
    "LGSR": dict(embed_dim=8, num_groups=1, blocks_per_group=2, hidden_size=16, num_layers=1, num_heads=2),
    "LGSRLight": dict(embed_dim=8, num_groups=1, blocks_per_group=1, hidden_size=8, num_layers=1, num_heads=2),
    "LGSRLarge": dict(embed_dim=4, num_groups=2, blocks_per_group=1, hidden_size=8, num_layers=2, num_heads=2),
    "Bicubic": dict(),
    "TransMRSR": dict(size=16, style_dim=16, channels=[16, 16, 16], num_heads=[2, 2, 2], truncation="none"),
    "EDSR": dict(channels=8, num_blocks=2),
    "EDSRLite": dict(channels=8, num_blocks=2),
    "RDN": dict(channels=8, growth_rate=4, num_layers=2, num_blocks=2),
    "RCAN": dict(channels=8, num_groups=2, num_blocks=1, reduction=1),
    "RCANAda": dict(channels=8, num_groups=2, num_blocks=1, reduction=1),
    "HAN": dict(channels=8, num_groups=2, num_blocks=1, reduction=1),
    "ConvNetLite": dict(channels=8, num_blocks=2),
    "ConvNetLarge": dict(channels=8, num_blocks=2),
    "SwinIR": dict(embed_dim=12, depths=[2], num_heads=[3], window_size=4, drop_path_rate=0.0),
    "SwinIRLite": dict(embed_dim=12, depths=[2], num_heads=[3], window_size=4, drop_path_rate=0.0),
    "GFPGAN": dict(image_size=32, num_style_feat=8, narrow=1 / 64, num_mlp=1),
    "Restormer": dict(channels=8, depths=[1, 1, 1], num_heads=[1, 2, 4], num_refinement_blocks=1),
    "MINet": dict(channels=8, num_groups=2, num_blocks=1, reduction=1),
}
# Made of the parts of other libraries: these must be installed, and cannot all be scripted.
NEEDS = {"SwinIR": "spandrel", "SwinIRLite": "spandrel", "GFPGAN": "spandrel", "Restormer": "einops"}
OTHERS = {"StyleSwinGenerator", "StyleSwinDiscriminator"}  # images from latents, and ratings: checked beside them
FROZEN = {"RCANAda": ".choice."}  # parameters that are never trained
SIZES = [(1, 1), (1, 9), (5, 3), (8, 8), (13, 6)]


def installed(name):
    lacks = name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None
    return pytest.param(name, marks=pytest.mark.skipif(lacks, reason=f"{NEEDS.get(name)} is not installed"))


every_network = pytest.mark.parametrize("name", [installed(name) for name in SMALL])
every_scriptable_network = pytest.mark.parametrize("name", [name for name in SMALL if name not in NEEDS])


def small(name, channels=1, scale=2):
    torch.manual_seed(0)
    network = NETWORKS[name](channels, channels, scale, **SMALL[name]).eval()
    for parameter in network.parameters():
        if not parameter.any():  # what starts at zero has left it in a trained network, and hides what stands before it
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def image(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def test_every_network_is_listed():
    assert {*SMALL, *OTHERS} == set(NETWORKS.names)


@every_network
@pytest.mark.parametrize("size", SIZES)
def test_output_shape(name, size):
    network = small(name)
    with torch.no_grad():
        out = network(image(2, 1, *size))
    assert out.shape == (2, 1, 2 * size[0], 2 * size[1])
    assert out.isfinite().all()
    assert min(size) >= network.minimum_size


@every_network
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8, [1, 4], [2, 1], (4, 2), [3, 1]])
def test_scale(name, scale):
    rows, columns = (scale, scale) if isinstance(scale, int) else scale
    network = small(name, scale=scale)
    assert network.scale_factors == (rows, columns)
    with torch.no_grad():
        assert network(image(1, 1, 5, 6)).shape == (1, 1, 5 * rows, 6 * columns)


@every_network
@pytest.mark.parametrize("scale", [5, 0, [2], [1, 2, 4], [1, 6], 1.5])
def test_unsupported_scale_is_named(name, scale):
    with pytest.raises(ValueError, match=r"scale is .* expected one of"):
        small(name, scale=scale)


@every_network
def test_four_channels(name):
    with torch.no_grad():
        assert small(name, channels=4)(image(1, 4, 8, 8)).shape == (1, 4, 16, 16)


@every_network
def test_gradients_reach_input_and_every_parameter(name):
    network = small(name).train()
    x = image(1, 1, 9, 10).requires_grad_()
    network(x).square().mean().backward()
    assert x.grad.abs().sum() > 0
    for key, parameter in network.named_parameters():
        if name in FROZEN and FROZEN[name] in key:
            assert not parameter.requires_grad, key
            continue
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@every_network
def test_input_untouched_and_same_answer_twice(name):
    network, x = small(name), image(1, 1, 7, 9)
    before = x.clone()
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
    assert torch.equal(x, before)


@every_network
def test_state_dict_round_trip(name, tmp_path):
    network, other = small(name), NETWORKS[name](1, 1, 2, **SMALL[name]).eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x = image(1, 1, 6, 5)
    with torch.no_grad():
        assert torch.equal(network(x), other(x))
        assert torch.equal(network(x), copy.deepcopy(network)(x))


def script(network):
    """torch.jit tells builtins by id(), also after they are gone: once in thousands, a list of ours has such an id."""
    with contextlib.suppress(RuntimeError):
        return torch.jit.script(network)
    return torch.jit.script(copy.deepcopy(network))


@every_scriptable_network
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("scale", [2, [1, 4]])
def test_scriptable(name, scale, tmp_path):
    network = small(name, scale=scale)
    script(network).save(tmp_path / "model.ts")
    scripted = torch.jit.load(tmp_path / "model.ts")
    # optimizing takes longer than all else: as it is by default, and without for the other scale
    with torch.no_grad(), torch.jit.optimized_execution(scale == 2):
        for size in SIZES:
            x = image(1, 1, *size)
            torch.testing.assert_close(scripted(x), network(x), atol=1e-6, rtol=0)


@every_network
@pytest.mark.parametrize("scale", [4, (1, 4)])
def test_arguments_build_it_again(name, scale):
    network = small(name, scale=scale)
    definition = json.loads(json.dumps(network.arguments))
    again = ConfigParser({"network_def": definition}).get_parsed_content("network_def").eval()
    assert again.arguments == network.arguments
    again.load_state_dict(network.state_dict())
    x = image(1, 1, 6, 5)
    with torch.no_grad():
        assert torch.equal(network(x), again(x))
