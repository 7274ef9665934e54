from .augmentation import AugmentImages
from .degradation import METHODS, RandDegraded, degradation_matrix, degrade
from .geometry import (
    PLANES,
    MatchCornersd,
    SyncRefMetad,
    axis_factors,
    describe_grid,
    outer_corners,
    plane_axis,
    resized_affine,
    sharp_plane,
    spacing,
)
from .intensity import RestoreIntensityd, ScaleVolumed, intensity_range
from .latent import RandLatentd
