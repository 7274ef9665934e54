"""A training that is killed at a given step."""

import os
import signal
import subprocess

KILLED = """
import os, runpy, signal, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
left = {steps}
def step(*arguments):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
register_optimizer_step_post_hook(step)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
"""Runs a module, and kills its process after some steps of its optimizers."""


def killed(arguments):
    done = subprocess.run(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stdout[-3000:] + done.stderr[-3000:]
