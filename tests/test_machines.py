"""Other systems than this: what POSIX alone has is not needed for upscale; a Mac's GPU; paths of Windows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bundle_copies import tiny_bundle

from medsr_monai.data import split_volumes
from medsr_monai.metrics import peak_resident_mib
from medsr_monai.records import sidecar
from medsr_monai.upscaling import memory
from medsr_monai.upscaling.bundles import choose_device
from medsr_monai.upscaling.status import StatusTable, measured

ROOT = Path(__file__).parents[1]
ELSEWHERE = """
import multiprocessing, os, signal, sys
for name in ("resource", "fcntl", "pwd", "grp", "termios", "syslog", "readline"):
    sys.modules[name] = None
for name in ("fork", "forkpty", "getuid", "geteuid", "getgid", "sysconf", "sched_getaffinity", "getpgid", "killpg",
             "setsid", "mkfifo", "nice", "statvfs", "getloadavg"):
    delattr(os, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGALRM", "SIGPIPE", "alarm", "setitimer"):
    delattr(signal, name)
"""
"""What Python has not on Windows, taken away when any process starts."""
EACH = """
import json, sys
from medsr_monai.cli import main
for line in sys.argv[1:]:
    try:
        main(json.loads(line))
    except SystemExit as end:
        assert not end.code, line
"""
"""Several commands after one import."""


def volume(path, seed, edges=(1, 1, 4)):
    import nibabel as nib
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).random((16, 16, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([*edges, 1.0])), path)


def test_upscale_without_what_posix_alone_has(tmp_path):
    """A folder in two processes, which are spawned; then a volume, for which the bundle is chosen."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(ELSEWHERE)
    folder = tiny_bundle(tmp_path / "tiny")
    for number in range(3):
        volume(tmp_path / "in" / f"{number}.nii.gz", number)
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "1",
        "USERNAME": "me",
    }

    lines = (
        ["upscale", "in", "out", "--bundle", str(folder), "--jobs", "2"],
        ["upscale", "in/0.nii.gz", "chosen.nii.gz", "--max-memory", "8GiB"],
    )
    command = [sys.executable, "-c", EACH, *map(json.dumps, lines)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {p.name for p in (tmp_path / "out").glob("*.nii.gz")} == {f"{number}_sr.nii.gz" for number in range(3)}
    assert "bundle rdst_e_thick, since" in done.stdout
    probe = [sys.executable, "-c", "import os; os.fork"]
    assert subprocess.run(probe, env=environment, capture_output=True).returncode == 1  # it was taken away


def test_where_the_system_does_not_tell_the_memory(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    row = {"output": "a"}
    with measured(row, torch.device("cpu")):
        assert peak_resident_mib() is None
    monkeypatch.undo()
    assert row["peak_mib"] == "" and row["seconds"] >= 0
    table = StatusTable(tmp_path)
    table.update([row])
    assert table.read()["a"]["peak_mib"] == ""


def test_windows_has_no_c_library_without_a_name_and_no_harmless_signal(monkeypatch, tmp_path):
    def refuse(name):
        raise TypeError("bad argument type for built-in operation")

    monkeypatch.setattr(memory.ctypes, "CDLL", refuse)
    memory._keep_no_freed_buffers()
    monkeypatch.setattr(sidecar.os, "name", "nt")
    monkeypatch.setattr(sidecar.os, "kill", lambda *args: pytest.fail("would end it"))
    assert sidecar._is_at_work(type("Named", (), {"name": ".partial-99999-a.nii.gz"}))


@pytest.mark.parametrize("name", ["sub\\case{}.nii.gz", "sub/case{}.nii.gz"])
def test_a_datalist_of_windows(tmp_path, name):
    for number in range(2):
        volume(tmp_path / "data" / "sub" / f"case{number}.nii.gz", number)
    lists = {part: [{"image": name.format(n)}] for n, part in enumerate(("training", "validation"))}
    (tmp_path / "list.json").write_text(json.dumps(lists))
    split = split_volumes(tmp_path / "data", tmp_path / "list.json")
    assert all(Path(items[0]["image"]).is_file() for items in split.values())


def test_a_drive_letter_stays_as_it_is(tmp_path):
    lists = {part: [{"image": "D:\\data\\a.nii.gz"}] for part in ("training", "validation")}
    (tmp_path / "list.json").write_text(json.dumps(lists))
    assert split_volumes(tmp_path, tmp_path / "list.json")["training"][0]["image"].endswith("D:\\data\\a.nii.gz")


def test_a_mac_s_gpu_where_torch_has_it(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device=None: empty(*size))
    assert choose_device("mps") == "mps"
    monkeypatch.undo()
    if not torch.backends.mps.is_available():
        with pytest.raises(ValueError, match="'mps' is not available here, choose cpu"):
            choose_device("mps")


def test_an_operator_that_falls_back_is_named():
    """By torch's own warning, the only one of a library that is let through."""
    code = (
        "import warnings; from medsr_monai.command_line import quiet_libraries; quiet_libraries();"
        "warnings.warn(\"The operator 'aten::x' is not currently supported on the MPS backend and will fall back to run"
        " on the CPU.\"); warnings.warn('another')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "'aten::x'" in done.stderr and "another" not in done.stderr
