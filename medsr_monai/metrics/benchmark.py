"""Size, speed and memory of networks in one table, beside what the machine can do."""

from __future__ import annotations

import copy
import importlib.util
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks import eval_mode
from torch import nn

from .complexity import count_macs, count_macs_as_published, count_parameters, count_parameters_as_published

__all__ = [
    "benchmark_beside",
    "benchmark_header",
    "benchmark_line",
    "benchmark_network",
    "matmul_rate",
    "network_figures",
    "peak_resident_mib",
]

WARM_UP = 2
"""Number of runs before the timed ones, in which caches fill and libraries choose their kernels."""

COLUMNS: dict[str, tuple[str, Callable]] = {
    "network": ("network", str),
    "input": ("input", str),
    "parameters_as_published": ("M weights, as published", lambda n: f"{n / 1e6:.2f}"),
    "macs_as_published": ("GMACs, as published", lambda n: f"{n / 1e9:.2f}"),
    "parameters": ("M weights", lambda n: f"{n / 1e6:.2f}"),
    "macs": ("GMACs", lambda n: f"{n / 1e9:.2f}"),
    "mode": ("mode", str),
    "precision": ("precision", str),
    "device": ("device", str),
    "threads": ("threads", str),
    "runs": ("runs", str),
    "seconds": ("seconds", "{:.4g}".format),
    "seconds_q1": ("1st quartile", "{:.4g}".format),
    "seconds_q3": ("3rd quartile", "{:.4g}".format),
    "spread": ("slowest / fastest", "{:.2f}".format),
    "slices_per_s": ("slices/s", "{:.4g}".format),
    "gflop_per_s": ("GFLOP/s", "{:.4g}".format),
    "matmul_gflop_per_s": ("matmul GFLOP/s", "{:.4g}".format),
    "matmul_share": ("share of matmul", "{:.2f}".format),
    "peak_mib": ("peak MiB", "{:.0f}".format),
    "speed_up": ("times as fast as the reference", "{:.2f}".format),
}
"""The columns of every table: the key in CSV and JSON, the heading in Markdown, and what prints a value there."""
MODES = ("inference", "training step")
"""What can be timed: a forward pass, or forward, loss, backward and a step of Adam."""
DIFFERENCE = 1e-3
"""Largest difference between the outputs of a network and of its reference, as a share of the largest output."""


def benchmark_network(
    build: Callable[[], nn.Module],
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    runs: int = 5,
    mode: str = "inference",
    faster: Callable[..., Callable] | None = None,
) -> dict[str, float | int | str | None]:
    """Count a network's weights and operations, and time it on random slices in a process of its own.

    The weights are random, and the arithmetic is float32 unless ``faster`` changes it. A fresh process for each network
    keeps the peak memory of one from hiding that of the next. On the CPU the peak is the resident memory of the process
    as the operating system counts it, of which Python and torch take some hundred MiB. On CUDA it is what torch's
    allocator has handed out, the weights included.

    Args:
        build: function without arguments that returns the network; it is pickled, and called on the meta device, too.
        shape: shape [B, C, H, W] of the input.
        device: cpu or cuda.
        runs: number of timed runs, after two runs to warm up; 0 only counts and starts no process.
        mode: "inference", a forward pass, or "training step": forward, L1 loss to random images, backward, Adam.
        faster: makes of the network and ``device=`` what is called in its place, such as the network under autocast or
            compiled (`medsr_monai.inferers.FastNetwork`); it is pickled, too.

    Returns:
        A value for each of `COLUMNS`; all from mode on are None without runs, and speed_up always is.

        - network (its class), input (its shape), parameters and macs (see `count_parameters` and `count_macs`), and
          what the RDST paper would print (`count_parameters_as_published`, `count_macs_as_published`);
        - mode, precision (float32, or that of ``faster``, with "compiled"), device, threads (of the CPU) and runs;
        - seconds (median), their quartiles seconds_q1 and seconds_q3, spread (slowest over fastest) and slices_per_s
          (of the median);
        - gflop_per_s (a multiply and an add count as two, a training step as three forward passes),
          matmul_gflop_per_s (what the machine reaches in the same process, in float32) and matmul_share, their ratio;
        - peak_mib.

    Raises:
        ValueError: the number of runs is negative, or the mode is unknown.
        MemoryError: the process ended early, as it does when the system ends it for its memory.
        RuntimeError: what the network raises, such as CUDA's lack of memory.
    """
    row = _counted(build, shape, runs, mode)
    if not runs:
        return row
    [measured] = _in_a_process(row, _measure, [build], tuple(shape), str(device), runs, mode, faster)
    return _measured_row(row, measured, shape, mode)


def benchmark_beside(
    build: Callable[[], nn.Module],
    reference: str,
    arguments: dict[str, Any],
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    runs: int = 5,
    mode: str = "inference",
    faster: Callable[..., Callable] | None = None,
) -> list[dict[str, float | int | str | None]]:
    """Do `benchmark_network` for a network and a plainer form of it, in turns in one process and with the same weights.

    So load that comes and goes falls on both. The peaks of memory are measured in a process each.

    Args:
        build, shape, device, runs, mode: see `benchmark_network`.
        reference: FILE.py:NAME, where NAME(**arguments) builds a module that takes the network's `state_dict`.
        arguments: the network's arguments, with or without `_target_`.
        faster: see `benchmark_network`; it is applied to the network alone.

    Returns:
        The rows of the network and of the reference. The network's speed_up is the median over runs of the reference's
        time divided by its own; the reference's is 1.

    Raises:
        ValueError: there is no such file, or no such name in it; the outputs differ by more than 0.1 % of the largest.
    """
    plain = _Reference(reference, {name: value for name, value in arguments.items() if name != "_target_"})
    rows = [_counted(each, shape, runs, mode) for each in (build, plain)]
    if not runs:
        return rows
    common = (tuple(shape), str(device), runs, mode)
    measured = _in_a_process(rows[0], _measure, [build, plain], *common, faster)
    [alone] = _in_a_process(rows[1], _measure, [plain], *common[:2], 0, mode)
    measured[1]["peak_mib"] = alone["peak_mib"]
    return [_measured_row(row, each, shape, mode) for row, each in zip(rows, measured, strict=True)]


class _Reference:
    """A function that builds a module from a name in a Python file, and can be pickled."""

    def __init__(self, reference: str, arguments: dict[str, Any]) -> None:
        self.reference = reference
        self.arguments = arguments

    def __call__(self) -> nn.Module:
        path, _, name = self.reference.rpartition(":")
        if not (path.endswith(".py") and Path(path).is_file()):
            raise ValueError(f"reference is {self.reference!r}: expected FILE.py:NAME of an existing Python file")
        spec = importlib.util.spec_from_file_location(Path(path).stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not callable(getattr(module, name, None)):
            raise ValueError(f"{path} has no class or function {name!r}: give another one as --reference FILE.py:NAME")
        try:
            return getattr(module, name)(**self.arguments)
        except TypeError as error:
            raise ValueError(f"{name} in {path} does not take the network's arguments: {error}") from error


def _counted(build: Callable[[], nn.Module], shape: Sequence[int], runs: int, mode: str) -> dict[str, Any]:
    if runs < 0:
        raise ValueError(f"runs is {runs}, expected at least 1, or 0 to count only")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    with torch.device("meta"):
        network = build().eval()
        return dict.fromkeys(COLUMNS) | {"network": type(network).__name__} | _size(network, shape)


def _size(network: nn.Module, shape: Sequence[int]) -> dict[str, str | int]:
    return {
        "input": "x".join(map(str, shape)),
        "parameters": count_parameters(network),
        "parameters_as_published": count_parameters_as_published(network),
        "macs": count_macs(network, shape),
        "macs_as_published": count_macs_as_published(network, shape),
    }


def _in_a_process(row: dict, function: Callable, *args: Any) -> Any:
    # spawn: CUDA cannot be used after a fork, and a forked process would start with this one's memory
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise MemoryError(
                f"the process that ran {row['network']} on {row['input']} ended early, perhaps for lack of memory: "
                "choose a smaller input"
            ) from error
        except (RuntimeError, ValueError) as error:
            raise error from None  # without the other process's traceback, which comes as its cause


def _measured_row(row: dict, measured: dict, shape: Sequence[int], mode: str) -> dict:
    passes = 1 if mode == "inference" else 3
    rate = 2 * passes * row["macs"] / 1e9 / measured["seconds"]
    row = row | measured | {"mode": mode, "slices_per_s": shape[0] / measured["seconds"]}
    return row | {"gflop_per_s": rate, "matmul_share": rate / measured["matmul_gflop_per_s"]}


def network_figures(
    network: nn.Module, image: torch.Tensor, runs: int = 5, amp: bool = False
) -> dict[str, float | int | str]:
    """Return the size of a network, and its speed on one input in this process and on the input's device.

    Args:
        network: the network, whose mode is left as it is.
        image: the input [B, C, H, W].
        runs: number of timed runs, after two runs to warm up; the median counts.
        amp: whether it is timed under autocast.

    Returns:
        input (its shape), parameters and macs (see `count_parameters` and `count_macs`), what the RDST paper would
        print (`parameters_as_published`, `macs_as_published`), and fps, slices per second.
    """
    with eval_mode(network):
        row = _size(network, tuple(image.shape))
        with torch.autocast(image.device.type, enabled=amp):
            [times] = _seconds_in_turn([lambda: network(image)], image.device, runs)
    return row | {"fps": len(image) / statistics.median(times)}


def _measure(
    builds: Sequence[Callable[[], nn.Module]],
    shape: tuple[int, ...],
    device: str,
    runs: int,
    mode: str,
    faster: Callable[..., Callable] | None = None,
) -> list[dict]:
    """Build networks and time them in turns in this process, which must have done nothing else before.

    The process's peak memory is that of the first network, which alone is made faster. Without runs it is all that is
    measured.
    """
    place = torch.device(device)
    torch.manual_seed(0)  # the comparison finds the same whatever the process has drawn before
    image = torch.rand(shape, device=place)
    steps, state, outputs, peak, precision = [], None, [], None, "float32"
    for build in builds:
        network = build().to(place)
        if state is None:
            if len(builds) > 1:  # what untrained weights hide shows in the comparison
                for parameter in network.parameters():
                    parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
            state = copy.deepcopy(network.state_dict())  # before training steps change it
        network.load_state_dict(state)
        with torch.inference_mode():
            if len(builds) > 1:
                outputs.append(network.eval()(image))
        called = faster(network, device=device) if faster and not steps else network
        if faster and not steps:
            precision = f"{called.precision}, compiled" if called.compile else called.precision
        step = _step(network, called, image, mode)
        step()
        if peak is None:
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            peak = torch.cuda.max_memory_allocated(place) / 2**20 if place.type == "cuda" else peak_resident_mib()
        steps.append(step)
    if not runs:
        return [{"peak_mib": peak}]
    if len(outputs) > 1 and not (outputs[1] - outputs[0]).abs().max() <= DIFFERENCE * outputs[1].abs().max():
        raise ValueError("the reference computes something else: its output is not the network's with the same weights")
    before = matmul_rate(place, runs)
    times = _seconds_in_turn(steps, place, runs)
    after = matmul_rate(place, runs)
    rows = []
    for number, ours in enumerate(times):
        low, median, high = statistics.quantiles(ours, n=4, method="inclusive") if runs > 1 else ours * 3
        ratios = [theirs / mine for mine, theirs in zip(ours, times[-1], strict=True)]
        rows.append(
            {
                "precision": precision if number == 0 else "float32",
                "device": torch.cuda.get_device_name(place) if place.type == "cuda" else place.type,
                "threads": torch.get_num_threads(),
                "runs": runs,
                "seconds": median,
                "seconds_q1": low,
                "seconds_q3": high,
                "spread": max(ours) / min(ours),
                # before and after, since clocks and neighbours change
                "matmul_gflop_per_s": (before + after) / 2,
                "peak_mib": peak if number == 0 else None,
                "speed_up": statistics.median(ratios) if len(builds) > 1 else None,
            }
        )
    return rows


def _step(network: nn.Module, called: Callable, image: torch.Tensor, mode: str) -> Callable[[], object]:
    """Return what is timed, with ``called`` in the network's place: a forward pass, or a step of training."""
    if mode == "inference":
        network.eval()

        @torch.inference_mode()
        def forward() -> None:
            called(image)

        return forward
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    with torch.no_grad():
        target = torch.rand_like(network(image))

    def train() -> None:
        optimizer.zero_grad()
        F.l1_loss(called(image).float(), target).backward()
        optimizer.step()

    return train


def peak_resident_mib() -> float | None:
    """Return the largest resident memory of this process so far, in MiB, as the operating system counts it.

    None where the system does not tell it, as Windows.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage on Linux begins with the peak of the process that started this one
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _seconds_in_turn(calls: Sequence[Callable[[], object]], device: torch.device, runs: int) -> list[list[float]]:
    """Time calls in turns, after WARM_UP rounds; there is a list of seconds for each call."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(runs + WARM_UP):
        for call, seconds in zip(calls, times, strict=True):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - start)
    return times


def matmul_rate(device: torch.device | str, runs: int = 5, size: int = 2048) -> float:
    """Return the GFLOP/s of a float32 product of ``size`` x ``size`` matrices, the median of ``runs``."""
    device = torch.device(device)
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    [times] = _seconds_in_turn([lambda: a @ b], device, runs)
    return 2 * size**3 / statistics.median(times) / 1e9


def benchmark_header() -> str:
    """Return the two lines at the top of a Markdown table of benchmarks."""
    headings = [heading for heading, _ in COLUMNS.values()]
    return f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}"


def benchmark_line(row: dict) -> str:
    """Return a row of `benchmark_network` as a line of a Markdown table; what was not measured is a dash."""
    cells = ("-" if row[key] is None else text(row[key]) for key, (_, text) in COLUMNS.items())
    return f"| {' | '.join(cells)} |"
