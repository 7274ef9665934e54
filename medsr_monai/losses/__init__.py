"""Losses that compare a super-resolved image with its reference; networks are passed in."""

from .adversarial import GradientPenaltyLoss, WassersteinDiscriminatorLoss, WassersteinGeneratorLoss
from .perceptual import ContentStyleLoss, VGGContentLoss, gram_matrix
from .segmentation import SegmentationPerceptualLoss
from .super_resolution import SuperResolutionLoss
