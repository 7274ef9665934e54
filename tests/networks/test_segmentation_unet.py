import json

import pytest
import segmentation_models_pytorch as smp
import torch
from bundle_copies import save_weights
from safetensors.torch import save_file
from torchvision.models import resnet18

from medsr_monai.networks import SegmentationUNet, build_network
from medsr_monai.weights.load import load_network, load_weights


def small(*arguments, **options):
    torch.manual_seed(0)
    return SegmentationUNet(*arguments, encoder="resnet18", **options).eval()


@pytest.mark.parametrize("in_channels, count", [(1, 24_430_532), (4, 24_439_940)])
def test_parameter_counts(in_channels, count):
    network = SegmentationUNet(in_channels, 4)
    assert sum(p.numel() for p in network.parameters()) == count
    assert len(network.state_dict()) == 278


def test_equals_segmentation_models_with_its_weights():
    theirs = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=3).eval()
    ours = small(1, 3)
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 1, 64, 96)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
        features = ours.encoder(x)
        assert [f.shape[1] for f in features] == [1, 64, 64, 128, 256, 512] and torch.equal(features[0], x)
        assert ours.decoder(features).shape == (2, 16, 64, 96)


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (32, 32), (33, 70)])
def test_any_size(size):
    network, x = small(1, 3), torch.rand(2, 1, *size)
    with torch.no_grad():
        out = network(x)
    assert out.shape == (2, 3, *size) and out.isfinite().all()


def test_padding_is_a_reflection_that_is_cropped_off():
    network, x = small(1, 2), torch.rand(1, 1, 40, 50)
    padded = torch.nn.functional.pad(x, (0, 14, 0, 24), mode="reflect")
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(padded)[:, :, :40, :50])


def test_arguments_build_it_again_and_read_it_back(tmp_path):
    network = small(4, 7)
    expected = {"_target_": "medsr_monai.networks.SegmentationUNet", "in_channels": 4, "classes": 7}
    assert network.arguments == {**expected, "encoder": "resnet18"}
    assert build_network(json.loads(json.dumps(network.arguments))).arguments == network.arguments
    path = tmp_path / "model.pt"
    save_weights(network, path)
    again = load_network(path)
    assert not again.training
    x = torch.rand(1, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
    with pytest.raises(ValueError, match="classes is 7 in the weights and 3 in network_def"):
        load_weights(small(4, 3), path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scriptable(tmp_path):
    network = small(1, 3)
    torch.jit.script(network).save(tmp_path / "model.ts")
    scripted = torch.jit.load(tmp_path / "model.ts")
    for size in ((32, 64), (7, 41)):
        x = torch.rand(1, 1, *size)
        with torch.no_grad():
            torch.testing.assert_close(scripted(x), network(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("in_channels", [1, 3, 4])
def test_encoder_weights_of_a_local_file(tmp_path, suffix, in_channels):
    torch.manual_seed(1)
    published = resnet18(weights=None)
    path = str(tmp_path / f"resnet18.{suffix}")
    if suffix == "pth":
        torch.save(published.state_dict(), path)
    else:
        save_file(published.state_dict(), path)
    network = small(in_channels, 2, encoder_weights=path)
    # a grey image as red, green and blue alike; of 4 channels each counts 3/4
    rgb = published.conv1.weight
    expected = {1: rgb.sum(1, keepdim=True), 3: rgb, 4: rgb[:, [0, 1, 2, 0]] * 3 / 4}[in_channels]
    torch.testing.assert_close(network.encoder.conv1.weight, expected)
    assert torch.equal(network.encoder.layer4[1].conv2.weight, published.layer4[1].conv2.weight)
    # only where the training starts, so no argument of the network
    assert network.arguments == small(in_channels, 2).arguments


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="encoder is 'resnet35'"):
        SegmentationUNet(encoder="resnet35")
    with pytest.raises(FileNotFoundError, match="no such file, and nothing is downloaded"):
        small(encoder_weights="imagenet")
    torch.save({"conv1.weight": torch.rand(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not the weights of resnet18"):
        small(encoder_weights=str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="not a PyTorch weights file"):
        small(encoder_weights=str(tmp_path / "text.pth"))
    with pytest.raises(ValueError, match="the image has 3 channels: expected in_channels = 1"):
        small()(torch.rand(1, 3, 32, 32))


def test_only_networks_of_this_package_are_built(tmp_path):
    for target in (
        "os.system",
        "medsr_monai.networks.os",
        "medsr_monai.networks.NETWORKS",
        "medsr_monai.networks.build_network",
        "medsr_monai.networks.NetworkArguments",
        "$__import__('os')",
        None,
    ):
        with pytest.raises(ValueError, match=r"_target_ is .*: expected a network of medsr_monai"):
            build_network({"_target_": target, "command": "true"})
    path = tmp_path / "model.pt"
    torch.save({"network": {"_target_": "os.system", "command": "true"}, "model": {}}, path)
    with pytest.raises(ValueError, match=r"model.pt: _target_ is 'os.system'"):
        load_network(path)
    torch.save({"network": small().arguments, "model": {}}, path)
    with pytest.raises(ValueError, match=r"model.pt: its arguments make a network of \d+ numbers, its weights are 0"):
        load_network(path)
    weights = small().state_dict()
    weights.pop(next(iter(weights)))
    torch.save({"network": small().arguments, "model": weights}, path)
    with pytest.raises(ValueError, match=r"model.pt: .*Missing key"):
        load_network(path)
    with pytest.raises(FileNotFoundError, match=r"no weights file given: .*--unet_path"):
        load_network(None)
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        load_network(tmp_path / "none.pt")
