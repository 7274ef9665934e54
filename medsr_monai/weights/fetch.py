"""Files that a bundle lists with a URL, downloaded or copied, and verified."""

from __future__ import annotations

import http.client
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from medsr_monai.atomic import written_atomically
from medsr_monai.errors import reason_of
from medsr_monai.weights.stated import LARGE_FILES, StatedFile, file_hash, stated_files

__all__ = ["fetch_file", "fetch_files"]

TIMEOUT = 60.0
"""Seconds for which a server may say nothing."""
LARGEST = 8 * 2**30
"""Bytes of the largest file that is fetched."""
CHUNK = 2**20


def fetch_files(bundle: Path, target: Path, overwrite: bool = False) -> Iterator[tuple[Path, StatedFile, bool]]:
    """Get all files that a bundle's large_files.yml lists with a URL.

    Args:
        bundle: folder.
        target: folder below which the files get the paths that the list gives them.
        overwrite: replace files that are there and are not the listed ones.

    Yields:
        Path, what the bundle states of the file, and whether it was written; False where the stated file was there.

    Raises:
        ValueError: nothing is listed, or :func:`fetch_file` refuses it.
        FileExistsError: another file is there.
    """
    wanted = [stated for stated in stated_files(bundle).values() if stated.url]
    if not wanted:
        raise ValueError(f"{bundle}: no {LARGE_FILES} that lists files with a url, so there is nothing to fetch")
    for stated in wanted:
        path = target / stated.path
        here = path.exists() and stated.fits(path)
        if not here:
            if path.exists() and not overwrite:
                raise FileExistsError(
                    f"{path}: exists and is not the file that {LARGE_FILES} lists, move it or add --overwrite"
                )
            fetch_file(bundle, stated, path)
        yield path, stated, not here


def fetch_file(bundle: Path, stated: StatedFile, path: Path) -> None:
    """Write a listed file to ``path``, or nothing if it cannot be had or is not what is stated.

    Args:
        bundle: folder, to which a listed local path is relative, and inside which it has to be.
        stated: what the bundle says of the file: an http or https URL, or a path, and the checksum.
        path: file to write, its folders too.

    Raises:
        FileNotFoundError, PermissionError, ValueError: one line.
    """
    if stated.hash_val is None:
        raise ValueError(f"{bundle / LARGE_FILES}: no hash_val for {stated.path}: only what can be verified is fetched")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path.parent}: nothing can be written here")
    with written_atomically(path) as partial:
        try:
            with _opened(bundle, stated) as source, partial.open("wb") as file:
                size = 0
                while part := source.read(CHUNK):
                    size += len(part)
                    if size > LARGEST:
                        raise ValueError(f"is larger than {LARGEST // 2**30} GiB")
                    file.write(part)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ValueError(f"{stated.url}: cannot be fetched: {reason_of(error)}") from error
        if not stated.fits(partial):
            raise ValueError(
                f"{stated.url}: its {stated.hash_type} is {file_hash(partial, stated.hash_type)}, the bundle states "
                f"{stated.hash_val}: damaged, or another file; nothing was written"
            )


def _opened(bundle: Path, stated: StatedFile) -> IO[bytes]:
    """The stream of a listed file. Redirections lead to http, https and ftp only, as urllib has it."""
    if "://" in stated.url:
        if not stated.url.lower().startswith(("http://", "https://")):
            raise ValueError("expected an http or https URL, or a path inside the bundle")
        return urllib.request.urlopen(stated.url, timeout=TIMEOUT)
    file = bundle / stated.url
    if not file.resolve().is_relative_to(bundle.resolve()):
        raise ValueError(f"{file} is outside the bundle, expected a path inside it, or an http or https URL")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, to which {LARGE_FILES} points for {stated.path}")
    return file.open("rb")
