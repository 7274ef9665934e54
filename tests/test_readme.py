"""README's commands, run as they are written, in order."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).parents[1]
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    for line in block.strip().splitlines()
]
INSTALL = 'pip install -e ".[test]" && '
TESTS = "pytest -q -n 2 --dist loadfile"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds what README's commands find in a checkout, and four small volumes."""
    here = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "bundles", here / "bundles")
    volumes = here / "path" / "to" / "volumes"
    volumes.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        image = gaussian_filter(rng.random((96, 96, 4)), (2, 2, 0)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.diag([1, 1, 5, 1])), volumes / f"case{number}.nii.gz")
    return here


def test_both_main_commands_install_first():
    assert [c for c in COMMANDS if c.startswith(INSTALL)] == [INSTALL + "medsr demo", INSTALL + TESTS]
    assert f'pip install -q -e ".[test]"\n{TESTS}\n' in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, folder):
    command = command.removeprefix(INSTALL)
    if command == TESTS:
        pytest.skip("this is it")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_results_are_there(folder):
    """Runs after the commands above: pytest keeps the order of a file."""
    if not (folder / "runs").is_dir():
        pytest.skip("the commands did not run")
    assert (folder / "demo_out" / "demo.png").stat().st_size > 20_000
    assert (folder / "compare_out" / "compare.png").stat().st_size > 100_000
    assert nib.load(folder / "sr.nii.gz").shape == nib.load(folder / "demo_out" / "reference.nii.gz").shape
    assert len(list((folder / "runs" / "sr").glob("*_sr.nii.gz"))) == 4
    for name in ("models", "models2"):
        assert {p.name for p in (folder / "runs" / name).iterdir()} >= {"last.pt", "model.pt"}
    assert "| axial |" in (folder / "runs" / "evaluation" / "summary.md").read_text()
