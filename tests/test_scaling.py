"""Two processes beside one, a core for each: `pytest -m slow -s tests/test_scaling.py` on a machine else idle."""

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).parents[1]
ROUNDS = 3
LEAST = 1.6
"""Times as fast: two cores of one machine share its memory."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two processes need two cores"),
]


def save(path, shape, seed):
    image = gaussian_filter(np.random.default_rng(seed).random(shape, dtype=np.float32), 1)
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(1000 * image, np.diag([1, 1, 4, 1])), path)


def torchrun(processes, *command):
    """What it printed, and the seconds."""
    launcher = ("torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, command)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr, time.perf_counter() - start


def judge(what, rates):
    """Rates of one and of two processes, measured in turns."""
    one, two = (statistics.median(rates[processes]) for processes in (1, 2))
    print(f"\n{what}: {one:.3g} a second with one process, {two:.3g} with two, {two / one:.2f} times as many")
    assert two / one > LEAST


def test_training(tmp_path):
    """rdst_e's network, patches of 48 pixels, four of them in a step of each process; start-up is not counted."""
    for number in range(4):
        save(tmp_path / "in" / f"case{number}.nii", (64, 64, 11), number)
    configs = ROOT / "bundles" / "rdst_e" / "configs"
    files = [str(configs / f"{name}.json") for name in ("train", "multi_gpu_train")]
    options = {"plane": "axial", "patch_size": 48, "batch_size": 4, "epochs": 3, "val_slices": 2}
    rates = {1: [], 2: []}
    for number in range(ROUNDS):
        for processes, measured in rates.items():
            folders = {"dataset_dir": tmp_path / "in", "ckpt_dir": tmp_path / f"{number}{processes}"}
            folders |= {"bundle_root": configs.parent, "output_dir": tmp_path / "log"}
            more = [word for name, value in (folders | options).items() for word in (f"--{name}", value)]
            said, _ = torchrun(processes, "monai.bundle", "run", "training", "--config_file", str(files), *more)
            steps = re.findall(r"epoch \d+(?:, process 0)?: .*?, ([\d.]+) steps/s", said)
            measured.append(processes * options["batch_size"] * statistics.median(map(float, steps)))
    judge("patches of a training", rates)


def test_cohort(tmp_path):
    """Slices through rdst_e; the same command once more, which finds all done, tells the time of the start."""
    slices, volumes = 6, 6
    for number in range(volumes):
        save(tmp_path / "in" / f"case{number}.nii", (48, 48, slices), number)
    rates = {1: [], 2: []}
    for number in range(ROUNDS):
        for processes, measured in rates.items():
            out = tmp_path / f"{number}{processes}"
            command = ("medsr_monai", "upscale", tmp_path / "in", out, "--bundle", "rdst_e", "--plane", "axial")
            (_, all_of_it), (said, start) = (torchrun(processes, *command) for _ in range(2))
            assert f"{volumes} kept" in said
            measured.append(volumes * slices / (all_of_it - start))
    judge("slices of a cohort", rates)
