"""The wheel: what it carries, and that it works where only its dependencies are."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEBIBYTE = 2**20


def run(*arguments, cwd):
    # a path of the caller's would put the checkout before the installed package
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(a) for a in arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source") / "repository"
    # what git would hand to a new user, so that a file left here cannot help
    run("git", "clone", "--quiet", "--no-hardlinks", ROOT, source, cwd=out)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", out, source, cwd=out)
    return next(out.glob("*.whl"))


def environment(folder, *install):
    """An environment in which this one's pip has installed something."""
    venv.create(folder)
    run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q", *install, cwd=folder)
    return folder / "bin" / "python"


def prove(python, folder):
    """The installed command, from a folder that is not the checkout."""
    medsr = python.parent / "medsr"
    rows = json.loads(run(medsr, "models", "--json", cwd=folder))
    trained = {row["bundle"]: row["trained"] for row in rows}
    assert trained["rdst_e"] and not trained["rdst"]
    assert all(str(ROOT) not in row["folder"] for row in rows)
    assert "PSNR" in run(medsr, "demo", "out", cwd=folder)
    assert (folder / "out" / "sr.nii.gz").is_file()


def test_wheel_carries_bundles_and_sample(wheel):
    assert wheel.stat().st_size < 60 * MEBIBYTE
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in [p.parents[1] for p in ROOT.glob("bundles/*/configs/metadata.json")]:
        for file in (
            "LICENSE",
            "configs/inference.json",
            "configs/train.json",
            "configs/logging.conf",
            "docs/README.md",
        ):
            assert f"medsr_monai/bundles/{folder.name}/{file}" in names
    assert "medsr_monai/bundles/rdst_e/models/model.pt" in names
    overlays = {f"medsr_monai/{p.relative_to(ROOT)}" for p in ROOT.glob("bundles/*/configs/networks/*.json")}
    assert overlays and overlays <= names
    assert {"medsr_monai/data/sample/brain_t1w.nii.gz", "medsr_monai/data/sample/LICENSE.md"} <= names
    assert {f"medsr_monai/{p.relative_to(ROOT / 'medsr_monai')}" for p in (ROOT / "medsr_monai").rglob("*.py")} <= names


def test_wheel_works_beside_its_dependencies(wheel, tmp_path):
    python = environment(tmp_path / "venv", "--no-deps", "--no-index", wheel)
    # the dependencies of this environment, without its editable installs (their .pth files are not read there)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    prove(python, tmp_path)


@pytest.mark.slow
def test_wheel_installs_with_its_dependencies(wheel, tmp_path):
    python = environment(tmp_path / "venv", wheel)
    prove(python, tmp_path)
