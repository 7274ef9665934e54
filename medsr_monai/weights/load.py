"""Weights loaded into networks, with checks."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from monai.networks.utils import copy_model_state

from medsr_monai.atomic import written_atomically
from medsr_monai.errors import is_out_of_memory
from medsr_monai.networks.arguments import NetworkArguments, build_network
from medsr_monai.weights.stated import LARGE_FILES, OFFLINE_FOLDER, StatedFile, bundle_of, examine

__all__ = [
    "fill_network",
    "load_network",
    "load_trained_part",
    "load_weights",
    "read_weights",
    "save_atomically",
    "transfer_weights",
]

logger = logging.getLogger(__name__)


def save_atomically(content: object, path: str | os.PathLike) -> None:
    """``torch.save`` to a temporary name in the same folder, then rename: no reader ever sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as partial:
        torch.save(content, partial)


def load_weights(network: torch.nn.Module, path: str | os.PathLike) -> Path:
    """Load ``{"model": state dict, "network": constructor arguments}`` into ``network``, strictly.

    Switches without parameters (a bicubic residual, a scale of attention) would load strictly and give wrong pixels,
    so the arguments are compared too. A bundle's weights are compared with the checksum that it states, see
    :func:`medsr_monai.weights.stated.examine`: damaged files are refused, own ones in its folder are used with a
    warning.

    Args:
        network: built with the arguments that the weights were trained with; may be wrapped for several processes.
        path: weights file. A file of a bundle without one means that the bundle ships no trained weights.

    Returns:
        The file that was read, which may lie in the offline folder.

    Raises:
        FileNotFoundError: no file.
        ValueError: a damaged file, no such dictionary in it, other arguments, or other parameters.
    """
    file, content = read_weights(Path(path))
    fill_network(network, file, content)
    return file


def transfer_weights(network: torch.nn.Module, path: str | os.PathLike) -> list[str]:
    """Load of the weights of a network for another scale, or of one with fewer blocks, what fits.

    Layers whose size the scale decides keep their initial values. Blocks beyond those of the weights start as identity
    (Net2Net, arXiv 1511.05641), so that the deeper network computes at first what the other did; for this they have a
    method ``start_as_identity``.

    Args:
        network: whose arguments differ from those of the weights in scale and, being more, num_blocks at most.
        path: weights file, as :func:`load_weights` reads it.

    Returns:
        Names of the parameters that were not in the weights, or of another size there.

    Raises:
        FileNotFoundError: no file.
        ValueError: a damaged file, or other arguments differ.
    """
    path, content = read_weights(Path(path))
    network = getattr(network, "module", network)
    ours, theirs = NetworkArguments(network), content["network"]
    may_differ = ["scale"]
    try:
        if theirs.get("num_blocks", 0) < ours.state_dict().get("num_blocks", 0):
            may_differ.append("num_blocks")
        ours.load_state_dict({**theirs, **{name: ours.state_dict().get(name) for name in may_differ}})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    kept = copy_model_state(network, content["model"])[2]
    for name, module in network.named_modules():
        if hasattr(module, "start_as_identity") and all(f"{name}.{key}" in kept for key in module.state_dict()):
            module.start_as_identity()
    return kept


def load_network(path: str | os.PathLike | None) -> torch.nn.Module:
    """Build the network that a weights file of this package describes and load its weights, for a frozen prior.

    Args:
        path: ``{"model", "network"}`` file, such as a bundle's ``models/model.pt``.

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        FileNotFoundError: no path, or no file there.
        ValueError: no such dictionary in it, no network of this package, or parameters that do not fit it.
    """
    if path is None:
        raise FileNotFoundError(
            'no weights file given: expected the path of a {"model", "network"} file, such as the models/model.pt of a '
            "trained bundle (a segmentation U-Net: --unet_path)"
        )
    path, content = read_weights(Path(path))
    try:
        network = build_network(content["network"])
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    fill_network(network, path, content)
    return network.eval()


def load_trained_part(network: torch.nn.Module, path: str | os.PathLike | None, part: str) -> torch.nn.Module:
    """Load a network that a training only needs itself, such as its discriminator, from the training's ``last.pt``.

    Args:
        network: to be filled, strictly.
        path: of the file that :class:`TrainingCheckpoints` wrote.
        part: its name in the ``state`` of :class:`TrainingCheckpoints`.

    Returns:
        ``network`` in eval mode.

    Raises:
        FileNotFoundError: no path, or no file there.
        ValueError: no state of a training, none with this part, or parameters that do not fit.
    """
    if path is None or not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected the last.pt of a training with a {part}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise many kinds
        raise ValueError(f"{path}: not a PyTorch file, or a damaged one") from error
    if not isinstance(content, Mapping) or part not in content.get("state", {}):
        raise ValueError(f"{path}: no {part} in it, expected the last.pt of a training with one")
    try:
        network.load_state_dict(content["state"][part])
    except RuntimeError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    return network.eval()


def read_weights(path: Path) -> tuple[Path, Mapping]:
    """Where a weights file was found, and its dictionary, with "model" and "network"; raises as load_weights."""
    found = examine(path)
    if found.file is None:
        raise FileNotFoundError(_missing(path, found.stated))
    if found.state == "mismatch":
        raise ValueError(f"{found.file}: {found.reason}")
    if found.state == "own":
        logger.warning("%s: %s", found.file, found.reason)
    path = found.file
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise many kinds
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{path}: not a PyTorch weights file, or a damaged one") from error
    if not isinstance(content, Mapping) or not {"model", "network"} <= set(content):
        raise ValueError(f'{path}: no {{"model", "network"}} dictionary; official weights: `medsr convert` first')
    return path, content


def _missing(path: Path, stated: StatedFile | None) -> str:
    bundle = bundle_of(path)
    if bundle is None:
        return f"{path}: no such weights file"
    name = bundle.resolve().name
    if stated is None:
        return f"bundle {name} has no trained weights: train it, or put them at {path}"
    checksum = f" ({stated.hash_type} {stated.hash_val})" if stated.hash_val else ""
    if stated.url:
        return (
            f"bundle {name} has no trained weights here: `medsr fetch {name}` (or `python -m monai.bundle "
            f"download_large_files --bundle_path {bundle}`) gets what {LARGE_FILES} lists, or put them at {path} or in "
            f"${OFFLINE_FOLDER}/{name}/models{checksum}"
        )
    return (
        f"bundle {name} has no trained weights here: put those it was published with at {path} or in "
        f"${OFFLINE_FOLDER}/{name}/models{checksum}, or train it"
    )


def fill_network(network: torch.nn.Module, path: Path, content: Mapping) -> None:
    """Load what :func:`read_weights` has read, as :func:`load_weights` does."""
    try:
        NetworkArguments(network).load_state_dict(content["network"])
        getattr(network, "module", network).load_state_dict(content["model"])
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
