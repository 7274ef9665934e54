import copy
import json

import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser

from medsr_monai.networks import StyleSwinDiscriminator
from medsr_monai.networks.discriminators import minibatch_stddev

SMALL = dict(size=32, channels=[12, 10, 8, 6])

both_kinds = pytest.mark.parametrize("spectral", [False, True])


def small(**arguments):
    torch.manual_seed(0)
    return StyleSwinDiscriminator(**{**SMALL, **arguments}).eval()


def images(count=4, channels=1, size=32):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channel_multiplier, count", [(1, 22_704_257), (2, 26_211_073)])
def test_parameter_counts(channel_multiplier, count):
    with torch.device("meta"):
        network = StyleSwinDiscriminator(256, 3, channel_multiplier=channel_multiplier)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == count


@both_kinds
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_logit_per_image(spectral, size, channels):
    widths = [8] * (size.bit_length() - 2)
    network = small(size=size, in_channels=channels, channels=widths, spectral_normalization=spectral)
    with torch.no_grad():
        assert network(images(2, channels, size)).shape == (2, 1)


@pytest.mark.parametrize("size", [128, 1024])
def test_large_sizes_build_and_run_on_shapes_alone(size):
    with torch.device("meta"):
        assert StyleSwinDiscriminator(size)(torch.rand(2, 1, size, size)).shape == (2, 1)


def test_deviation_of_a_batch_by_hand():
    x = torch.zeros(4, 1, 1, 2)
    x[:, 0, 0, 0] = torch.tensor([1.0, 3, 1, 3])  # deviation 1 here, 0 in the other pixel
    out = minibatch_stddev(x)
    assert out.shape == (4, 2, 1, 2) and torch.equal(out[:, :1], x)
    torch.testing.assert_close(out[:, 1], torch.full((4, 1, 2), 0.50005), atol=1e-6, rtol=0)


def test_deviation_groups_every_second_sample_of_eight():
    x = torch.rand(8, 3, 2, 2)
    out = minibatch_stddev(x)
    for first in (0, 1):
        torch.testing.assert_close(out[first::2], minibatch_stddev(x[first::2]))
    alone = minibatch_stddev(x[:1])
    torch.testing.assert_close(alone[:, 3], torch.full((1, 2, 2), 1e-4))


def test_batches_that_no_group_fits():
    with pytest.raises(ValueError, match=r"The batch is 6.*groups of 4.*drop_last"):
        small()(images(6))


def test_another_size_is_named():
    with pytest.raises(ValueError, match="The images are 16 x 32: expected 32 x 32"):
        small()(torch.rand(1, 1, 16, 32))


@both_kinds
def test_gradients_reach_image_and_every_parameter(spectral):
    network, x = small(spectral_normalization=spectral).train(), images().requires_grad_()
    F.softplus(network(x)).mean().backward()
    assert x.grad.abs().sum() > 0
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@both_kinds
def test_r1_penalty_is_differentiable(spectral):
    """Its gradient along a direction of the weights is that of finite differences."""
    network = small(spectral_normalization=spectral).double()
    x = images(2).double().requires_grad_()

    def penalty():
        (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        return gradient.square().sum((1, 2, 3)).mean()

    weights = [p for p in network.parameters() if p.dim() > 1]
    gradients = torch.autograd.grad(penalty(), weights)
    torch.manual_seed(2)
    directions = [torch.randn_like(w) for w in weights]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    start, values = [w.detach().clone() for w in weights], []
    for step in (1e-7, -1e-7):  # small, since the penalty jumps where a leaky ReLU turns
        with torch.no_grad():
            for weight, before, direction in zip(weights, start, directions, strict=True):
                weight.copy_(before + step * direction)
        values.append(penalty().detach())
    torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-7, rtol=1e-5, atol=0)
    assert slope.abs() > 1e-3


def test_spectral_normalisation_bounds_every_weight():
    network = small(spectral_normalization=True)
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            largest = torch.linalg.matrix_norm(module.weight.flatten(1), ord=2)
            assert 0.95 < largest < 1.2, module


def test_spectral_normalisation_follows_the_weights_in_training_only():
    network = small(spectral_normalization=True)
    vectors = {name: value.clone() for name, value in network.named_buffers() if name.endswith("_u")}
    assert len(vectors) == 10
    with torch.no_grad():
        network(images())
        assert all(torch.equal(network.get_buffer(name), value) for name, value in vectors.items())
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
        network.train()(images())
    changed = [not torch.equal(network.get_buffer(name), value) for name, value in vectors.items()]
    assert sum(changed) == 9  # that of the last layer, with one row, is 1 or -1


@both_kinds
def test_state_dict_and_arguments_build_it_again(spectral, tmp_path):
    network = small(in_channels=3, spectral_normalization=spectral)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    definition = json.loads(json.dumps(network.arguments))
    again = ConfigParser({"network_def": definition}).get_parsed_content("network_def").eval()
    assert again.arguments == network.arguments
    again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x = images(2, 3)
    with torch.no_grad():
        assert torch.equal(network(x), again(x))
        assert torch.equal(network(x), copy.deepcopy(network)(x))
