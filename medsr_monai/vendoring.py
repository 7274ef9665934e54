"""This package's code for a bundle that is to run without it: the modules that its configuration needs, renamed.

A bundle of the Model Zoo keeps its code in ``scripts/``, so ``medsr_monai.networks.RDST`` becomes
``scripts.networks.RDST`` in configurations and in import statements. Other strings stay: weights files name their
network by ``medsr_monai.networks.RDST``, wherever the code lies.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["PACKAGE", "SCRIPTS", "Imports", "imports_of", "needed_modules", "renamed_config", "renamed_source"]

PACKAGE, SCRIPTS = "medsr_monai", "scripts"
ROOT = Path(__file__).parent
NAME = re.compile(rf"\b{PACKAGE}((?:\.\w+)*)")


class Imports(NamedTuple):
    """Top-level names of other packages that some modules import."""

    always: set[str]  # when the module is imported
    later: set[str]  # inside functions, when they are needed


def needed_modules(configs: Iterable[str]) -> dict[str, Path]:
    """All modules that the names in some configurations' texts lead to, through every import; files by dotted name.

    Raises:
        ValueError: a configuration names a module of this package that is not there.
    """
    needed: dict[str, Path] = {}
    waiting = [(name, "a configuration") for text in configs for name in _names(text)]
    while waiting:
        name, reader = waiting.pop()
        parts = name.split(".")
        found = [(p, _file(p)) for p in (".".join(parts[: n + 1]) for n in range(len(parts)))]
        # the last part may be a class or a function, which a package exports
        if not found[max(len(parts) - 2, 0)][1]:
            raise ValueError(f"{reader} names {name}: no such module of {PACKAGE}")
        for module, file in found:
            if file and module not in needed:
                needed[module] = file
                waiting += [(inner, module) for inner, _ in _imported(module, file) if inner.split(".")[0] == PACKAGE]
    return dict(sorted(needed.items()))


def imports_of(modules: dict[str, Path]) -> Imports:
    """What modules import besides this package and Python's own library."""
    always, later = set(), set()
    for module, file in modules.items():
        for name, at_once in _imported(module, file):
            (always if at_once else later).add(name.split(".")[0])
    ours = {PACKAGE, *sys.stdlib_module_names}
    return Imports(always - ours, later - always - ours)


def renamed_config(text: str) -> str:
    """A configuration whose targets, expressions and imports name ``scripts``."""
    return NAME.sub(rf"{SCRIPTS}\1", text)


def renamed_source(text: str) -> str:
    """A module whose import statements name ``scripts``.

    Raises:
        ValueError: ``import medsr_monai.x``, whose uses would have to be renamed too.
    """
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == PACKAGE for alias in node.names):
            raise ValueError(f"import {PACKAGE}... cannot be renamed: write from {PACKAGE}... import ...")
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] == PACKAGE:
            lines[node.lineno - 1] = lines[node.lineno - 1].replace(f"from {PACKAGE}", f"from {SCRIPTS}", 1)
    return "".join(lines)


def _names(text: str) -> Iterator[str]:
    return (match.group() for match in NAME.finditer(text) if match.group(1))


def _file(module: str) -> Path | None:
    inner = ROOT.joinpath(*module.split(".")[1:])
    return next((f for f in (inner / "__init__.py", inner.with_suffix(".py")) if f.is_file()), None)


@functools.cache
def _imported(module: str, file: Path) -> tuple[tuple[str, bool], ...]:
    """Absolute names that a module's imports may mean, and whether importing the module imports them."""
    return tuple(_import_statements(module, file))


def _import_statements(module: str, file: Path) -> Iterator[tuple[str, bool]]:
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node, at_once in _statements(ast.parse(file.read_text()), True):
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            yield base, at_once
            # modules among the imported names
            yield from ((f"{base}.{a.name}", at_once) for a in node.names if _file(f"{base}.{a.name}"))


def _statements(node: ast.AST, at_once: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, at_once
        later = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or _for_types_only(child)
        yield from _statements(child, at_once and not later)


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
