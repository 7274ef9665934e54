"""What lies below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["files_below"]


def files_below(root: str | os.PathLike) -> Iterator[Path]:
    """List what lies below a folder and is no folder, with what cannot be opened; hidden files and folders are not.

    Links to files and folders are followed. One that leads to a folder above itself ends there, as a path of its own.
    """
    yield from _below(Path(root), frozenset())


def _below(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    try:
        entries = sorted(os.listdir(folder)) if real not in above else None
    except OSError:
        entries = None
    if entries is None:
        yield folder
        return
    for name in entries:
        if not name.startswith("."):
            path = folder / name
            if path.is_dir():
                yield from _below(path, above | {real})
            else:
                yield path
