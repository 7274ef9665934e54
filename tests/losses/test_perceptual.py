import pytest
import torch
from torch import nn

from medsr_monai.losses import ContentStyleLoss, VGGContentLoss, gram_matrix
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


def test_gram_matrix_by_hand():
    # two channels on 1 x 3 pixels
    features = torch.tensor([[[[1.0, 2.0, 3.0]], [[0.0, 1.0, -1.0]]]])
    expected = torch.tensor([[[14.0, -1.0], [-1.0, 2.0]]]) / 6
    torch.testing.assert_close(gram_matrix(features), expected)


class TwoLayers(nn.Module):
    """Twice the image, then its two channels: itself and its mirror image."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.twice.weight, 2.0)
        self.mirror = Mirror()

    def forward(self, x):
        return self.mirror(self.twice(x)).sum()


class Mirror(nn.Module):
    def forward(self, x):
        return torch.cat([x, x.flip(3)], dim=1)


def test_content_and_style_by_hand():
    pred, label = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[2.0, 1.0]]]])
    network = TwoLayers()
    # twice the difference of (-1, 1), squared: 4
    assert ContentStyleLoss(network, ["twice"])(pred, label).item() == pytest.approx(4)
    # a mirror image has the same style; another image does not: Gram matrices of 2 x (1, 2) and 2 x (3, 1), over 2
    assert ContentStyleLoss(network, style=["twice", "mirror"])(pred, label).item() == pytest.approx(0)
    other = torch.tensor([[[[3.0, 1.0]]]])
    double = (4 * 5 / 2 - 4 * 10 / 2) ** 2
    mirror = (2 * (4 * 5 / 4 - 4 * 10 / 4) ** 2 + 2 * (4 * 4 / 4 - 4 * 6 / 4) ** 2) / 4
    style = ContentStyleLoss(network, style=["twice", "mirror"])(pred, other).item()
    assert style == pytest.approx(double + mirror)
    content = ContentStyleLoss(network, ["twice"])(pred, other).item()
    both = ContentStyleLoss(network, ["twice"], ["twice", "mirror"], content_weight=3, style_weight=0.5)
    assert both(pred, other).item() == pytest.approx(3 * content + 0.5 * style)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_content_of_rgb_features_is_the_vgg_content_loss(channels):
    torch.manual_seed(0)
    network = VGG19Features("VGG22")
    pred, label = torch.rand(2, 2, channels, 24, 24)
    loss = ContentStyleLoss(network, ["features.7"], rgb=True)(pred, label)
    torch.testing.assert_close(loss, VGGContentLoss(network)(pred, label))


def test_content_and_style_leave_the_network_alone():
    network = VGG19Features(14).train()
    loss = ContentStyleLoss(network, ["features.2"], ["features.13"], rgb=True)
    pred = torch.rand(1, 1, 16, 16, requires_grad=True)
    for _ in range(2):
        loss(pred, torch.rand(1, 1, 16, 16)).backward()
    assert pred.grad.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert not any(m.training for m in network.modules())
    assert not any(m._forward_hooks for m in network.modules())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss(pred, 1 - pred.detach())
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, loss(pred, 1 - pred.detach()), rtol=0.05, atol=0)


def test_layers_that_are_not_there():
    with pytest.raises(ValueError, match="nothing to compare"):
        ContentStyleLoss(TwoLayers())
    with pytest.raises(ValueError, match="no layer triple: expected names out of twice, mirror"):
        ContentStyleLoss(TwoLayers(), ["twice", "triple"])
