"""A trainer of generators and an evaluator of folders, which MONAI lacks, and the clustering of latents."""

from .latent_clusters import cluster_latents, store_centroids
from .style_gan_trainer import StyleGANTrainer
from .volume_evaluator import VolumeDataset, VolumeEvaluator
