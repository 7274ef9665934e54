from .augmentation import AugmentImages
from .colour import MergeChromad, SplitLumad
from .degradation import RandDegraded, degrade, describe_degradation
from .display import EDGES, displayed_slice, pixel_edges
from .geometry import (
    AXES,
    PLANE_ACROSS,
    PLANES,
    MatchCornersd,
    SyncRefMetad,
    axis_factors,
    describe_grid,
    format_edges,
    outer_corners,
    plane_axis,
    resized_affine,
    sharp_plane,
    spacing,
    target_size,
    thick_axis,
    with_corners_of,
)
from .intensity import RestoreIntensityd, ScaleVolumed, intensity_range
from .interpolation import resample, spline_matrix
from .latent import RandLatentd
from .patch_batches import PatchBatches
from .point_spread import (
    ENCODING,
    METHODS,
    PointSpread,
    RandPointSpread,
    encode_point_spread,
    parse_point_spread,
    point_spread_of,
    sampling_matrices,
    sampling_matrix,
)
from .thick_slices import RandThickSliced, TurnBackd
