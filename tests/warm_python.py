"""A Python that has torch and MONAI imported: `-m MODULE` and `-c CODE` run in processes forked from it.

A process of `medsr` or `monai.bundle` imports for eight seconds before it does anything. The tests of a worker share
one that has done so. What it forks is a process like any other: it may be killed, limited or sent a signal.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import io
import itertools
import json
import multiprocessing.spawn
import os
import pkgutil
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = {"medsr": "medsr_monai", "torchrun": "torch.distributed.run", "bundle": "monai.bundle"}
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class WarmPython:
    """Folder with the commands `python`, `medsr` and `torchrun`, which stand for those of this environment."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="warm"))
        start = shlex.join([sys.executable, "-I", "-S", __file__, str(self.folder)])
        for name, words in (("python", ""), ("medsr", "-m medsr_monai"), ("torchrun", "-m torch.distributed.run")):
            path = self.folder / name
            path.write_text(f'#!/bin/sh\nexec {start} {words} "$@"\n')
            path.chmod(0o755)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment.pop("PYTHONWARNINGS", None)
        command = [sys.executable, __file__, str(self.folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen(command, env=environment, cwd=self.folder, **pipes)
        assert self.server.stdout.readline() == "ready\n"

    def run(self, arguments: list[str], place: Path, streams: tuple[int, int, int], timeout: float) -> int:
        """Exit code of a process whose standard streams are those files; TimeoutError after it was killed."""
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(timeout)
            answers = ask(caller, str(self.folder), arguments, str(place), dict(enumerate(streams)))
            answers.readline()
            return int(answers.readline())

    def end(self) -> None:
        self.server.stdin.close()
        self.server.wait(timeout=60)
        shutil.rmtree(self.folder)


def serve(folder: str) -> None:
    """Fork a process for each caller until the standard input ends."""
    import torch

    torch.set_num_threads(1)
    import monai.bundle  # noqa: F401
    import torch.distributed.run
    import torch.utils.tensorboard

    import medsr_monai.command_line
    import medsr_monai.handlers
    import medsr_monai.recipes  # noqa: F401

    remember_names()
    rehearse(folder)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/socket")
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()  # collecting it would copy it in every process
    print("ready", flush=True)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        caller = listener.accept()[0]
        if not os.fork():
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return attend(caller, folder)
        caller.close()


def rehearse(folder: str) -> None:
    """Import every command, and upscale a small volume: what is imported, registered or drawn first then is there."""
    import fire.core  # noqa: F401
    import nibabel
    import numpy
    from bundle_copies import tiny_bundle

    from medsr_monai import commands
    from medsr_monai.upscaling.cohort import upscale_files
    from medsr_monai.upscaling.upscaler import Options

    for module in pkgutil.iter_modules(commands.__path__, f"{commands.__name__}."):
        importlib.import_module(module.name)
    place = Path(folder) / "rehearsal"
    values = numpy.random.default_rng(0).random((12, 10, 3), numpy.float32)
    bundle = tiny_bundle(place / "tiny")
    nibabel.save(nibabel.Nifti1Image(values, numpy.diag([1, 1, 4, 1])), place / "a.nii.gz")
    with contextlib.redirect_stdout(None), warnings.catch_warnings(action="ignore"):
        upscale_files(str(place / "a.nii.gz"), str(place / "out.nii.gz"), Options(bundle=str(bundle), device="cpu"))
    shutil.rmtree(place)
    assert threading.active_count() == 1, "a forked process has no other threads"


def remember_names() -> None:
    """MONAI's table of its classes, made anew for every configuration, is kept as long as its modules are the same."""
    from monai.bundle.config_item import ComponentLocator

    find = functools.cache(lambda names: ComponentLocator._find_in(ComponentLocator(), names))
    ComponentLocator._find_in = ComponentLocator._find_classes_or_functions
    ComponentLocator._find_classes_or_functions = lambda self, names: find(tuple(names))


def attend(caller: socket.socket, folder: str) -> None:
    """Run a caller's job in a child, tell its number and its exit code; with the caller ends the child."""
    data, files, *_ = socket.recv_fds(caller, 2**16, 250)
    while not data.endswith(b"\n"):
        data += caller.recv(2**16)
    job = json.loads(data)
    child = os.fork()
    if not child:
        caller.close()
        held = [fcntl.fcntl(file, fcntl.F_DUPFD, 500) for file in files]  # out of the way of the numbers they get
        for file in files:
            os.close(file)
        for file, number in zip(held, job["numbers"], strict=True):
            os.dup2(file, number)
            os.close(file)
        return work(folder, job["arguments"], job["place"], job["environment"])
    for file in (0, 1, 2, *files):
        os.close(file)
    caller.sendall(f"{child}\n".encode())
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if select.select([caller], [], [], 0.005)[0] and not caller.recv(1):
            os.kill(child, signal.SIGKILL)
    caller.sendall(f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())
    os._exit(0)


def work(folder: str, arguments: list[str], place: str, environment: dict[str, str]) -> None:
    import torch

    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    os.environ["PYTHON_EXEC"] = f"{folder}/python"  # which torchrun starts
    multiprocessing.spawn.set_executable(f"{folder}/python")
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", 1)))
    sys.path[0:1] = [place, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    option, what, *rest = arguments
    sys.argv = [option, *rest]
    code = 0
    try:
        if option == "-c":
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        print(end.code, file=sys.stderr) if isinstance(end.code, str) else None
    except BaseException:
        traceback.print_exc()
        code = 1
    # as the interpreter ends, but for the memory, which it would first copy to free it
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(code)


def ask(
    caller: socket.socket, folder: str, arguments: list[str], place: str, files: dict[int, int]
) -> io.TextIOWrapper:
    """Have a process forked; its number and then its exit code are the two lines of the answer.

    Args:
        files: the open files that it gets, by their numbers there.
    """
    caller.connect(f"{folder}/socket")
    job = {"arguments": arguments, "place": place, "environment": dict(os.environ), "numbers": list(files)}
    socket.send_fds(caller, [(json.dumps(job) + "\n").encode()], list(files.values()))
    return caller.makefile()


def inherited(file: int) -> bool:
    try:
        return os.get_inheritable(file)
    except OSError:  # the one by which they were listed
        return False


def call(folder: str, arguments: list[str]) -> None:
    """What `python` does: as a process forked there, or, where that is not ready for the module, by this one."""
    words = list(itertools.dropwhile(("-u", "-B").__contains__, arguments))
    if words[:1] != ["-c"] and (words[:1] != ["-m"] or words[1] not in MODULES.values()):
        os.execv(sys.executable, [sys.executable, *arguments])
    files = {number: number for number in map(int, os.listdir("/dev/fd")) if inherited(number)}
    answers = ask(socket.socket(socket.AF_UNIX), folder, words, os.getcwd(), files)
    child = int(answers.readline())
    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os.kill(child, number))
    code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    call(sys.argv[1], sys.argv[2:]) if sys.flags.isolated else serve(sys.argv[1])
