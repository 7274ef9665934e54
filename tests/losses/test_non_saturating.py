"""Non-saturating losses, R1 penalty and balanced consistency, by hand."""

from math import exp, log

import pytest
import torch
from torch import nn

from medsr_monai.losses import (
    BalancedConsistencyLoss,
    NonSaturatingDiscriminatorLoss,
    NonSaturatingGeneratorLoss,
    R1Penalty,
)
from medsr_monai.networks import StyleSwinDiscriminator
from medsr_monai.transforms import AugmentImages


def softplus(x):
    return log(1 + exp(x))


def test_values_by_hand():
    real, fake = torch.tensor([[2.0], [-1.0]]), torch.tensor([[0.5], [-3.0]])
    expected = (softplus(-2) + softplus(1)) / 2 + (softplus(0.5) + softplus(-3)) / 2
    assert NonSaturatingDiscriminatorLoss()(real, fake).item() == pytest.approx(expected, rel=1e-6)
    assert NonSaturatingGeneratorLoss()(fake).item() == pytest.approx((softplus(-0.5) + softplus(3)) / 2, rel=1e-6)


def test_a_sure_discriminator_leaves_the_generator_its_gradient():
    fake = torch.full((4, 1), -40.0, requires_grad=True)
    NonSaturatingGeneratorLoss()(fake).backward()
    torch.testing.assert_close(fake.grad, torch.full((4, 1), -0.25))


def test_r1_of_a_linear_discriminator_by_hand():
    """The gradient is the weight everywhere: gamma / 2 * |w|^2, whose gradient is gamma * w."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    network[1].weight.data = torch.tensor([[1.0, -2.0, 3.0, 0.5]])
    penalty = R1Penalty(gamma=10)(network, torch.rand(3, 1, 2, 2))
    assert penalty.item() == pytest.approx(5 * 14.25)
    penalty.backward()
    torch.testing.assert_close(network[1].weight.grad, 10 * network[1].weight.detach())
    assert network[1].bias.grad.item() == 0  # not None: it has no part in the gradient


def test_r1_of_squares_by_hand():
    """D(x) = sum x^2 has the gradient 2x; the mean is over images."""
    images = torch.arange(8.0).view(2, 1, 2, 2)
    squares = (4 * (images**2).flatten(1).sum(1)).mean()
    torch.testing.assert_close(R1Penalty(gamma=3)(lambda x: x.square().flatten(1).sum(1), images), 1.5 * squares)


def test_every_weight_of_the_discriminator_gets_a_gradient():
    network = StyleSwinDiscriminator(16, channels=[4, 4, 4])
    R1Penalty()(network, torch.rand(2, 1, 16, 16)).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


def test_consistency_of_an_identical_transform_is_0():
    identity = AugmentImages(flip=0, brightness=0, saturation=0, contrast=0, translation=0, cutout=0)
    network, images = StyleSwinDiscriminator(16, channels=[4, 4, 4]), torch.rand(4, 1, 16, 16)
    loss = BalancedConsistencyLoss(identity)(network, images, network(images), torch.rand(4, 8))
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_consistency_by_hand():
    """D is the mean and T adds: the difference is what was added."""
    transform = AugmentImages(flip=0, brightness=0.2, saturation=0, contrast=0, translation=0, cutout=0)
    loss = BalancedConsistencyLoss(transform, weight=10)
    images = torch.rand(2, 1, 4, 4)
    numbers = torch.full((2, loss.count), 0.5)
    numbers[:, 1] = torch.tensor([1.0, 0.75])  # +0.2 and +0.1
    logits = images.mean(dim=(1, 2, 3))
    value = loss(lambda x: x.mean(dim=(1, 2, 3)), images, logits, numbers)
    assert value.item() == pytest.approx(10 * (0.2**2 + 0.1**2) / 2, rel=1e-5)
