"""The systems that are compared, as a command line names them. It imports little: names are checked first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsr_monai.errors import naming
from medsr_monai.upscaling.bundles import BundleRunner, bundle_folders, read_inference

__all__ = ["System", "load_systems", "named_systems"]


@dataclass(frozen=True)
class System:
    """A bundle or a network that is to be compared.

    Attributes:
        name: the name in tables; None for that of the network's class, which its weights file states.
        bundle: name or folder of the bundle; None for a network without one.
        weights: the weights file; None for the bundle's own.
    """

    name: str | None
    bundle: str | None
    weights: str | None


def named_systems(names: str) -> list[System]:
    """Find systems by names with commas between them: bundles, their folders, weights files, or ``NAME=FILE``.

    Nothing is loaded. ``Bicubic`` is passed over, since it is always compared.

    Raises:
        ValueError, FileNotFoundError: what is unknown, or a network without trained weights.
    """
    known, chosen = bundle_folders(), []
    for entry in names.split(","):
        name, equals, file = entry.partition("=")
        if equals and not Path(file).is_file():
            raise FileNotFoundError(f"{file}: no such weights file")
        if name in known or (Path(name) / "configs" / "inference.json").is_file():
            chosen.append(System(Path(name).resolve().name, name, file or None))
        elif equals:
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise ValueError(f"a system is called {name!r}: give it a name of letters, digits, dots, + and -")
            chosen.append(System(name, None, file))
        elif Path(name).is_file():
            chosen.append(System(None, None, name))
        elif name != "Bicubic":
            from medsr_monai.networks import NETWORKS

            if name in NETWORKS.names:
                raise ValueError(f"{name} is an untrained network: give its weights, {name}=path/to/model.pt")
            raise ValueError(
                f"no bundle or weights file {name!r}: choose from the bundles {', '.join(known)}, or give "
                "NAME=path/to/model.pt"
            )
    return chosen


def load_systems(chosen: Sequence[System], trust_code: bool = False, **overrides: Any) -> dict[str, BundleRunner]:
    """Load systems, and return what runs each, by its name.

    Args:
        chosen: the systems that :func:`named_systems` has found.
        trust_code: see :class:`medsr_monai.upscaling.bundles.BundleRunner`.
        overrides: see :class:`medsr_monai.upscaling.bundles.BundleRunner`.

    Raises:
        FileNotFoundError, ValueError: weights that do not load, a bundle that compare cannot run, two of one name.
    """
    from medsr_monai.evaluation.tables import load_runner

    systems: dict[str, BundleRunner] = {}
    for system in chosen:
        name, bundle, file = system.name, system.bundle, system.weights
        if bundle is None:
            with naming(file):
                runner = load_runner(file, name, **overrides)
            name = name or type(runner.network).__name__
        else:
            if "thick_axis" in read_inference(bundle, trust_code):
                raise ValueError(
                    f"bundle {bundle} makes thick slices thin, compare enlarges slices: compare it by "
                    "`medsr degrade --direction through-plane`, `medsr upscale` and `medsr evaluate`"
                )
            runner = BundleRunner(bundle, file, trust_code=trust_code, **overrides)
            if not runner.weights:
                raise ValueError(f"bundle {bundle} names no weights: give {bundle}=path/to/model.pt")
        if name in (*systems, "Bicubic", "input", "reference"):
            raise ValueError(f"{name} is another column's name: give this one its own, NAME=path/to/model.pt")
        systems[name] = runner
    return systems
