import pytest
import torch
from torchvision.models import vgg19

from medsr_monai.networks import VGG19Features, load_vgg19_features


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """torchvision's VGG19 with random weights, and its file without the large classifier."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = vgg19(weights=None)
    network.features.to_empty(device="cpu")
    for parameter in network.features.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    small = torch.zeros(10, 10)
    torch.save({k: v if k.startswith("features") else small for k, v in network.state_dict().items()}, path)
    return network.features, path


@pytest.mark.parametrize("layer, shape", [("VGG22", (128, 16, 24)), ("VGG54", (512, 2, 3))])
def test_features_are_torchvisions_before_the_activation(published, layer, shape):
    features, path = published
    network = load_vgg19_features(path, layer)
    assert not network.training
    # the 2nd convolution before the 2nd pooling, the 4th before the 5th
    kinds = [type(m).__name__ for m in features]
    pooling, convolution = {"VGG22": (2, 2), "VGG54": (5, 4)}[layer]
    pools = [i for i, kind in enumerate(kinds) if kind == "MaxPool2d"]
    block = range(pools[pooling - 2] + 1, pools[pooling - 1])
    last = [i for i in block if kinds[i] == "Conv2d"][convolution - 1]
    x = torch.rand(2, 3, 32, 48)
    normalised = torch.stack(
        [(x[:, c] - m) / s for c, (m, s) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)])], 1
    )
    with torch.no_grad():
        out = network(x)
        torch.testing.assert_close(out, features[: last + 1](normalised.clone()))
    assert out.shape == (2, *shape) and out.min() < 0


def test_random_weights_are_finite_and_seeded():
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(VGG19Features("VGG22"))
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        first, second = (network(x) for network in networks)
    assert torch.equal(first, second) and first.isfinite().all() and 0.1 < first.std() < 10


def test_mistakes_are_one_line(tmp_path):
    for path in (None, tmp_path / "none.pth"):
        with pytest.raises(FileNotFoundError, match=r"vgg_path is .*download https://download\.pytorch\.org") as error:
            load_vgg19_features(path, "VGG22")
        assert "\n" not in str(error.value)
    torch.save({"features.0.weight": torch.rand(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth: not the weights of torchvision's VGG19"):
        load_vgg19_features(tmp_path / "other.pth", "VGG22")
    with pytest.raises(ValueError, match="layer is 'VGG33': expected one of VGG22, VGG54"):
        VGG19Features("VGG33")
