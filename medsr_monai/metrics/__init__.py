"""Image quality, and the size and speed of networks, with the tables and pictures that report them."""

from .benchmark import (
    benchmark_beside,
    benchmark_header,
    benchmark_line,
    benchmark_network,
    matmul_rate,
    network_figures,
    peak_resident_mib,
)
from .complexity import (
    count_macs,
    count_macs_as_published,
    count_parameters,
    count_parameters_as_published,
)
from .evaluation import EVALUATION_FILES, HIGH_RESOLUTION, SliceEvaluation, image_figures
from .failures import Failure, WorstSlices, failure_grid
from .fid import FIDSlices, fid, inception_features
from .image import (
    PaddedPSNRSlices,
    PaddedSSIMSlices,
    PSNRSlices,
    SSIMSlices,
    padded_psnr,
    padded_ssim,
    psnr,
    ssim,
)
from .noise import estimate_noise
from .picture import PlaneRow, Story, busiest_crop, comparison_grid, comparison_picture, quality_grid
from .report import group_rows, json_text, json_values, markdown_table, summarise_rows, write_rows
from .segmentation import (
    DICE_REGIONS,
    PooledDice,
    count_pixels,
    dice_of_regions,
    dice_of_slice,
    named_regions,
    pooled_dice,
    regions,
)
from .sharpness import high_frequency_figures
from .spectrum import AxisSpectrum, axis_spectrum
