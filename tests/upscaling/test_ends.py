"""Outputs that cannot be, full disks and sudden ends: what processes of `medsr` say, leave and never do."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from processes import AT_STEP, Result, contents, save, smooth, told

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("out.img", r"out\.img: .*give a name that ends in \.nii\.gz"),
        ("a.nii.gz", r"a\.nii\.gz: is the input, which is never overwritten, choose another"),
        ("there.nii.gz", r"there\.nii\.gz: exists, choose another name or add --overwrite"),
        ("there.nii.gz/out.nii.gz", r"out\.nii\.gz: nothing can be written to .*choose another output"),
        ("/proc/medsr/out.nii.gz", r"out\.nii\.gz: .*(nothing can be written|No such file)"),
        (f"{'x' * 300}.nii.gz", "name too long"),
        pytest.param(
            "locked/out.nii.gz",
            "nothing can be written to .*choose another output",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere"),
        ),
    ],
    ids=["suffix", "the input", "exists", "below a file", "no place for files", "long name", "not writable"],
)  # fmt: skip
def test_an_output_that_cannot_be_is_refused(medsr_process, bundle, tmp_path, out, reason):
    save(tmp_path / "a.nii.gz")
    Path("there.nii.gz").write_text("mine")
    Path("locked").mkdir(mode=0o500)
    before = contents(tmp_path)
    told(medsr_process("upscale", "a.nii.gz", out, "--bundle", bundle), reason)
    assert contents(tmp_path) == before


def test_a_file_that_may_not_grow_is_told_and_nothing_is_lost(medsr_process, bundle, tmp_path):
    """Also the file that was there before stays."""
    save(tmp_path / "a.nii.gz", smooth((20, 20, 5)))
    Path("out.nii.gz").write_text("mine")
    before = contents(tmp_path)
    result = medsr_process(
        "upscale", "a.nii.gz", "out.nii.gz", "--bundle", bundle, "--overwrite", limits={"FSIZE": 20000}
    )
    told(result, r"out\.nii\.gz: no room for it \(File too large\): free disk space or choose another output")
    assert contents(tmp_path) == before


def test_a_full_disk_is_told_and_nothing_is_left(medsr_process, bundle, tmp_path):
    save(tmp_path / "a.nii.gz", smooth((20, 20, 5)))
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small disk")
    try:
        result = medsr_process("upscale", "a.nii.gz", "disk/new/out.nii.gz", "--bundle", bundle)
        told(result, r"out\.nii\.gz: no room for it \(No space left on device\): free disk space or choose another")
        assert not [name for name, content in contents(disk).items() if content is not None]
    finally:
        subprocess.run(["umount", disk], check=True)


QUICK = """
import io
from PIL import Image
from medsr_monai.upscaling.quality import QualityCheck
png = io.BytesIO()
Image.new("L", (8, 8)).save(png, "png")
QualityCheck.png = lambda *arguments: png.getvalue()
"""
"""Drawing takes longer than all else together, and here only the file counts."""


def steps(end: signal.Signals, run: Callable[..., Result], every: int = 1) -> Iterator[int]:
    """Runs that end before the first of these steps, the second and so on, until one gets through all of them."""
    told = {
        signal.SIGINT: (130, "", "medsr: interrupted\n"),
        signal.SIGTERM: (143, "", "medsr: terminated\n"),
        signal.SIGKILL: (-signal.SIGKILL, "", ""),
    }[end]
    for number in itertools.count(1, every):
        result = run(before=QUICK + AT_STEP.format(number=number, signal=end))
        if result.code == 0:
            break
        assert result._replace(out="") == told, result
        yield number
    assert number > 6, "picture, sidecar and output: each is brought to disk and renamed"


@pytest.fixture(scope="module")
def slow_case(processes, bundle, tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A folder with a volume that takes a moment to compute, and its result."""
    folder = tmp_path_factory.mktemp("slow")
    save(folder / "a.nii.gz", smooth((64, 64, 24)))
    result = processes.run("upscale", "a.nii.gz", "expected.nii.gz", "--bundle", bundle, folder=folder)
    assert result.code == 0, result
    return folder, nib.load(folder / "expected.nii.gz").get_fdata()


@pytest.mark.parametrize(
    ("end", "code", "line"),
    [(signal.SIGINT, 130, "medsr: interrupted\n"), (signal.SIGTERM, 143, "medsr: terminated\n")],
)
def test_an_interrupted_run_leaves_nothing(medsr_process, bundle, tmp_path, slow_case, end, code, line):
    shutil.copy(slow_case[0] / "a.nii.gz", tmp_path)
    command = ("upscale", "a.nii.gz", "new/out.nii.gz", "--bundle", bundle)
    result = medsr_process(*command, kill=(end, 0.05))
    assert (result.code, result.err) == (code, line), result
    assert not [name for name in contents(tmp_path) if "out" in name]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_of_writing_leaves_nothing(medsr_process, bundle, tmp_path, end):
    save(tmp_path / "a.nii.gz")
    run = functools.partial(medsr_process, "upscale", "a.nii.gz", "new/out.nii.gz", "--bundle", bundle)
    for _ in steps(end, run):
        assert not [name for name in contents(tmp_path) if "out" in name]


MEANWHILE = """
from pathlib import Path
from medsr_monai.upscaling.bundles import BundleRunner
read = BundleRunner.read
def other(self, source):
    Path("out.nii.gz").write_text("another run's")
    return read(self, source)
BundleRunner.read = other
"""


def test_of_two_runs_to_one_output_the_second_to_finish_loses(medsr_process, bundle, tmp_path):
    """Unless it may overwrite."""
    save(tmp_path / "a.nii.gz")
    command = ("upscale", "a.nii.gz", "out.nii.gz", "--bundle", bundle)
    told(
        medsr_process(*command, before=MEANWHILE), r"out\.nii\.gz: was written by another program meanwhile and is kept"
    )
    assert contents(tmp_path).keys() == {"a.nii.gz", "out.nii.gz"} and Path("out.nii.gz").read_text() == "another run's"
    assert medsr_process(*command, "--overwrite", before=MEANWHILE).code == 0
    assert nib.load("out.nii.gz").shape


def test_two_runs_at_once_to_one_output(warm_python, bundle, tmp_path):
    """One is done, the other refused, and what lies there belongs together."""
    save(tmp_path / "a.nii.gz", smooth((20, 20, 5)))
    command = [warm_python, "-m", "medsr_monai", "upscale", "a.nii.gz", "out.nii.gz", "--bundle", str(bundle)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    errors = sorted(process.communicate(timeout=300)[1] for process in running)
    assert sorted(process.returncode for process in running) == [0, 1], errors
    assert "out.nii.gz: " in errors[1] and errors[1].count("\n") == 1
    record = json.loads((tmp_path / "out.json").read_text())["Outputs"][0]
    assert hashlib.sha256((tmp_path / "out.nii.gz").read_bytes()).hexdigest() == record["SHA256"]
    assert not [name for name in contents(tmp_path) if name.startswith(".")]


def test_after_kill_9_the_same_command_goes_through(medsr_process, bundle, tmp_path):
    save(tmp_path / "a.nii.gz")
    run = functools.partial(medsr_process, "upscale", "a.nii.gz", "new/out.nii.gz", "--bundle", bundle)
    for _ in steps(signal.SIGKILL, run):
        assert not Path("new/out.nii.gz").exists()
        assert run(before=QUICK).code == 0
        shutil.rmtree("new")


def test_kill_9_loses_no_old_output(medsr_process, bundle, tmp_path):
    """It is the old one to the end, and what is left over is hidden or the new one's sidecar and picture."""
    save(tmp_path / "a.nii.gz")
    save(tmp_path / "out.nii.gz")
    source, old = (Path(name).read_bytes() for name in ("a.nii.gz", "out.nii.gz"))
    run = functools.partial(medsr_process, "upscale", "a.nii.gz", "out.nii.gz", "--bundle", bundle, "--overwrite")
    for _ in steps(signal.SIGKILL, run):
        assert (Path("a.nii.gz").read_bytes(), Path("out.nii.gz").read_bytes()) == (source, old)
        assert all(n.startswith((".", "a.nii.gz", "out.")) for n in os.listdir()), os.listdir()
    assert Path("out.nii.gz").read_bytes() != old


def test_kill_9_at_a_random_moment_loses_nothing(medsr_process, bundle, tmp_path, slow_case):
    """The output is the old one or, in the last moment, the whole new one; what is left over is hidden."""
    folder, expected = slow_case
    shutil.copy(folder / "a.nii.gz", tmp_path)
    source = Path("a.nii.gz").read_bytes()
    save(tmp_path / "out.nii.gz")
    old, killed = Path("out.nii.gz").read_bytes(), 0
    command = ("upscale", "a.nii.gz", "out.nii.gz", "--bundle", bundle, "--overwrite")
    for delay in np.random.default_rng(0).uniform(0, 0.8, 5):
        for partial in tmp_path.glob(".partial*"):
            partial.unlink()
        result = medsr_process(*command, kill=(signal.SIGKILL, delay))
        assert result.code in (0, -signal.SIGKILL), result
        killed += result.code != 0
        assert Path("a.nii.gz").read_bytes() == source
        assert all(n.startswith((".", "a.nii.gz", "out.")) for n in os.listdir()), os.listdir()
        content = Path("out.nii.gz").read_bytes()
        if content != old:
            np.testing.assert_array_equal(nib.load("out.nii.gz").get_fdata(), expected)
            Path("out.nii.gz").write_bytes(old)
    assert killed >= 2
    assert medsr_process(*command).code == 0
    np.testing.assert_array_equal(nib.load("out.nii.gz").get_fdata(), expected)


def test_a_killed_folder_is_finished_by_the_next_run(medsr_process, bundle, tmp_path):
    """Whenever it was: the same command goes on, and what is complete is kept."""
    Path("in").mkdir()
    for name in "ab":
        save(tmp_path / "in" / f"{name}.nii.gz")
    run = functools.partial(medsr_process, "upscale", "in", "out", "--bundle", bundle)
    kept = set()
    for _ in steps(signal.SIGKILL, run, every=4):
        complete = list(Path("out").glob("[ab]_sr.nii.gz"))
        times = {path: path.stat().st_mtime_ns for path in complete}
        result = run(before=QUICK)
        assert result.code == 0, result
        assert {path: path.stat().st_mtime_ns for path in complete} == times
        images = [nib.load(f"out/{name}_sr.nii.gz").get_fdata() for name in "ab"]
        np.testing.assert_array_equal(*images)
        kept.add(len(complete))
        shutil.rmtree("out")
    assert kept == {0, 1, 2}
