"""Networks that super-resolve images, and those that train or judge them, by class and by name in `NETWORKS`."""

from __future__ import annotations

from functools import partial

from monai.utils import ComponentStore

from medsr_monai.networks.arguments import NetworkArguments, build_network, records_arguments
from medsr_monai.networks.comparison import (
    COMPARISON,
    EDSR,
    GFPGAN,
    HAN,
    RCAN,
    RDN,
    Bicubic,
    ConvNetSR,
    MINet,
    RCANAda,
    Restormer,
    SwinIR,
)
from medsr_monai.networks.discriminators import StyleSwinDiscriminator
from medsr_monai.networks.fast_rdst import RDST
from medsr_monai.networks.inception import InceptionFeatures, load_inception_features
from medsr_monai.networks.initialization import initialize_weights
from medsr_monai.networks.lgsr import LGSR
from medsr_monai.networks.segmentation_unet import SegmentationUNet
from medsr_monai.networks.srgan_discriminator import SRGANDiscriminator
from medsr_monai.networks.styleswin import StyleSwinGenerator
from medsr_monai.networks.transmrsr import TransMRSR
from medsr_monai.networks.vgg19 import VGG19Features, load_vgg19_features

__all__ = [
    "COMPARISON",
    "EDSR",
    "GFPGAN",
    "HAN",
    "LGSR",
    "NETWORKS",
    "RCAN",
    "RDN",
    "RDST",
    "Bicubic",
    "ConvNetSR",
    "InceptionFeatures",
    "MINet",
    "NetworkArguments",
    "RCANAda",
    "Restormer",
    "SRGANDiscriminator",
    "SegmentationUNet",
    "StyleSwinDiscriminator",
    "StyleSwinGenerator",
    "SwinIR",
    "TransMRSR",
    "VGG19Features",
    "build_network",
    "initialize_weights",
    "load_inception_features",
    "load_vgg19_features",
    "records_arguments",
]

NETWORKS = ComponentStore(
    "networks",
    "Super-resolution networks: NETWORKS[name](in_channels, out_channels, scale, ...); of TransMRSR's prior, generator "
    "and discriminator: NETWORKS[name](size, channels of the images, ...).",
)
NETWORKS.add("RDST", "Residual Dense Swin Transformer, 4.46 million weights at x4", RDST)
NETWORKS.add("RDSTE", "RDST-E, the light RDST with 4 blocks, 2.38 million weights at x4", partial(RDST, num_blocks=4))
NETWORKS.add(
    "RDSTGFF",
    "RDST with global feature fusion, 4.46 million weights at x4",
    partial(RDST, global_feature_fusion=True),
)
NETWORKS.add("TransMRSR", "Swin encoder and StyleSwin decoder, 160.8 million weights at size 256", TransMRSR)
NETWORKS.add("StyleSwinGenerator", "StyleSwin generator, 40.6 million weights at size 256", StyleSwinGenerator)
NETWORKS.add("StyleSwinDiscriminator", "wavelet discriminator, 26.2 million weights at 256", StyleSwinDiscriminator)
NETWORKS.add("LGSR", "LGSR-style network from the published abstract, 5.37 million weights at x4", LGSR)
NETWORKS.add(
    "LGSRLight",
    "the light LGSR, 1.81 million weights at x4",
    partial(LGSR, embed_dim=48, num_groups=3, blocks_per_group=3, hidden_size=144, num_layers=3),
)
NETWORKS.add(
    "LGSRLarge",
    "the large LGSR, 9.23 million weights at x4",
    partial(LGSR, num_groups=6, blocks_per_group=6, num_layers=6),
)
for _name, (_description, _network) in COMPARISON.items():
    NETWORKS.add(_name, _description, _network)
