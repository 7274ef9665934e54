"""Networks to compare with, by class and by name in `COMPARISON`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from medsr_monai.networks.comparison.bicubic import Bicubic
from medsr_monai.networks.comparison.convnet import ConvNetSR
from medsr_monai.networks.comparison.edsr import EDSR
from medsr_monai.networks.comparison.gfpgan import GFPGAN
from medsr_monai.networks.comparison.han import HAN
from medsr_monai.networks.comparison.minet import MINet
from medsr_monai.networks.comparison.rcan import RCAN, RCANAda
from medsr_monai.networks.comparison.rdn import RDN
from medsr_monai.networks.comparison.restormer import Restormer
from medsr_monai.networks.comparison.swinir import SwinIR

__all__ = [
    "COMPARISON",
    "EDSR",
    "GFPGAN",
    "HAN",
    "RCAN",
    "RDN",
    "Bicubic",
    "ConvNetSR",
    "MINet",
    "RCANAda",
    "Restormer",
    "SwinIR",
]

COMPARISON: dict[str, tuple[str, Callable[..., nn.Module]]] = {
    "Bicubic": ("bicubic interpolation, no weights", Bicubic),
    "EDSR": ("EDSR, 43.1 million weights at x4", EDSR),
    "EDSRLite": (
        "EDSR-lite of the RDST paper, 1.52 million weights at x4",
        partial(EDSR, channels=64, num_blocks=16, negative_slope=0.2, res_scale=1.0),
    ),
    "RDN": ("residual dense network as in the RDST paper, 5.76 million weights at x4", RDN),
    "RCAN": ("residual channel attention network, 15.6 million weights at x4", RCAN),
    "RCANAda": ("RCAN with adaptive convolutions, as the RDST paper measured it, 32.0 million weights at x4", RCANAda),
    "HAN": ("holistic attention network as in the RDST paper, 64.2 million weights at x4", HAN),
    "ConvNetLite": ("16 ConvNeXt blocks, 0.88 million weights at x4", ConvNetSR),
    "ConvNetLarge": (
        "32 wide ConvNeXt blocks, 12.5 million weights at x4",
        partial(ConvNetSR, channels=192, num_blocks=32),
    ),
    "SwinIR": ("SwinIR as in the RDST paper, 11.5 million weights at x4; needs spandrel", SwinIR),
    "SwinIRLite": (
        "SwinIR-lite of the RDST paper, 0.91 million weights at x4; needs spandrel",
        partial(SwinIR, embed_dim=60, depths=(6, 6, 6, 6), num_heads=(6, 6, 6, 6)),
    ),
    "GFPGAN": ("GFP-GAN on the bicubically enlarged image, 59.7 million weights; needs spandrel", GFPGAN),
    "Restormer": ("Restormer on the bicubically enlarged image, 26.1 million weights", Restormer),
    "MINet": ("multi-stage integration network, guided by another contrast, 6.44 million weights", MINet),
}
"""Of each name what the network is, and what builds it from in_channels, out_channels, scale and further arguments."""
