"""Inception-v3's features: torchvision's own, from a local file."""

import pytest
import torch
from torchvision.models import inception_v3

from medsr_monai.networks import load_inception_features


@pytest.fixture(scope="module")
def theirs():
    """torchvision's network as its trained weights are used: normalised by ImageNet, transform_input."""
    torch.manual_seed(0)
    network = inception_v3(weights=None, aux_logits=True, init_weights=False, transform_input=True).eval()
    for module in network.modules():  # features that differ between images
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def test_features_are_torchvisions(theirs, tmp_path):
    path = tmp_path / "inception.pth"
    torch.save(theirs.state_dict(), path)  # as published: with the auxiliary and the last layer
    ours = load_inception_features(path)
    assert not ours.training
    image = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    pooled = []
    hook = theirs.avgpool.register_forward_hook(lambda module, inputs, output: pooled.append(output.flatten(1)))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        theirs((image - mean) / std)
        hook.remove()
        features = ours(image)
        assert features.shape == (2, 2048) and features.std() > 1e-3
        torch.testing.assert_close(features, pooled[0], rtol=1e-3, atol=1e-4)
        # constant images stay constant when they are resized
        small, large = torch.full((1, 3, 20, 31), 0.25), torch.full((1, 3, 299, 299), 0.25)
        torch.testing.assert_close(ours(small), ours(large), rtol=1e-3, atol=1e-4)


def test_missing_and_wrong_weights(tmp_path):
    for path in (None, tmp_path / "absent.pth"):
        with pytest.raises(
            FileNotFoundError, match=r"inception_path is .*download https://download\.pytorch\.org"
        ) as error:
            load_inception_features(path)
        assert "\n" not in str(error.value)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not the weights of torchvision's Inception-v3"):
        load_inception_features(tmp_path / "other.pth")
