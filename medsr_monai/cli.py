"""The command ``medsr``: plain typed functions by name."""

from __future__ import annotations

import contextlib
import sys
import traceback

from medsr_monai.commands.benchmark import benchmark
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
        *(upscale, inspect, degrade, evaluate, compare, demo),
        *(models, fetch, convert, prepare, describe, export, package, benchmark),
    )
}


def main(argv: list[str] | None = None) -> None:
    """Run ``medsr``: exit code 0, 1 for an error (one line on stderr), 2 for a wrong command line (with the usage).

    ``upscale`` of a folder ends with 1 if some cases failed, and with 2 if all did. It is 130 after Ctrl-C, and 141
    where nobody reads the output any more, as after ``| head``. With ``--verbose`` an error shows its traceback.
    """
    from medsr_monai.command_line import Pipe, parse, quiet_libraries

    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        from medsr_monai import __version__

        print(__version__)
        return
    call = None
    try:
        with contextlib.redirect_stdout(Pipe(sys.stdout)):
            call = parse(COMMANDS, arguments, "medsr")
            if call is None:
                return
            quiet_libraries(call.verbose)
            code = call.function(*call.args, **call.kwargs)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("medsr: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if call is not None and call.verbose:
            traceback.print_exc()
        print(f"medsr: error: {line_of(error)}", file=sys.stderr)
        sys.exit(1)
    sys.exit(code or 0)
