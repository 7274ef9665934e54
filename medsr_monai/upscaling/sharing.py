"""Cases of a cohort, shared out over processes through torch.distributed."""

from __future__ import annotations

import contextlib
import datetime
import heapq
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import torch
import torch.distributed as dist
from torch import multiprocessing

__all__ = [
    "Ranks",
    "join_processes",
    "meeting_place",
    "run_processes",
    "share_out",
]

LONG = datetime.timedelta(days=365)
"""How long a process waits for the others, in effect for ever; what ends one of them ends the waiting too."""

GRACE = 2.0
"""After an interruption processes have this many seconds to end by themselves."""


def share_out(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Share cases out so that the parts are about equal in size; the same sizes always give the same parts.

    Args:
        sizes: the size of each case, in any unit.
        parts: the number of parts.

    Returns:
        The indices of the cases of each part, in rising order.
    """
    shares: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        load, part = heapq.heappop(loads)
        shares[part].append(index)
        heapq.heappush(loads, (load + sizes[index], part))
    return [sorted(share) for share in shares]


class Ranks:
    """One of several processes that work on a cohort, or the only one.

    They meet in a key-value store of torch.distributed, nothing else: a process that dies keeps no other waiting. A
    case is claimed there before work begins, by an atomic counter, so none is done twice.

    Args:
        store: the key-value store that all processes of this run share.
        rank: the number of this process, from 0.
        size: how many processes there are.
        local_rank: the number of this process on its machine.
    """

    def __init__(self, store: dist.Store, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.store, self.rank, self.size, self.local_rank = store, rank, size, local_rank

    @classmethod
    def from_environment(cls) -> Ranks:
        """Describe this process as torchrun has started it, or else as the only one."""
        if not dist.is_torchelastic_launched():
            return cls(dist.HashStore())
        store, rank, size = next(dist.rendezvous("env://"))
        # torchrun may keep one store for all its attempts: what died in one is claimed anew in the next
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        return cls(store, rank, size, int(os.environ["LOCAL_RANK"]))

    def order(self, sizes: Sequence[int]) -> list[int]:
        """List the indices of all cases: the share of this process, then the shares of the others from their ends.

        By this order the others do what a slow or dead process leaves.
        """
        shares = share_out(sizes, self.size)
        others = (shares[(self.rank + step) % self.size] for step in range(1, self.size))
        return shares[self.rank] + [index for share in others for index in reversed(share)]

    def claim(self, name: str) -> bool:
        """Whether this process is the first to ask for a case."""
        return self.store.add(f"claim/{name}", 1) == 1

    def claimed(self, name: str) -> bool:
        """Whether any process has asked for a case."""
        return self.store.check([f"claim/{name}"])

    def begin(self, prepare: Callable[[], object]) -> None:
        """Let the first process prepare what all need, while the others wait."""
        if self.rank == 0:
            prepare()
            self.store.set("begun", "yes")
        else:
            self.store.wait(["begun"], LONG)

    def count(self, cases: int = 1) -> int:
        """Add to the number of cases that are finished, and return it."""
        return self.store.add("finished", cases)

    def leave(self) -> None:
        """Say that this process has nothing left to do; the first waits until all have said so."""
        self.store.set(f"left/{self.rank}", "yes")
        if self.rank == 0:
            self.store.wait([f"left/{rank}" for rank in range(self.size)], LONG)


@contextlib.contextmanager
def meeting_place(processes: int) -> Iterator[tuple[Ranks, str]]:
    """Make a place in which processes of this machine meet: a file in a folder that only this user may enter.

    So nothing listens on a port, and no other program can join. Gives the ranks' view of the first process, and the
    file's path for :func:`run_processes`.
    """
    with tempfile.TemporaryDirectory(prefix="medsr-") as folder:
        path = os.path.join(folder, "store")
        ranks = Ranks(dist.FileStore(path), 0, processes)
        ranks.store.set("begun", "yes")
        yield ranks, path


def run_processes(
    work: Callable,
    arguments: tuple,
    ranks: Ranks,
    path: str,
    progress: Callable[[int], object] = lambda count: None,
) -> dict[int, int]:
    """Run ``work(rank, processes, path, *arguments)`` in processes on this machine, and wait for all of them.

    One that dies leaves the others at work. An interruption is handed on to all, and all end if this process does.

    Args:
        work: a function of a module; makes its :class:`Ranks` by :func:`join_processes`.
        arguments: further arguments of ``work``, which can be pickled.
        ranks, path: those of :func:`meeting_place`.
        progress: called with the number of finished cases, twice a second.

    Returns:
        The exit codes of the processes that ended with another one than 0.
    """
    # spawn: CUDA cannot be used after a fork; not joined, since that would end all with the first that fails
    context = multiprocessing.start_processes(work, (ranks.size, path, *arguments), ranks.size, join=False)
    try:
        alive = {process.sentinel for process in context.processes}
        while alive:
            alive -= set(wait(alive, timeout=0.5))
            progress(ranks.count(0))
    except BaseException:
        # a terminal interrupts all of them, and a second signal would interrupt their tidying
        deadline = time.monotonic() + GRACE
        for process in context.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in context.processes:
            if process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)
        for process in context.processes:
            process.join()
        raise
    return {rank: p.exitcode for rank, p in enumerate(context.processes) if p.exitcode}


def join_processes(rank: int, processes: int, path: str) -> Ranks:
    """Join the others from a process that :func:`run_processes` has started, with its share of the cores.

    ``OMP_NUM_THREADS``, where it is set, counts for each process. Should the process that has started it end, this one
    gets a SIGTERM.
    """
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    return Ranks(dist.FileStore(path), rank, processes, rank)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
