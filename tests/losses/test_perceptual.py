import pytest
import torch
from torch import nn

from medsr_monai.losses import VGGContentLoss
from medsr_monai.networks import VGG19Features


class Channels(nn.Module):
    """Features by hand: red + 10 green + 100 blue."""

    def forward(self, x):
        assert x.shape[1] == 3
        return (x * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1)).sum(1, keepdim=True)


def image(*channels):
    return torch.tensor(channels).view(1, -1, 1, 1).expand(2, -1, 3, 3).clone()


@pytest.mark.parametrize(
    "difference, expected",
    [
        ((2.0,), (111 * 2) ** 2),
        ((1.0, 2.0, 3.0), (1 + 20 + 300) ** 2),
        ((1.0, 2.0), 111**2 * (1 + 4)),
        ((1.0, 2.0, 0.0, 3.0), 111**2 * (1 + 4 + 9)),
    ],
)
def test_by_hand(difference, expected):
    label = torch.rand(2, len(difference), 3, 3, dtype=torch.float64)
    loss = VGGContentLoss(Channels())(label + image(*difference), label)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_channels_are_summed_one_by_one():
    torch.manual_seed(0)
    loss = VGGContentLoss(VGG19Features("VGG22"))
    pred, label = torch.rand(2, 2, 4, 24, 24)
    with torch.no_grad():
        expected = sum(loss(pred[:, c : c + 1], label[:, c : c + 1]) for c in range(4))
        torch.testing.assert_close(loss(pred, label), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_reach_the_generator_and_never_the_prior(channels):
    network = VGG19Features("VGG22").train()
    loss = VGGContentLoss(network)
    generator = nn.Conv2d(channels, channels, 3, padding=1)
    nn.ModuleList([generator, loss]).train()
    assert not any(m.training for m in network.modules())
    loss(generator(torch.rand(1, channels, 24, 24)), torch.rand(1, channels, 24, 24)).backward()
    assert generator.weight.grad.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="expected equal shapes"):
        VGGContentLoss(Channels())(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 5))
