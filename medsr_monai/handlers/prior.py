"""Loads the generator that TransMRSR is built around when training starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.utils import ensure_tuple

from medsr_monai.errors import naming
from medsr_monai.weights.load import read_weights

__all__ = ["PriorLoader"]

logger = logging.getLogger(__name__)


class PriorLoader:
    """Load a generator's decoder and the centroids of its latents when the trainer starts.

    Attach it after everything that sets weights (a :class:`WeightsLoader`), since the decoder is taken over as it is,
    and before :class:`TrainingCheckpoints`, whose resumed state replaces it. A resumed training does not need it.

    Args:
        path: file with ``{"model": state dict of a StyleSwinGenerator, "network": its arguments, "centroids": [N,
            style_dim]}``, such as the ``models/model.pt`` of bundle transmrsr_prior; None loads no prior.
        network: a network with ``load_prior`` (and ``centroids`` if it truncates), such as
            :class:`medsr_monai.networks.TransMRSR` or :class:`medsr_monai.networks.GFPGAN`, or several where a moving
            average starts from the same weights. Networks without a prior, which train beside it, get none.

    Raises:
        FileNotFoundError: when the engine starts: there is no such file.
        ValueError: when the engine starts: the file holds something else, the prior does not fit, the network takes
            none, or it truncates to centroids and there are none.
    """

    def __init__(self, path: str | None, network: torch.nn.Module | Sequence[torch.nn.Module]) -> None:
        self.path = None if path is None else Path(path)
        self.networks = ensure_tuple(network)

    def attach(self, engine: Engine) -> None:
        """Load the prior at the engine's start."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        if self.path is None:
            if any(_centroids(network) is not None and not network.has_centroids for network in self.networks):
                raise ValueError(
                    "no prior, and so no centroids for the truncation: give --prior, the models/model.pt of bundle "
                    "transmrsr_prior, or train without both (configs/ablation_no_prior.json)"
                )
            return
        if others := [type(network).__name__ for network in self.networks if not hasattr(network, "load_prior")]:
            raise ValueError(f"{self.path}: {others[0]} is built around no prior: leave --prior out")
        _, content = read_weights(self.path)
        centroids = content.get("centroids")
        for network in self.networks:
            if _centroids(network) is not None and centroids is None:
                raise ValueError(
                    f"{self.path}: a prior without centroids: cluster its latents first (the last step of bundle "
                    "transmrsr_prior), or train with truncation 'none' (configs/ablation_no_truncation.json)"
                )
            with naming(self.path):
                network.load_prior(content["model"], None if _centroids(network) is None else centroids)
        logger.info("loaded prior %s", self.path)


def _centroids(network: torch.nn.Module) -> torch.Tensor | None:
    return getattr(network, "centroids", None)
