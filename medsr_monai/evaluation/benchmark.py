"""The speed and the memory of networks, which are built and measured one after the other."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from medsr_monai import metrics, networks
from medsr_monai.errors import reason_of
from medsr_monai.inferers import FastNetwork

__all__ = ["bundle_network", "measure", "named_networks"]

UNTRAINED = {"truncation": "none"}
"""Arguments of a TransMRSR without its centroids, which only trained weights have and which cost little time."""


def bundle_network(folder: Path) -> dict[str, Any]:
    """Give the arguments of a bundle's network, which is built without memory for its weights.

    Raises:
        ValueError: the network takes no images.
    """
    parser = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.json"))
    with torch.device("meta"):
        arguments = parser.get_parsed_content("network_def").arguments
    if "in_channels" not in arguments:
        raise ValueError(f"bundle {folder.name} takes no images: choose one that does, see medsr models")
    return arguments | UNTRAINED if "truncation" in arguments else arguments


def named_networks(names: str) -> tuple[dict[str, dict], dict[str, str]]:
    """Give the arguments of networks that super-resolve, for one channel and x4.

    Args:
        names: all, or names with commas between them.

    Returns:
        The arguments of each network by its name, and by name the reason why others cannot be built here.

    Raises:
        ValueError: a name that no such network has.
    """
    known = [name for name in networks.NETWORKS.names if "scale" in _parameters(name)]
    wanted = known if names == "all" else names.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"no network {', '.join(map(repr, unknown))}: choose all, or some of {','.join(known)}")
    built, missing = {}, {}
    for name in wanted:
        untrained = UNTRAINED if "truncation" in _parameters(name) else {}
        try:
            with torch.device("meta"):
                built[name] = networks.NETWORKS[name](1, 1, 4, **untrained).arguments
        except ImportError as error:
            missing[name] = str(error)
    return built, missing


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(networks.NETWORKS[name]).parameters


def measure(
    chosen: Mapping[str, Mapping[str, Any]],
    size: Sequence[int],
    devices: Sequence[str],
    runs: int = 5,
    *,
    training: bool = False,
    reference: str | None = None,
    precision: str = "float32",
    compile: bool = False,
) -> Iterator[dict[str, Any] | str]:
    """Measure networks on devices, each in a process of its own.

    Args:
        chosen: arguments of the networks by the names that rows get.
        size: the size of the input: the number of slices, their rows and their columns.
        devices: cpu or cuda:0.
        runs: timed runs; 0 counts weights and MACs only.
        training: time steps of training instead of forward passes.
        reference: FILE.py:NAME of a plainer form, which is measured in turns with each network.
        precision: float32, bfloat16 or float16 of the networks; a reference is float32.
        compile: compile the networks by torch.compile; a reference is not.

    Yields:
        A row as soon as it is known, see :func:`medsr_monai.metrics.benchmark_network`; for a network that fails a line
        that says why.
    """
    faster = None
    if precision != "float32" or compile:
        faster = functools.partial(FastNetwork, precision=precision, compile=compile)
    batch, *sides = size
    for name, arguments in chosen.items():
        build = functools.partial(networks.build_network, arguments)
        for device in devices:
            shape = (batch, arguments["in_channels"], *sides)
            how = (shape, device, runs, "training step" if training else "inference", faster)
            try:
                if reference is None:
                    rows = [metrics.benchmark_network(build, *how)]
                else:
                    rows = metrics.benchmark_beside(build, reference, arguments, *how)
            except (MemoryError, RuntimeError) as error:
                yield f"{name} on {device}: {reason_of(error)}"
                continue
            rows[0]["network"] = name
            yield from rows
