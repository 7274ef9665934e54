"""What became of each case of a cohort, in ``status.csv`` and ``status.json``."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from medsr_monai.atomic import written_atomically
from medsr_monai.errors import MedsrError
from medsr_monai.metrics import peak_resident_mib, write_rows

__all__ = ["COLUMNS", "DONE", "FAILED", "KEPT", "PENDING", "StatusTable", "exit_code", "measured", "summary_line"]

COLUMNS = ("case", "input", "output", "status", "reason", "seconds", "peak_mib")
DONE, KEPT, FAILED, PENDING = "done", "kept", "failed", "pending"


def _text(cell: object) -> object:
    """What `write_rows` has made a cell of."""
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") else cell


class StatusTable:
    """The file ``status.csv``, with a row for each case, by its output.

    Several processes share it, and it is whole at any moment. ``status.json`` sums a finished run up.

    Args:
        folder: the folder that holds both files, made if missing.

    Raises:
        ValueError: the folder has files of these names that medsr has not written.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.path = Path(folder) / "status.csv"
        self.summary = Path(folder) / "status.json"
        self.lock = FileLock(self.path.with_name(".status.csv.lock"))
        self.read()
        if self.summary.exists() and not self.path.exists():
            raise ValueError(f"{self.summary}: is no summary of medsr, without a table beside it: move it away")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder against other runs while it is entered.

        Raises:
            MedsrError: another run is at work on it.
        """
        lock = FileLock(self.path.with_name(".medsr.lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise MedsrError(
                f"{self.path.parent}: another run of medsr is writing to this folder: wait for it, or choose another"
            ) from error
        try:
            yield
        finally:
            with contextlib.suppress(PermissionError):  # Windows removes no open file
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def read(self) -> dict[str, dict[str, str]]:
        """Read the rows, by their outputs."""
        if not self.path.exists():
            return {}
        try:
            if not self.path.is_file():
                raise ValueError("no regular file")
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                if tuple(reader.fieldnames or ()) != COLUMNS:
                    raise ValueError("it has other columns")
                rows = [{name: _text(value) for name, value in row.items()} for row in reader]
                return {row["output"]: row for row in rows}
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{self.path}: is no table of medsr ({error}): move it away") from error

    def update(self, rows: Iterable[dict]) -> dict[str, dict]:
        """Add rows, or change those of the same outputs, and return all of them.

        What a row does not name, such as the seconds of a case that is kept, stays as it was.
        """
        with self.lock:
            table = self.read()
            for row in rows:
                table[row["output"]] = table.get(row["output"], {}) | row
            with written_atomically(self.path) as partial:
                write_rows(list(table.values()), partial, COLUMNS)
        return table

    def close(self, rows: Iterable[dict], **facts: object) -> None:
        """Write the summary and remove the lock's file, once no process writes any more.

        Args:
            rows: the rows of this run's cases.
            facts: what the summary says beside the number of cases by status.
        """
        counts = Counter(row["status"] for row in rows)
        numbers = {"Cases": counts.total()} | {s.capitalize(): counts[s] for s in (DONE, KEPT, FAILED, PENDING)}
        with written_atomically(self.summary) as partial:
            partial.write_text(json.dumps(numbers | facts, indent=2) + "\n")
        with contextlib.suppress(PermissionError):  # nor one that another process has open
            Path(self.lock.lock_file).unlink(missing_ok=True)


@contextlib.contextmanager
def measured(row: dict, device: torch.device) -> Iterator[None]:
    """Measure the seconds and the peak memory in MiB of what is done inside, and write them to a row.

    On a CPU it is the peak of the process's resident memory, on Linux since this began, elsewhere since the process
    began. On CUDA it is the peak of what torch has allocated on the GPU.
    """
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    try:
        yield
    finally:
        row["seconds"] = round(time.perf_counter() - start, 3)
        peak = torch.cuda.max_memory_allocated(device) / 2**20 if cuda else peak_resident_mib()
        row["peak_mib"] = "" if peak is None else round(peak, 1)


def exit_code(rows: Iterable[dict]) -> int:
    """Give the exit code: 0 if all cases are done or kept, 1 if only some are, 2 if none is."""
    complete = [row["status"] in (DONE, KEPT) for row in rows]
    return 0 if all(complete) else 1 if any(complete) else 2


def summary_line(rows: Iterable[dict]) -> str:
    """Count the cases by their status, as in ``4 cases: 3 done, 1 failed``."""
    counts = Counter(row["status"] for row in rows)
    parts = (f"{counts[status]} {status}" for status in (DONE, KEPT, FAILED, PENDING) if counts[status])
    return f"{counts.total()} case{'s' * (counts.total() != 1)}: {', '.join(parts)}"
