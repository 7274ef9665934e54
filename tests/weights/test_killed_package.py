"""`medsr package` and kill -9."""

from __future__ import annotations

import functools
import shutil
import signal

from processes import AT_STEP


def test_after_kill_9_a_package_is_made_by_the_same_command(medsr_process, tmp_path):
    run = functools.partial(medsr_process, "package", "rdst_e", "zoo", "--thin")
    for number in range(1, 9):
        if run(before=AT_STEP.format(number=number, signal=signal.SIGKILL)).code == 0:
            break
        assert run().code == 0
        shutil.rmtree("zoo")
    assert number > 6
