"""Super-resolution networks, by class and by name in `NETWORKS`."""

from __future__ import annotations

from functools import partial

from monai.utils import ComponentStore

from medsr_monai.networks.arguments import NetworkArguments, records_arguments
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
    comparison_network,
)
from medsr_monai.networks.rdst import RDST

__all__ = [
    "COMPARISON",
    "EDSR",
    "GFPGAN",
    "HAN",
    "NETWORKS",
    "RCAN",
    "RDN",
    "RDST",
    "Bicubic",
    "ConvNetSR",
    "MINet",
    "NetworkArguments",
    "RCANAda",
    "Restormer",
    "SwinIR",
    "comparison_network",
    "records_arguments",
]

NETWORKS = ComponentStore(
    "networks", "Super-resolution networks: NETWORKS[name](in_channels, out_channels, scale, ...)."
)
NETWORKS.add("RDST", "Residual Dense Swin Transformer, 4.46 million weights at x4", RDST)
NETWORKS.add("RDSTE", "RDST-E, the light RDST with 4 blocks, 2.38 million weights at x4", partial(RDST, num_blocks=4))
for _name, (_description, _network) in COMPARISON.items():
    NETWORKS.add(_name, _description, _network)
