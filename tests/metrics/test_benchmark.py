"""Rows of the benchmark: counts by hand, and a process of its own for what is measured."""

import csv
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import numpy as np
import pytest
from torch import nn

from medsr_monai.metrics import benchmark_header, benchmark_line, benchmark_network, write_benchmark

build = partial(nn.Conv2d, 2, 4, 3, padding=1)
WEIGHTS, MACS = 4 * 2 * 9 + 4, 5 * 6 * 4 * 2 * 9
MEASURED = ("mode", "precision", "device", "threads", "runs", "seconds", "seconds_q1", "seconds_q3", "spread",
            "slices_per_s", "gflop_per_s", "matmul_gflop_per_s", "matmul_share", "peak_mib", "speed_up")  # fmt: skip


def test_counts_alone():
    row = benchmark_network(build, (1, 2, 5, 6), runs=0)
    assert (row["network"], row["input"]) == ("Conv2d", "1x2x5x6")
    assert row["parameters"] == row["parameters_as_published"] == WEIGHTS
    assert row["macs"] == row["macs_as_published"] == MACS
    assert all(row[name] is None for name in MEASURED)
    assert benchmark_line(row).count("| - ") == len(MEASURED)
    with pytest.raises(ValueError, match="runs is -1"):
        benchmark_network(build, (1, 2, 5, 6), runs=-1)
    with pytest.raises(ValueError, match="mode is 'train', expected one of inference, training step"):
        benchmark_network(build, (1, 2, 5, 6), runs=0, mode="train")


@pytest.mark.usefixtures("warm_spawn")
def test_measured_in_a_process_of_its_own(tmp_path):
    held = np.ones(2**28)  # 2 GiB in this process, which must not be found in the network's peak
    row = benchmark_network(build, (3, 2, 5, 6), runs=2)
    assert held[-1] == 1 and 50 < row["peak_mib"] < 2048
    assert (row["device"], row["runs"], row["macs"]) == ("cpu", 2, 3 * MACS)
    assert row["spread"] >= 1 and row["seconds_q1"] <= row["seconds"] <= row["seconds_q3"]
    assert row["mode"] == "inference" and row["precision"] == "float32" and row["speed_up"] is None
    assert row["slices_per_s"] == pytest.approx(3 / row["seconds"])
    assert row["gflop_per_s"] == pytest.approx(2 * 3 * MACS / 1e9 / row["seconds"])
    assert row["matmul_share"] == pytest.approx(row["gflop_per_s"] / row["matmul_gflop_per_s"])
    counted = benchmark_network(build, (1, 2, 5, 6), runs=0)
    # one schema, whatever was measured and however it is written
    assert list(row) == list(counted)
    write_benchmark([row, counted], tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first) == list(row) and float(first["seconds"]) == row["seconds"] and second["seconds"] == ""
    cells = {line.count("|") for line in [*benchmark_header().splitlines(), *map(benchmark_line, (row, counted))]}
    assert cells == {len(row) + 1}


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (BrokenProcessPool("terminated abruptly"), MemoryError, "that ran Conv2d on 1x2x5x6 ended early"),
        (RuntimeError("CUDA out of memory"), RuntimeError, "^CUDA out of memory$"),
    ],
)
def test_what_fails_in_the_process_is_told(monkeypatch, error, kind, reason):
    future = Future()
    error.__cause__ = Exception("the traceback of the other process")
    future.set_exception(error)
    monkeypatch.setattr(ProcessPoolExecutor, "submit", lambda *_: future)
    with pytest.raises(kind, match=reason) as raised:
        benchmark_network(build, (1, 2, 5, 6), runs=1)
    assert raised.value.__cause__ in (None, error)
