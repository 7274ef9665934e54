"""Speed of a network beside what the machine can do."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["benchmark_network", "matmul_rate"]


def _seconds(run: Callable[[], object], device: torch.device, runs: int) -> list[float]:
    times = []
    for number in range(runs + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 2:
            times.append(time.perf_counter() - start)
    return times


def matmul_rate(device: torch.device | str, runs: int = 5, size: int = 2048) -> float:
    """GFLOP/s of a float32 matrix product of ``size`` x ``size``, the median of ``runs``."""
    device = torch.device(device)
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    return 2 * size**3 / statistics.median(_seconds(lambda: a @ b, device, runs)) / 1e9


def benchmark_network(
    network: torch.nn.Module, shape: tuple[int, ...], device: torch.device | str, runs: int = 5
) -> dict[str, float | int | str]:
    """Time the forward pass on random slices, after two warm-up runs; the median counts.

    Args:
        network: in eval mode, on ``device``.
        shape: [B, C, H, W] of the input.
        device: cpu or cuda.
        runs: timed.

    Returns:
        device, threads, shape, parameters, GFLOP per run (multiply and add count as two, attention included),
        seconds (median), spread (slowest over fastest), slices/s, GFLOP/s, the machine's matmul GFLOP/s in the same
        run, the share of it, and the peak memory of the process (CPU) or of the allocator (CUDA) in MiB.
    """
    device = torch.device(device)
    image = torch.rand(shape, device=device)
    with torch.inference_mode():
        counter = FlopCounterMode(display=False)
        with counter:
            network(image)
        before = matmul_rate(device, runs)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        times = _seconds(lambda: network(image), device, runs)
        after = matmul_rate(device, runs)
    # before and after, since clocks and neighbours change
    rate = (before + after) / 2
    gflop = counter.get_total_flops() / 1e9
    seconds = statistics.median(times)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
        name = torch.cuda.get_device_name(device)
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        name = "cpu"
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "input": "x".join(map(str, shape)),
        "parameters": sum(p.numel() for p in network.parameters()),
        "gflop": gflop,
        "seconds": seconds,
        "spread": max(times) / min(times),
        "slices_per_s": shape[0] / seconds,
        "gflop_per_s": gflop / seconds,
        "matmul_gflop_per_s": rate,
        "matmul_share": gflop / seconds / rate,
        "peak_mib": peak,
    }
