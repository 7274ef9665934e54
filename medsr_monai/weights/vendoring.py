"""This package's code in a bundle that is to run without the package: the modules that it needs, renamed.

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

__all__ = ["PACKAGE", "SCRIPTS", "imports_of", "needed_modules", "renamed_config", "renamed_source"]

PACKAGE, SCRIPTS = "medsr_monai", "scripts"
"""The name of this package, and the one that takes its place in a bundle."""
ROOT = Path(__file__).parents[1]
NAME = re.compile(rf"\b{PACKAGE}((?:\.\w+)*)")


def needed_modules(configs: Iterable[str]) -> dict[str, Path]:
    """Return all modules, files by dotted name, that the names in configurations lead to through every import.

    Args:
        configs: the texts of the configurations.

    Raises:
        ValueError: a configuration names a module of this package that does not exist.
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
                waiting += [(name, module) for name in _imported(module, file) if name.split(".")[0] == PACKAGE]
    return dict(sorted(needed.items()))


def imports_of(modules: dict[str, Path]) -> set[str]:
    """Return the top-level names of what modules import besides this package and Python's standard library."""
    names = {name.split(".")[0] for module, file in modules.items() for name in _imported(module, file)}
    return names - {PACKAGE, *sys.stdlib_module_names}


def renamed_config(text: str) -> str:
    """Return a configuration's text with ``scripts`` for this package in targets, expressions and imports."""
    return NAME.sub(rf"{SCRIPTS}\1", text)


def renamed_source(text: str) -> str:
    """Return a module's text with ``scripts`` for this package in its import statements.

    Raises:
        ValueError: it has ``import medsr_monai.x``, whose uses would have to be renamed too.
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
def _imported(module: str, file: Path) -> frozenset[str]:
    """Return the absolute names that the imports of a module, at its top and in functions, may mean."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            # with the modules among the imported names
            names |= {base, *(f"{base}.{a.name}" for a in node.names if _file(f"{base}.{a.name}"))}
    return frozenset(names)
