"""Trainers that MONAI lacks, and what follows the training of a generator."""

from .latent_clusters import cluster_latents, store_centroids
from .style_gan_trainer import StyleGANTrainer
