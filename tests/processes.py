"""Processes of `medsr` that may be limited, stopped at a step and killed, and small files for them."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from warm_python import WarmPython

from medsr_monai.transforms import outer_corners

OUTPUTS = ("out.json", "out.nii.gz", "out.quality.png")


PROGRAM = r"""
import os, re, resource, signal, sys, time
import medsr_monai.cli, medsr_monai.command_line

begin = medsr_monai.command_line.quiet_libraries  # what `main` begins with

def begun(*arguments):
    parent = os.getpid()
    if kill and not os.fork():
        time.sleep(kill[1])
        if os.getppid() == parent:
            os.kill(parent, kill[0])
        os._exit(0)
    return begin(*arguments)

medsr_monai.command_line.quiet_libraries = begun
limits, before, kill = {settings!r}
for name, amount in limits.items():
    if name == "DATA":  # beyond what the imports have taken
        amount += 1024 * int(re.search(r"VmData:\s*(\d+) kB", open("/proc/self/status").read())[1])
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (amount, amount))
exec(before, {{}})
medsr_monai.cli.main(sys.argv[1:])
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Processes:
    """`medsr` in processes that may be limited and killed."""

    def __init__(self, warm: WarmPython, scratch: Path) -> None:
        self.warm, self.scratch = warm, scratch

    def run(
        self,
        *arguments: object,
        folder: Path,
        timeout: float = 300,
        limits: dict[str, int] | None = None,
        before: str = "",
        kill: tuple[signal.Signals, float] | None = None,
    ) -> Result:
        """One process; it must end by itself within ``timeout`` seconds.

        Args:
            limits: by the names of ulimits; DATA counts from what the process has at its start.
            before: Python that the process runs before `medsr`.
            kill: a signal and the seconds after the command's begin at which it is sent.
        """
        program = PROGRAM.format(settings=(limits or {}, before, kill and (int(kill[0]), float(kill[1]))))
        files = [self.scratch / "out", self.scratch / "err"]
        with open(os.devnull) as nothing, files[0].open("w") as out, files[1].open("w") as err:
            streams = (nothing.fileno(), out.fileno(), err.fileno())
            code = self.warm.run(["-c", program, *map(str, arguments)], folder, streams, timeout)
        return Result(code, *(path.read_text(errors="backslashreplace") for path in files))


def contents(folder: Path) -> dict[str, bytes | None]:
    """All there is below a folder, hidden files too."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def told(result: Result, *patterns: str, code: int = 1) -> None:
    """One line, without a traceback, that fits all patterns."""
    assert result.code == code, result
    assert result.err.startswith("medsr: error: ") and result.err.count("\n") == 1, result.err
    for pattern in patterns:
        assert re.search(pattern, result.err), (pattern, result.err)


THICK = np.diag([1.0, 1.0, 4.0, 1.0])


def smooth(shape: tuple[int, ...]) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return (1000 * gaussian_filter(np.random.default_rng(0).random(shape), 2)).astype(np.float32)


GOOD = smooth((16, 14, 5))


def save(path: Path, values: np.ndarray = GOOD, affine: np.ndarray | None = THICK, **header: object) -> Path:
    image = nib.Nifti1Image(values, affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def corners(path: Path) -> np.ndarray:
    """Outer corners of a NIfTI file, sorted, so that flipped axes do not matter."""
    image = nib.load(path)
    return in_order(outer_corners(image.affine, image.shape))


def in_order(points: np.ndarray) -> np.ndarray:
    return np.array(sorted(np.round(points, 4).tolist()))


def number(value: float, kind: type = np.float32) -> bytes:
    return np.array(value, kind).tobytes()


def upscaled(medsr, bundle: Path, name: str, *options: object) -> np.ndarray:
    out = Path(f"{name}_out.nii.gz")
    result = medsr("upscale", name, out, "--bundle", bundle, "--nopicture", *options)
    assert result.code == 0, result
    return nib.load(out).get_fdata()


AT_STEP = """
import os
left = {number}
def counted(name):
    call = getattr(os, name)
    def step(*arguments):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), {signal:d})
        return call(*arguments)
    setattr(os, name, step)
counted("fsync")
counted("replace")
counted("link")
"""
"""A signal before one of the steps that bring files to disk and give them their names."""
