"""The JSON beside every output: what it was made of, with what, and how (BIDS derivatives' style)."""

from __future__ import annotations

import contextlib
import datetime
import glob
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsr_monai import __version__
from medsr_monai.atomic import read_json, written_together
from medsr_monai.data.find import pair_of, volume_name
from medsr_monai.data.stored_volume import StoredVolume
from medsr_monai.metrics.report import json_values
from medsr_monai.suffixes import QUALITY_SUFFIX
from medsr_monai.transforms.geometry import spacing
from medsr_monai.weights.stated import MAIN_WEIGHTS, METADATA, file_hash, stated_files

if TYPE_CHECKING:
    import torch
    from monai.data import MetaTensor

__all__ = [
    "INTENDED_USE",
    "Laps",
    "Warnings",
    "bundle_record",
    "check_sidecar",
    "file_record",
    "grid_record",
    "intensity_record",
    "is_ours",
    "read_sidecar",
    "recorded",
    "remove_partial",
    "sha256",
    "sidecar_path",
    "source_files",
    "source_record",
    "versions",
    "why_redo",
    "without_folders",
]

INTENDED_USE = "research use only, not for clinical use"
GENERATOR = "medsr_monai"
IDENTITY = ("GeneratedBy", "Bundle", "Options")
"""Parts of a sidecar that decide, with the inputs, what an output looks like."""
CLAIMS = ("bundle", "bundle_version", "weights_sha256")
"""What is recorded of what an exported network says of itself."""
FOLDERS_OF_PATH = re.compile(r"(?<![\w.])~?/(?:[^/\s'\",:;]+/)+")

logger = logging.getLogger(__name__)


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal digits; of a folder, see :func:`source_record`."""
    path = Path(path)
    if path.is_dir():
        return source_record(path, source_files(path))["SHA256"]
    return file_hash(path)


def file_record(path: str | os.PathLike) -> dict[str, Any]:
    """Name and sum of a file; never its folders."""
    return {"Name": Path(path).name, "SHA256": sha256(path)}


def source_files(source: str | os.PathLike) -> list[Path]:
    """List the files of an input: itself, a pair's ``.img`` and ``.hdr``, or what lies in a folder but hidden files."""
    path = Path(source)
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    return [part for part in reversed(pair_of(path)) if part.is_file()] or [path]


def source_record(source: str | os.PathLike, files: Sequence[str | os.PathLike]) -> dict[str, Any]:
    """Name and sum of an input.

    Of several files, such as a DICOM series, it is the SHA-256 of their SHA-256 sums, sorted, one a line: their names
    and their order do not matter. In a shell: ``sha256sum * | cut -c-64 | LC_ALL=C sort | sha256sum``.
    """
    sums = [sha256(file) for file in files]
    if len(sums) == 1 and not Path(source).is_dir():
        return {"Name": Path(source).name, "SHA256": sums[0], "Files": 1}
    lines = "".join(f"{one}\n" for one in sorted(sums))
    return {"Name": Path(source).name, "SHA256": hashlib.sha256(lines.encode()).hexdigest(), "Files": len(sums)}


def _are_published(folder: Path, weights: Path, sha256: str) -> bool:
    """Whether a file's own sum is one that its bundle states; where none is stated, the bundle's own."""
    files = stated_files(folder) if (folder / METADATA).is_file() else {}
    if MAIN_WEIGHTS in files and files[MAIN_WEIGHTS].hash_val:
        stated = (file for file in files.values() if file.hash_val)
        return any(s.hash_val == sha256 if s.hash_type == "sha256" else s.fits(weights) for s in stated)
    return weights.resolve().parent == folder / "models"


def bundle_record(
    folder: str | os.PathLike, weights: str | os.PathLike | None, claims: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """A bundle's name, version, configuration, weights and the degradation that these were trained for; and warnings.

    The degradation is what ``degradation`` in the bundle's metadata.json says; it holds for the bundle's own weights. A
    file is these if its own sum is theirs, whatever it says of itself: that is recorded as ``Claims``.

    Args:
        folder: of the bundle.
        weights: that are used; None for a network without.
        claims: what an exported network says of itself, such as the sum of the weights that it was made of.
    """
    folder = Path(folder).resolve()
    file = folder / "configs" / "metadata.json"
    metadata = read_json(file, "a bundle's metadata") if file.is_file() else {}
    degradation, warnings = metadata.get("degradation"), []
    used = None if weights is None else file_record(weights)
    if used is not None and not _are_published(folder, Path(weights), used["SHA256"]):
        degradation = None
        warnings = [f"{Path(weights).name} are not the weights of bundle {folder.name}: what they were trained for is "
                    "not known here"]  # fmt: skip
        if claimed := {name: claims[name] for name in CLAIMS if name in (claims or {})}:
            used["Claims"] = claimed
            warnings = [f"{Path(weights).name} claims to be made of weights of bundle {claimed.get('bundle')} (sha256 "
                        f"{claimed.get('weights_sha256')}): nothing here shows that"]  # fmt: skip
    elif degradation is None:
        warnings = [f"bundle {folder.name} does not state what degradation its weights were trained for: add "
                    "degradation to its configs/metadata.json"]  # fmt: skip
    record = {
        "Name": folder.name,
        "Version": metadata.get("version"),
        "Config": file_record(folder / "configs" / "inference.json"),
        "Weights": used,
        "Degradation": degradation,
    }
    return record, warnings


def versions() -> dict[str, str]:
    """Of this package, Python and the libraries that the result depends on."""
    found = {GENERATOR: __version__, "python": platform.python_version()}
    for name in ("torch", "monai", "numpy", "nibabel", "itk", "pydicom"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def grid_record(volume: MetaTensor) -> dict[str, Any]:
    """Shape, voxel edges in mm and affine (index to millimetres in RAS+) of a volume [C, X, Y, Z].

    Both are None for a picture that does not state how large its pixels are.
    """
    shape = [int(n) for n in volume.shape[1:]]
    if volume.meta.get("picture_spacing") == "none":
        return {"Shape": shape, "VoxelSizeMm": None, "Affine": None}
    affine = volume.affine.tolist()
    return {"Shape": shape, "VoxelSizeMm": [round(float(e), 6) for e in spacing(volume.affine)], "Affine": affine}


def intensity_record(image: MetaTensor, result: MetaTensor | StoredVolume) -> dict[str, Any]:
    """Least and greatest value of a scaled input and of its output, by channel, in the input's units.

    ``Scaled`` holds those that were mapped to 0 and 1 for the network.

    Args:
        image: [C, X, Y, Z] from :class:`medsr_monai.transforms.ScaleVolumed`.
        result: [C', X', Y', Z'], intensities restored.
    """
    low, high = (image.meta[f"intensity_{end}"] for end in ("low", "high"))
    ends = [value.double() * (high - low) + low for value in _ends(image)]
    return {"Input": _by_channel(*ends), "Scaled": _by_channel(low, high), "Output": _by_channel(*_ends(result))}


def _ends(volume: MetaTensor | StoredVolume) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(volume, StoredVolume):
        return volume.least, volume.greatest
    axes = tuple(range(1, volume.ndim))  # one after the other needs no copy, however the voxels lie
    return volume.as_tensor().amin(axes), volume.as_tensor().amax(axes)


def _by_channel(low: torch.Tensor, high: torch.Tensor) -> list[list[float]]:
    return [[float(f"{a:.7g}"), float(f"{b:.7g}")] for a, b in zip(low.tolist(), high.tolist(), strict=True)]


class Warnings(logging.Handler):
    """Collects what this package logs as a warning while it is entered, without folders, for a sidecar.

    Args:
        before: warnings that hold for every output.
    """

    def __init__(self, before: Sequence[str] = ()) -> None:
        super().__init__(logging.WARNING)
        self.messages = list(before)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(without_folders(record.getMessage()))

    def __enter__(self) -> list[str]:
        logging.getLogger(GENERATOR).addHandler(self)
        return self.messages

    def __exit__(self, *error: object) -> None:
        logging.getLogger(GENERATOR).removeHandler(self)


class Laps:
    """Seconds of the parts of a work, one after the other."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def __call__(self, part: str) -> None:
        """What has passed since the last call belongs to this part."""
        now = time.perf_counter()
        self.seconds[part] = round(self.seconds.get(part, 0.0) + now - self.last, 3)
        self.last = now

    def record(self) -> dict[str, Any]:
        """Seconds in all and by part, for a sidecar."""
        return {"Seconds": round(self.last - self.start, 3), "SecondsBy": self.seconds}


def without_folders(text: str) -> str:
    """A message with the folders of absolute paths cut off."""
    return FOLDERS_OF_PATH.sub("", text)


def sidecar_path(output: str | os.PathLike) -> Path:
    """Of an output: the same name with ``.json`` for its suffix, ``sr.nii.gz`` gives ``sr.json``."""
    return Path(output).with_name(f"{volume_name(output)}.json")


def read_sidecar(output: str | os.PathLike) -> dict[str, Any] | None:
    """Sidecar of an output if it is one of ours, and of this output."""
    content = _ours(sidecar_path(output))
    name = Path(output).name
    return content if content and any(one.get("Name") == name for one in content["Outputs"]) else None


def _ours(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path)
        ours = content["GeneratedBy"][0]["Name"] == GENERATOR and all(isinstance(o, dict) for o in content["Outputs"])
    except (OSError, ValueError, TypeError, LookupError):
        return None
    return content if ours else None


def is_ours(output: str | os.PathLike) -> bool:
    """Whether a sidecar says that ``output`` was written by this package: it may be made anew."""
    return read_sidecar(output) is not None


def check_sidecar(output: str | os.PathLike, overwrite: bool) -> None:
    """Refuse an output whose sidecar would replace another file.

    Raises:
        FileExistsError: the file is no sidecar of ours, or that of another output without ``overwrite``.
    """
    path = sidecar_path(output)
    if not os.path.lexists(path) or is_ours(output):
        return
    other = _ours(path)
    if other is None:
        raise FileExistsError(f"{path}: exists and was not written by medsr, which puts the sidecar of "
                              f"{Path(output).name} there: choose another output")  # fmt: skip
    if not overwrite:
        raise FileExistsError(f"{path}: exists as the sidecar of {other['Outputs'][0].get('Name')}, choose another "
                              "name or add --overwrite")  # fmt: skip


def why_redo(output: str | os.PathLike, inputs: Sequence[Mapping], identity: Mapping[str, Any]) -> str | None:
    """Why an output is not what a new run would make, empty if there is none; None if it is, and complete.

    Args:
        output: file that may be there, with its sidecar.
        inputs: of the new run, see :func:`source_record`; only their sums are compared.
        identity: the new run's ``GeneratedBy``, ``Bundle`` and ``Options``.
    """
    output = Path(output)
    old = read_sidecar(output)
    if old is None:
        return "replaced: was not written by medsr" if output.exists() else ""
    if [one.get("SHA256") for one in old.get("Inputs", [])] != [one["SHA256"] for one in inputs]:
        return "redone: the input has changed"
    for part in IDENTITY:
        if old.get(part) != _plain(identity[part]):
            return f"redone: other {'version' if part == 'GeneratedBy' else part.lower()} than before"
    for one in old["Outputs"]:
        file = output.with_name(str(one.get("Name")))
        if not file.exists():
            return f"redone: {file.name} was missing"
        if sha256(file) != one.get("SHA256"):
            return f"redone: {file.name} was not as written"
    return None


def _plain(value: object) -> object:
    return json.loads(json.dumps(value))


@contextlib.contextmanager
def recorded(
    output: str | os.PathLike, record: dict[str, Any], *others: str | os.PathLike, folder: bool = False
) -> Iterator[list[Path]]:
    """Give temporary names to write an output and what belongs to it to; then write its sidecar, and rename all.

    The sidecar takes its name first, and the output last, so that no output is ever without one, even after a kill in
    between. It holds the sums: where these fit, all are there and belong together.

    Args:
        output: final name; folders are made.
        record: the sidecar's content; gets ``Outputs``, the output first.
        others: final names of files beside the output, such as its picture.
        folder: the output is a folder of files, its sum that of :func:`source_record`; else a file.
    """
    output, *others = map(Path, (output, *others))
    output.parent.mkdir(parents=True, exist_ok=True)
    with written_together(sidecar_path(output), *others, output) as (sidecar, *partial_others, partial):
        if folder:
            partial.mkdir()
        partials = [partial, *partial_others]
        yield partials
        record["Outputs"] = [
            file_record(one) | {"Name": path.name} for one, path in zip(partials, [output, *others], strict=True)
        ]
        record["Created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        sidecar.write_text(json.dumps(json_values(record), indent=2, allow_nan=False) + "\n")


def _is_at_work(partial: Path) -> bool:
    """Whether the process whose number a temporary name holds lives on this machine, and is another one."""
    number = partial.name.split("-")[1]
    if not number.isdecimal() or int(number) == os.getpid():
        return False
    if os.name == "nt":
        return True  # asking by a signal would end it there
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def remove_partial(output: str | os.PathLike) -> None:
    """Remove what killed processes have left of an output, its sidecar and its picture; not what one at work writes."""
    output = Path(output)
    for path in (output, sidecar_path(output), output.with_name(volume_name(output) + QUALITY_SUFFIX)):
        for partial in path.parent.glob(f".partial-*-{glob.escape(path.name)}"):
            if _is_at_work(partial):
                continue
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)
    for replaced in output.parent.glob(f".replaced-*-{glob.escape(output.name)}"):
        if output.exists():
            shutil.rmtree(replaced)
        else:
            os.replace(replaced, output)
