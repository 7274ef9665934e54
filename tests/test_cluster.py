"""README's scripts for Slurm, run as they are on two CPU processes, with Slurm's commands and variables simulated."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

ROOT = Path(__file__).parents[1]
SCRIPTS = re.findall(r"```slurm\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
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
SRUN = """#!/bin/sh
exec "$@"
"""
SCONTROL = """#!/bin/sh
test "$*" = "show hostnames node[1-2]" && printf "localhost\\nnode2\\n"
"""


@pytest.fixture
def cluster(tmp_path):
    """Run a script in a folder with what README's commands find in a checkout; returns the folder and the runner."""
    shutil.copytree(ROOT / "bundles", tmp_path / "bundles", ignore=shutil.ignore_patterns("eval"))
    volumes = tmp_path / "path" / "to" / "volumes"
    volumes.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        nib.save(
            nib.Nifti1Image(rng.random((40, 40, 4 + number)).astype(np.float32), np.diag([1, 1, 4, 1])),
            volumes / f"case{number}.nii.gz",
        )
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)

    def run(script):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        job = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2"}
        # the script takes 20000 to 29999 by the job's number
        job["SLURM_JOB_ID"] = str(port % 10000)
        path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
        (tmp_path / "job.sbatch").write_text(script.replace("OMP_NUM_THREADS=4", "OMP_NUM_THREADS=1"))
        environment = os.environ | job | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""}
        arguments = ["bash", "-e", "job.sbatch"]
        done = subprocess.run(
            arguments,
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    return tmp_path, run


def test_there_are_two_scripts_that_start_alike():
    training, cohort = (script.splitlines() for script in SCRIPTS)
    assert training[:5] == cohort[:5] and training[0] == "#!/bin/bash" and training[1].startswith("#SBATCH ")
    for script in SCRIPTS:
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_training_goes_on_after_the_time_limit(cluster):
    """Of a first epoch that another number of processes did."""
    folder, run = cluster
    flow = ConfigWorkflow(
        str(folder / "bundles/rdst_e/configs/train.json"), workflow_type="train", logging_file=False, epochs=1,
        bundle_root=str(folder / "bundles/rdst_e"), dataset_dir=str(folder / "path/to/volumes"), device="cpu",
        ckpt_dir=str(folder / "runs/models3"), output_dir=str(folder / "runs/log3"), **TINY,
    )  # fmt: skip
    flow.initialize()
    flow.run()
    more = " ".join(f"'--{name}' {value}" for name, value in TINY.items())
    said = run(SCRIPTS[0].replace("--epochs 100", f"--epochs 2 {more}"))
    assert "resumed after epoch 1" in said and "% of the time waiting for data" in said
    last = folder / "runs/models3/last.pt"
    assert torch.load(last, weights_only=True)["trainer"]["epoch_length"] == 3, "6 a step of the 17 or so slices"
    training = json.loads(last.with_name("last.pt.json").read_text())["Training"]
    assert [(one["AfterEpoch"], one["Processes"]) for one in training["Runs"]] == [(0, 1), (1, 2)]
    assert training["Epoch"] == 2


def test_a_cohort_is_shared_out(cluster):
    folder, run = cluster
    run(SCRIPTS[1])
    assert sorted(p.name for p in (folder / "runs/cohort").glob("*.nii.gz")) == [f"case{n}_sr.nii.gz" for n in range(4)]
    rows = (folder / "runs/cohort/status.csv").read_text().splitlines()[1:]
    assert len(rows) == 4 and all(",done," in row for row in rows)
    assert "kept" in run(SCRIPTS[1])
