"""The bundles' guide's scripts for Slurm, run as they are on two CPU processes, with a simulated Slurm."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPTS = re.findall(r"```slurm\n(.*?)```", (ROOT / "bundles" / "README.md").read_text(), re.S)
TINY = {
    "network_def#embed_dim": 12,
    "network_def#growth_rate": 6,
    "network_def#num_heads": 2,
    "network_def#num_blocks": 1,
    "network_def#num_dense_blocks": 1,
    "patch_size": 32,
    "batch_size": 3,
    "val_slices": 2,
    "plane": "axial",
}
# of what it starts, srun tells the number of the task on its node
SRUN = """#!/bin/sh
test "$1 $2" = "--cpus-per-task 16" && shift 2 && echo $$ > step && SLURM_LOCALID=0 exec "$@"
"""
# Slurm ends the steps of a job that is queued again
SCONTROL = """#!/bin/sh
case "$*" in
"show hostnames node[1-2]") printf "localhost\\nnode2\\n" ;;
"requeue $SLURM_JOB_ID")
    touch requeued
    kill "$(cat step)"
    while kill -0 "$(cat step)" 2> /dev/null; do sleep 0.1; done ;;
*) exit 1 ;;
esac
"""


@pytest.fixture
def cluster(warm_python, tmp_path):
    """Start a script in a folder with what commands find in a checkout; returns the folder and the starter."""
    shutil.copytree(ROOT / "bundles", tmp_path / "bundles", ignore=shutil.ignore_patterns("eval"))
    volumes = tmp_path / "path" / "to" / "volumes"
    rng = np.random.default_rng(0)
    for number in range(4):
        folder = volumes / f"sub-{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        image = rng.random((32, 34, 3 + number)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.diag([1, 1, 4, 1])), folder / f"case{number}.nii.gz")
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)

    def start(script, **variables):
        number = next(n for n in np.random.default_rng().permutation(10000) if is_free(20000 + int(n)))
        job = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "16"}
        # the script takes the port by the job's number
        job |= {"SLURM_JOB_ID": str(number), "SLURM_GPUS_ON_NODE": "2"} | variables
        path = os.pathsep.join([str(commands), str(warm_python.parent), os.environ["PATH"]])
        (tmp_path / "job.sbatch").write_text(script.replace("OMP_NUM_THREADS=4", "OMP_NUM_THREADS=1"))
        environment = os.environ | job | {"PATH": path, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        with (tmp_path / "job.log").open("a") as log:  # as --open-mode=append has it
            return subprocess.Popen(
                ["bash", "job.sbatch"], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    return tmp_path, start


def is_free(port):
    with socket.socket() as probe:
        try:
            probe.bind(("localhost", port))
        except OSError:
            return False
    return True


def said(folder):
    return (folder / "job.log").read_text()


def assert_done(job, folder):
    assert job.wait(timeout=300) == 0, said(folder)[-6000:]


def test_the_scripts_start_alike():
    training, cohort, array = (script.splitlines() for script in SCRIPTS)
    assert training[:6] == cohort[:6] and training[0] == array[0] == "#!/bin/bash"
    assert [line.startswith("#SBATCH ") for line in training[:4]] == [False, True, True, False]
    for script in SCRIPTS:
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_training_goes_on_after_the_time_limit(cluster):
    """After an epoch of one process it is queued again, and comes to two."""
    folder, start = cluster
    more = " ".join(f"'--{name}' {value}" for name, value in TINY.items())
    script = SCRIPTS[0].replace("--epochs 100", f"--epochs 1000 {more}")
    last = folder / "runs/models3/last.pt"
    job = start(script, SLURM_GPUS_ON_NODE="1")
    deadline = time.monotonic() + 200
    while not last.is_file():
        assert job.poll() is None and time.monotonic() < deadline, said(folder)[-6000:]
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=200) and (folder / "requeued").is_file()
    stopped = torch.load(last, weights_only=True)["trainer"]
    first = stopped["iteration"] // stopped["epoch_length"]
    assert_done(start(script.replace("--epochs 1000", f"--epochs {first + 2}")), folder)
    assert f"resumed after epoch {first}" in said(folder) and "% of the time waiting for data" in said(folder)
    assert torch.load(last, weights_only=True)["trainer"]["epoch_length"] == 2, "6 a step of the 12 or so slices"
    training = json.loads(last.with_name("last.pt.json").read_text())["Training"]
    runs = [(one["AfterEpoch"], one["Processes"]) for one in training["Runs"]]
    assert runs == [(0, 1), (first, 2)] and training["Epoch"] == first + 2


def test_a_cohort_is_shared_out(cluster):
    folder, start = cluster
    assert_done(start(SCRIPTS[1]), folder)
    rows = (folder / "runs/cohort/status.csv").read_text().splitlines()[1:]
    assert len(rows) == 4 and all(",done," in row for row in rows)
    assert sorted(p.name for p in (folder / "runs/cohort").rglob("*.nii.gz")) == [
        f"case{n}_sr.nii.gz" for n in range(4)
    ]


def test_an_array_does_a_subfolder_a_task(cluster):
    folder, start = cluster
    assert_done(start(SCRIPTS[2], SLURM_ARRAY_TASK_ID="1"), folder)
    made = sorted(p.relative_to(folder).as_posix() for p in (folder / "runs").rglob("*.nii.gz"))
    assert made == ["runs/array/sub-1/case1_sr.nii.gz", "runs/array/sub-1/case3_sr.nii.gz"]
    assert start(SCRIPTS[2], SLURM_ARRAY_TASK_ID="2").wait(timeout=200) and "no more subfolders" in said(folder)
