"""All cases of a command line through one bundle, in one process or several."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medsr_monai.atomic import check_output
from medsr_monai.command_line import is_verbose, print_traceback, quiet_libraries
from medsr_monai.data import is_dicom_file, volume_name
from medsr_monai.errors import MedsrError, line_of, naming, printable
from medsr_monai.records.sidecar import (
    check_sidecar,
    is_ours,
    read_sidecar,
    remove_partial,
    sidecar_path,
    source_record,
    why_redo,
    without_folders,
)
from medsr_monai.suffixes import NIFTI_SUFFIXES
from medsr_monai.upscaling.adaptation import Adaptation
from medsr_monai.upscaling.bundles import AUTO_BUNDLE
from medsr_monai.upscaling.cases import Case, find_cases
from medsr_monai.upscaling.choice import Choice
from medsr_monai.upscaling.dicom_output import find_dicom_cases
from medsr_monai.upscaling.memory import parse_size
from medsr_monai.upscaling.protocols import fit_protocols
from medsr_monai.upscaling.quality import check_pictures
from medsr_monai.upscaling.report_page import INDEX_NAME, check_index, write_page
from medsr_monai.upscaling.sharing import Ranks, join_processes, meeting_place, run_processes
from medsr_monai.upscaling.status import (
    DONE,
    FAILED,
    KEPT,
    PENDING,
    StatusTable,
    exit_code,
    measured,
    summary_line,
)
from medsr_monai.upscaling.upscaler import Options, Upscaler

__all__ = ["Job", "upscale_files"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is to be done, checked before any work; it is the same in all processes.

    Attributes:
        cases: the inputs and outputs.
        source: the file or folder that was given as input.
        folder: the folder of a cohort's outputs; None for a single case.
        options: the arguments of :class:`medsr_monai.upscaling.upscaler.Options`.
        picture: whether quality pictures are drawn.
        dicom: whether outputs are DICOM series.
        overwrite: whether complete outputs are made anew.
        adaptation: how networks are fitted to the cases; None for not at all.
        fitted: the weights of outputs whose protocol has some of its own.
    """

    cases: list[Case]
    source: Path
    folder: Path | None
    options: dict[str, Any]
    picture: bool
    dicom: bool
    overwrite: bool
    adaptation: Adaptation | None = None
    fitted: dict[Path, Path] = dataclasses.field(default_factory=dict)

    def upscaler(self, **others: Any) -> Upscaler:
        """Load the network of a process; ``others`` take the place of the job's options."""
        single = self.folder is None and sys.stderr.isatty()  # a cohort has a bar of its cases
        shown = {"draws": self.picture, "dicom": self.dicom, "shows_progress": single, "adaptation": self.adaptation}
        return Upscaler(**self.options | shown | others)

    def row(self, case: Case) -> dict[str, str]:
        """Begin a case's row in the status table; its paths are relative to the folders that were given."""
        output = case.output.relative_to(self.folder).as_posix()
        if case.series is not None:  # named as the output, which leaves the patient's name out
            name = output.removesuffix(".nii.gz").removesuffix("_sr")
            return {"case": name, "input": self.source.name, "output": output}
        source = Path(os.path.relpath(case.source, self.source)).as_posix()
        source = self.source.name if source in (".", "..") or source.startswith("../") else source
        name = source.removesuffix(Path(source).name) + volume_name(source)
        return {key: printable(value) for key, value in {"case": name, "input": source, "output": output}.items()}


def upscale_files(
    source: str,
    output: str,
    options: Options,
    *,
    cases: list[Case] | None = None,
    series: str | None = None,
    all_series: bool = False,
    descriptions: bool = False,
    jobs: int = 1,
    picture: bool = True,
    dicom: bool = False,
    overwrite: bool = False,
    adaptation: Adaptation | None = None,
) -> int:
    """Super-resolve a file, or all of a folder or DICOM study, each output with its sidecar and its quality picture.

    Args:
        source: a file, folder or zip.
        output: the output file, or the folder for several.
        options: how volumes are super-resolved.
        cases: what is read and written, below source and output; None finds them.
        series, all_series: which series of a DICOM study are taken, see
            :func:`medsr_monai.data.dicom.studies.choose_series`.
        descriptions: name their outputs so, see :func:`medsr_monai.data.dicom.studies.output_names`.
        jobs: how many processes share the cases of a folder.
        picture: draw a quality picture beside each output, and for a folder a page with all of them.
        dicom: write derived DICOM series instead of NIfTI files.
        overwrite: replace existing outputs.
        adaptation: fit the network to each scan, or to those of a protocol together; None leaves it as it is.

    Returns:
        The command's exit code: 0 if all cases are done or kept, 1 if only some are, 2 if none is; 0 for a single one.

    Raises:
        ValueError, OSError: what is wrong before any work begins, or with a single case; one line.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, expected at least 1")
    if cases is None:
        find = find_dicom_cases if dicom else find_cases
        cases = find(source, output, overwrite, series, all_series, descriptions)
    else:
        for case in cases:
            check_output(case.output, overwrite or is_ours(case.output))
    chosen = dataclasses.asdict(options)
    if any(is_dicom_file(case.source) and case.output.name.endswith(NIFTI_SUFFIXES) for case in cases):
        chosen["pictures"] = False  # it is a volume of one slice then
    _check_sidecars(cases, overwrite)
    # a folder's outputs lie in the output; a single one is the output
    many = len(cases) > 1 or not Path(source).is_file()
    folder = Path(output) if many and all(case.output != Path(output) for case in cases) else None
    if picture:
        check_pictures(cases, overwrite)
        if folder is not None:
            check_index(folder / INDEX_NAME, overwrite)
    ranks = Ranks.from_environment()
    if folder is None and (jobs > 1 or ranks.size > 1):
        raise ValueError(f"{source}: processes share the cases of a folder, run a single one without --jobs")
    if jobs > 1 and ranks.size > 1:
        raise ValueError("torchrun has started several processes already, leave --jobs out")
    if folder is not None and options.max_memory is not None:  # of all processes of this machine together
        shares = max(jobs, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        chosen["max_memory"] = f"{parse_size(options.max_memory) / 2**20 / shares:f}MiB"
    if adaptation is not None and options.max_memory is not None:
        raise ValueError(
            "--max-memory does not bound a training: fit weights by `medsr adapt`, and give them as --weights"
        )
    by_protocol = adaptation is not None and adaptation.to == "protocol"
    if by_protocol and options.bundle == AUTO_BUNDLE:
        raise ValueError("--adapt protocol fits one bundle to all scans: name it, such as --bundle rdst_e_thick")
    if by_protocol and (folder is None or ranks.size > 1):
        instead = "say --adapt for one scan" if folder is None else "fit by `medsr adapt` first, and give --weights"
        raise ValueError(f"--adapt protocol is for the scans of a folder, in processes of one machine: {instead}")
    job = Job(cases, Path(source), folder, chosen, picture, dicom, overwrite, adaptation)
    if folder is None:
        upscaler, choice = _fitting(job.upscaler(), cases[0], told=set())
        upscaler.write(cases[0], choice=choice, picture=picture, say=say)
        return 0
    return _in_processes(job, jobs) if jobs > 1 else _in_this_process(job, ranks)


def _check_sidecars(cases: list[Case], overwrite: bool) -> None:
    """Refuse sidecars that would replace other files, or that two outputs would share, as those of a.png and a.tif."""
    written: dict[Path, Path] = {}
    for case in cases:
        check_sidecar(case.output, overwrite)
        sidecar = sidecar_path(case.output)
        if sidecar in written:
            raise ValueError(
                f"{sidecar}: would be the sidecar of {written[sidecar].name} and of {case.output.name}, rename one of "
                "their inputs"
            )
        written[sidecar] = case.output


def _in_this_process(job: Job, ranks: Ranks) -> int:
    """Work on a cohort's cases until none is left; the first of several processes sums up."""
    start = time.perf_counter()
    upscaler = job.upscaler(local_rank=ranks.local_rank)
    if ranks.rank == 0:
        _warn(upscaler)
    table = StatusTable(job.folder)
    with contextlib.ExitStack() as stack:
        if ranks.rank == 0:
            stack.enter_context(table.alone())
        ranks.begin(lambda: _begin(job, table))
        job = _with_protocols(job, upscaler)
        progress = stack.enter_context(_progress_bar(job, ranks.rank == 0))
        _work_off(job, ranks, upscaler, table, progress)
        ranks.leave()
    return 0 if ranks.rank else _sum_up(job, upscaler, table, start)


def _in_processes(job: Job, jobs: int) -> int:
    """Work on a cohort's cases in processes of this machine; one that dies leaves the others at work."""
    start = time.perf_counter()
    upscaler = job.upscaler(device="cpu")  # a wrong option is told once, before any work
    _warn(upscaler)
    table = StatusTable(job.folder)
    with meeting_place(min(jobs, len(job.cases))) as (ranks, path):
        with table.alone(), _progress_bar(job) as progress:
            _begin(job, table)
            job = _with_protocols(job, upscaler)
            died = run_processes(_process, (job, is_verbose()), ranks, path, progress)
        if ranks.store.check(["refused"]):
            raise MedsrError(ranks.store.get("refused").decode())
        lost = [row for row in _rows(job, table) if row["status"] == PENDING and ranks.claimed(row["output"])]
    for row in lost:
        row |= {"status": FAILED, "reason": "the process at work on it ended early, for lack of memory? Run it again"}
    table.update(lost)
    for rank, code in died.items():
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        complain(f"process {rank} of {ranks.size} ended early ({how}): the same command does what is left")
    return _sum_up(job, upscaler, table, start)


def _process(rank: int, processes: int, path: str, job: Job, verbose: bool) -> None:
    """One of the processes of `_in_processes`."""
    quiet_libraries(verbose)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # tidied up as after Ctrl-C
    ranks = join_processes(rank, processes, path)
    try:
        _work_off(job, ranks, job.upscaler(local_rank=ranks.local_rank), StatusTable(job.folder))
    except Exception as error:
        if verbose:
            print_traceback()
        ranks.store.set("refused", line_of(error))
        sys.exit(1)


def _begin(job: Job, table: StatusTable) -> None:
    """Enter all cases in the table, so that what was never reached can be seen there."""
    table.update(job.row(case) | {"status": PENDING, "reason": ""} for case in job.cases)


def _with_protocols(job: Job, upscaler: Upscaler) -> Job:
    """The job with weights for each protocol, if that is wanted."""
    if job.adaptation is None or job.adaptation.to != "protocol":
        return job
    fitted = fit_protocols(upscaler.runner, job.cases, job.folder, upscaler, job.adaptation, say)
    return dataclasses.replace(job, fitted=fitted)


def _work_off(job: Job, ranks: Ranks, upscaler: Upscaler, table: StatusTable, progress=lambda count: None) -> None:
    """Do the cases that no other process has claimed; a bad one does not stop the others."""
    told = {upscaler}
    for index in ranks.order([_size(case) for case in job.cases]):
        case = job.cases[index]
        row = job.row(case)
        if not ranks.claim(row["output"]):
            continue
        try:
            with measured(row, upscaler.place), naming(case.source):
                remove_partial(case.output)
                one, choice = _fitting(upscaler, case, told)
                inputs = [source_record(case.source, case.files)]
                reason = why_redo(case.output, inputs, one.identity)
                if reason is not None or job.overwrite:
                    one.use(job.fitted.get(case.output))
                    one.write(case, inputs, choice=choice, picture=job.picture, say=say)
                    row |= {"status": DONE, "reason": "redone: --overwrite" if reason is None else reason}
            if "status" not in row:
                row = job.row(case) | {"status": KEPT, "reason": ""}  # with the figures of when it was made
                say(f"{case.output}: kept, complete and made by the same settings")
        except MedsrError as error:
            if is_verbose():
                print_traceback()
            row |= {"status": FAILED, "reason": without_folders(str(error))}
            complain(str(error))
        table.update([row])
        progress(ranks.count())


def _size(case: Case) -> int:
    """Bytes of a case's files; 0 where they cannot be seen, which is told when its turn comes."""
    try:
        return sum(Path(file).stat().st_size for file in case.files)
    except OSError:
        return 0


def _rows(job: Job, table: StatusTable) -> list[dict]:
    """The table's rows of this run's cases."""
    rows = table.read()
    return [rows[job.row(case)["output"]] for case in job.cases]


def _sum_up(job: Job, upscaler: Upscaler, table: StatusTable, start: float) -> int:
    """Write the summary and the page, and return the exit code."""
    rows = _rows(job, table)
    seconds = round(time.perf_counter() - start, 1)
    names, facts = _made_by(upscaler, job, rows)
    table.close(rows, Seconds=seconds, **facts)
    say(f"{job.folder}: {summary_line(rows)}, in {seconds:.0f} s; {table.path}")
    if job.picture:
        note = f"{summary_line(rows)}, by bundle {' or '.join(names)}.".capitalize()
        say(str(write_page(job.folder, rows, note)))
    if failed := sum(row["status"] not in (DONE, KEPT) for row in rows):
        complain(f"{failed} of {len(rows)} volumes failed")
    return exit_code(rows)


@contextlib.contextmanager
def _progress_bar(job: Job, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Bar on a terminal's stderr, with the time left; called with the number of finished cases."""
    # disable=None: where stderr is no terminal
    with tqdm(total=len(job.cases), unit="case", file=sys.stderr, disable=None if shown else True) as bar:
        yield lambda count: bar.update(count - bar.n)


def _fitting(upscaler: Upscaler, case: Case, told: set[Upscaler]) -> tuple[Upscaler, Choice | None]:
    """Give the upscaler of a case, and say why; what its weights were trained on is told once."""
    one, choice = upscaler.fitting(case)
    if choice is not None:
        say(f"{case.source}: {choice}")
    if one not in told:
        _warn(one)
        told.add(one)
    return one, choice


def _made_by(upscaler: Upscaler, job: Job, rows: list[dict]) -> tuple[list[str], dict[str, Any]]:
    """Names of the bundles that outputs were made by, and what the summary says of the run."""
    facts = ("IntendedUse", "GeneratedBy", "Bundle", "Options", "Versions")
    if upscaler.bundle != AUTO_BUNDLE:
        return [upscaler.record["Bundle"]["Name"]], {name: upscaler.record[name] for name in facts}
    found = (read_sidecar(job.folder / row["output"]) for row in rows if row["status"] in (DONE, KEPT))
    records = [one for one in found if one is not None]
    counts = Counter(one["Bundle"]["Name"] for one in records)
    same = {name: records[0][name] for name in facts if records and name != "Bundle"}
    return sorted(counts) or ["none"], same | {"Bundle": {"Name": AUTO_BUNDLE, "Chosen": counts}}


def _warn(upscaler: Upscaler) -> None:
    """Tell what every sidecar of this run will say."""
    if upscaler.bundle == AUTO_BUNDLE:
        return  # each bundle is told of when it is chosen
    say(upscaler.trained_on.sentence)
    for warning in upscaler.warnings:
        logger.warning(warning)


def say(text: str) -> None:
    """Print a line, above a progress bar if there is one."""
    with tqdm.external_write_mode(file=sys.stdout):
        print(printable(text), flush=True)


def complain(reason: str) -> None:
    """Print an error as the command line does."""
    with tqdm.external_write_mode(file=sys.stderr):
        print(f"medsr: error: {printable(reason)}", file=sys.stderr, flush=True)
