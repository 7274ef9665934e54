"""JSON and YAML files from anywhere, read with bounds and refused in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["read_json", "read_yaml"]

LARGEST = {"JSON": 64 * 2**20, "YAML": 2**20}
"""Bytes of the largest file that is read."""
DEEPEST = 64
"""How many lists and dictionaries may lie within each other."""


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
