"""Inferers that run 2D networks over volumes and generators on latents, and the consistency of results with inputs."""

from .data_consistency import DataConsistency, Residual
from .fast_network import FastNetwork
from .latent import TruncationInferer
from .plan import InferencePlan, SlicePass
from .plane import PlaneInferer
from .slabs import Slab, slab_passes
from .slice_batches import to_device
from .thick_slices import ThickSliceInferer
from .through_plane import ThroughPlaneInferer
