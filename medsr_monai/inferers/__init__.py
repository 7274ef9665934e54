"""Inferers that run 2D networks over volumes, and generators on latents."""

from .latent import TruncationInferer
from .plane import PlaneInferer
from .through_plane import ThroughPlaneInferer
