import math

import pytest
import torch
from torch import nn

from medsr_monai.losses import GradientPenaltyLoss, WassersteinDiscriminatorLoss, WassersteinGeneratorLoss


def test_wasserstein_by_hand():
    real, fake = torch.tensor([[1.0], [3.0]]), torch.tensor([[-2.0], [6.0], [5.0]])
    assert WassersteinDiscriminatorLoss()(real, fake).item() == 3 - 2
    assert WassersteinGeneratorLoss()(fake).item() == -3
    assert WassersteinGeneratorLoss(weight=0.1)(fake).item() == pytest.approx(-0.3)


def test_penalty_of_a_linear_critic_by_hand():
    """D(x) = w . x has the gradient w everywhere: 10 (|w| - 1)^2, whose derivative is 20 (|w| - 1) w / |w|."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    w = torch.tensor([[1.0, -2.0, 4.0, 2.0]])  # of length 5
    critic[1].weight.data = w.clone()
    real, fake = torch.rand(2, 3, 1, 2, 2)
    penalty = GradientPenaltyLoss()(critic, real, fake, torch.rand(3))
    assert penalty.item() == pytest.approx(10 * (5 - 1) ** 2)
    penalty.backward()
    torch.testing.assert_close(critic[1].weight.grad, 20 * (5 - 1) * w / 5)
    assert critic[1].bias.grad is None
    critic[1].weight.data = w / 5
    assert GradientPenaltyLoss()(critic, real, fake, torch.rand(3)).item() == pytest.approx(0, abs=1e-10)


def test_penalty_of_a_quadratic_critic_by_hand():
    """D(x) = |x|^2 / 2 has the gradient x: the penalty says where it was taken, and takes each image's own."""
    real = torch.tensor([[3.0, 4.0], [0.0, 8.0]]).view(2, 1, 1, 2).requires_grad_()
    fake = torch.tensor([[0.0, 0.0], [6.0, 0.0]]).view(2, 1, 1, 2).requires_grad_()
    mix = torch.tensor([0.6, 0.5])  # at (1.8, 2.4), of length 3, and at (3, 4), of length 5

    def critic(x):
        return x.square().flatten(1).sum(1) / 2

    penalty = GradientPenaltyLoss(weight=2)(critic, real, fake, mix)
    assert penalty.item() == pytest.approx(2 * ((3 - 1) ** 2 + (5 - 1) ** 2) / 2)
    for ends, expected in ((0.0, (0, 6)), (1.0, (5, 8))):
        penalty = GradientPenaltyLoss(weight=1)(critic, real, fake, torch.full((2,), ends))
        assert penalty.item() == pytest.approx(sum((n - 1) ** 2 for n in expected) / 2)
    assert real.grad is None and fake.grad is None


def test_a_flat_critic_has_a_finite_gradient():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    nn.init.zeros_(critic[1].weight)
    penalty = GradientPenaltyLoss()(critic, torch.rand(2, 1, 2, 2), torch.rand(2, 1, 2, 2), torch.rand(2))
    penalty.backward()
    assert penalty.item() == 10 and math.isfinite(critic[1].weight.grad.sum())


@pytest.mark.parametrize("real, fake, mix", [((2, 1, 4, 4), (2, 1, 4, 5), (2,)), ((2, 1, 4, 4), (2, 1, 4, 4), (1,))])
def test_mistakes_are_named(real, fake, mix):
    with pytest.raises(ValueError, match=r"real is \(2, 1, 4, 4\), fake is .*: expected images of equal shapes"):
        GradientPenaltyLoss()(nn.Flatten(), torch.rand(real), torch.rand(fake), torch.rand(mix))
