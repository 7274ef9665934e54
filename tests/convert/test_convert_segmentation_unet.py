import pytest
import segmentation_models_pytorch as smp
import torch

from medsr_monai.convert import load_official


@pytest.mark.parametrize("in_channels, classes, encoder", [(1, 4, "resnet34"), (4, 2, "resnet18")])
def test_every_name_of_segmentation_models_is_known(tmp_path, in_channels, classes, encoder):
    torch.manual_seed(0)
    theirs = smp.Unet(encoder, encoder_weights=None, in_channels=in_channels, classes=classes).eval()
    torch.save(theirs.state_dict(), tmp_path / "unet.pt")
    ours = load_official(tmp_path / "unet.pt", "segmentation_unet")
    assert (ours.arguments["in_channels"], ours.arguments["classes"]) == (in_channels, classes)
    assert ours.arguments["encoder"] == encoder
    x = torch.rand(1, in_channels, 64, 32)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_other_checkpoints_are_refused():
    source = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=2).state_dict()
    with pytest.raises(ValueError, match=r"encoder has \(2, 2, 2, 1\) blocks a stage"):
        load_official({k: v for k, v in source.items() if "layer4.1" not in k}, "segmentation_unet")
    with pytest.raises(ValueError, match="1 tensors not known"):
        load_official({**source, "classification_head.weight": torch.zeros(1)}, "segmentation_unet")
    with pytest.raises(ValueError, match="1 tensors of the network that the checkpoint lacks"):
        load_official({k: v for k, v in source.items() if k != "encoder.bn1.weight"}, "segmentation_unet")
