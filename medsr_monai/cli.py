"""The command ``medsr``: plain typed functions by name."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import Any

from medsr_monai.commands.adapt import adapt
from medsr_monai.commands.benchmark import benchmark
from medsr_monai.commands.bids import bids
from medsr_monai.commands.compact import compact
from medsr_monai.commands.compare import compare
from medsr_monai.commands.convert import convert
from medsr_monai.commands.degrade import degrade
from medsr_monai.commands.demo import demo
from medsr_monai.commands.describe import describe
from medsr_monai.commands.evaluate import evaluate
from medsr_monai.commands.export import export
from medsr_monai.commands.fetch import fetch
from medsr_monai.commands.inspect import inspect
from medsr_monai.commands.models import models
from medsr_monai.commands.package import package
from medsr_monai.commands.prepare import prepare
from medsr_monai.commands.upscale import upscale
from medsr_monai.errors import line_of

COMMANDS = {
    f.__name__: f
    for f in (
        *(upscale, adapt, bids, inspect, degrade, evaluate, compare, demo),
        *(models, fetch, convert, prepare, describe, compact, export, package, benchmark),
    )
}


class TerminatedError(BaseException):
    """SIGTERM has come."""


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the tidying up
    raise TerminatedError


def _listen(number: int, handler: Any) -> Any:
    """Set what a signal does, in the main thread, and return what it did before; None elsewhere."""
    if threading.current_thread() is not threading.main_thread() or handler is None:
        return None
    return signal.signal(number, handler)


def main(argv: list[str] | None = None) -> None:
    """Run ``medsr``: exit code 0, 1 for an error (one line on stderr), 2 for a wrong command line (with the usage).

    ``upscale`` of a folder ends with 1 if some cases failed, and with 2 if all did. It is 130 after Ctrl-C, 143 after
    SIGTERM, which tidies up likewise, and 141 where nobody reads the output any more, as after ``| head``. With
    ``--verbose`` an error shows its traceback.
    """
    from medsr_monai.command_line import Pipe, lines, parse, print_traceback, quiet_libraries

    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        from medsr_monai import __version__

        print(__version__)
        return
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # read when torch is imported
    call = None
    before = _listen(signal.SIGTERM, _terminate)
    try:
        with contextlib.redirect_stdout(Pipe(sys.stdout)) as pipe:
            call = parse(COMMANDS, arguments, "medsr")
            if call is None:
                return
            quiet_libraries(call.verbose)
            pipe.shown = lines
            code = call.function(*call.args, **call.kwargs)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("medsr: interrupted", file=sys.stderr)
        sys.exit(130)
    except TerminatedError:
        print("medsr: terminated", file=sys.stderr)
        sys.exit(143)
    except Exception as error:
        if call is not None and call.verbose:
            print_traceback()
        print(f"medsr: error: {line_of(error)}", file=sys.stderr)
        sys.exit(1)
    finally:
        _listen(signal.SIGTERM, before)
    sys.exit(code or 0)
