"""Fire, tamed: arguments are parsed by annotation, and nothing runs before the whole command line is understood."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any


class _Closed:
    """Fire offers every name that `dir` shows (`medsr clear`, `medsr upscale __doc__`): here there is none."""

    def __dir__(self) -> list[str]:
        return []


class _Commands(_Closed, dict):
    """Super-resolution of medical volumes; `medsr COMMAND --help` explains a command."""


class _Call(_Closed):
    """A checked command line, not yet run: Fire calls a function before it looks at the arguments left over."""

    def __init__(self, function: Callable, args: tuple, kwargs: dict) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs


class _Command(_Closed):
    """A function of the same signature for Fire, its arguments parsed by annotation: a folder 1e3 is no number."""

    def __init__(self, function: Callable) -> None:
        from fire.decorators import SetParseFns

        functools.update_wrapper(self, function)
        parameters = inspect.signature(function).parameters.items()
        parsers = {name: PARSERS[parameter.annotation.removesuffix(" | None")] for name, parameter in parameters}
        SetParseFns(**parsers)(self)

    def __get__(self, instance: object, owner: type | None = None) -> _Command:
        return self  # makes it a routine to `inspect`, as Fire wants it for positional arguments

    def __call__(self, *args: Any, **kwargs: Any) -> _Call:
        return _Call(self.__wrapped__, args, kwargs)


def _wrong(message: str) -> Exception:
    from fire.core import FireError

    return FireError(message)  # Fire adds the usage and exits with 2


def _parse_text(text: str) -> str:
    if not text:
        raise _wrong("an argument is empty: an unset variable in a script?")
    return text


def _parse_bool(text: str) -> bool:
    if text not in ("True", "False", "true", "false"):
        raise _wrong(f"a switch was given the value {text!r}: put switches last, or write --name=true")
    return text.lower() == "true"


def _parse_number(kind: type, text: str) -> Any:
    if text == "None":
        return None
    try:
        return kind(text)
    except ValueError:
        raise _wrong(f"{text!r} is not a number of type {kind.__name__}") from None


PARSERS = {
    "str": _parse_text,
    "bool": _parse_bool,
    "int": functools.partial(_parse_number, int),
    "float": functools.partial(_parse_number, float),
}


def parse(
    functions: dict[str, Callable], arguments: list[str], program: str
) -> tuple[Callable, tuple, dict[str, Any]] | None:
    """Find the function that a command line calls, and its arguments, by their annotations; None after a help text.

    Args:
        functions: by the names of their commands; parameters are annotated by one of `PARSERS`, or that and None.
        arguments: without the program's name.
        program: name in usage texts.

    Raises:
        SystemExit: 2 after a message, where the command line is wrong: an unknown flag, one argument too many, a value
            that is no number.
    """
    import fire

    commands = _Commands((name, _Command(function)) for name, function in functions.items())
    call = fire.Fire(commands, arguments or ["--help"], program, _text)
    return (call.function, call.args, call.kwargs) if isinstance(call, _Call) else None


def _text(result: object) -> str | None:
    return result if isinstance(result, str) else None  # Fire's completion script


def quiet_libraries() -> None:
    """Leave to a command's process what is said to users: this package's warnings, a line each."""
    logging.basicConfig(level=logging.WARNING, format="medsr: %(message)s")
    # headers are checked by medsr_monai.data, in words for users
    for library in ("nibabel.global", "pydicom"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files in another encoding
    # an optional GPU decoder of MONAI's that nobody asked for
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries, for developers; ours are logged
