"""Trainers that MONAI lacks."""

from .style_gan_trainer import StyleGANTrainer
