"""The house's rules: who may import whom, and what an import costs."""

import ast
import logging
import pydoc
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "medsr_monai"
# a room may import itself, what stands beside it, and what anyone may
ANYONE = {"atomic", "errors", "suffixes", "__init__"}
ALLOWED = {
    "networks.blocks": set(),
    "networks": {"networks.blocks"},
    "convert": {"networks"},
    "weights": {"networks"},
    "exchange": {"networks", "networks.blocks"},
    "transforms": set(),
    "inferers": {"transforms"},
    "data": {"transforms"},
    "recipes": {"data", "transforms"},
    "losses": set(),
    "metrics": set(),
    "records": {"data", "metrics", "transforms", "weights"},
    "handlers": {"metrics", "networks", "records", "weights"},
    "engines": {"handlers", "weights"},
    "upscaling": {
        *("data", "exchange", "inferers", "metrics", "networks", "records", "transforms", "weights"),
        "command_line",
    },
    "evaluation": {"data", "inferers", "metrics", "networks", "recipes", "transforms", "upscaling", "weights"},
    "command_line": set(),
    "cli": {"command_line", "commands"},
    "__main__": {"cli"},
}
MODULES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}


def imports(path):
    """Modules of this package that a file imports, anywhere in it."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level <= 1, "relative imports only within a package"
            parts = (node.module or "").split(".") if node.module else []
            inner = [*package, *parts] if node.level else parts[1:] if parts[:1] == ["medsr_monai"] else None
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("medsr_monai.") for alias in node.names), f"{path}: from ... import"
            continue
        else:
            continue
        if inner is None:
            continue
        for name in [node.module and ".".join(inner)] + [".".join([*inner, alias.name]) for alias in node.names]:
            if name in MODULES or f"{name}.__init__" in MODULES:
                yield name if name in MODULES else f"{name}.__init__"


def room(module):
    return next((prefix for prefix in ALLOWED if f"{module}.".startswith(f"{prefix}.")), module.split(".")[0])


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m != "__init__" and not m.startswith("commands.")))
def test_import_directions(module):
    for name in imports(MODULES[module]):
        own = room(name) == room(module)
        assert own or room(name) in ALLOWED[room(module)] | ANYONE, f"{module} imports {name}"
        if module.endswith("__init__") and module != "handlers.__init__":  # which names what 0.1.0 had there
            assert name.startswith(module.removesuffix("__init__")), f"{module} is a face: only its own modules"


def test_no_module_imports_itself_by_way_of_others():
    """Beside the faces of packages, whose modules may be imported by them and by one another."""
    graph = {m: [n for n in imports(p) if not n.endswith("__init__")] for m, p in MODULES.items()}
    TopologicalSorter({m: names for m, names in graph.items() if not m.endswith("__init__")}).prepare()


def test_only_the_product_knows_the_bundles():
    for module, path in MODULES.items():
        if module != "upscaling.bundles":
            assert '"bundles"' not in path.read_text() and "/bundles" not in path.read_text(), module


def test_no_room_for_leftovers():
    assert not [m for m in MODULES if m.split(".")[-1] in ("utils", "common", "base", "helpers")]
    assert len([m for m in MODULES if "." not in m]) <= 8


def test_importing_the_package_is_cheap():
    code = "import medsr_monai, sys; sys.exit(bool({'torch', 'monai', 'fire'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("medsr_monai.transforms.recipes.load_volume", "medsr_monai.recipes.load_volume"),
        ("medsr_monai.exported.ExportedNetwork", "medsr_monai.exchange.run.ExportedNetwork"),
        ("medsr_monai.handlers.load_network", "medsr_monai.weights.load.load_network"),
    ],
)
def test_names_of_bundles_made_for_0_1_0_keep_loading(old, new, caplog):
    for module in (old.rpartition(".")[0], *(m for m in sys.modules if m.startswith("medsr_monai.exported"))):
        if "handlers" not in module:
            sys.modules.pop(module, None)
    with caplog.at_level(logging.WARNING):
        assert pydoc.locate(old) is pydoc.locate(new)
    assert "handlers" in old or new.rpartition(".")[0] in caplog.text


def test_every_package_is_declared():
    """setup.cfg lists the packages by hand, since bundles/ is mapped into the package."""
    text = (PACKAGE.parent / "setup.cfg").read_text()
    for init in PACKAGE.rglob("__init__.py"):
        name = ".".join(("medsr_monai", *init.parent.relative_to(PACKAGE).parts))
        assert f"\n    {name}\n" in text, name
