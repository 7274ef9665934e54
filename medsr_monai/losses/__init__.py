"""Losses that compare a super-resolved image with its reference; networks are passed in."""

from .adversarial import GradientPenaltyLoss, WassersteinDiscriminatorLoss, WassersteinGeneratorLoss
from .non_saturating import (
    BalancedConsistencyLoss,
    NonSaturatingDiscriminatorLoss,
    NonSaturatingGeneratorLoss,
    R1Penalty,
)
from .perceptual import ContentStyleLoss, VGGContentLoss, gram_matrix
from .segmentation import SegmentationPerceptualLoss
from .super_resolution import SuperResolutionLoss
