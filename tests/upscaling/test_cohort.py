"""Folders through `medsr upscale`: resumed, shared out over processes, what became of each case."""

import contextlib
import csv
import gzip
import json
import multiprocessing
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch.distributed as dist
from bundle_copies import save_weights, tiny_network
from made_volumes import save_study
from PIL import Image
from scipy.ndimage import gaussian_filter

from medsr_monai import cli
from medsr_monai.upscaling import cohort
from medsr_monai.upscaling.bundles import BundleRunner
from medsr_monai.upscaling.quality import QualityCheck
from medsr_monai.upscaling.sharing import Ranks, share_out
from medsr_monai.upscaling.status import StatusTable, exit_code, summary_line

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[2]
NAMES = ("a", "b", "sub-1/c")


def make_volume(path, shape=(20, 18, 5), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = gaussian_filter(np.random.default_rng(seed).random(shape, dtype=np.float32), 2)
    nib.save(nib.Nifti1Image(1000 * image, np.diag([1, 1, 4, 1])), path)
    return path


def make_cohort(folder, names=NAMES, **options):
    for seed, name in enumerate(names):
        make_volume(folder / f"{name}.nii.gz", seed=seed, **options)


def status(folder="out"):
    """Rows of status.csv by case."""
    with (Path(folder) / "status.csv").open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def statuses(folder="out"):
    return {case: row["status"] for case, row in status(folder).items()}


def snapshot(folder="out"):
    return {p.as_posix(): (p.stat().st_mtime_ns, p.read_bytes()) for p in Path(folder).rglob("*_sr.*")}


def hidden(folder="out"):
    return [p for p in Path(folder).rglob(".*")]


@pytest.fixture(scope="module")
def made(bundle, tmp_path_factory):
    """A folder with a cohort in in/ and its results in out/."""
    folder = tmp_path_factory.mktemp("made")
    make_cohort(folder / "in")
    with pytest.raises(SystemExit) as end:
        cli.main(["upscale", str(folder / "in"), str(folder / "out"), "--bundle", str(bundle)])
    assert not end.value.code
    return folder


# what became of each case


def test_status_and_summary_say_what_became_of_each_case(medsr, bundle, tmp_path):
    make_cohort(tmp_path / "in")
    make_volume(tmp_path / "in" / "flat.nii.gz", shape=(8, 8))
    code, out, err = medsr("upscale", tmp_path / "in", "out", "--bundle", bundle)
    assert code == 1 and err.splitlines()[-1] == "medsr: error: 1 of 4 volumes failed"
    assert re.search(r"^out: 4 cases: 3 done, 1 failed, in \d+ s; out/status.csv$", out, re.M)
    table = status()
    assert list(table) == ["a", "b", "flat", "sub-1/c"]
    row = table["sub-1/c"]
    assert (row["input"], row["output"], row["reason"]) == ("sub-1/c.nii.gz", "sub-1/c_sr.nii.gz", "")
    assert float(row["seconds"]) > 0 and 50 < float(row["peak_mib"]) < 50_000
    assert table["flat"]["status"] == "failed" and "a 3D volume is needed" in table["flat"]["reason"]
    summary = json.loads(Path("out/status.json").read_text())
    assert [summary[n] for n in ("Cases", "Done", "Kept", "Failed", "Pending")] == [4, 3, 0, 1, 0]
    assert summary["IntendedUse"] == "research use only, not for clinical use"
    for name in ("status.csv", "status.json"):
        assert str(tmp_path) not in Path("out", name).read_text()
    assert not hidden()


def test_exit_codes_for_all_some_and_none(medsr, bundle, tmp_path):
    make_volume(tmp_path / "bad" / "flat.nii.gz", shape=(8, 8))
    make_volume(tmp_path / "good" / "a.nii.gz")
    assert medsr("upscale", "bad", "out", "--bundle", bundle, "--nopicture")[0] == 2
    assert medsr("upscale", "good", "out", "--bundle", bundle, "--nopicture")[0] == 0
    shutil.copy("bad/flat.nii.gz", "good")
    assert medsr("upscale", "good", "out", "--bundle", bundle, "--nopicture")[0] == 1
    assert medsr("upscale", "bad/flat.nii.gz", "single.nii.gz", "--bundle", bundle, "--nopicture")[0] == 1
    rows = [{"status": name} for name in ("done", "kept", "failed", "pending")]
    assert [exit_code(rows[:2]), exit_code(rows), exit_code(rows[2:])] == [0, 1, 2]
    assert summary_line(rows) == "4 cases: 1 done, 1 kept, 1 failed, 1 pending"


def test_a_bug_of_ours_is_seen_and_stops_nothing(medsr, bundle, tmp_path, monkeypatch):
    make_cohort(tmp_path / "in")
    read = BundleRunner.read

    def fail(self, path):
        if Path(path).name == "b.nii.gz":
            raise TypeError(f"no such thing in {tmp_path}/in/b.nii.gz")
        return read(self, path)

    monkeypatch.setattr(BundleRunner, "read", fail)
    code, _, err = medsr("upscale", "in", "out", "--bundle", bundle, "--nopicture")
    line = r"medsr: error: .*TypeError: no such thing in .*b.nii.gz: please report it with what --verbose shows"
    assert code == 1 and "Traceback" not in err and re.search(line, err), err
    assert statuses() == {"a": "done", "b": "failed", "sub-1/c": "done"}
    assert "TypeError: no such thing in b.nii.gz: please report it" in status()["b"]["reason"]
    code, _, err = medsr("upscale", "in", "out", "--bundle", bundle, "--nopicture", "--verbose")
    assert code == 1 and "Traceback" in err and re.search(line, err), err


def test_the_network_is_loaded_once(medsr, bundle, tmp_path, monkeypatch):
    from medsr_monai.weights import load

    loads, fill = [], load.fill_network
    monkeypatch.setattr(load, "fill_network", lambda *args: loads.append(args) or fill(*args))
    make_cohort(tmp_path / "in")
    assert medsr("upscale", "in", "out", "--bundle", bundle, "--nopicture")[0] == 0
    assert len(loads) == 1


def test_a_bar_on_a_terminal_shows_the_time_left(medsr, bundle, tmp_path, monkeypatch):
    make_cohort(tmp_path / "in")
    assert "case" not in medsr("upscale", "in", "out", "--bundle", bundle, "--nopicture")[2]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _, out, err = medsr("upscale", "in", "out", "--bundle", bundle, "--nopicture", "--overwrite")
    assert re.search(r"33%.*\| 1/3 \[\d\d:\d\d<\d\d:\d\d", err) and "3/3" in err
    assert out.count("plane axial") == 3


# resume


def test_what_is_complete_is_kept_as_it_is(medsr, bundle, made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    before, table = snapshot(), status()
    # neither the device, the batch nor how the folders are named makes another output
    options = ("--bundle", bundle, "--slice-batch", 1, "--device", "cpu")
    code, out, err = medsr("upscale", tmp_path / "in", tmp_path / "out", *options)
    assert (code, err) == (0, "") and "3 cases: 3 kept" in out
    assert snapshot() == before and len(before) == 9
    assert status() == {case: row | {"status": "kept"} for case, row in table.items()}
    assert medsr("upscale", "in", "out", "--bundle", bundle, "--overwrite")[0] == 0
    assert {row["reason"] for row in status().values()} == {"redone: --overwrite"}


def _edit_sidecar(**changes):
    path = Path("out/a_sr.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CHANGES = {
    "redone: the input has changed": lambda: make_volume(Path("in/a.nii.gz"), seed=7),
    "redone: a_sr.nii.gz was missing": lambda: Path("out/a_sr.nii.gz").unlink(),
    "redone: a_sr.nii.gz was not as written": lambda: Path("out/a_sr.nii.gz").write_bytes(b"half"),
    "redone: other version than before": lambda: _edit_sidecar(GeneratedBy=[{"Name": "medsr_monai", "Version": "0"}]),
    "": lambda: [Path(f"out/a_sr.{suffix}").unlink() for suffix in ("json", "nii.gz", "quality.png")],
}


@pytest.mark.parametrize("reason", CHANGES)
def test_only_what_is_not_complete_is_done_again(medsr, bundle, made, tmp_path, reason):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    before = snapshot()
    CHANGES[reason]()
    assert medsr("upscale", "in", "out", "--bundle", bundle)[0] == 0
    assert statuses() == {"a": "done", "b": "kept", "sub-1/c": "kept"} and status()["a"]["reason"] == reason
    after = snapshot()
    assert {name for name in after if after[name] == before.get(name)} == {n for n in before if "/a_sr" not in n}
    if "input" not in reason:
        assert after["out/a_sr.nii.gz"][1] == before["out/a_sr.nii.gz"][1]


def test_other_settings_make_all_anew(medsr, bundle, tmp_path):
    make_cohort(tmp_path / "in", names=("a", "b"))
    options = ("upscale", "in", "out", "--bundle", bundle, "--nopicture")
    assert medsr(*options)[0] == 0
    save_weights(tiny_network(seed=1), tmp_path / "other.pt")
    for more in (("--plane", "coronal"), ("--weights", "other.pt")):
        assert medsr(*options, *more)[0] == 0
        assert statuses() == {"a": "done", "b": "done"}
        assert medsr(*options, *more)[0] == 0
        assert statuses() == {"a": "kept", "b": "kept"}
    assert status()["a"]["seconds"]


@pytest.mark.parametrize("file", ["a_sr.nii.gz", "a_sr.json", "status.csv"])
def test_the_files_of_others_stay(medsr, bundle, tmp_path, file):
    make_cohort(tmp_path / "in")
    Path("out").mkdir()
    Path("out", file).write_text("{}")
    code, _, err = medsr("upscale", "in", "out", "--bundle", bundle, "--nopicture")
    assert code == 1 and err.count("\n") == 1 and f"out/{file}: " in err
    assert Path("out", file).read_text() == "{}" and os.listdir("out") == [file]
    code, _, err = medsr("upscale", "in", "out", "--bundle", bundle, "--nopicture", "--overwrite")
    assert (code == 0) == (file == "a_sr.nii.gz"), err
    assert (Path("out", file).read_text(errors="replace") == "{}") == (code != 0)


def test_the_table_keeps_the_rows_of_other_folders(medsr, bundle, tmp_path):
    make_volume(tmp_path / "one" / "a.nii.gz")
    make_volume(tmp_path / "two" / "b.nii.gz")
    for name in ("one", "two"):
        code, out, _ = medsr("upscale", name, "out", "--bundle", bundle, "--nopicture")
        assert code == 0 and "1 case: 1 done" in out
    assert statuses() == {"a": "done", "b": "done"}
    assert json.loads(Path("out/status.json").read_text())["Cases"] == 1


def test_an_interrupted_run_shows_what_was_not_reached_and_goes_on(medsr, bundle, tmp_path, monkeypatch):
    make_cohort(tmp_path / "in")
    run = BundleRunner.run
    calls = []

    def interrupt(self, item):
        calls.append(item)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(self, item)

    monkeypatch.setattr(BundleRunner, "run", interrupt)
    code, _, err = medsr("upscale", "in", "out", "--bundle", bundle)
    assert code == 130 and err.endswith("medsr: interrupted\n")
    assert statuses() == {"a": "done", "b": "pending", "sub-1/c": "pending"}
    # what a kill leaves beside it
    Path("out/.partial-4194999-b_sr.nii.gz").write_bytes(b"half")
    Path("out/.partial-4194999-b_sr.json").write_bytes(b"half")
    Path("out/.partial-4194999-b_sr.quality.png").write_bytes(b"half")
    assert medsr("upscale", "in", "out", "--bundle", bundle)[0] == 0
    assert statuses() == {"a": "kept", "b": "done", "sub-1/c": "done"} and not hidden()


def test_a_second_run_to_one_folder_is_refused_and_deletes_nothing(medsr, bundle, tmp_path):
    make_cohort(tmp_path / "in")
    table = StatusTable("out")
    mine = Path(f"out/.partial-{os.getppid()}-b_sr.nii.gz")
    mine.write_bytes(b"half")
    with table.alone():
        code, _, err = medsr("upscale", "in", "out", "--bundle", bundle)
    assert code == 1 and "out: another run of medsr is writing to this folder" in err and err.count("\n") == 1
    assert mine.read_bytes() == b"half" and list(Path("out").glob("*.nii.gz")) == [mine]
    assert medsr("upscale", "in", "out", "--bundle", bundle)[0] == 0
    assert mine.exists()  # its process lives


# several processes


def test_shares_are_of_equal_size_and_always_the_same():
    sizes = [5, 1, 4, 1, 1, 3, 3]
    shares = share_out(sizes, 3)
    assert sorted(index for share in shares for index in share) == list(range(7))
    assert [sum(sizes[i] for i in share) for share in shares] == [6, 6, 6] and shares == share_out(sizes, 3)
    assert share_out([3, 2], 4) == [[0], [1], [], []]
    assert share_out([1, 9, 4], 1) == [[0, 1, 2]], "one process takes them in their order"


def test_no_case_is_claimed_twice_and_none_is_left():
    store, sizes = dist.HashStore(), [1] * 40
    claimed = [[], [], []]

    def work(rank):
        ranks = Ranks(store, rank, 3)
        # the last one is dead: the others do its share
        claimed[rank] += [i for i in ranks.order(sizes) if ranks.claim(str(i))] if rank < 2 else []

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(index for share in claimed for index in share) == list(range(40))


def test_processes_write_one_table(tmp_path):
    tables = [StatusTable(tmp_path) for _ in range(4)]

    def work(number):
        for case in range(10):
            tables[number].update([{"case": f"{number}-{case}", "output": f"{number}-{case}", "status": "done"}])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tables[0].read()) == 40


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("in/a.nii.gz", "out.nii.gz", "--jobs", 2), "processes share the cases of a folder"),
        (("in", "out", "--jobs", 0), "jobs is 0"),
        (("in", "out", "--jobs", 2, "--refine", "axial"), "has no option --refine"),
    ],
)
def test_wrong_jobs_are_one_line(medsr, bundle, tmp_path, arguments, reason):
    make_cohort(tmp_path / "in")
    code, _, err = medsr("upscale", *arguments, "--bundle", bundle)
    assert code == 1 and err.count("\n") == 1 and reason in err
    assert os.listdir() == ["in"]


def environment():
    return {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"} | {"PYTHONPATH": str(ROOT)}


def start(*command):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", *map(str, command)], env=environment(), text=True, **pipes)


def workers(pid):
    """Processes of this package below a process, whoever started them."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        line = Path(f"/proc/{child}/cmdline").read_text()
        found += [int(child)] if "spawn_main" in line or "upscale" in line else []
    return found


@pytest.mark.parametrize("target", ["new", "new/", "deep/new.folder/"])
def test_one_case_into_a_folder_that_is_not_there_yet(medsr, bundle, tmp_path, target):
    """A file, a picture, and a DICOM series as a folder or zip."""
    make_volume(tmp_path / "a.nii.gz")
    Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(30, 40)).save(tmp_path / "b.png")
    shutil.make_archive(str(tmp_path / "zipped"), "zip", save_study(tmp_path / "study"))
    for source, out in {"a.nii.gz": "a_sr.nii.gz", "b.png": "b_sr.png", "study": "study_sr", "zipped.zip": ""}.items():
        code, _, err = medsr("upscale", source, target, "--bundle", bundle, "--plane", "axial", "--nopicture")
        assert code == 0, err
        made = [path.name for path in sorted(Path(target).rglob("*_sr*")) if path.suffix != ".json"]
        assert len(made) == 1 and made[0].startswith(out), made
        shutil.rmtree(target)
    code, _, err = medsr("upscale", "a.nii.gz", "out.nrrd", "--bundle", bundle)
    assert code == 1 and "give a name that ends in .nii.gz" in err


def test_a_picture_that_cannot_be_drawn_costs_nothing_else(medsr, bundle, tmp_path, monkeypatch, caplog):
    """It is told in one line, in the sidecar too, and the picture of an earlier output goes."""
    make_cohort(tmp_path / "in", ["a", "b"])
    assert medsr("upscale", "in", "out", "--bundle", bundle)[0] == 0
    draw = QualityCheck.draw

    def failing(self, pred, name, *others):
        if name.startswith(("a", "single")):
            raise ValueError("Too many bins for data range.\nCannot create 8 finite-sized bins.")
        return draw(self, pred, name, *others)

    monkeypatch.setattr(QualityCheck, "draw", failing)
    for arguments in (("in", "out", "--overwrite"), ("in/a.nii.gz", "single.nii.gz")):
        caplog.clear()
        assert medsr("upscale", *arguments, "--bundle", bundle)[0] == 0
        lines = [line for line in caplog.messages if "no quality picture, it could not be drawn" in line]
        assert len(lines) == 1 and "Too many bins for data range. Cannot create" in lines[0], caplog.text
    assert statuses(tmp_path / "out") == {"a": "done", "b": "done"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"a_sr.nii.gz", "a_sr.json", "b_sr.quality.png"} <= names and "a_sr.quality.png" not in names
    for sidecar in (tmp_path / "out" / "a_sr.json", tmp_path / "single.json"):
        content = json.loads(sidecar.read_text())
        assert len(content["Outputs"]) == 1 and "could not be drawn" in " ".join(content["Warnings"])
    code, out, _ = medsr("upscale", "in", "out", "--bundle", bundle)
    assert code == 0 and "2 kept" in out


def test_free_text_of_headers_stays_out_of_names_and_records(medsr, bundle, tmp_path):
    """Descriptions, comments and names; also where a series fails, and with a switch descriptions are in the names."""
    (tmp_path / "study").mkdir()
    for number in (1, 2, 3):
        for path in save_study(tmp_path / "study" / str(number), 4 if number < 3 else 5).iterdir():
            header = pydicom.dcmread(path)
            header.SeriesNumber, header.StudyInstanceUID = number, "1.2.3"
            header.SeriesDescription, header.ProtocolName = f"Zyxwvut Muster 1.4.1960 {number}", "Zyxwvut protocol"
            header.PatientName, header.ImageComments = "Zyxwvut^A", "Zyxwvut comment"
            if number == 3 and header.InstanceNumber == 4:
                path.unlink()  # a gap, so that this one fails
                continue
            header.save_as(path)
    code, out, err = medsr("upscale", "study", "out", "--bundle", bundle, "--plane", "axial")
    assert code == 1 and "2 done" in out, err
    made = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert {"001_MR_sr.nii.gz", "002_MR_sr.json", "index.html", "status.csv"} <= {path.name for path in made}
    for path in made:
        assert "zyxwvut" not in path.name.lower()
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert b"zyxwvut" not in content.lower(), path
    assert "study, series 3: DICOM slices" in status(tmp_path / "out")["003_MR"]["reason"]
    assert medsr("upscale", "study", "named", "--bundle", bundle, "--series", "1,2", "--series-descriptions")[0] == 0
    # but for what holds the patient's name
    assert {path.name for path in (tmp_path / "named").glob("*.nii.gz")} == {"001_MR_sr.nii.gz", "002_MR_sr.nii.gz"}
    for path in (tmp_path / "study").rglob("*.dcm"):
        header = pydicom.dcmread(path)
        header.PatientName = "Other"
        header.save_as(path)
    assert medsr("upscale", "study", "told", "--bundle", bundle, "--series", "1", "--series-descriptions")[0] == 0
    assert (tmp_path / "told" / "001_Zyxwvut-Muster-1.4.1960-1_sr.nii.gz").is_file()


def sockets(pid):
    """Sockets of the internet that a process has, connected or listening."""
    here = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            here.add(os.readlink(fd))
    rows = [
        line.split()
        for kind in ("tcp", "tcp6", "udp", "udp6")
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()
    ]
    return [row[1] for row in rows[1:] if len(row) > 9 and f"socket:[{row[9]}]" in here]


@pytest.mark.usefixtures("warm_spawn")
@pytest.mark.skipif(not Path("/proc/self/net").exists(), reason="finds sockets in /proc")
def test_jobs_meet_in_private_and_a_killed_one_is_told(medsr, bundle, tmp_path, monkeypatch):
    """No socket, a folder that only this user may enter and that is gone in the end, and one worker of two killed."""
    make_cohort(tmp_path / "in", ["a", "b"])
    seen, killed, folders = [], [], []
    run = cohort.run_processes

    def watched(work, arguments, ranks, path, progress):
        def step(count):
            progress(count)
            children = multiprocessing.active_children()
            for process in children:
                with contextlib.suppress(OSError):
                    seen.extend(sockets(process.pid))
            seen.extend(sockets(os.getpid()))
            folders.append(stat.S_IMODE(Path(path).parent.stat().st_mode))
            if not killed:
                killed.append(children[0].pid)
                os.kill(children[0].pid, signal.SIGKILL)

        assert before == sockets(os.getpid())
        died = run(work, arguments, ranks, path, step)
        folders.append(path)
        return died

    before = sockets(os.getpid())
    monkeypatch.setattr(cohort, "run_processes", watched)
    code, _, err = medsr("upscale", "in", "out", "--bundle", bundle, "--device", "cpu", "--jobs", 2, "--nopicture")
    assert set(folders[:-1]) == {0o700} and not Path(folders[-1]).parent.exists()
    assert len(seen) == len(before) * (len(folders) - 1), "none of the workers has one, and this one no new one"
    assert re.search(r"process \d of 2 ended early \(signal 9\): the same command does what is left", err)
    table = statuses(tmp_path / "out")
    assert sorted(table) == ["a", "b"] and "done" in table.values() and set(table.values()) <= {"done", "failed"}
    assert code == ("failed" in table.values())


# what stands before and behind the command, and how many cases have begun before a process is killed
LAUNCHERS = {
    "jobs": (("medsr_monai",), ("--jobs", 2), 2),
    "torchrun": (("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "medsr_monai"), (), 3),
}


@pytest.mark.parametrize(
    ("launcher", "resumed"),
    [
        pytest.param(launcher, resumed, marks=pytest.mark.slow)
        for launcher in LAUNCHERS
        for resumed in ("alone", launcher)
    ],
)
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_two_processes_killed_and_resumed(medsr, bundle, tmp_path, launcher, resumed):
    before, after, begun = LAUNCHERS[launcher]
    names = [f"s{n}" for n in range(4)]
    make_cohort(tmp_path / "in", names, shape=(48, 48, 16))
    upscale = ("upscale", tmp_path / "in", tmp_path / "out", "--bundle", bundle, "--device", "cpu")
    running = start(*before, *upscale, *after)
    lines = []
    while sum("plane axial" in line for line in lines) < begun:  # both are at work
        lines.append(running.stdout.readline())
        assert lines[-1], running.stderr.read()
    killed = workers(running.pid)
    assert len(killed) == 2
    os.kill(killed[1], signal.SIGKILL)
    out, err = running.communicate(timeout=400)
    table = statuses(tmp_path / "out")
    complete = [name for name, state in table.items() if state == "done"]
    if launcher == "jobs":
        # the other one has done the rest
        assert running.returncode == 1 and len(complete) == 3, err
        assert "process 1 of 2 ended early (signal 9)" in err and "1 of 4 volumes failed" in err
        (failed,) = set(names) - set(complete)
        assert table[failed] == "failed" and "ended early" in status(tmp_path / "out")[failed]["reason"]
    else:
        assert running.returncode == 1 and len(complete) < 4, "torchrun ends all with the first that dies"
    made = snapshot(tmp_path / "out")
    assert all(nib.load(p).get_fdata().shape == (192, 192, 16) for p in made if p.endswith(".gz"))
    assert {Path(p).name.split("_")[0] for p in made if p.endswith(".gz")} >= set(complete)
    if resumed == "alone":
        code, out, err = medsr(*upscale)
    else:
        running = start(*before, *upscale, *after)
        out, err = running.communicate(timeout=400)
        code = running.returncode
    assert code == 0, err
    table = statuses(tmp_path / "out")
    assert sorted(table) == names and {name for name in names if table[name] == "kept"} >= set(complete)
    assert set(table.values()) == {"kept", "done"} and f"{len(complete)} kept" in out
    assert out.count("plane axial") == 4 - len(complete), "no case is done twice"
    again = snapshot(tmp_path / "out")
    assert len(again) == 12 and all(again[p] == made[p] for p in made if Path(p).name.split("_")[0] in complete)
    assert not hidden(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_torchrun_restarts_and_resumes_by_itself(bundle, tmp_path):
    make_cohort(tmp_path / "in", [f"s{n}" for n in range(4)], shape=(64, 64, 24))
    run = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1", "-m", "medsr_monai")
    running = start(*run, "upscale", tmp_path / "in", tmp_path / "out", "--bundle", bundle, "--device", "cpu")
    seen = 0
    while seen < 2:
        line = running.stdout.readline()
        assert line, running.stderr.read()
        seen += "_sr.nii.gz: 256x256" in line
    os.kill(workers(running.pid)[0], signal.SIGKILL)
    out, err = running.communicate(timeout=400)
    assert running.returncode == 0, err
    assert set(statuses(tmp_path / "out").values()) == {"kept", "done"} and re.search("[23] kept", out), out


@pytest.mark.slow
def test_kills_at_any_moment_leave_nothing_half(bundle, tmp_path):
    """One process and the parent of two in turn, killed at a random moment each time; the last one is left alone."""
    make_cohort(tmp_path / "in", [f"s{n}" for n in range(6)], shape=(64, 64, 12))
    rng, kills, code = np.random.default_rng(0), 0, None
    for attempt in range(attempts := 6):
        more = ("--jobs", 2) if attempt % 2 else ()
        running = start(
            "medsr_monai", "upscale", tmp_path / "in", tmp_path / "out", "--bundle", bundle, "--device", "cpu", *more
        )
        try:
            while "trained on" in running.stdout.readline():
                pass  # the next line: the first case has begun, or is kept
            last = attempt == attempts - 1
            code = running.wait(timeout=400 if last else float(rng.random() * 0.4))
        except subprocess.TimeoutExpired:
            kills += 1
            running.kill()
        running.stdout.close()
        running.stderr.close()
        running.wait()
        if (tmp_path / "out").is_dir():
            for path in (tmp_path / "out").glob("s*_sr.nii.gz"):  # not the hidden parts that a kill leaves
                assert nib.load(path).get_fdata().shape == (256, 256, 12)
                assert path.with_name(path.name.replace(".nii.gz", ".json")).is_file()
                json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
            assert len(status(tmp_path / "out")) in (0, 6)
        if code == 0:
            break
    assert code == 0 and kills > 0
    assert set(statuses(tmp_path / "out").values()) <= {"kept", "done"}
