"""The many ways in which libraries say that memory has run out."""

from __future__ import annotations

import errno
import re

__all__ = ["is_out_of_memory"]

# CUDA and MPS; torch on a CPU, by system; C++; cuBLAS; oneDNN
PHRASES = re.compile(
    r"out of memory|(can't|cannot|failed to) allocate memory|not enough memory|bad_alloc|ALLOC_FAILED"
    r"|could not (create|execute) a primitive",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, of a processor or of an accelerator.

    ``torch.OutOfMemoryError`` is only an accelerator's; the same on a CPU is a plain ``RuntimeError``.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(PHRASES.search(str(error)))
