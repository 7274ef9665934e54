"""Files that are never half there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["folder_written_atomically", "written_atomically"]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Disk full, quota used up, file larger than its system or a limit allows."""


@contextmanager
def written_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to, and rename it to ``path`` when all is on disk.

    An error leaves neither a partial file nor a changed one; of a process that is killed the partial file may stay. The
    suffix stays last, since writers choose the format by it, and the name begins with a dot, so that searches for
    volumes pass it over.

    Raises:
        OSError: as the writer does; where the disk is full or a quota used up, it says what to do.
    """
    path = Path(path)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        with _no_room_explained(path):
            yield partial
            _to_disk(partial)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def folder_written_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """As :func:`written_atomically`, for a folder and all that is put into it; what stood there before is replaced.

    Who calls this has checked that nothing of value stands there.
    """
    path = Path(path)
    partial, replaced = (path.with_name(f".{state}-{os.getpid()}-{path.name}") for state in ("partial", "replaced"))
    partial.mkdir(parents=True)
    try:
        with _no_room_explained(path):
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    _to_disk(file)
            if path.exists():
                os.replace(path, replaced)
            os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not path.exists() and replaced.exists():
            os.replace(replaced, path)
        shutil.rmtree(replaced, ignore_errors=True)


def _to_disk(file: Path) -> None:
    """Network file systems tell only now that there was no room."""
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())


@contextmanager
def _no_room_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise OSError(f"{path}: no room for it ({error.strerror}): free disk space or choose another output") from error
