"""Clusters of a generator's style latents, to whose centroids TransMRSR truncates (arXiv 2306.06669, section 3.3)."""

from __future__ import annotations

import logging
import os

import numpy as np
import torch
from torch import Tensor, nn

from medsr_monai.handlers.training_record import extend_record
from medsr_monai.weights.load import load_network

__all__ = ["cluster_latents", "store_centroids"]

logger = logging.getLogger(__name__)

GENERATOR = "medsr_monai.networks.StyleSwinGenerator"
"""The network whose latents can be clustered, as weights files name it."""
CHUNK = 4096
"""Number of latents that are mapped at a time."""


@torch.no_grad()
def cluster_latents(
    mapping: nn.Module, style_dim: int, count: int = 60000, clusters: int = 8, *, seed: int = 0, random_state: int = 0
) -> Tensor:
    """Find the centroids [clusters, style_dim] of style latents w by KMeans, on channels that are standardised first.

    Args:
        mapping: network on the CPU from normal latents z [B, style_dim] to style latents w [B, style_dim].
        style_dim: number of channels of a latent.
        count: number of latents that are clustered.
        clusters: number of centroids.
        seed: seed of the latents.
        random_state: seed of KMeans, which starts from random latents and keeps the best of 10 attempts.

    Raises:
        ValueError: there are fewer latents than clusters, or no clusters are wanted.
    """
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import StandardScaler

    if not 1 <= clusters <= count:
        raise ValueError(f"{clusters} clusters of {count} latents: expected 1 to {count} clusters")
    z = torch.randn(count, style_dim, generator=torch.Generator().manual_seed(seed))
    w = torch.cat([mapping(part) for part in z.split(CHUNK)]).double().numpy()
    scaler = StandardScaler()
    kmeans = KMeans(clusters, init="random", n_init=10, random_state=random_state).fit(scaler.fit_transform(w))
    return torch.from_numpy(scaler.inverse_transform(kmeans.cluster_centers_).astype(np.float32))


def store_centroids(
    path: str | os.PathLike, count: int = 60000, clusters: int = 8, *, seed: int = 0, random_state: int = 0
) -> Tensor:
    """Cluster the latents of the generator in a weights file and write the ``centroids`` into this file.

    Args:
        path: ``{"model", "network"}`` file of a :class:`medsr_monai.networks.StyleSwinGenerator`. Centroids that it
            already holds are replaced.
        count, clusters, seed, random_state: see :func:`cluster_latents`.

    Returns:
        The centroids.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another network is in the file, or there are fewer latents than clusters.
    """
    network = load_network(path)
    if network.arguments["_target_"] != GENERATOR:
        raise ValueError(f"{path}: holds a {network.arguments['_target_']}, expected a {GENERATOR}")
    centroids = cluster_latents(
        network.mapping, network.style_dim, count, clusters, seed=seed, random_state=random_state
    )
    content = {"network": network.arguments, "model": network.state_dict(), "centroids": centroids}
    clustering = {"Latents": count, "Clusters": clusters, "Seed": seed, "RandomState": random_state}
    extend_record(path, content, {"Centroids": clustering})
    logger.info("stored %d centroids of %d latents in %s", clusters, count, path)
    return centroids
