"""Inferers that run 2D networks over volumes."""

from .plane import PlaneInferer
from .through_plane import ThroughPlaneInferer
