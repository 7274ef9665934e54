"""Measure speed and memory of networks."""

from __future__ import annotations

import re
import sys

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
    json: bool = False,
) -> int:
    """Measure the size, speed and peak memory of networks on slices of a given size, and print a Markdown table.

    The table also has the speed of this machine's matrix product, to compare machines by. Each network runs in a
    process of its own, and its weights do not matter. The numbers of weights and of multiply-accumulates are given
    twice, as they truly are and as the tables of the RDST paper count them.

    Args:
        bundle: the name or folder of a bundle. By default rdst_e, unless --networks names others.
        networks: all, or names with commas between them such as RDSTE,EDSRLite. They are built for one channel and x4.
        size: the height and width of the low-resolution slices, as HxW. By default 160x160, with --training 24x24.
        batch: how many slices are computed at a time. By default 1, with --training 4.
        training: measure steps of training (forward, L1 loss, backward, Adam) instead of forward passes.
        reference: FILE.py:NAME, such as tests/networks/plain_rdst.py:PlainRDST, a plainer form of the networks to
            compare with. It is built from their arguments, gets the same weights, runs in turns with each of them and
            has its own row.
        precision: float32, or bfloat16 or float16 in convolutions and matrix products (autocast), as for `medsr
            upscale`. A reference always computes in float32.
        compile: compile the networks with torch.compile, on CUDA with its graphs. A reference is not compiled.
        device: cpu, or a GPU such as cuda:0. auto measures on the CPU, and also on the GPU where there is one.
        runs: how many runs are timed after two to warm up; their median is printed. 0 prints the counts only.
        json: print JSON, with null for what was not measured.
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
    height, width = map(int, sides.groups())
    if bundle is None and networks is None:
        bundle = DEFAULT_BUNDLE
    folder = None if bundle is None else bundle_folder(bundle)
    from medsr_monai.evaluation.benchmark import bundle_network, measure, named_networks
    from medsr_monai.inferers.fast_network import PRECISIONS
    from medsr_monai.metrics import benchmark_header, benchmark_line, json_text

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
    if json:
        print(f"[{', '.join(map(json_text, rows))}]")
    return 1 if failed else 0
