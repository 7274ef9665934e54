"""A bundle as the Model Zoo has it: one zip with the code that the bundle needs, and its checksums."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medsr_monai import __version__
from medsr_monai.atomic import check_output, read_json, written_together
from medsr_monai.weights.fetch import fetch_file
from medsr_monai.weights.stated import LARGE_FILES, MAIN_WEIGHTS, METADATA, StatedFile, examine, stated_files
from medsr_monai.weights.vendoring import (
    PACKAGE,
    SCRIPTS,
    imports_of,
    needed_modules,
    renamed_config,
    renamed_source,
)

if TYPE_CHECKING:
    import torch

__all__ = ["Packed", "write_package"]

logger = logging.getLogger(__name__)

ZOO_LIMIT = 25 * 2**20
"""Of a file in the Model Zoo's repository; larger ones go to large_files.yml."""
PATHS_OF_A_CHECKOUT = "Paths are those of a checkout; `medsr models` prints them for an installed package."
FROM_ANY_FOLDER = " `--bundle_root` lets every command run\nfrom any folder."
PATHS_OF_A_PACKAGE = (
    "Run the commands from this folder, so that Python finds the code in `scripts/`. `medsr_monai` need not be\n"
    "installed, only what `required_packages_version` in `configs/metadata.json` names."
)
BY_MONAI = ("ignite", "nibabel", "itk", "pydicom", "tensorboard", "tqdm", "einops")
"""What MONAI's engines, handlers and readers import when a bundle uses them."""
OPTIONAL = ("spandrel",)
"""Of the extra `compare` in setup.cfg, for some of the comparison networks."""
IN_METADATA = ("monai", "torch", "numpy")
"""They have fields of their own."""


@dataclass(frozen=True)
class Packed:
    """What :func:`write_package` wrote.

    Attributes:
        path: of the zip.
        files: how many it holds.
        size: in bytes.
        sha256: of the zip.
    """

    path: Path
    files: int
    size: int
    sha256: str


def write_package(
    folder: Path,
    output: str | os.PathLike = ".",
    *,
    thin: bool = False,
    weights: str | os.PathLike | None = None,
    network: torch.nn.Module | None = None,
    replaced: Mapping[str, bytes | None] | None = None,
    keep_large_files: bool = False,
    black: bool = False,
    overwrite: bool = False,
) -> Packed:
    """Write a bundle as ``<name>_v<version>.zip``, with ``<...>.zip.sha256`` and the Zoo's entry ``<...>.json``.

    Args:
        folder: of the bundle.
        output: folder, made if missing.
        thin: leave the code out.
        weights: other weights than the bundle's models/model.pt.
        network: of the bundle's inference.json, which these have to fit.
        replaced: files of the bundle by their paths in it: their contents in the package, None to leave one out.
        keep_large_files: leave out the files that large_files.yml lists and keep the list.
        black: format the code with isort and black.
        overwrite: replace existing outputs.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: one line.
    """
    metadata = read_json(folder / METADATA, "a bundle's metadata")
    if not isinstance(metadata.get("version"), str) or not re.fullmatch(r"\w[\w.+-]*", metadata["version"]):
        raise ValueError(f"{folder / METADATA}: version is {metadata.get('version')!r}, expected one such as '0.1.0'")
    name = folder.resolve().name
    release = f"{name}_v{metadata['version']}"
    outputs = [Path(output) / f"{release}{suffix}" for suffix in (".json", ".zip.sha256", ".zip")]
    # the zip comes last: without it the others are what a killed run has left
    for path in outputs:
        check_output(path, overwrite or (path != outputs[-1] and not outputs[-1].exists()))
    if weights is not None:
        from medsr_monai.weights.load import load_weights

        load_weights(network, weights)
    files = _own_files(folder, keep_large_files) | _weights_files(folder, weights, keep_large_files)
    files = {path: content for path, content in (files | dict(replaced or {})).items() if content is not None}
    if thin:
        metadata["required_packages_version"] = {PACKAGE: __version__}
    else:
        _vendor(files, name, metadata, black)
    hashes = {p: hashlib.sha256(content).hexdigest() for p, content in files.items() if p.startswith("models/")}
    kept = [entry for entry in metadata.get("weights", []) if entry["path"] not in hashes]
    if stated := kept + [{"path": path, "sha256": value} for path, value in hashes.items()]:
        metadata["weights"] = stated
    files["configs/metadata.json"] = (json.dumps(metadata, indent=4) + "\n").encode()
    content = _zipped({f"{name}/{path}": content for path, content in files.items()})
    sha256, sha1 = hashlib.sha256(content).hexdigest(), hashlib.sha1(content, usedforsecurity=False).hexdigest()
    entry = {release: {"checksum": sha1, "source": outputs[-1].name, "sha256": sha256}}
    Path(output).mkdir(parents=True, exist_ok=True)
    texts = [(json.dumps(entry, indent=4) + "\n").encode(), f"{sha256}  {outputs[-1].name}\n".encode(), content]
    with written_together(*outputs) as partials:
        for partial, text in zip(partials, texts, strict=True):
            partial.write_bytes(text)
    return Packed(outputs[-1], len(files), len(content), sha256)


def _own_files(folder: Path, keep_large_files: bool) -> dict[str, bytes]:
    """What belongs to a bundle; not what training, evaluation and users left in its folder."""
    if (folder / "scripts").exists():
        raise ValueError(f"{folder}: has a folder scripts, which is where a package's code goes: is it a package?")
    paths = [folder / "LICENSE", *(p for d in ("configs", "docs") for p in (folder / d).rglob("*"))]
    if keep_large_files and (folder / LARGE_FILES).is_file():
        paths.append(folder / LARGE_FILES)
    # not what editors and systems hide
    shown = [p for p in paths if not any(name.startswith(".") for name in p.relative_to(folder).parts)]
    for path in shown:
        _check_no_link(folder, path)
        if path.suffix == ".json" and path.is_file():
            read_json(path)
    for needed in ("LICENSE", "docs/README.md"):
        if not (folder / needed).is_file():
            raise FileNotFoundError(f"{folder / needed}: no such file, which every package has")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in shown if path.is_file()}


def _check_no_link(folder: Path, path: Path) -> None:
    """Refuse what a link leads to: a package holds the files of its bundle, and nothing else of this machine."""
    for place in (path, *path.parents):
        if place == folder:
            return
        if place.is_symlink():
            raise ValueError(f"{place}: a symbolic link, which a package does not take: put the file itself there")


def _weights_files(folder: Path, weights: str | os.PathLike | None, keep_large_files: bool) -> dict[str, bytes]:
    stated = stated_files(folder)
    files = {}
    for path in sorted({MAIN_WEIGHTS, *stated}):
        _check_no_link(folder, folder / path)
        listed = path in stated and stated[path].url is not None
        if weights is not None and path == MAIN_WEIGHTS:
            files[path] = Path(weights).read_bytes()
        elif not (listed and keep_large_files):
            content = _stated_content(folder, path, stated.get(path))
            if content is not None:
                files[path] = content
    if MAIN_WEIGHTS not in files and MAIN_WEIGHTS not in stated:
        logger.warning(
            "%s has no weights: the Model Zoo takes such a bundle by exception only; train it and give --weights FILE",
            folder.name,
        )
    for path, content in files.items():
        if len(content) > ZOO_LIMIT and not (path in stated and stated[path].url):
            logger.warning(
                "%s has %.0f MiB: the Model Zoo's repository takes it through %s only",
                *(path, len(content) / 2**20, LARGE_FILES),
            )
    return files


def _stated_content(folder: Path, path: str, stated: StatedFile | None) -> bytes | None:
    if not path.startswith("models/"):  # another large file
        if (folder / path).is_file() and (stated.hash_val is None or stated.fits(folder / path)):
            return (folder / path).read_bytes()
    else:
        found = examine(folder / path)
        if found.state in ("verified", "unverified"):
            return found.file.read_bytes()
        if found.state == "own":
            raise ValueError(f"{found.file}: {found.reason}; to pack them give --weights {found.file}")
        if found.state == "mismatch":
            raise ValueError(f"{found.file}: {found.reason}")
    if stated is None:
        return None
    if stated.url is None:
        raise FileNotFoundError(f"{folder / path}: the bundle states its weights, but they are not here")
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "file"
        fetch_file(folder, stated, file)
        return file.read_bytes()


def _vendor(files: dict[str, bytes], name: str, metadata: dict, black: bool) -> None:
    """Add the code, and let configurations, card and requirements name it instead of the package."""
    configs = [p for p in files if p.startswith("configs/") and p != "configs/metadata.json"]
    modules = needed_modules(files[p].decode() for p in configs)
    for path in configs:
        files[path] = renamed_config(files[path].decode()).encode()
    code = {}
    for module, file in modules.items():
        inner = module.split(".")[1:] + (["__init__"] if file.name == "__init__.py" else [])
        code["/".join([SCRIPTS, *inner]) + ".py"] = renamed_source(file.read_text()).encode()
    files |= _formatted(code) if black else code
    files[f"{SCRIPTS}/LICENSE"] = files["LICENSE"]  # the same: Apache-2.0
    card = files["docs/README.md"].decode().replace(PATHS_OF_A_CHECKOUT + FROM_ANY_FOLDER, PATHS_OF_A_CHECKOUT)
    card = card.replace(PATHS_OF_A_CHECKOUT, PATHS_OF_A_PACKAGE).replace(f"from {PACKAGE}.", f"from {SCRIPTS}.")
    card = card.replace(f"--bundle_root bundles/{name} ", "--bundle_root . ").replace(f"bundles/{name}/", "")
    files["docs/README.md"] = card.encode()
    imports = imports_of(modules) | set(BY_MONAI)
    metadata["required_packages_version"] = _versions(imports - set(OPTIONAL), required=True)
    if optional := _versions(imports & set(OPTIONAL), required=False):
        metadata["optional_packages_version"] = optional


def _versions(names: set[str], required: bool) -> dict[str, str]:
    """Distributions that give importable names, with the installed versions: the Zoo's checks pin them exactly."""
    distributions = _distributions()
    versions = {}
    for name in names:
        # itk, for one, is spread over several: that of its own name, else the shortest
        own = next(iter(importlib.metadata.distributions(name=name)), None)
        given = name if own else min(distributions.get(name, []), key=lambda d: (len(d), d), default=None)
        if given is None and required:
            raise ValueError(
                f"{name} is not installed, so that its version cannot be stated: install medsr_monai whole"
            )
        if given is not None and given.lower() not in IN_METADATA:
            versions[given] = importlib.metadata.version(given).partition("+")[0]  # without +cpu
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


@functools.cache
def _distributions() -> dict[str, list[str]]:
    """Which distributions give an importable name; a second's work."""
    return dict(importlib.metadata.packages_distributions())


def _formatted(code: dict[str, bytes]) -> dict[str, bytes]:
    """As the Zoo's checks of code want it."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for path, content in code.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
        for arguments in (
            ("isort", "--quiet", "--profile", "black", "--line-length", "120", "."),
            ("black", "--quiet", "--line-length", "120", "--skip-magic-trailing-comma", "."),
        ):
            done = subprocess.run(
                [sys.executable, "-m", *arguments], cwd=root, capture_output=True, text=True, check=False
            )
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["failed"])[-1]
                raise ValueError(f'{arguments[0]}: {reason} (pip install "medsr_monai[zoo]")')
        return {path: (root / path).read_bytes() for path in code}


def _zipped(files: dict[str, bytes]) -> bytes:
    """A zip that depends on names and contents alone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path, content in sorted(files.items()):
            info = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
            # numbers hardly shrink
            info.compress_type = zipfile.ZIP_STORED if path.endswith(".pt") else zipfile.ZIP_DEFLATED
            info.create_system = 3  # Unix, on every system
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
    return buffer.getvalue()
