"""Measure speed and memory of networks."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from medsr_monai.atomic import check_output
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
    from medsr_monai.evaluation.benchmark import bundle_network, measure, named_networks
    from medsr_monai.inferers.fast_network import PRECISIONS
    from medsr_monai.metrics import benchmark_header, benchmark_line, json_text, write_benchmark

    chosen, failed = {}, False
    if folder is not None:
        chosen[bundle] = bundle_network(folder)
    if networks is not None:
        named, missing = named_networks(networks)
        chosen |= named
        failed = bool(missing) and networks != "all"
        for name, reason in missing.items():
            print(f"medsr: {'error: ' if failed else ''}{name} is left out: {reason}", file=sys.stderr)
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected {', '.join(PRECISIONS)}")
    devices = [choose_device(device)]
    if device == "auto" and runs and devices != ["cpu"]:
        devices.insert(0, "cpu")
    rows = []
    options = {"training": training, "reference": reference, "precision": precision, "compile": compile}
    for found in measure(chosen, (batch, height, width), devices, runs, **options):
        if isinstance(found, str):
            failed = True
            print(f"medsr: error: {found}", file=sys.stderr)
            continue
        rows.append(found)
        # a line as soon as it is known: large networks take minutes
        if not json:
            header = benchmark_header() + "\n" if len(rows) == 1 else ""
            print(header, benchmark_line(found), sep="", flush=True)
    if csv is not None:
        Path(csv).parent.mkdir(parents=True, exist_ok=True)
        write_benchmark(rows, csv)
    if json:
        print(f"[{', '.join(map(json_text, rows))}]")
    return 1 if failed else 0
