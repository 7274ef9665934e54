"""A bundle's weights files: where they are, what the bundle states of them, and whether they match that.

A bundle states the sha256 of the weights that it was published with under ``"weights"`` of its metadata.json, as
``[{"path": "models/model.pt", "sha256": "..."}]``, or, of files that are downloaded, in the Model Zoo's
``large_files.yml`` (``path``, ``url``, ``hash_val``, ``hash_type``).
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from medsr_monai.atomic import read_json, read_yaml

__all__ = ["LARGE_FILES", "MAIN_WEIGHTS", "OFFLINE_FOLDER", "Examined", "StatedFile", "examine", "stated_files"]

OFFLINE_FOLDER = "MEDSR_WEIGHTS"
"""Environment variable that names a folder with ``<bundle>/models/model.pt``, for bundles whose own folder has none."""
MAIN_WEIGHTS = "models/model.pt"
"""Path of a bundle's weights, relative to the bundle."""
METADATA, LARGE_FILES = "configs/metadata.json", "large_files.yml"
"""Paths of the files that state a bundle's weights, relative to the bundle."""
HASH_TYPES = ("md5", "sha1", "sha256", "sha512")
"""The checksums that MONAI knows."""


class StatedFile(NamedTuple):
    """What a bundle states of one of its files.

    Attributes:
        path: its path, relative to the bundle.
        hash_type: kind of the checksum, one of HASH_TYPES.
        hash_val: hexadecimal checksum; None if the bundle states none.
        url: URL to download it from, or the path of a local file, relative to the bundle; None if there is neither.
    """

    path: str
    hash_type: str
    hash_val: str | None
    url: str | None

    def fits(self, file: Path) -> bool:
        """Return whether ``file`` has the stated checksum."""
        return self.hash_val is not None and file_hash(file, self.hash_type) == self.hash_val


class Examined(NamedTuple):
    """What was found of a weights file.

    Attributes:
        state: ``verified``: its checksum is the one that the bundle states;
            ``own``: it is in the bundle's own folder and complete, but not the stated file, since it was trained here
            or is of another version;
            ``unverified``: no checksum is stated, as for any file outside bundles;
            ``mismatch``: it must be refused, being damaged or, in a folder of downloads, not the stated file;
            ``missing``: there is no such file.
        file: the file; None if it is missing.
        stated: what the bundle states of it; None if it states nothing.
        reason: why the state is ``own`` or ``mismatch``, in words for users; otherwise empty.
    """

    state: str
    file: Path | None
    stated: StatedFile | None
    reason: str


def file_hash(file: Path, hash_type: str = "sha256") -> str:
    """Return the hexadecimal checksum of a file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, hash_type).hexdigest()


def bundle_of(path: Path) -> Path | None:
    """Return the bundle in whose ``models/`` a file is, or would be; None outside bundles."""
    bundle = path.parent.parent
    return bundle if path.parent.name == "models" and (bundle / METADATA).is_file() else None


def offline_file(bundle: Path, path: str) -> Path | None:
    """Return the path that a bundle's file has, or would have, in the offline folder; None without such a folder."""
    folder = os.environ.get(OFFLINE_FOLDER)
    return Path(folder) / bundle.resolve().name / path if folder else None


def stated_files(bundle: str | os.PathLike) -> dict[str, StatedFile]:
    """Return what a bundle states of its weights and large files, by path.

    Raises:
        ValueError: an entry cannot be read, a path is outside the bundle, or a file has two checksums.
    """
    bundle = Path(bundle)
    stated = {}
    for entry in _entries(bundle / METADATA, read_json(bundle / METADATA, "a bundle's metadata"), "weights", []):
        file = _stated(bundle, METADATA, entry | {"hash_val": entry.get("sha256"), "hash_type": "sha256"})
        stated[file.path] = file
    for entry in _large_files(bundle):
        file = _stated(bundle, LARGE_FILES, entry)
        known = stated.get(file.path)
        if known is None or known.hash_val is None:
            stated[file.path] = file
        elif file.hash_type == known.hash_type and file.hash_val not in (None, known.hash_val):
            raise ValueError(
                f"{bundle}: {METADATA} and {LARGE_FILES} state different checksums of {file.path}: "
                f"{known.hash_val} and {file.hash_val}"
            )
        else:
            stated[file.path] = known._replace(url=file.url)
    return stated


def _large_files(bundle: Path) -> list[dict]:
    file = bundle / LARGE_FILES
    if not file.is_file():
        return []
    return _entries(file, read_yaml(file, "a list large_files of path, url, hash_val"), LARGE_FILES.partition(".")[0])


def _entries(file: Path, content: dict, name: str, default: list | None = None) -> list[dict[str, str]]:
    """The entries of a list in a file that states others: dictionaries whose values are text."""
    entries = content.get(name, default)
    if not isinstance(entries, list):
        raise ValueError(f"{file}: {name} is {_shown(entries)}, expected a list large_files of path, url, hash_val")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise ValueError(f"{file}: entry {number} of {name} is {_shown(entry)}, expected path, url, hash_val")
        for key in ("path", "url", "hash_val", "hash_type", "sha256"):
            if not isinstance(entry.get(key), (str, type(None))):
                raise ValueError(f"{file}: {key} of entry {number} of {name} is {_shown(entry[key])}, expected text")
    return entries


def _shown(value: object) -> str:
    return repr(value)[:80]


def _stated(bundle: Path, source: str, entry: dict[str, str]) -> StatedFile:
    path, hash_type = entry.get("path"), entry.get("hash_type") or "sha256"  # MONAI's default
    root = bundle.resolve()
    try:
        inside = bool(path) and (root / path).resolve().is_relative_to(root) and (root / path).resolve() != root
    except (OSError, ValueError):  # a name that is too long, or with a NUL
        inside = False
    if not inside:
        raise ValueError(
            f"{bundle / source}: path is {_shown(path)}, expected one inside the bundle, such as {MAIN_WEIGHTS}"
        )
    if hash_type not in HASH_TYPES:
        raise ValueError(
            f"{bundle / source}: hash_type is {_shown(hash_type)}, expected one of {', '.join(HASH_TYPES)}"
        )
    hash_val = (entry.get("hash_val") or "").lower()
    return StatedFile(Path(path).as_posix(), hash_type, hash_val or None, entry.get("url") or None)


def examine(path: str | os.PathLike) -> Examined:
    """Find a weights file and compare it with what its bundle states of it; nothing is unpickled.

    A file that a bundle's ``models/`` lacks is looked for in the folder that the environment variable MEDSR_WEIGHTS
    names. Training, also that of MONAI Label, puts weights into the bundle's own folder. So a file there that differs
    from the stated checksum is refused only if it is damaged, which the CRC of every part of a PyTorch file tells.

    Raises:
        ValueError: see :func:`stated_files`.
    """
    path = Path(path)
    bundle = bundle_of(path)
    inner = f"models/{path.name}"
    stated = stated_files(bundle).get(inner) if bundle else None
    file, offline = path, False
    if bundle and not path.is_file():
        file, offline = offline_file(bundle, inner), True
    if file is None or not file.is_file():
        return Examined("missing", None, stated, "")
    if stated and stated.fits(file):
        return Examined("verified", file, stated, "")
    expected = bool(stated and stated.hash_val)
    damage = _damage(file, expected)
    if not expected:
        return Examined("mismatch" if damage else "unverified", file, stated, damage)
    values = (
        f"its {stated.hash_type} is {file_hash(file, stated.hash_type)}, "
        f"bundle {bundle.resolve().name} states {stated.hash_val}"
    )
    if damage:
        return Examined("mismatch", file, stated, f"{damage}; {values}: get it again")
    if offline:
        reason = f"{values}: put the stated file there, or give your own as --weights FILE (monai.bundle: --ckpt_dir)"
        return Examined("mismatch", file, stated, reason)
    return Examined("own", file, stated, f"not the published weights but trained here, or another version: {values}")


def _damage(file: Path, expected: bool) -> str:
    """Return what is broken in a file of torch.save, a zip whose parts have a CRC that torch.load does not check."""
    if not zipfile.is_zipfile(file):
        # it may be a file of torch before 1.6, which torch.load finds out
        return "not a PyTorch file, or a part of one" if expected else ""
    try:
        with zipfile.ZipFile(file) as parts:
            broken = parts.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        return f"damaged ({error})"
    return f"damaged (CRC of {broken.partition('/')[2] or broken})" if broken else ""
