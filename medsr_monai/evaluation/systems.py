"""The systems that are compared, as a command line names them; light, since names are checked before anything loads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsr_monai.errors import naming
from medsr_monai.upscaling.bundles import BundleRunner, bundle_folders, read_inference

if TYPE_CHECKING:
    from medsr_monai.evaluation.tables import Runner

__all__ = ["System", "load_systems", "named_systems"]


@dataclass(frozen=True)
class System:
    """A bundle or a network that is to be compared.

    Attributes:
        name: in tables; None for that of the network's class, which its weights file tells.
        bundle: name or folder; None for a network without one.
        weights: file; None for the bundle's own.
    """

    name: str | None
    bundle: str | None
    weights: str | None


def named_systems(names: str) -> list[System]:
    """Systems by names with commas between them: of bundles, of their folders, of weights files, ``NAME=FILE``.

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


def load_systems(chosen: Sequence[System], trust_code: bool = False, **options: Any) -> dict[str, Runner]:
    """Load systems; returns what runs them, by name.

    Args:
        chosen: from :func:`named_systems`.
        trust_code: see :class:`medsr_monai.upscaling.bundles.BundleRunner`.
        options: of a :class:`medsr_monai.evaluation.tables.NetworkRunner`: plane, device, slice_batch and frame too.

    Raises:
        FileNotFoundError, ValueError: weights that do not load, a bundle that compare cannot run, two of one name.
    """
    from medsr_monai.evaluation.tables import load_runner

    device = f"$torch.device('{options['device']}')"
    overrides = {"plane": options["plane"], "frame": options["frame"], "sw_batch_size": options["slice_batch"]}
    systems: dict[str, Runner] = {}
    for system in chosen:
        name, bundle, file = system.name, system.bundle, system.weights
        if bundle is None:
            with naming(file):
                runner = load_runner(file, name, **options)
            name = name or type(runner.network).__name__
        else:
            if "thick_axis" in read_inference(bundle, trust_code):
                raise ValueError(
                    f"bundle {bundle} makes thick slices thin, compare enlarges slices: compare it by "
                    "`medsr degrade --direction through-plane`, `medsr upscale` and `medsr evaluate`"
                )
            runner = BundleRunner(bundle, file, trust_code=trust_code, device=device, **overrides)
            if not runner.weights:
                raise ValueError(f"bundle {bundle} names no weights: give {bundle}=path/to/model.pt")
        if name in (*systems, "Bicubic", "input", "reference"):
            raise ValueError(f"{name} is another column's name: give this one its own, NAME=path/to/model.pt")
        systems[name] = runner
    return systems
