"""The house's rules: who may import whom, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "medsr_monai"
# a module may import only what stands beside the first prefix that fits it; commands import everything
ALLOWED = {
    "networks.blocks": {"networks.blocks"},
    "networks": {"networks"},
    "convert": {"convert", "networks"},
    "transforms.recipes": {"transforms", "data"},
    "transforms.thick_slices": {"transforms.degradation", "transforms.geometry", "transforms.interpolation"},
    "transforms.patch_batches": {
        *("transforms.degradation", "transforms.interpolation", "transforms.thick_slices"),
    },
    "transforms": {"transforms.geometry"},
    "inferers": {
        *("inferers", "out_of_memory"),
        *("transforms.degradation", "transforms.geometry", "transforms.interpolation"),
    },
    "atomic": set(),
    "weights": set(),
    "vendoring": set(),
    "out_of_memory": set(),
    "data": {"data", "atomic", "out_of_memory", "transforms.geometry"},
    "losses": {"losses"},
    "engines": {"engines", "handlers"},
    "metrics": {"metrics"},
    "handlers": {"handlers", "metrics", "networks.arguments", "atomic", "out_of_memory", "provenance", "weights"},
    "command_line": set(),
    "cli": {"command_line", "commands"},
    "provenance": {"atomic", "data", "metrics", "transforms.geometry", "weights"},
    "cohort": {"atomic", "metrics"},
    "training_data": {"data", "training_description", "transforms.geometry", "transforms.intensity"},
    "training_description": set(),
    "quality": {"atomic", "inferers", "metrics", "transforms"},
    "report_page": {"atomic"},
    "estimate": {"inferers", "transforms.geometry"},
    "compare": {"atomic", "handlers", "inferers", "metrics", "networks", "transforms"},
    "exported": set(),
    "exchange": {"atomic", "exported", "networks.blocks.deformable"},
    "__main__": {"cli"},
}
MODULES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, "relative imports only within a package"
            yield node.module if node.level == 0 else None


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m != "__init__" and not m.startswith("commands.")))
def test_import_directions(module):
    if module.endswith("__init__"):
        # a package re-exports its own modules only
        allowed = {module.removesuffix(".__init__")}
    else:
        allowed = next(names for prefix, names in ALLOWED.items() if (module + ".").startswith(prefix + "."))
    for name in imports(MODULES[module]):
        if name and name.startswith("medsr_monai."):
            inner = name.removeprefix("medsr_monai.")
            assert any((inner + ".").startswith(a + ".") for a in allowed), f"{module} imports {name}"


def test_only_the_command_line_knows_the_bundles():
    for module, path in MODULES.items():
        if module != "commands.bundles":
            assert '"bundles"' not in path.read_text() and "/bundles" not in path.read_text(), module


def test_no_room_for_leftovers():
    assert not [m for m in MODULES if m.split(".")[-1] in ("utils", "common", "base", "helpers")]


def test_importing_the_package_is_cheap():
    code = "import medsr_monai, sys; sys.exit(bool({'torch', 'monai', 'fire'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_package_is_declared():
    """setup.cfg lists the packages by hand, since bundles/ is mapped into the package."""
    text = (PACKAGE.parent / "setup.cfg").read_text()
    for init in PACKAGE.rglob("__init__.py"):
        name = ".".join(("medsr_monai", *init.parent.relative_to(PACKAGE).parts))
        assert f"\n    {name}\n" in text, name
