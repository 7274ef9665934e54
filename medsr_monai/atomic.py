"""Files that are never half there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["written_atomically"]


@contextmanager
def written_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to, and rename it to ``path`` when all is on disk.

    An error leaves neither a partial file nor a changed one. The suffix stays last, since writers choose the format by
    it, and the name begins with a dot, so that searches for volumes pass it over.
    """
    path = Path(path)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
