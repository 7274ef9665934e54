import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from medsr_monai.losses import SegmentationPerceptualLoss, SuperResolutionLoss
from medsr_monai.networks import SegmentationUNet


class KnownUNet(nn.Module):
    """Features by hand: E(k) is k times the image; D the sum of E(1) and E(2); logits (0, 2 D)."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.encoder = Features(self.gain)
        self.decoder = lambda features: features[1] + features[2]
        self.segmentation_head = lambda x: torch.cat([0 * x, 2 * x], 1)


class Features(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return [x, *(k * self.gain * x for k in (1, 2, 3, 4, 5))]


# 1 image of 2 pixels; the differences are 1 and 2, of mean 1.5 and mean square 2.5
PRED, LABEL = torch.tensor([3.0, -1.0]).view(1, 1, 1, 2), torch.tensor([2.0, -3.0]).view(1, 1, 1, 2)


def loss(encoder=(), **options):
    return SegmentationPerceptualLoss(KnownUNet(), encoder, **options)(PRED, LABEL).item()


@pytest.mark.parametrize(
    "options, expected",
    [
        (dict(encoder=(1,)), 1.5),
        (dict(encoder=1), 1.5),
        (dict(encoder=[5]), 5 * 1.5),
        (dict(encoder=[1, 3]), 4 * 1.5),
        (dict(encoder=[1, 2, 3, 4, 5]), 15 * 1.5),
        (dict(decoder=True), 3 * 1.5),
        (dict(encoder=[2], decoder=True), 5 * 1.5),
        (dict(encoder=[1], distance="mse"), 2.5),
        (dict(encoder=[3], distance="mse"), 9 * 2.5),
        (dict(decoder=True, distance="mse"), 9 * 2.5),
        # ((1.5 / 2) + 2 * 1.5) / 2
        (dict(encoder=[1, 2], layer_reduction="nested_mean"), 1.875),
        (dict(encoder=[4], layer_reduction="nested_mean"), 4 * 1.5),
        # 5^-5, ..., 5^-1 times 1, ..., 5
        (
            dict(encoder=[1, 2, 3, 4, 5], layer_reduction="nested_mean"),
            1.5 * (1 / 3125 + 2 / 625 + 3 / 125 + 4 / 25 + 5 / 5),
        ),
    ],
)
def test_by_hand(options, expected):
    assert loss(**options) == pytest.approx(expected, rel=1e-6)


def test_the_default_is_e1():
    assert SegmentationPerceptualLoss(KnownUNet())(PRED, LABEL).item() == pytest.approx(1.5)


# D = 3 x: the probabilities of class 1 are s(18), s(-6) on PRED and s(12), s(-18) on LABEL
P1, Y1 = torch.tensor([18.0, -6.0]).double().sigmoid(), torch.tensor([12.0, -18.0]).double().sigmoid()


def dice(p, y):
    return (2 * (p * y).sum() / (p + y).sum()).item()


@pytest.mark.parametrize("target", ["hard", "soft"])
@pytest.mark.parametrize("include_background", [True, False])
def test_hrl_by_hand(target, include_background):
    y = torch.tensor([1.0, 0.0]).double() if target == "hard" else Y1
    expected = 1 - dice(P1, y)
    if include_background:
        expected = (expected + 1 - dice(1 - P1, 1 - y)) / 2
    assert loss(hrl=True, target=target, include_background=include_background) == pytest.approx(expected, abs=1e-6)
    assert loss(encoder=[1], hrl=True, target=target, include_background=include_background) == pytest.approx(
        1.5 + expected, abs=1e-6
    )


def test_a_class_that_the_reference_lacks_counts_nothing():
    prior = SegmentationPerceptualLoss(KnownUNet(), (), hrl=True)
    pred, label = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2), torch.full((1, 1, 1, 2), -9.0)
    background = 1 - torch.tensor([6.0, -6.0]).double().sigmoid()  # of pred; all of label is background
    expected = (1 - dice(background, torch.ones(2).double())) / 2
    assert prior(pred, label).item() == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    network = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after a training
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def images(size=64, channels=1):
    return torch.rand(2, 2, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("classes", [None, [1, 2, 3]])
def test_hrl_equals_the_dice_loss_of_segmentation_models(unet, classes):
    pred, label = images()
    ours = SegmentationPerceptualLoss(unet, (), hrl=True, include_background=classes is None)(pred, label)
    with torch.no_grad():
        target = unet(label).argmax(1)
        assert len(target.unique()) > 1
        theirs = smp.losses.DiceLoss("multiclass", classes=classes)(unet(pred), target)
    torch.testing.assert_close(ours, theirs)
    # and where the reference lacks classes
    with torch.no_grad():
        unet.segmentation_head[0].bias[2] -= 100
        target = unet(label).argmax(1)
        assert not (target == 2).any()
        theirs = smp.losses.DiceLoss("multiclass", classes=classes)(unet(pred), target)
        ours = SegmentationPerceptualLoss(unet, (), hrl=True, include_background=classes is None)(pred, label)
        unet.segmentation_head[0].bias[2] += 100
    torch.testing.assert_close(ours, theirs)


def test_features_are_those_of_segmentation_models(unet):
    pred, label = images()
    loss = SegmentationPerceptualLoss(unet, (1, 5), decoder=True)(pred, label)
    with torch.no_grad():
        a, b = unet.encoder(pred), unet.encoder(label)
        assert [tuple(f.shape[1:]) for f in a[1:3]] == [(64, 32, 32), (64, 16, 16)] and a[1].min() == 0
        expected = sum((a[k] - b[k]).abs().mean() for k in (1, 5)) + (unet.decoder(a) - unet.decoder(b)).abs().mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("term", [dict(encoder=1), dict(encoder=[1, 2, 3, 4, 5]), dict(encoder=[], decoder=True),
                                  dict(encoder=[], hrl=True), dict(encoder=[], hrl=True, target="soft")])  # fmt: skip
def test_gradients_reach_the_generator_and_never_the_prior(unet, term):
    unet.requires_grad_(True).train()
    generator = nn.Conv2d(1, 1, 3, padding=1)
    whole = SuperResolutionLoss(SegmentationPerceptualLoss(unet, **term), alpha=0.0)
    state = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    parent = nn.ModuleList([generator, whole])
    optimizer = torch.optim.Adam(parent.parameters(), lr=0.1)
    pred, label = images()
    label.requires_grad_()
    parent.train()  # as a trainer does
    assert generator.training and not any(m.training for m in unet.modules())
    unet.train()  # as somebody else who holds the network may do
    whole(generator(pred), label).backward()
    optimizer.step()
    assert generator.weight.grad.abs().sum() > 0 and not label.grad.any()  # alpha is 0
    assert not any(p.requires_grad or p.grad is not None for p in unet.parameters())
    for name, tensor in unet.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_equal_images_have_equal_features(unet):
    pred, label = images()
    prior = SegmentationPerceptualLoss(unet, [1, 2, 3, 4, 5], decoder=True)
    assert prior(pred, pred) == 0 < prior(pred, label)


@pytest.mark.parametrize("classes", [2, 7])
def test_four_channels_any_classes_and_odd_sizes(classes):
    network = SegmentationUNet(4, classes, encoder="resnet18")
    pred, label = images(43, channels=4)
    loss = SegmentationPerceptualLoss(network, [1, 5], decoder=True, hrl=True)(pred.requires_grad_(), label)
    loss.backward()
    assert loss > 0 and pred.grad.abs().sum() > 0


def test_super_resolution_loss_by_hand():
    prior = SegmentationPerceptualLoss(KnownUNet(), (2,))
    assert SuperResolutionLoss()(PRED, LABEL).item() == pytest.approx(1.5)
    assert SuperResolutionLoss(prior)(PRED, LABEL).item() == pytest.approx(1.5 + 10 * 3)
    assert SuperResolutionLoss(prior, alpha=0.5, lambda_=2)(PRED, LABEL).item() == pytest.approx(0.75 + 2 * 3)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(encoder=[]), "nothing to compare"),
        (dict(encoder=[0]), r"encoder is \[0\]: expected layers counted from 1"),
        (dict(encoder=[1.0]), "expected layers counted from 1"),
        (dict(encoder=[True]), "expected layers counted from 1"),
        (dict(distance="l2"), "distance is 'l2': expected one of l1, mse"),
        (dict(layer_reduction="mean"), "layer_reduction is 'mean': expected one of sum, nested_mean"),
        (dict(hrl=True, target="gt"), "target is 'gt': expected one of hard, soft"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationPerceptualLoss(KnownUNet(), **options)


def test_mistakes_at_the_first_image_are_named(unet):
    pred, label = images(32)
    with pytest.raises(ValueError, match=r"encoder is \[6\]: expected layers 1 to 5"):
        SegmentationPerceptualLoss(unet, 6)(pred, label)
    with pytest.raises(ValueError, match=r"pred is \(2, 1, 32, 32\) and label \(2, 1, 16, 32\)"):
        SegmentationPerceptualLoss(unet)(pred, label[:, :, :16])
    one = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=1)
    with pytest.raises(ValueError, match="2 or more classes"):
        SegmentationPerceptualLoss(one, (), hrl=True)(pred, label)
    with pytest.raises(ValueError, match="alpha is -1 and lambda_ 10"):
        SuperResolutionLoss(alpha=-1)
