"""A trainer of generators, which MONAI lacks, and the clustering of latents that follows such a training."""

from .latent_clusters import cluster_latents, store_centroids
from .style_gan_trainer import StyleGANTrainer
