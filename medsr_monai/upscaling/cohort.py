"""A folder's cases through a bundle's network, in one process or several: `upscale`'s loop."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from medsr_monai.errors import ERRORS, naming, reason_of
from medsr_monai.upscaling.cases import Case
from medsr_monai.upscaling.quality_options import write_page
from medsr_monai.upscaling.upscaler import Plan, Upscaler, complain, say

if TYPE_CHECKING:
    from medsr_monai.upscaling.sharing import Ranks, StatusTable


def upscale_cohort(plan: Plan, ranks: Ranks) -> int:
    """Work on a cohort's cases until none is left; the first of several processes sums up."""
    from medsr_monai.upscaling.sharing import StatusTable, exit_code

    start = time.perf_counter()
    upscaler = Upscaler(plan, ranks.local_rank)
    if ranks.rank == 0:
        upscaler.warn()
    table = StatusTable(plan.folder)
    ranks.begin(lambda: _begin(plan, table))
    with _progress_bar(plan, ranks.rank == 0) as progress:
        _work_off(plan, ranks, upscaler, table, progress)
    ranks.leave()
    if ranks.rank:
        return 0
    rows = _rows(plan, table)
    _sum_up(plan, upscaler, table, rows, start)
    return exit_code(rows)


def upscale_in_processes(plan: Plan, jobs: int) -> int:
    """Work on a cohort's cases in processes of this machine; one that dies leaves the others at work."""
    from medsr_monai.upscaling.sharing import FAILED, PENDING, StatusTable, exit_code, run_processes

    start = time.perf_counter()
    upscaler = Upscaler(plan._replace(device="cpu"))  # a wrong option is told once, before any work
    upscaler.warn()
    table = StatusTable(plan.folder)
    _begin(plan, table)
    with _progress_bar(plan) as progress:
        ranks, died = run_processes(_job, (plan,), min(jobs, len(plan.cases)), progress)
    if ranks.store.check(["refused"]):
        raise ValueError(ranks.store.get("refused").decode())
    rows = _rows(plan, table)
    lost = [row for row in rows if row["status"] == PENDING and ranks.claimed(row["output"])]
    for row in lost:
        row |= {"status": FAILED, "reason": "the process at work on it ended early, for lack of memory? Run it again"}
    table.update(lost)
    for rank, code in died.items():
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        complain(f"process {rank} of {ranks.size} ended early ({how}): the same command does what is left")
    _sum_up(plan, upscaler, table, rows, start)
    return exit_code(rows)


def _job(rank: int, processes: int, port: int, plan: Plan) -> None:
    """One of the processes of `upscale_in_processes`."""
    from medsr_monai.command_line import quiet_libraries
    from medsr_monai.upscaling.sharing import StatusTable, join_processes

    quiet_libraries()
    ranks = join_processes(rank, processes, port)
    try:
        _work_off(plan, ranks, Upscaler(plan, ranks.local_rank), StatusTable(plan.folder))
    except ERRORS as error:
        ranks.store.set("refused", reason_of(error))
        sys.exit(1)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _begin(plan: Plan, table: StatusTable) -> None:
    """Enter all cases in the table, so that what was never reached can be seen there."""
    from medsr_monai.upscaling.sharing import PENDING

    table.update(plan.row(case) | {"status": PENDING, "reason": ""} for case in plan.cases)


def _work_off(plan: Plan, ranks: Ranks, upscaler: Upscaler, table: StatusTable, progress=lambda count: None) -> None:
    """Do the cases that no other process has claimed; a bad one does not stop the others."""
    from medsr_monai.records.sidecar import remove_partial, source_record, why_redo, without_folders
    from medsr_monai.upscaling.sharing import DONE, FAILED, KEPT, measured

    for index in ranks.order([_size(case) for case in plan.cases]):
        case = plan.cases[index]
        row = plan.row(case)
        if not ranks.claim(row["output"]):
            continue
        try:
            with measured(row, upscaler.device), naming(case.source):
                remove_partial(case.output)
                inputs = [source_record(case.source, case.files)]
                reason = why_redo(case.output, inputs, upscaler.identity)
                if reason is not None or plan.overwrite:
                    upscaler.upscale(case, inputs)
                    row |= {"status": DONE, "reason": "redone: --overwrite" if reason is None else reason}
            if "status" not in row:
                row = plan.row(case) | {"status": KEPT, "reason": ""}  # with the figures of when it was made
                say(f"{case.output}: kept, complete and made by the same settings")
        except ValueError as error:
            reason = reason_of(error)
            row |= {"status": FAILED, "reason": without_folders(reason)}
            complain(reason)
        except Exception as error:
            # a bug of ours: it must not stop the others, and must be seen
            traceback.print_exc()
            row |= {"status": FAILED, "reason": without_folders(f"unexpected {type(error).__name__}: {error}")}
            complain(f"{case.source}: unexpected {type(error).__name__}, please report it")
        table.update([row])
        progress(ranks.count())


def _size(case: Case) -> int:
    """Bytes of a case's files; 0 where they cannot be seen, which is told when its turn comes."""
    try:
        return sum(Path(file).stat().st_size for file in case.files)
    except OSError:
        return 0


def _rows(plan: Plan, table: StatusTable) -> list[dict]:
    """The table's rows of this run's cases."""
    rows = table.read()
    return [rows[plan.row(case)["output"]] for case in plan.cases]


def _sum_up(plan: Plan, upscaler: Upscaler, table: StatusTable, rows: list[dict], start: float) -> None:
    from medsr_monai.records.sidecar import read_sidecar
    from medsr_monai.upscaling.sharing import DONE, KEPT, summary_line

    seconds = round(time.perf_counter() - start, 1)
    facts = {name: upscaler.record[name] for name in ("IntendedUse", "GeneratedBy", "Bundle", "Options", "Versions")}
    table.close(rows, Seconds=seconds, **facts)
    say(f"{plan.folder}: {summary_line(rows)}, in {seconds:.0f} s; {table.path}")
    if plan.quality.picture:
        note = f"{summary_line(rows)}, by bundle {upscaler.record['Bundle']['Name']}.".capitalize()
        say(str(write_page(plan.folder, rows, read_sidecar, note)))
    if failed := sum(row["status"] not in (DONE, KEPT) for row in rows):
        complain(f"{failed} of {len(rows)} volumes failed")


@contextlib.contextmanager
def _progress_bar(plan: Plan, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Bar on a terminal's stderr, with the time left; called with the number of finished cases."""
    from tqdm import tqdm

    # disable=None: where stderr is no terminal
    with tqdm(total=len(plan.cases), unit="case", file=sys.stderr, disable=None if shown else True) as bar:
        yield lambda count: bar.update(count - bar.n)
