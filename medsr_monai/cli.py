"""The command ``medsr``: plain typed functions by name."""

from __future__ import annotations

import logging
import sys
import warnings

from medsr_monai.commands.benchmark import benchmark
from medsr_monai.commands.compare import compare
from medsr_monai.commands.convert import convert
from medsr_monai.commands.degrade import degrade
from medsr_monai.commands.demo import demo
from medsr_monai.commands.evaluate import evaluate
from medsr_monai.commands.files import ERRORS, reason_of
from medsr_monai.commands.inspect import inspect
from medsr_monai.commands.models import models
from medsr_monai.commands.prepare import prepare
from medsr_monai.commands.upscale import upscale

COMMANDS = {
    f.__name__: f for f in (upscale, inspect, degrade, evaluate, convert, prepare, models, demo, benchmark, compare)
}


def main(argv: list[str] | None = None) -> None:
    """Run ``medsr``: exit code 0, 1 for an error (one line on stderr), 2 for a wrong command line."""
    from medsr_monai.command_line import parse

    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        from medsr_monai import __version__

        print(__version__)
        return
    logging.basicConfig(level=logging.WARNING, format="medsr: %(message)s")
    # headers are checked by medsr_monai.data, in words for users
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    # an optional GPU decoder of MONAI's that nobody asked for
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries, for developers; ours are logged
    try:
        call = parse(COMMANDS, arguments, "medsr")
        code = None
        if call:
            function, args, kwargs = call
            code = function(*args, **kwargs)
    except KeyboardInterrupt:
        print("medsr: interrupted", file=sys.stderr)
        sys.exit(130)
    except ERRORS as error:
        print(f"medsr: error: {reason_of(error)}", file=sys.stderr)
        sys.exit(1)
    sys.exit(code or 0)
