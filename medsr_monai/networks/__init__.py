"""Super-resolution networks, by class and by name in `NETWORKS`."""

from __future__ import annotations

from functools import partial

from monai.utils import ComponentStore

from medsr_monai.networks.arguments import NetworkArguments, build_network, records_arguments
from medsr_monai.networks.comparison.bicubic import Bicubic
from medsr_monai.networks.rdst import RDST
from medsr_monai.networks.segmentation_unet import SegmentationUNet
from medsr_monai.networks.srgan_discriminator import SRGANDiscriminator
from medsr_monai.networks.vgg19 import VGG19Features, load_vgg19_features

__all__ = [
    "NETWORKS",
    "RDST",
    "Bicubic",
    "NetworkArguments",
    "SRGANDiscriminator",
    "SegmentationUNet",
    "VGG19Features",
    "build_network",
    "load_vgg19_features",
    "records_arguments",
]

NETWORKS = ComponentStore(
    "networks", "Super-resolution networks: NETWORKS[name](in_channels, out_channels, scale, ...)."
)
NETWORKS.add("RDST", "Residual Dense Swin Transformer, 4.46 million weights at x4", RDST)
NETWORKS.add("RDSTE", "RDST-E, the light RDST with 4 blocks, 2.38 million weights at x4", partial(RDST, num_blocks=4))
NETWORKS.add("Bicubic", "bicubic interpolation, no weights", Bicubic)
