"""Medical image super-resolution as MONAI Bundles. Importing the package imports neither torch nor monai."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import logging
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medsr_monai.errors import MedsrError
    from medsr_monai.evaluation.degrade import degrade
    from medsr_monai.evaluation.evaluate import evaluate
    from medsr_monai.networks import NETWORKS
    from medsr_monai.upscaling.upscaler import Upscaler, upscale

__version__ = "0.1.0"
__all__ = ["NETWORKS", "MedsrError", "Upscaler", "degrade", "evaluate", "upscale"]

HOMES = {
    "MedsrError": "medsr_monai.errors",
    "NETWORKS": "medsr_monai.networks",
    "Upscaler": "medsr_monai.upscaling.upscaler",
    "degrade": "medsr_monai.evaluation.degrade",
    "evaluate": "medsr_monai.evaluation.evaluate",
    "upscale": "medsr_monai.upscaling.upscaler",
}
"""Where the public names live; they are imported when they are first asked for."""

MOVED = {
    "medsr_monai.exported": "medsr_monai.exchange.run",
    "medsr_monai.transforms.recipes": "medsr_monai.recipes",
}
"""Modules that bundles made for 0.1.0 name, and what these are called now."""


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES])


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a moved module under its old name, too, so that users' own bundles keep loading, with a warning."""

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        new = MOVED[spec.name]
        logging.getLogger(__name__).warning("%s is called %s now: change the bundle's configs", spec.name, new)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = module.__spec__.loader_state  # the import system has put the old name's there


sys.meta_path.append(_Moved())
