"""Image quality, speed, and the tables and pictures that report them."""

from .benchmark import benchmark_network, matmul_rate
from .image import PSNRSlices, SSIMSlices, psnr, ssim
from .picture import comparison_picture
from .report import SliceTable
