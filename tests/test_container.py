"""The guide's container, as far as it can be run without one: its Dockerfile's user, variables and commands."""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from test_install import beside_dependencies, wheel  # noqa: F401
from test_readme import ROOT, blocks, write_bids, write_volume

GUIDE = ROOT / "medsr_monai" / "upscaling" / "README.md"
(DOCKERFILE,) = blocks(GUIDE, "dockerfile")
RUNS = [line for block in blocks(GUIDE, "sh") for line in block.splitlines() if line.startswith("docker run")]
USER = 1000


def test_the_dockerfile_is_short_and_names_the_wheel():
    from medsr_monai import __version__

    assert len(DOCKERFILE.splitlines()) <= 15 and len(RUNS) == 2
    assert set(re.findall(r"medsr_monai-([\d.]+)-py3", DOCKERFILE)) == {__version__}
    assert f"USER {USER}:{USER}" in DOCKERFILE and 'ENTRYPOINT ["medsr"]' in DOCKERFILE
    for line in RUNS:
        assert "--network none" in line and "--read-only" in line and ":/in:ro" in line
    assert "has not been built" in GUIDE.read_text()


@pytest.fixture
def place():
    """A folder that every user may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.skipif(
    not (hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("setpriv") and shutil.which("unshare")),
    reason="becoming another user without a network needs root, setpriv and unshare",
)
def test_its_commands_as_its_user(wheel, place):  # noqa: F811
    python = beside_dependencies(wheel, place)
    write_volume(place / "in" / "scan.nii.gz", (32, 34, 4), (1, 1, 5), 0)
    write_bids(place / "bids")
    variables = dict(re.findall(r"(\w+)=(\S+)", re.search(r"^ENV (.*)$", DOCKERFILE, re.M)[1]))
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*")}
    for number, line in enumerate(RUNS):
        words = shlex.split(line.partition(" medsr ")[2])
        source = re.search(r"\$PWD/(\w+):/in:ro", line)[1]
        out = place / f"out{number}"
        out.mkdir()
        os.chown(out, USER, USER)
        command = [str({"/in": place / source, "/out": out}.get(word, word)) for word in words]
        # it may read what is not its own, as in an image, and write nothing
        become = ["unshare", "-n", "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups",
                  "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
                  "--bounding-set=-all,+dac_read_search"]  # fmt: skip
        environment = variables | {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([*become, str(python.parent / "medsr"), *command], cwd=out, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        made = list(out.rglob("*.nii.gz"))
        assert len(made) == (1, 4)[number] and all(file.stat().st_uid == USER for file in made)
    assert {p: p.stat().st_mtime_ns for p in before} == before
