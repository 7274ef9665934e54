from .colour import MergeChromad, SplitLumad
from .degradation import METHODS, RandDegraded, degradation_matrix, degrade
from .geometry import (
    PLANES,
    MatchCornersd,
    SyncRefMetad,
    axis_factors,
    outer_corners,
    plane_axis,
    resized_affine,
    sharp_plane,
    spacing,
)
from .intensity import RestoreIntensityd, ScaleVolumed, intensity_range
