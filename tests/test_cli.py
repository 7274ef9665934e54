"""The command line itself: what of it is refused, its help, its errors, and what its processes say and load."""

from __future__ import annotations

import functools
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fire import docstrings
from typed_commands import process

from medsr_monai import cli
from medsr_monai.data import sample_volume

ROOT = Path(__file__).parents[1]


@pytest.fixture
def recorded(monkeypatch):
    """Every command notes its arguments instead of working."""
    calls: list[tuple[str, tuple, dict]] = []

    def recorder(function):
        @functools.wraps(function)
        def note(*args, **kwargs):
            calls.append((function.__name__, args, kwargs))

        return note

    monkeypatch.setattr(cli, "COMMANDS", {name: recorder(f) for name, f in cli.COMMANDS.items()})
    return calls


@pytest.mark.parametrize(
    "name", ["2024", "1e3", "True", "None", "[1,2]", "0x10", "a b", "{'a': 1}", "~x", "ä.nii", "1,2"]
)
def test_paths_and_ids_stay_strings(medsr, recorded, name):
    assert medsr("upscale", name, name, "--bundle", name, f"--weights={name}")[0] == 0
    _, args, kwargs = recorded[0]
    assert args[:2] == (name, name) and name in args[2:] and args.count(name) == 4, (args, kwargs)
    assert medsr("models", "--json=false")[0] == 0
    assert medsr("convert", name, name, name)[0] == 0
    assert recorded[-1][1][:3] == (name, name, name)


@pytest.mark.parametrize(
    "line",
    [
        "upscale",
        "upscale in",
        "upscale in out --ovrwrite",
        "upscale in out --foo 3",
        "upscale in out --foo=3",
        "upscale in out b auto cpu None None 4 None True surplus",
        "upscale in out surplus b auto cpu None None None 4 None True",
        "upscale in out --overwrite surplus",
        "upscale in out --overwrite=yes",
        "upscale in --overwrite out --verbose no",
        "upscale in out --frame first",
        "upscale in out --frame 1.5",
        "upscale in out - run",
        "upscale in out - function",
        "upscale __doc__",
        "upscale __wrapped__",
        "degrade in out --scale four",
        "degrade in out --noise much",
        "models surplus",
        "models --jsn",
        "models - json",
        "clear",
        "keys",
        "get upscale",
        "nonsense",
    ],
)
def test_a_wrong_command_line_exits_2_before_any_work(medsr, recorded, line):
    code, out, err = medsr(*line.split())
    assert (code, out) == (2, "")
    assert "ERROR: " in err and "Usage: medsr" in err
    assert not recorded


def test_an_empty_argument_is_refused(medsr, recorded):
    code, _, err = medsr("upscale", "", "out")
    assert code == 2 and "empty" in err
    assert not recorded


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("models --json", True),
        ("models --json=true", True),
        ("models --json True", True),
        ("models --nojson", False),
        ("models --json=False", False),
        ("models", False),
    ],
)
def test_switches(medsr, recorded, line, expected):
    assert medsr(*line.split())[0] == 0
    assert recorded[0][1] == (expected, None)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("inspect --json in", {"path": "in", "json": True}),
        ("inspect -j --verbose in --no_timing", {"path": "in", "json": True, "no_timing": True}),
        ("inspect --nojson in", {"path": "in"}),
        ("inspect --json True in", {"path": "in", "json": True}),
        ("inspect --json=False in --frame 1", {"path": "in", "frame": 1}),
        ("inspect --json --path in", {"path": "in", "json": True}),
        ("upscale --overwrite in --tile 32 out", {"input": "in", "output": "out", "overwrite": True, "tile": 32}),
        ("upscale --tile 32 --force in --nopicture out", {"input": "in", "output": "out", "tile": 32, "force": True,
                                                          "picture": False}),
        ("upscale in -v out", {"input": "in", "output": "out"}),
    ],
)  # fmt: skip
def test_switches_before_the_path(medsr, recorded, line, expected):
    assert medsr(*line.split())[0] == 0
    name, args, kwargs = recorded[0]
    signature = inspect.signature(cli.COMMANDS[name])
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    defaults = {n: p.default for n, p in signature.parameters.items()}
    assert bound.arguments == defaults | expected


def test_numbers_and_none(medsr, recorded):
    assert medsr("degrade", "a", "b", "--fwhm", "1e1", "--scale=2", "--noise", "0.5", "--frame", "None")[0] == 0
    _, args, _ = recorded[0]
    assert args[2] == 2 and 10.0 in args and 0.5 in args


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_help_is_readable_and_complete(medsr, command):
    code, out, err = medsr(*([command] if command else []), "--help")
    text = out + err
    assert code == 0
    assert not re.search("FIRE_METADATA|GROUP|object at 0x", text)
    for word in cli.COMMANDS if command is None else cli.COMMANDS[command].__annotations__:
        if word != "return":
            assert re.search(rf"(?i)\b{word}\b", text), word
    if command:
        assert cli.COMMANDS[command].__doc__.splitlines()[0] in text
        assert "--verbose" in text and "traceback" in text
        kinds = re.findall("Type: (.*)", text)
        assert kinds and set(kinds) <= {"str", "int", "float", "bool", "list"}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_shows_whole_sentences(command):
    """Fire takes a line of a docstring that goes on with a word and a colon for another argument."""
    shown = {one.name: one.description for one in docstrings.parse(cli.COMMANDS[command].__doc__).args or ()}
    assert shown.keys() == inspect.signature(cli.COMMANDS[command]).parameters.keys()
    assert all(text.endswith(".") for text in shown.values()), shown


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("x"), "KeyError: 'x': please report it with what --verbose shows"),
        (ValueError("give another one"), "give another one"),
    ],
)
def test_an_error_is_one_line_and_with_verbose_a_traceback(medsr, monkeypatch, error, line):
    def models(json: bool = False):
        """List.

        Args:
            json: print JSON.
        """
        raise RuntimeError("applying transform") from error

    monkeypatch.setitem(cli.COMMANDS, "models", models)
    assert medsr("models") == (1, "", f"medsr: error: {line}\n")
    code, out, err = medsr("models", "--verbose")
    assert (code, out) == (1, "") and "Traceback" in err and "applying transform" in err
    assert err.endswith(f"medsr: error: {line}\n")


def test_libraries_speak_only_with_verbose(tmp_path):
    """A process of `medsr upscale`, which loads all that this one does, is silent in commands/test_upscale.py."""
    code, _, err = process("degrade", "--verbose", sample_volume(), "lr.nii.gz", cwd=tmp_path)
    assert code == 0 and "nvImageCodec" in err


@pytest.mark.skipif(os.name != "posix", reason="needs a pipe of POSIX")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_quietly(unbuffered):
    """As `medsr models | head` does it, whether the output is larger than a pipe's buffer or not."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    for arguments in (["models"], ["models", "--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "medsr_monai", *arguments]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment)
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, b"")


def test_without_a_command_there_is_help(medsr):
    code, out, err = medsr()
    assert code == 0 and "upscale" in out + err


def test_light_commands_load_no_heavy_library(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "b.nii.gz").touch()
    program = """
import sys
from medsr_monai.cli import main
for line, code in {
    "models": 0, "models --json": 0, "--help": 0, "upscale --help": 0, "--version": 0, "nonsense": 2,
    "upscale missing.nii.gz out.nii.gz": 1, "upscale a.nii.gz out.img": 1, "upscale a.nii.gz b.nii.gz": 1,
    "upscale a.nii.gz out.nii.gz --bundle nope": 1, "upscale a.nii.gz out.nii.gz --foo": 2,
    "degrade missing.nii.gz out.nii.gz": 1, "evaluate a.nii.gz missing.nii.gz": 1, "convert missing.pt out.pt": 1,
    "benchmark --size 3": 1,
    "compare missing.nii.gz": 1, "compare a.nii.gz --networks b=missing.pt": 1, "compare a.nii.gz --crop 3": 1,
}.items():
    try:
        main(line.split())
        end = 0
    except SystemExit as error:
        end = error.code or 0
    heavy = {"torch", "monai", "nibabel", "numpy", "matplotlib"} & set(sys.modules)
    assert end == code and not heavy, (line, end, heavy)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=tmp_path, capture_output=True)


def test_version_as_a_process(tmp_path):
    from medsr_monai import __version__

    assert process("--version", cwd=tmp_path) == (0, f"{__version__}\n", "")
