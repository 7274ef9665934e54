"""Size, speed and memory of networks, beside what the machine can do, in one table."""

from __future__ import annotations

import csv
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from monai.networks import eval_mode
from torch import nn

from .complexity import count_macs, count_macs_as_published, count_parameters, count_parameters_as_published

__all__ = [
    "benchmark_header",
    "benchmark_line",
    "benchmark_network",
    "matmul_rate",
    "network_figures",
    "peak_resident_mib",
    "write_benchmark",
]

WARM_UP = 2

# Every table's columns: key in CSV and JSON -> heading in Markdown, and what prints its number there.
COLUMNS: dict[str, tuple[str, Callable]] = {
    "network": ("network", str),
    "input": ("input", str),
    "parameters_as_published": ("M weights, as published", lambda n: f"{n / 1e6:.2f}"),
    "macs_as_published": ("GMACs, as published", lambda n: f"{n / 1e9:.2f}"),
    "parameters": ("M weights", lambda n: f"{n / 1e6:.2f}"),
    "macs": ("GMACs", lambda n: f"{n / 1e9:.2f}"),
    "device": ("device", str),
    "threads": ("threads", str),
    "runs": ("runs", str),
    "seconds": ("seconds", "{:.4g}".format),
    "spread": ("slowest / fastest", "{:.2f}".format),
    "slices_per_s": ("slices/s", "{:.4g}".format),
    "gflop_per_s": ("GFLOP/s", "{:.4g}".format),
    "matmul_gflop_per_s": ("matmul GFLOP/s", "{:.4g}".format),
    "matmul_share": ("share of matmul", "{:.2f}".format),
    "peak_mib": ("peak MiB", "{:.0f}".format),
}


def benchmark_network(
    build: Callable[[], nn.Module], shape: Sequence[int], device: torch.device | str = "cpu", runs: int = 5
) -> dict[str, float | int | str | None]:
    """Count a network's weights and operations, and time its forward pass on random slices in a process of its own.

    The weights are random, the arithmetic float32. A fresh process a network keeps the peak memory of one from hiding
    that of the next. On the CPU the peak is the process's resident memory as the operating system counts it, with
    Python and torch, some hundred MiB; on CUDA what torch's allocator has handed out, the weights included.

    Args:
        build: takes no arguments and returns the network; it is pickled, and called on the meta device too.
        shape: [B, C, H, W] of the input.
        device: cpu or cuda.
        runs: timed, after two warm-up runs; 0 counts only, and no process is started.

    Returns:
        network (its class), input, parameters and macs (see `count_parameters` and `count_macs`) and what the RDST
        paper would print (`count_parameters_as_published`, `count_macs_as_published`); device, threads (of the CPU),
        runs, seconds (median), spread (slowest over fastest), slices_per_s (of the median), gflop_per_s (a multiply and
        an add count as two), the machine's matmul_gflop_per_s in the same process, the share of it, and peak_mib. All
        from device on are None without runs.

    Raises:
        ValueError: a negative number of runs.
        MemoryError: the process ended early, as one does that the system ends for its memory.
        RuntimeError: what the network raises, such as CUDA's lack of memory.
    """
    if runs < 0:
        raise ValueError(f"runs is {runs}, expected at least 1, or 0 to count only")
    with torch.device("meta"):
        network = build().eval()
    row = dict.fromkeys(COLUMNS) | {
        "network": type(network).__name__,
        "input": "x".join(map(str, shape)),
        "parameters_as_published": count_parameters_as_published(network),
        "macs_as_published": count_macs_as_published(network, shape),
        "parameters": count_parameters(network),
        "macs": count_macs(network, shape),
    }
    if not runs:
        return row
    # spawn: CUDA cannot be used after a fork, and a forked process would start with this one's memory
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            measured = pool.submit(_measure, build, tuple(shape), str(device), runs).result()
        except BrokenProcessPool as error:
            raise MemoryError(
                f"the process that ran {row['network']} on {row['input']} ended early, perhaps for lack of memory: "
                "choose a smaller input"
            ) from error
        except RuntimeError as error:
            raise error from None  # without the other process's traceback, which comes as its cause
    rate = 2 * row["macs"] / 1e9 / measured["seconds"]
    return (
        row
        | measured
        | {
            "slices_per_s": shape[0] / measured["seconds"],
            "gflop_per_s": rate,
            "matmul_share": rate / measured["matmul_gflop_per_s"],
        }
    )


def network_figures(
    network: nn.Module, image: torch.Tensor, runs: int = 5, amp: bool = False
) -> dict[str, float | int | str]:
    """Size of a network, its operations and its speed on one input, in this process and on the input's device.

    Args:
        network: its mode is left as it is.
        image: [B, C, H, W].
        runs: timed, after two warm-up runs; the median counts.
        amp: time it under autocast.

    Returns:
        input (its shape), parameters and macs (see `count_parameters` and `count_macs`), what the RDST paper would
        print (`parameters_as_published`, `macs_as_published`), and fps, slices per second.
    """
    shape = tuple(image.shape)
    with eval_mode(network):
        row = {
            "input": "x".join(map(str, shape)),
            "parameters": count_parameters(network),
            "parameters_as_published": count_parameters_as_published(network),
            "macs": count_macs(network, shape),
            "macs_as_published": count_macs_as_published(network, shape),
        }
        with torch.autocast(image.device.type, enabled=amp):
            times = _seconds(lambda: network(image), image.device, runs)
    return row | {"fps": shape[0] / statistics.median(times)}


def _measure(build: Callable[[], nn.Module], shape: tuple[int, ...], device: str, runs: int) -> dict:
    """Build and time a network in this process, which must have done nothing else: its peak memory is taken."""
    place = torch.device(device)
    network, image = build().eval().to(place), torch.rand(shape, device=place)
    with torch.inference_mode():
        network(image)
        if place.type == "cuda":
            torch.cuda.synchronize(place)
            peak = torch.cuda.max_memory_allocated(place) / 2**20
            name = torch.cuda.get_device_name(place)
        else:
            peak, name = peak_resident_mib(), place.type
        before = matmul_rate(place, runs)
        times = _seconds(lambda: network(image), place, runs)
        after = matmul_rate(place, runs)
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "runs": runs,
        "seconds": statistics.median(times),
        "spread": max(times) / min(times),
        # before and after, since clocks and neighbours change
        "matmul_gflop_per_s": (before + after) / 2,
        "peak_mib": peak,
    }


def peak_resident_mib() -> float:
    """Greatest resident memory of this process so far, in MiB, as the operating system counts it."""
    status = Path("/proc/self/status")
    if status.is_file():
        # not getrusage: what it tells on Linux begins with the peak of the process that started this one
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _seconds(run: Callable[[], object], device: torch.device, runs: int) -> list[float]:
    times = []
    for number in range(runs + WARM_UP):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= WARM_UP:
            times.append(time.perf_counter() - start)
    return times


def matmul_rate(device: torch.device | str, runs: int = 5, size: int = 2048) -> float:
    """GFLOP/s of a float32 matrix product of ``size`` x ``size``, the median of ``runs``."""
    device = torch.device(device)
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    return 2 * size**3 / statistics.median(_seconds(lambda: a @ b, device, runs)) / 1e9


def benchmark_header() -> str:
    """The two lines above the lines of a Markdown table."""
    headings = [heading for heading, _ in COLUMNS.values()]
    return f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}"


def benchmark_line(row: dict) -> str:
    """One row of `benchmark_network` as a line of a Markdown table; what was not measured is a dash."""
    cells = ("-" if row[key] is None else text(row[key]) for key, (_, text) in COLUMNS.items())
    return f"| {' | '.join(cells)} |"


def write_benchmark(rows: Sequence[dict], path: str | Path) -> None:
    """Write rows of `benchmark_network` as CSV, all digits; what was not measured is empty."""
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(COLUMNS))
        writer.writeheader()
        writer.writerows(rows)
