"""Weights files that are checked and loaded into networks."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from monai.networks.utils import copy_model_state

from medsr_monai.atomic import written_atomically
from medsr_monai.errors import is_out_of_memory, reason_of
from medsr_monai.networks.arguments import NetworkArguments, build_network, check_size
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
    """Save with ``torch.save`` to a temporary name in the same folder and rename it: no reader sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as partial:
        torch.save(content, partial)


def load_weights(network: torch.nn.Module, path: str | os.PathLike) -> Path:
    """Load a file ``{"model": state dict, "network": constructor arguments}`` into ``network``, strictly.

    Options without parameters (a bicubic residual, a scale of attention) would load strictly and give wrong pixels, so
    the arguments are compared, too. A bundle's weights are compared with the checksum that it states, see
    :func:`medsr_monai.weights.stated.examine`: damaged files are refused, and own ones in its folder are used with a
    warning.

    Args:
        network: a network built with the arguments that the weights were trained with; it may be wrapped for several
            processes.
        path: the weights file, which may be one that a bundle lacks.

    Returns:
        The file that was read, which may be in the offline folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds no such dictionary, or is of other arguments or parameters.
    """
    file, content = read_weights(Path(path))
    fill_network(network, file, content)
    return file


def transfer_weights(network: torch.nn.Module, path: str | os.PathLike) -> list[str]:
    """Load what fits from the weights of a network for another scale, with fewer blocks, or that is not told.

    Layers whose size depends on the scale keep their initial values. Blocks beyond those of the weights start as the
    identity (Net2Net, arXiv 1511.05641) if they have a method ``start_as_identity``, so that the deeper network
    computes at first what the other did.

    Args:
        network: a network whose arguments differ from those of the weights in nothing but ``scale``, a larger
            ``num_blocks``, and ``psf_channels`` where the weights were never told a point spread.
        path: the weights file, as :func:`load_weights` reads it.

    Returns:
        The names of the parameters that the weights lack, or have in another size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or other arguments differ.
    """
    path, content = read_weights(Path(path))
    network = getattr(network, "module", network)
    ours, theirs = NetworkArguments(network), content["network"]
    may_differ = ["scale"]
    try:
        if theirs.get("num_blocks", 0) < ours.state_dict().get("num_blocks", 0):
            may_differ.append("num_blocks")
        if not theirs.get("psf_channels"):
            may_differ.append("psf_channels")
        ours.load_state_dict({**theirs, **{name: ours.state_dict().get(name) for name in may_differ}})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {reason_of(error)}") from error
    kept = copy_model_state(network, content["model"])[2]
    for name, module in network.named_modules():
        if hasattr(module, "start_as_identity") and all(f"{name}.{key}" in kept for key in module.state_dict()):
            module.start_as_identity()
    return kept


def load_network(path: str | os.PathLike | None) -> torch.nn.Module:
    """Build the network that a weights file of this package describes, and load its weights, for use as a prior.

    Args:
        path: a ``{"model", "network"}`` file, such as a bundle's ``models/model.pt``.

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        FileNotFoundError: there is no path, or no file there.
        ValueError: the file holds no such dictionary, no network of this package, or parameters that do not fit it.
    """
    if path is None:
        raise FileNotFoundError(
            'no weights file given: expected the path of a {"model", "network"} file, such as the models/model.pt of a '
            "trained bundle (a segmentation U-Net: --unet_path)"
        )
    path, content = read_weights(Path(path))
    try:
        check_size(content["network"], content["model"])
        network = build_network(content["network"])
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {reason_of(error)}") from error
    fill_network(network, path, content)
    return network.eval()


def load_trained_part(network: torch.nn.Module, path: str | os.PathLike | None, part: str) -> torch.nn.Module:
    """Load a network that only a training needs, such as its discriminator, from the training's ``last.pt``.

    Args:
        network: the network that gets the weights, strictly.
        path: the file that :class:`medsr_monai.handlers.TrainingCheckpoints` wrote.
        part: the network's name in the ``state`` of that handler.

    Returns:
        ``network`` in eval mode.

    Raises:
        FileNotFoundError: there is no path, or no file there.
        ValueError: the file holds no training's state, or none with this part, or parameters that do not fit.
    """
    if path is None or not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected the last.pt of a training with a {part}")
    content = _read(path)
    if not isinstance(content, Mapping) or part not in content.get("state", {}):
        raise ValueError(f"{path}: no {part} in it, expected the last.pt of a training with one")
    try:
        network.load_state_dict(content["state"][part])
    except RuntimeError as error:
        raise ValueError(f"{path}: {reason_of(error)}") from error
    return network.eval()


def read_weights(path: Path) -> tuple[Path, Mapping]:
    """Return the file that was found and its dictionary with "model" and "network"; it raises as load_weights does."""
    found = examine(path)
    if found.file is None:
        raise FileNotFoundError(_missing(path, found.stated))
    if found.state == "mismatch":
        raise ValueError(f"{found.file}: {found.reason}")
    if found.state == "own":
        logger.warning("%s: %s", found.file, found.reason)
    content = _read(found.file)
    known = isinstance(content, Mapping) and {"model", "network"} <= set(content)
    if not known or not isinstance(content["network"], Mapping):
        raise ValueError(f'{found.file}: no {{"model", "network"}} dictionary; official weights: `medsr convert` first')
    return found.file, content


def _read(path: str | os.PathLike) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch have no common class
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{path}: not a PyTorch weights file, or a damaged one") from error


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
    """Load into a network what :func:`read_weights` has read; errors are those of :func:`load_weights`."""
    try:
        NetworkArguments(network).load_state_dict(content["network"])
        getattr(network, "module", network).load_state_dict(content["model"])
    except Exception as error:  # of whatever lies in the file in place of tensors
        raise ValueError(f"{path}: {reason_of(error)}") from error
