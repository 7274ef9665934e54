"""A trainer of generators and an evaluator of folders, which MONAI lacks, and the clustering of latents."""

import importlib

from .volume_evaluator import VolumeDataset, VolumeEvaluator

HOMES = {
    "StyleGANTrainer": "style_gan_trainer",
    "cluster_latents": "latent_clusters",
    "store_centroids": "latent_clusters",
}
"""Modules that import networks, which exported ones do without: imported when their names are first asked for."""


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
