"""Measure speed and memory of networks."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from medsr_monai.atomic import check_output
from medsr_monai.errors import reason_of
from medsr_monai.upscaling.bundles import DEFAULT_BUNDLE, bundle_folder, choose_device


def benchmark(
    bundle: str | None = None,
    networks: str | None = None,
    size: str | None = None,
    batch: int | None = None,
    training: bool = False,
    reference: str | None = None,
    precision: str = "float32",
    compile: bool = False,
    device: str = "auto",
    runs: int = 5,
    csv: str | None = None,
    json: bool = False,
    overwrite: bool = False,
) -> int:
    """Print size, speed and peak memory of networks on one slice, beside this machine's matrix product, as Markdown.

    Each network runs in a process of its own; its weights do not matter. Weights and MACs are the true ones, and as the
    tables of the RDST paper count them.

    Args:
        bundle: name or folder; by default rdst_e, unless networks are named.
        networks: all, or names with commas between them such as RDSTE,EDSRLite: one channel, x4.
        size: HxW of the low-resolution slices, by default 160x160, in training 24x24.
        batch: slices at a time, by default 1, in training 4.
        training: time steps of training (forward, L1 loss, backward, Adam) instead of forward passes.
        reference: FILE.py:NAME, such as tests/networks/plain_rdst.py:PlainRDST, of a plainer form of the networks,
            built from their arguments; it gets the same weights, runs in turns with each of them and has its own row.
        precision: float32, bfloat16 or float16 (autocast) of the networks, as of upscale; a reference is float32.
        compile: compile the networks (torch.compile; on CUDA with its graphs); a reference is not.
        device: auto (the CPU, and the GPU where there is one), cpu, cuda:0.
        runs: timed runs after two warm-up runs, the median counts; 0 prints the counts only.
        csv: write the table to this file.
        json: print JSON, with null for what was not measured.
        overwrite: replace an existing CSV file.
    """
    size = size or ("24x24" if training else "160x160")
    batch = (4 if training else 1) if batch is None else batch
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected at least 1")
    sides = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)
    if not sides:
        raise ValueError(f"size is {size!r}, expected HxW such as 160x160")
    if runs < 0:
        raise ValueError(f"runs is {runs}, expected at least 1, or 0 to count only")
    if csv is not None:
        check_output(Path(csv), overwrite)
    height, width = map(int, sides.groups())
    if bundle is None and networks is None:
        bundle = DEFAULT_BUNDLE
    folder = None if bundle is None else bundle_folder(bundle)
    from medsr_monai.inferers import FastNetwork
    from medsr_monai.inferers.fast_network import PRECISIONS
    from medsr_monai.metrics import (
        benchmark_beside,
        benchmark_header,
        benchmark_line,
        benchmark_network,
        write_benchmark,
    )
    from medsr_monai.networks import build_network

    chosen, failed = {}, False
    if folder is not None:
        chosen[bundle] = _bundle_network(folder)
    if networks is not None:
        named, missing = _named_networks(networks)
        chosen |= named
        failed = bool(missing) and networks != "all"
        for name, reason in missing.items():
            print(f"medsr: {'error: ' if failed else ''}{name} is left out: {reason}", file=sys.stderr)
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected {', '.join(PRECISIONS)}")
    faster = None
    if precision != "float32" or compile:
        faster = functools.partial(FastNetwork, precision=precision, compile=compile)
    devices = [choose_device(device)]
    if device == "auto" and runs and devices != ["cpu"]:
        devices.insert(0, "cpu")
    rows = []
    for name, arguments in chosen.items():
        shape = (batch, arguments["in_channels"], height, width)
        build = functools.partial(build_network, arguments)
        for place in devices:
            how = (shape, place, runs, "training step" if training else "inference", faster)
            try:
                measured = (
                    [benchmark_network(build, *how)]
                    if reference is None
                    else benchmark_beside(build, reference, arguments, *how)
                )
            except (MemoryError, RuntimeError) as error:
                failed = True
                print(f"medsr: error: {name} on {place}: {reason_of(error)}", file=sys.stderr)
                continue
            measured[0]["network"] = name
            for row in measured:
                rows.append(row)
                # a line as soon as it is known: large networks take minutes
                if not json:
                    header = benchmark_header() + "\n" if len(rows) == 1 else ""
                    print(header, benchmark_line(row), sep="", flush=True)
    if csv is not None:
        Path(csv).parent.mkdir(parents=True, exist_ok=True)
        write_benchmark(rows, csv)
    if json:
        from medsr_monai.metrics import json_text

        print(f"[{', '.join(map(json_text, rows))}]")
    return 1 if failed else 0


_UNTRAINED = {"truncation": "none"}
"""Of TransMRSR: its centroids come with trained weights only; they cost one small product."""


def _bundle_network(folder: Path) -> dict[str, Any]:
    """Arguments of a bundle's network, which is built without memory for its weights."""
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.json"))
    with torch.device("meta"):
        arguments = parser.get_parsed_content("network_def").arguments
    if "in_channels" not in arguments:
        raise ValueError(f"bundle {folder.name} takes no images: choose one that does, see medsr models")
    return arguments | _UNTRAINED if "truncation" in arguments else arguments


def _named_networks(names: str) -> tuple[dict[str, dict], dict[str, str]]:
    """Arguments of networks by name for one channel and x4, and why others cannot be built here."""
    import torch

    from medsr_monai.networks import NETWORKS

    known = [name for name in NETWORKS.names if "scale" in inspect.signature(NETWORKS[name]).parameters]
    wanted = known if names == "all" else names.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"no network {', '.join(map(repr, unknown))}: choose all, or some of {','.join(known)}")
    built, missing = {}, {}
    for name in wanted:
        untrained = _UNTRAINED if name == "TransMRSR" else {}
        try:
            with torch.device("meta"):
                built[name] = NETWORKS[name](1, 1, 4, **untrained).arguments
        except ImportError as error:
            missing[name] = str(error)
    return built, missing
