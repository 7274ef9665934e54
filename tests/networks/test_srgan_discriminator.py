import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from medsr_monai.networks import SRGANDiscriminator, build_network


def small(*arguments, **options):
    torch.manual_seed(0)
    return SRGANDiscriminator(*arguments, channels=4, hidden_channels=8, **options)


def test_parameter_count():
    with torch.device("meta"):
        network = SRGANDiscriminator()
    assert sum(p.numel() for p in network.parameters()) == 23_558_721
    # by hand: 9 (1*64 + 64*64 + ...) of the convolutions, then 18432 * 1024 + 1024 and 1024 + 1
    widths = [1, 64, 64, 128, 128, 256, 256, 512, 512]
    convolutions = 9 * sum(a * b for a, b in pairwise(widths))
    assert convolutions + 512 * 6 * 6 * 1024 + 1024 + 1024 + 1 == 23_558_721


def test_layers():
    layers = list(SRGANDiscriminator(image_size=16, hidden_channels=2).features)
    convolutions = layers[::2]
    assert [c.out_channels for c in convolutions] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert [c.stride[0] for c in convolutions] == [1, 2] * 4 and not any(c.bias is not None for c in convolutions)
    assert all(isinstance(layer, nn.LeakyReLU) and layer.negative_slope == 0.2 for layer in layers[1::2])
    normalised = list(small(batch_norm=True).features)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in normalised) == 7


@pytest.mark.parametrize("channels, size", [(1, 96), (4, 32), (1, (48, 33)), (2, 1)])
def test_output_shape_and_gradients(channels, size):
    network = small(channels, size)
    height, width = network.image_size
    x = torch.rand(3, channels, height, width, requires_grad=True)
    out = network(x)
    assert out.shape == (3, 1)
    out.sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_each_image_is_judged_alone():
    network, x = small(1, 32), torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[:1], network(x[:1]))


def test_arguments_build_it_again():
    network = small(2, (32, 16))
    again = build_network(json.loads(json.dumps(network.arguments)))
    again.load_state_dict(network.state_dict())
    x = torch.rand(1, 2, 32, 16)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="images are 32x48 and the discriminator was built for 32x32"):
        small(1, 32)(torch.rand(1, 1, 32, 48))
