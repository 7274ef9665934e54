"""Files written whole or not at all, checks of the paths that a user names, and JSON and YAML read within bounds."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["check_input", "check_output", "read_json", "read_yaml", "written_atomically", "written_together"]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, a used-up quota, and a file larger than its system or a limit allows."""
LARGEST = {"JSON": 64 * 2**20, "YAML": 2**20}
"""Bytes of the largest file that is read."""
DEEPEST = 64
"""How many lists and dictionaries may lie within each other."""


@contextmanager
def written_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to, and rename it to ``path`` when all is on disk.

    An error leaves neither a partial file nor a changed one; a process that is killed may leave the partial file. The
    temporary name has the same suffix, by which writers choose the format, and begins with a dot, so that searches for
    volumes pass it over.

    Raises:
        OSError: what the writer raises. If the disk is full or a quota used up, it says what to do.
    """
    with written_together(path) as (partial,):
        yield partial


@contextmanager
def written_together(*paths: str | os.PathLike) -> Iterator[list[Path]]:
    """Do what :func:`written_atomically` does for files, or folders that the caller makes, that belong together.

    They take their names in the given order when all of them are on disk. A process that is killed leaves all or none,
    but for the moment of the renaming itself. An error in this moment removes those whose names were free before.

    Raises:
        FileExistsError: :func:`check_output` has found a name free that another program has taken meanwhile; that file
            is kept.
    """
    pairs = [(Path(path).with_name(f".partial-{os.getpid()}-{Path(path).name}"), Path(path)) for path in paths]
    free: list[Path] = []
    try:
        with _no_room_explained(pairs[-1][1]):
            yield [partial for partial, _ in pairs]
            for partial, _ in pairs:
                _to_disk(partial)
            taken = [path for _, path in pairs if os.path.lexists(path)]
            for path in taken:
                _check_still_free(path)
            for partial, path in pairs:
                if path not in taken:
                    _give_free_name(partial, path)
                    free.append(path)
                    continue
                if partial.is_dir():
                    os.replace(path, _replaced(path))
                os.replace(partial, path)
        _to_be_new.difference_update(path.absolute() for _, path in pairs)
    except BaseException:
        for path in free:
            _remove(path)
        raise
    finally:
        for partial, path in pairs:
            _remove(partial)
            if not path.exists() and _replaced(path).exists():
                os.replace(_replaced(path), path)
            _remove(_replaced(path))


_to_be_new: set[Path] = set()
"""Names that `check_output` has found free and that must not be overwritten."""


def _check_still_free(path: Path) -> None:
    if path.absolute() in _to_be_new:
        raise FileExistsError(f"{path}: was written by another program meanwhile and is kept: choose another output")


def _give_free_name(partial: Path, path: Path) -> None:
    """Rename, unless the name is taken meanwhile: of two programs that write one output the second loses."""
    if partial.is_dir():
        os.replace(partial, path)  # refused by the system where a folder that is not empty has come up
        return
    try:
        os.link(partial, path)
    except FileExistsError:
        _check_still_free(path)
        os.replace(partial, path)
    except OSError:  # a file system without links
        os.replace(partial, path)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".replaced-{os.getpid()}-{folder.name}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Bring files to disk; network file systems tell only now that there was no room."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())


@contextmanager
def _no_room_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise OSError(f"{path}: no room for it ({error.strerror}): free disk space or choose another output") from error


def check_named(path: str | os.PathLike, what: str = "input") -> None:
    """Refuse an empty path, which would be the working folder: a folder that nobody has named.

    Args:
        path: the path, before a ``Path`` is made of it.
        what: what messages call it.

    Raises:
        ValueError: the path is empty.
    """
    if not os.fspath(path):
        raise ValueError(
            f"the path of the {what} is empty (an unset variable, an unknown image?): name a file or folder"
        )


def check_input(path: str | os.PathLike) -> None:
    """Refuse a path that is neither a file nor a folder.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: something else is there, such as a pipe, or the path is empty.
    """
    check_named(path)
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not Path(path).is_file() and not Path(path).is_dir():
        raise ValueError(f"{path}: neither a file nor a folder (a pipe?), save what it holds to a file first")


def check_output(path: Path, overwrite: bool, source: str | None = None) -> None:
    """Refuse an output file before any work is done.

    Args:
        path: the file.
        overwrite: whether it may be there already.
        source: the input, which it must not be.

    Raises:
        ValueError: it is the input, or a folder.
        FileExistsError: it exists. If it does not, it must not when it is written either.
        PermissionError: nothing can be written to its folder.
    """
    if source is not None and path.resolve() == Path(source).resolve():
        raise ValueError(f"{path}: is the input, which is never overwritten, choose another name")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, give the name of a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists, choose another name or add --overwrite")
    (_to_be_new.discard if overwrite else _to_be_new.add)(path.absolute())
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: nothing can be written to {parent}, choose another output")


def read_json(path: str | os.PathLike, expected: str = "") -> dict[str, Any]:
    """Read a JSON file that holds a dictionary.

    Args:
        path: of the file.
        expected: what the file should be, for the message.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is too large, damaged, nested too deeply, or holds something else; one line that names it.
    """
    try:
        content = json.loads(_text(path, "JSON"))
        _check_depth(content)
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}, no dictionary")
    except (ValueError, RecursionError) as error:
        raise _refused(path, "JSON", expected, error) from error
    return content


def read_yaml(path: str | os.PathLike, expected: str = "") -> dict[str, Any]:
    """Read a YAML file that holds a dictionary of plain values, without aliases, by which small files become huge.

    Args and errors are those of :func:`read_json`.
    """
    import yaml

    try:
        text, depth = _text(path, "YAML"), 0
        for event in yaml.parse(text):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST or isinstance(event, yaml.AliasEvent):
                raise ValueError("aliases, or nested too deeply")
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}, no dictionary")
    except Exception as error:  # yaml lets through what its constructors raise
        if isinstance(error, OSError):
            raise
        raise _refused(path, "YAML", expected, error) from error
    return content


def _text(path: str | os.PathLike, kind: str) -> str:
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError("no regular file")
    with path.open("rb") as file:
        content = file.read(LARGEST[kind] + 1)
    if len(content) > LARGEST[kind]:
        raise ValueError(f"larger than {LARGEST[kind] // 2**20} MiB")
    return content.decode("utf-8-sig")


def _check_depth(content: Any) -> None:
    level: Iterable[Any] = [content]
    for _ in range(DEEPEST + 1):
        level = [
            part
            for value in level
            if isinstance(value, (dict, list))
            for part in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError("nested too deeply")


def _refused(path: str | os.PathLike, kind: str, expected: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ValueError(f"{path}: expected {expected or 'a dictionary'} as {kind} ({reason}): damaged, or another file")
