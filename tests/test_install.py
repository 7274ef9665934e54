"""The wheel: what it carries, and that README's commands work where only it and its dependencies are, offline."""

import configparser
import json
import os
import shlex
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from test_readme import FRONT_PAGE, INSTALL, TESTS, lines, write_study, write_volume

ROOT = Path(__file__).parents[1]
COMMANDS = [line.removeprefix(INSTALL) for line in lines(FRONT_PAGE) if TESTS not in line]
NOWHERE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
ONE_PROCESS = """
import json, runpy, sys
for module, *arguments in json.loads(sys.argv[1]):
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, arguments
"""
"""Several commands after one import."""


def run(*arguments, cwd):
    # a path of the caller's would put the checkout before the installed package
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if arguments[0] != sys.executable:
        env |= NOWHERE | {"PATH": f"{Path(arguments[0]).parent}{os.pathsep}{env['PATH']}"}
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


def beside_dependencies(wheel, folder):
    """An environment with the wheel and the dependencies of this one, without its editable installs.

    Their .pth files are not read there.
    """
    python = environment(folder / "venv", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def prove(python, folder, alone):
    """README's commands in a folder that is not the checkout, each in a process of its own, or in one all but the demo.

    Its bundles are where `medsr models` says; a link of README's name leads there.
    """
    rows = json.loads(run(python.parent / "medsr", "models", "--json", cwd=folder))
    states = {row["bundle"]: row["state"] for row in rows}
    assert {states.pop(name) for name in ("seg_unet", "transmrsr_prior")} == {"missing"}
    assert set(states.values()) == {"verified"} and len(states) == 7
    assert all(str(ROOT) not in row["folder"] for row in rows)
    (folder / "bundles").symlink_to(Path(rows[0]["folder"]).parent)
    for number in range(4):
        write_volume(folder / "path" / "to" / "volumes" / f"case{number}.nii.gz", (96, 96, 4), (1, 1, 5), number)
    write_volume(folder / "thick.nii.gz", (40, 40, 4), (1, 1, 4), 0)
    write_volume(folder / "scan.nii.gz", (32, 34, 4), (1, 1, 1.2), 0)
    write_study(folder / "study")
    words = [shlex.split(command) for command in COMMANDS]
    assert words and all(w[0] == "medsr" or w[:2] == ["python", "-m"] for w in words)
    if alone:
        for one in words:
            run(python.parent / one[0], *one[1:], cwd=folder)
    else:
        words = [w for w in words if "demo" not in " ".join(w)]
        modules = [["medsr_monai", *w[1:]] if w[0] == "medsr" else w[2:] for w in words]
        run(python, "-c", ONE_PROCESS, json.dumps(modules), cwd=folder)
    made = "finer.nii.gz fine.nii.gz thin.nii.gz derived runs/models/model.pt"
    made += " demo_out/demo.png sr.nii.gz" if alone else ""
    assert all((folder / name).exists() for name in made.split())


def test_wheel_carries_bundles_and_sample(wheel):
    assert wheel.stat().st_size < 90e6
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
    released = {path.parents[1].name for path in ROOT.glob("bundles/*/configs/metadata.json")
                if json.loads(path.read_text()).get("weights")}  # fmt: skip
    assert {n.split("/")[2] for n in names if n.endswith("/models/model.pt")} == released and len(released) == 7
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "*/models" not in setup["options.package_data"]["medsr_monai.bundles"]  # weights of one's own stay here
    overlays = {f"medsr_monai/{p.relative_to(ROOT)}" for p in ROOT.glob("bundles/*/configs/networks/*.json")}
    assert overlays and overlays <= names
    assert {"medsr_monai/data/sample/brain_t1w.nii.gz", "medsr_monai/data/sample/LICENSE.md"} <= names
    assert {f"medsr_monai/{p.relative_to(ROOT / 'medsr_monai')}" for p in (ROOT / "medsr_monai").rglob("*.py")} <= names


def test_wheel_works_beside_its_dependencies(wheel, tmp_path):
    prove(beside_dependencies(wheel, tmp_path), tmp_path, alone=False)


@pytest.mark.slow
def test_wheel_installs_with_its_dependencies(wheel, tmp_path):
    python = environment(tmp_path / "venv", wheel)
    prove(python, tmp_path, alone=True)
