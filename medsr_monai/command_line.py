"""Fire, tamed: arguments are parsed by annotation, and nothing runs before the whole command line is understood."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from medsr_monai.errors import printable

MPS_FALLBACK = ".*MPS backend.*fall back"
"""What torch says, with its name, of an operator that a Mac's GPU has not and that runs on the CPU instead."""
PIPE_CLOSED = 141
"""The exit code of a program whose output nobody reads any more, as shells give it: 128 plus the number of SIGPIPE."""


class _Closed:
    """Fire offers every name that `dir` shows (`medsr clear`, `medsr upscale __doc__`): here there is none."""

    def __dir__(self) -> list[str]:
        return []


class _Commands(_Closed, dict):
    """Super-resolution of medical volumes; `medsr COMMAND --help` explains a command."""


class _Call(_Closed):
    """A checked command line, not yet run: Fire calls a function before it looks at the arguments left over."""

    def __init__(self, function: Callable, args: tuple, kwargs: dict, verbose: bool) -> None:
        self.function, self.args, self.kwargs, self.verbose = function, args, kwargs, verbose


class _Omitted:
    """The default of an argument that may be left out, for Fire's help, which shows it as nothing."""

    def __repr__(self) -> str:
        return ""


OMITTED = _Omitted()
VERBOSE = "verbose: show the messages of libraries, and the traceback of an error."


class _Command(_Closed):
    """A function for Fire, its arguments parsed by annotation (a folder 1e3 is no number), and `--verbose`."""

    def __init__(self, function: Callable) -> None:
        from fire.decorators import SetParseFn, SetParseFns

        functools.update_wrapper(self, function)
        self.__doc__ = f"{function.__doc__.rstrip()}\n        {VERBOSE}\n    "
        verbose = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation="bool")
        parameters = [*inspect.signature(function).parameters.values(), verbose]
        kinds = {p.name: p.annotation.removesuffix(" | None") for p in parameters}
        self.words = {name: WORDS.findall(kind) for name, kind in kinds.items() if kind.startswith("Literal[")}
        kinds |= dict.fromkeys(self.words, "str")
        self.__signature__ = inspect.Signature(
            [
                p.replace(annotation=TYPES[kinds[p.name]], default=OMITTED if p.default is None else p.default)
                for p in parameters
            ]
        )
        SetParseFns(**{name: PARSERS[kind] for name, kind in kinds.items()})(self)
        SetParseFn(_parse_text)(self)  # of several paths

    def __get__(self, instance: object, owner: type | None = None) -> _Command:
        return self  # makes it a routine to `inspect`, as Fire wants it for positional arguments

    def __call__(self, *args: Any, verbose: bool = False, **kwargs: Any) -> _Call:
        args = tuple(None if value is OMITTED else value for value in args)
        return _Call(self.__wrapped__, args, kwargs, verbose)

    def apart(self, words: Sequence[str]) -> list[str]:
        """A command line in which no switch takes a required argument for its value, as Fire would.

        Once all required arguments are there, what follows a switch is refused unless it is True or False. A switch
        with words, such as ``--adapt protocol``, takes one of these, and alone means the first. All words up to the
        next option are values of one that takes several.
        """
        parameters = self.__signature__.parameters
        missing = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
        waiting, done = list(words), []
        while waiting:
            word = waiting.pop(0)
            if word == "--":
                return [*done, word, *waiting]
            if not FLAG.match(word):
                missing = missing[1:]
                done.append(word)
                continue
            key, equals, _ = word.lstrip("-").replace("-", "_").partition("=")
            candidates = [name for name in parameters if name == key or (len(key) == 1 and name[0] == key)]
            negated = key.removeprefix("no") if not candidates else ""
            name = candidates[0] if len(candidates) == 1 else negated
            missing = [one for one in missing if one != name]
            if name in self.words and not equals:
                chosen = waiting.pop(0) if waiting and waiting[0] in self.words[name] else self.words[name][0]
                done.append(f"--{name}={chosen}")
                continue
            if equals or not waiting or FLAG.match(waiting[0]) or name not in parameters:
                done.append(word)
            elif parameters[name].annotation is list:
                values = [waiting.pop(0)]
                while waiting and not FLAG.match(waiting[0]):
                    values.append(waiting.pop(0))
                done.append(f"--{name}={','.join(values)}")
            elif parameters[name].annotation is bool and missing and (negated or waiting[0] not in BOOLEANS):
                done.append(f"--{name}={not negated}")
            else:
                done += [word, waiting.pop(0)]
        return done


def _wrong(message: str) -> Exception:
    from fire.core import FireError

    return FireError(message)  # Fire adds the usage and exits with 2


def _parse_text(text: str) -> str:
    if not text:
        raise _wrong("an argument is empty: an unset variable in a script?")
    return text


def _parse_bool(text: str) -> bool:
    if text not in BOOLEANS:
        raise _wrong(f"a switch was given the value {text!r}: put switches last, or write --name=true")
    return text.lower() == "true"


def _parse_number(kind: type, text: str) -> Any:
    if text == "None":
        return None
    try:
        return kind(text)
    except ValueError:
        raise _wrong(f"{text!r} is not a number of type {kind.__name__}") from None


WORDS = re.compile(r"'(\w+)'")
FLAG = re.compile("--|-[a-zA-Z](=|$)")
BOOLEANS = ("True", "False", "true", "false")
TYPES = {"str": str, "bool": bool, "int": int, "float": float, "list[str]": list}
PARSERS = {
    "str": _parse_text,
    "bool": _parse_bool,
    "int": functools.partial(_parse_number, int),
    "float": functools.partial(_parse_number, float),
    "list[str]": lambda text: [_parse_text(part) for part in text.split(",")],
}


def parse(functions: dict[str, Callable], arguments: Sequence[str], program: str) -> _Call | None:
    """Find the function that a command line calls, and its arguments, by their annotations; None after a help text.

    Args:
        functions: by the names of their commands; parameters are annotated by one of `PARSERS`, or that and None, or by
            ``Literal`` and words, of a switch that may have one of these.
        arguments: without the program's name.
        program: name in usage texts.

    Raises:
        SystemExit: 2 after a message, where the command line is wrong: an unknown flag, one argument too many, a value
            that is no number.
    """
    import fire

    commands = _Commands((name, _Command(function)) for name, function in functions.items())
    words = list(arguments) or ["--help"]
    if words[0] in commands:
        words[1:] = commands[words[0]].apart(words[1:])
    with contextlib.redirect_stderr(Pipe(sys.stderr, functools.partial(_shown, words=words))):
        call = fire.Fire(commands, words, program, _text)
    return call if isinstance(call, _Call) else None


def _text(result: object) -> str | None:
    return result if isinstance(result, str) else None  # Fire's completion script


def lines(text: str) -> str:
    """The same text with escapes for control characters but the ends of lines, see `medsr_monai.errors.printable`."""
    return "\n".join(map(printable, text.split("\n")))


STYLE = re.compile("(\x1b\\[[0-9;]*m)")
"""Bold, underlined and red, as Fire writes on a terminal."""


def _shown(text: str, words: Sequence[str]) -> str:
    """What Fire says, in its style, with escapes for control characters of the words that it repeats."""
    for word in words:
        text = text.replace(shlex.quote(word), shlex.quote(printable(word))).replace(word, printable(word))
    return "".join(part if STYLE.fullmatch(part) else lines(part) for part in STYLE.split(text))


def print_traceback() -> None:
    """Print the traceback of the error that is being handled; its texts may be those of headers, a line each."""
    text, error = traceback.format_exc(), sys.exception()
    while error is not None:
        text = text.replace(str(error), printable(str(error))) if str(error) else text
        error = error.__cause__ or error.__context__
    print(lines(text), file=sys.stderr, end="")


class _Escaping(logging.Formatter):
    """What is logged may hold text of headers."""

    def format(self, record: logging.LogRecord) -> str:
        return lines(super().format(record))


def quiet_libraries(verbose: bool = False) -> None:
    """Leave to a command's process what is said to users, a line each: this package's warnings.

    Args:
        verbose: let libraries speak, too, such as MONAI of an optional GPU decoder that nobody asked for.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files in another encoding
    handler = logging.StreamHandler()
    handler.setFormatter(_Escaping("medsr: %(name)s: %(message)s" if verbose else "medsr: %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.CRITICAL, handlers=[handler])
    logging.getLogger("medsr_monai").setLevel(logging.INFO if verbose else logging.WARNING)
    logging.captureWarnings(verbose)  # they may repeat text of headers, too
    if verbose:
        return
    # these have levels of their own; headers are checked by medsr_monai.data, in words for users
    for library in ("nibabel.global", "pydicom", "monai.data.nvimgcodec_pydicom_plugin"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries, for developers; ours are logged
        warnings.filterwarnings("once", message=MPS_FALLBACK)


def is_verbose() -> bool:
    """Whether `quiet_libraries` was told to let libraries speak, and tracebacks are wanted."""
    return logging.getLogger("medsr_monai").isEnabledFor(logging.INFO)


class Pipe:
    """An output that ends the program quietly where nobody reads it any more, as after ``| head``.

    An error of the stream would be taken for a failed case, which it is not.

    Args:
        stream: standard output or standard error.
        shown: what is written of a text, such as one with escapes for its control characters.
    """

    def __init__(self, stream: TextIO, shown: Callable[[str], str] = str) -> None:
        self.stream, self.shown = stream, shown

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self._ending():
            return self.stream.write(self.shown(text))

    def flush(self) -> None:
        with self._ending():
            self.stream.flush()

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # Python flushes once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            sys.exit(PIPE_CLOSED)
