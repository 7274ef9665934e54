"""Reads the segmentation U-Nets that the RDST authors publish: state dicts of segmentation_models_pytorch's Unet."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from medsr_monai.networks.segmentation_unet import SegmentationUNet

# their names are ours
TABLE = {
    name: name
    for name in (
        "encoder.*.*",
        "encoder.*.*.*.*",
        "encoder.*.*.downsample.*.*",
        "decoder.blocks.*.*.*.*",
        "segmentation_head.*.*",
    )
}
ENCODERS = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
"""The encoders that are read, told apart by the numbers of blocks in their four stages."""


def build(state: Mapping[str, Tensor]) -> SegmentationUNet:
    """Build the network that these tensors belong to.

    Raises:
        ValueError: an encoder other than resnet18 and resnet34.
        KeyError: a tensor that tells a hyper-parameter is missing.
    """
    in_channels = state["encoder.conv1.weight"].shape[1]
    classes = state["segmentation_head.0.weight"].shape[0]
    stages = [{name.split(".")[2] for name in state if name.startswith(f"encoder.layer{i}.")} for i in range(1, 5)]
    blocks = tuple(len(stage) for stage in stages)
    if blocks not in ENCODERS:
        raise ValueError(
            f"The encoder has {blocks} blocks a stage: expected those of {' or '.join(ENCODERS.values())}."
        )
    return SegmentationUNet(in_channels, classes, encoder=ENCODERS[blocks])
