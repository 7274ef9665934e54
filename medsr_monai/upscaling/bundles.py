"""Where the bundles are, and how one is run on single volumes."""

from __future__ import annotations

import functools
import inspect
import pydoc
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from medsr_monai.atomic import read_json
from medsr_monai.errors import reason_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from monai.bundle import ConfigParser
    from monai.data import MetaTensor

    from medsr_monai.data import DicomSeries
    from medsr_monai.inferers import InferencePlan

AUTO_BUNDLE = "auto"
"""In place of a bundle's name: the one that fits the input, see :mod:`medsr_monai.upscaling.choice`."""
DEFAULT_BUNDLE = "rdst_e"
"""The bundle that is measured, compared and exported where none is named."""
HARMLESS = (
    *("medsr_monai.", "torch.nn.", "monai.data.", "monai.engines.", "monai.handlers.", "monai.inferers."),
    *("monai.losses.", "monai.metrics.", "monai.networks.", "monai.transforms."),
)
"""The packages whose classes a bundle may name without being trusted."""
RECIPES = "medsr_monai.recipes."
LONGEST_RECORD = 1_000_000
"""Characters in what a weights file may say of its adaptation."""
PIPELINE = ("in_channels", "out_channels", "scale")
"""Arguments of a network that must stay the bundle's, since its data and its inferer depend on them."""


def bundle_folders() -> dict[str, Path]:
    """Find the bundles: the folder of each by its name, inside an installed package or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    root = next((r for r in (package / "bundles", package.parent / "bundles") if r.is_dir()), None)
    return {p.parent.parent.name: p.parent.parent for p in sorted(root.glob("*/configs/metadata.json"))} if root else {}


def bundle_folder(bundle: str) -> Path:
    """Give the folder of a bundle, which is named or given as a path.

    Raises:
        FileNotFoundError: no such bundle; the line names those that there are.
    """
    known = bundle_folders()
    folder = known.get(bundle, Path(bundle))
    if not (folder / "configs" / "inference.json").is_file():
        raise FileNotFoundError(f"no bundle {bundle!r}: choose {', '.join(known)}, or give a bundle's folder")
    return folder


def references(bundle: str) -> list[str]:
    """Give the BibTeX entries of the papers that a bundle's metadata.json refers to, by their arXiv number or DOI.

    Raises:
        FileNotFoundError: no such bundle.
        ValueError: it refers to no paper that is known here; one line.
    """
    folder = bundle_folder(bundle)
    stated = " ".join(map(str, read_json(folder / "configs" / "metadata.json", "a bundle's metadata")["references"]))
    entries = (next(iter(bundle_folders().values())).parent / "references.bib").read_text().strip().split("\n\n")
    found = [entry for entry in entries if re.search(r"^  (?:eprint|doi) = {(.*?)}", entry, re.M)[1] in stated]
    if not found:
        raise ValueError(f"bundle {bundle}: its metadata.json refers to no paper that is known here")
    return found


def choose_device(device: str, local_rank: int = 0) -> str:
    """Check that a device is available, or choose one.

    Args:
        device: auto, cpu, a GPU such as cuda:0, or mps, that of a Mac. auto is a CUDA GPU where there is one, else the
            CPU.
        local_rank: the number of this process on its machine, by which auto shares out the GPUs.

    Raises:
        ValueError: the device is not available here; the line names those that are.
    """
    import torch

    if device == "auto":
        return f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        here += ["mps"] * torch.backends.mps.is_available()
        raise ValueError(f"device {device!r} is not available here, choose {' or '.join(here)}") from error
    return device


def read_inference(bundle: str | Path, trust_code: bool = False) -> ConfigParser:
    """Read a bundle's inference.json, and refuse code in it that is not trusted; nothing is parsed yet.

    MONAI evaluates strings that begin with ``$`` as Python and calls what ``_target_`` names. Without ``trust_code``
    nothing runs but what installed bundles run: each expression has to be one of theirs, each target one of theirs or
    a class that does no more than a network or a transform does.

    Args:
        bundle: name or folder of the bundle.
        trust_code: take a configuration with any code.

    Raises:
        FileNotFoundError: there is no such bundle.
        ValueError: the file is damaged, or would run other code.
    """
    from monai.bundle import ConfigParser

    file = bundle_folder(str(bundle)) / "configs" / "inference.json"
    parser = ConfigParser()
    read_json(file, "the configuration of a bundle")  # with bounds, which MONAI's reader has not
    try:
        parser.read_config(file)
        unknown = None if trust_code else next(_foreign_code(parser), None)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: no configuration of a bundle, or a damaged one: {reason_of(error)}") from error
    if unknown is not None:
        raise ValueError(
            f"{file}: holds code that no installed bundle has ({unknown}): read it, and add --trust-code to run it"
        )
    return parser


@functools.cache
def _installed_code() -> tuple[frozenset[str], frozenset[str]]:
    """The expressions and the targets of the inference.json of all installed bundles."""
    expressions, targets = set(), set()
    for folder in bundle_folders().values():
        for _, value in _items(read_json(folder / "configs" / "inference.json")):
            if isinstance(value, dict):
                targets |= {value["_target_"]} if "_target_" in value else set()
            elif isinstance(value, str) and value.startswith("$"):
                expressions.add(value)
    return frozenset(expressions), frozenset(targets)


def _items(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All that a configuration holds, with its id."""
    yield name, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _items(part, f"{name}#{key}".lstrip("#"))


def _foreign_code(parser: ConfigParser) -> Iterator[str]:
    """What of a configuration would run code that installed bundles do not, in words."""
    expressions, targets = _installed_code()
    for name, value in _items(parser.get()):
        if isinstance(value, str) and value.startswith(("$", "%")) and value not in expressions:  # % takes other files
            yield f"{name} is {value[:80]!r}"
        if isinstance(value, dict) and "_target_" in value:
            if not (value["_target_"] in targets or _is_harmless(value["_target_"], parser)):
                yield f"_target_ of {name} is {str(value['_target_'])[:80]!r}"
            if value.get("trust_code", False) is not False:
                yield f"trust_code of {name} is {value['trust_code']!r}"


def _is_harmless(target: Any, parser: ConfigParser) -> bool:
    """Whether a target is a class of MONAI, torch or this package that only computes, or one of our recipes."""
    from monai.bundle import ConfigComponent

    if not isinstance(target, str):
        return False
    path = ConfigComponent({"_target_": target}, locator=parser.locator).resolve_module_name()
    if not path.startswith(HARMLESS):  # before anything is imported
        return False
    found = pydoc.locate(path)
    module = f"{getattr(found, '__module__', '')}."
    return module == RECIPES or (inspect.isclass(found) and module.startswith(HARMLESS))


def _literal(path: str | Path) -> str:
    """A path that a configuration takes as it is, also where its name begins like an expression."""
    return f"./{path}" if str(path).startswith(("$", "@", "%")) else str(path)


class BundleRunner:
    """A bundle's inference pipeline for single volumes, with its configuration parsed and its weights loaded once.

    Args:
        bundle: name or folder of the bundle.
        weights: a weights file to use in place of the bundle's own, or None. A network that `medsr export` wrote
            replaces the bundle's network. Other files may state their network's arguments, which then replace the
            bundle's, but for the channels and the scale.
        trained: whether weights are loaded. Without them the network's grid, memory and time are the same.
        trust_code: run TorchScript files, and code in the bundle's configuration that no installed bundle has.
        overrides: values that replace those of the bundle's inference.json, by their ids there.

    Raises:
        FileNotFoundError: no such bundle or weights file.
        ValueError: the bundle does not super-resolve or has no such id, or the weights do not fit or are not finite.
    """

    def __init__(
        self,
        bundle: str,
        weights: str | None = None,
        trained: bool = True,
        trust_code: bool = False,
        **overrides: Any,
    ) -> None:
        folder = self.folder = bundle_folder(bundle)
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"{weights}: no such weights file")
        from medsr_monai.exchange.run import is_exported

        self.parser = read_inference(bundle, trust_code)
        if "scale" not in self.parser:
            raise ValueError(
                f"bundle {bundle} does not super-resolve: run it as its docs/README.md says, with monai.bundle"
            )
        for name in overrides:
            if name.partition("#")[0] not in self.parser:
                raise ValueError(f"bundle {bundle} has no option --{name.replace('_', '-')}: {self._use()}")
        exported = weights is not None and is_exported(weights)
        if exported:
            overrides["network_def"] = {
                "_target_": "medsr_monai.exchange.run.ExportedNetwork",
                "path": _literal(weights),
                "scale": "@scale",
                "trust_code": trust_code,
            }
        found = None
        if weights is not None and not exported:
            from medsr_monai.weights.load import read_weights

            found = read_weights(Path(weights))
            overrides |= self._stated_arguments(*found)
        if not trained and "network_def#truncation" in self.parser:
            overrides["network_def#truncation"] = "none"  # its centroids come with trained weights only
        progress = {"inferer#progress": sys.stderr.isatty()}
        self.parser.update({"bundle_root": _literal(folder), "output_dir": None} | progress | overrides)
        self.parser.parse()
        self.weights = (weights or self["weights"]) if trained else None
        self.network = self["network"].eval()
        self.adapted: dict[str, Any] | None = None
        """What a weights file says of the scans that it was fitted to, see `medsr_monai.upscaling.adaptation`."""
        if self.weights and not exported:
            from medsr_monai.weights.load import fill_network, read_weights

            file, content = found or read_weights(Path(self.weights))
            fill_network(self.network, file, content)
            self.weights = str(file)
            self.adapted = content.get("adapted")
            if not isinstance(self.adapted, dict | None) or len(str(self.adapted)) > LONGEST_RECORD:
                raise ValueError(f"{file}: a damaged record of what the weights were fitted to: adapt them again")
            numbers = self.network.state_dict().items()
            if broken := [name for name, tensor in numbers if not tensor.isfinite().all()]:
                raise ValueError(
                    f"{self.weights}: numbers that are not finite in {', '.join(broken[:3])}: an unfinished training?"
                )

    def _stated_arguments(self, file: Path, content: Mapping) -> dict[str, Any]:
        """Ids of the network's arguments, of a weights file; none if it is of another class, which loading refuses."""
        from medsr_monai.networks.arguments import check_size

        stated = content["network"]
        if not isinstance(stated, dict) or stated.get("_target_") != self.parser["network_def"]["_target_"]:
            return {}
        arguments = {name: value for name, value in stated.items() if name not in ("_target_", *PIPELINE)}
        for name, value in arguments.items():
            # a configuration evaluates expressions, and files of weights may come from anywhere
            words = value if isinstance(value, list) else [value]
            if not all(isinstance(v, (bool, int, float, NoneType)) or str(v).isidentifier() for v in words):
                raise ValueError(f"{file}: {name} is {value!r}: expected a number, a name or a list of them")
        try:
            check_size(stated, content["model"])
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: {reason_of(error)}") from error
        return {f"network_def#{name}": value for name, value in arguments.items()}

    def _use(self) -> str:
        """What a command line may say of this bundle's volumes instead of what it has not."""
        known = ("plane", "thick_axis", "target_spacing", "refine", "force", "psf", "frame")
        return f"it has {', '.join('--' + name.replace('_', '-') for name in known if name in self.parser)}"

    def __getitem__(self, name: str) -> Any:
        return self.parser.get_parsed_content(name)

    @property
    def scale_factors(self) -> tuple[int, int]:
        """The factors by which the rows and the columns of a slice grow."""
        from monai.utils import ensure_tuple_rep

        return ensure_tuple_rep(self["scale"], 2)

    @property
    def exported(self) -> Mapping[str, Any] | None:
        """What an exported network states, see `medsr_monai.exchange.run.ExportedNetwork`; None for other networks."""
        from medsr_monai.exchange.run import ExportedNetwork

        return self.network.information if isinstance(self.network, ExportedNetwork) else None

    def plan(self, affine: np.ndarray | torch.Tensor, shape: Sequence[int]) -> InferencePlan:
        """Plan what is done to a volume with this 4x4 affine and shape (X, Y, Z); errors are those of the inferer."""
        return self["inferer"].plan(affine, shape, self.scale_factors)

    @property
    def degradation(self) -> str | None:
        """The degradation that the network was trained for; None where the bundle does not state it."""
        return self["degradation"] if "degradation" in self.parser else None

    @property
    def takes_pictures(self) -> bool:
        """Whether the bundle can enlarge 2D images, which one for thick slices cannot."""
        return self["inferer"].takes_pictures

    def read(self, source: str | Path | DicomSeries | MetaTensor) -> dict[str, MetaTensor]:
        """Read and preprocess an input; a volume [C, X, Y, Z] with its affine has been read already."""
        return self["preprocessing"]({"image": str(source) if isinstance(source, Path) else source})

    def run(self, item: dict[str, MetaTensor], network: torch.nn.Module | None = None) -> MetaTensor:
        """Super-resolve a preprocessed input, with another network if one is given, to a volume [C, X, Y, Z].

        Raises:
            ValueError: the output has voxels that are NaN or infinite.
        """
        import torch

        from medsr_monai.inferers import to_device

        device = self["device"]
        # as MONAI's evaluator does it in `monai.bundle run`; precision and compiling are the inferer's in both
        with torch.inference_mode():
            made = {"pred": self["inferer"](to_device(item["image"][None], device), network or self.network)[0].cpu()}
        result = self["postprocessing"](item | made)["pred"]
        made.clear()
        # one after the other: a mask of all voxels takes more memory than the output
        if broken := sum(int((~part.isfinite()).sum()) for part in result.as_tensor().unbind(1)):
            raise ValueError(self.broken(broken, result.numel()))
        return result

    @staticmethod
    def broken(count: int, voxels: int) -> str:
        """Say that an output has NaN or infinite voxels, and what to do."""
        return (
            f"{count} of {voxels} voxels of the output are NaN or infinite: intensities too large for the network's "
            "numbers, rescale the volume first"
        )


# files
