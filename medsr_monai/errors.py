"""Errors that a user can mend, told in one line, and out-of-memory errors told apart from others."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "ERRORS",
    "MedsrError",
    "cause_of",
    "first_line",
    "is_out_of_memory",
    "line_of",
    "naming",
    "printable",
    "reason_of",
]


class MedsrError(ValueError):
    """An error that the caller can mend; its text is one line that says what is wrong, where, and what to do."""


ERRORS = (ValueError, OSError, RuntimeError, MemoryError)
"""What a user can mend: told in one line. Anything else is a bug of ours, of which the line names the type."""


LONGEST = 800
"""Characters of a reason that are said."""

# by CUDA and MPS, torch on the CPU of several systems, C++, cuBLAS and oneDNN
PHRASES = re.compile(
    r"out of memory|(can't|cannot|failed to) allocate memory|not enough memory|bad_alloc|ALLOC_FAILED"
    r"|could not (create|execute) a primitive",
    re.IGNORECASE,
)
"""What the texts of errors say when memory has run out."""


def printable(text: str) -> str:
    """The same text with escapes for control characters, which move cursors, and for marks of direction."""
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a processor or of an accelerator has run out.

    torch raises its ``OutOfMemoryError`` for accelerators only, and a plain ``RuntimeError`` for a CPU.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(PHRASES.search(str(error)))


def cause_of(error: BaseException) -> BaseException:
    """The innermost cause of an error: MONAI's Compose wraps what a transform raises."""
    while error.__cause__ is not None and isinstance(error, RuntimeError):
        error = error.__cause__
    return error


def first_line(error: BaseException) -> str:
    """The first line of a library's error, or its type where it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def reason_of(error: BaseException) -> str:
    """The innermost cause in one line.

    If memory has run out, which libraries tell in their own words, the line says what to do.
    """
    error = cause_of(error)
    reason = printable(" ".join(str(error).split())) or type(error).__name__
    reason = reason if len(reason) <= LONGEST else f"{reason[:LONGEST]} ..."  # torch lists all of a network's layers
    if is_out_of_memory(error) and "--tile" not in reason:
        return f"out of memory ({reason}): end other programs, or take a smaller volume, or a computer with more memory"
    return reason


def line_of(error: BaseException) -> str:
    """What is said of any exception: the reason of one that a user can mend; of others, our mistakes, also the type."""
    cause, reason = cause_of(error), reason_of(error)
    if isinstance(cause, ERRORS):
        return reason
    return f"{type(cause).__name__}: {reason}: please report it with what --verbose shows"


@contextlib.contextmanager
def naming(path: str | Path = "") -> Iterator[None]:
    """Errors raised inside become a ``MedsrError`` of one line, which names the file, if one is given."""
    try:
        yield
    except Exception as error:
        line = line_of(error)
        raise MedsrError(line if str(path) in line else f"{path}: {line}") from error
