"""Copies of the shipped bundles whose networks are done in no time, which many tests use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import nn

from medsr_monai.networks import RDST, NetworkArguments

BUNDLES = Path(__file__).parent.parent / "bundles"
TINY = {"embed_dim": 12, "growth_rate": 6, "num_heads": 2, "num_blocks": 1, "num_dense_blocks": 1}
"""Arguments that make an RDST small."""


def tiny_network(seed: int = 0, **other: object) -> RDST:
    """The network of the bundle rdst_e, small, with random weights."""
    torch.manual_seed(seed)
    network = RDST(**({"in_channels": 1, "out_channels": 1, "scale": 4, "bicubic_residual": True} | TINY | other))
    nn.init.normal_(network.last.weight, std=0.02)  # zeros at the start of a training
    return network


def save_weights(network: nn.Module, path: Path | str) -> Path:
    """As a training saves them."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"network": NetworkArguments(network).state_dict(), "model": network.state_dict()}, path)
    return path


def amend(file: Path, **entries: object) -> None:
    """Replace entries of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def copy_bundle(folder: Path, base: str = "rdst_e", **network_def: object) -> Path:
    """A bundle without weights and their checksums, some arguments of its network replaced."""
    shutil.copytree(BUNDLES / base, folder, ignore=shutil.ignore_patterns("models"))
    amend(folder / "configs" / "metadata.json", weights=[])
    for name in ("inference", "train"):
        file = folder / "configs" / f"{name}.json"
        amend(file, network_def=json.loads(file.read_text())["network_def"] | network_def)
    return folder


def tiny_bundle(folder: Path) -> Path:
    """The bundle rdst_e with a small network and its weights."""
    copy_bundle(folder, **TINY)
    save_weights(tiny_network(), folder / "models" / "model.pt")
    return folder


def interpolating_bundle(folder: Path, base: str = "rdst_e") -> Path:
    """A bundle whose network is bicubic interpolation, or nothing for thick slices, whose grid is the same."""
    copy_bundle(folder, base)
    network = {"_target_": "medsr_monai.networks.Bicubic", "scale": "@scale"}
    amend(folder / "configs" / "inference.json", network_def=network, weights=None)
    return folder
