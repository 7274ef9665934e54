"""Files that a bundle lists with a URL, downloaded or copied, and verified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medsr_monai.atomic import written_atomically
from medsr_monai.weights.stated import LARGE_FILES, StatedFile, file_hash, stated_files

__all__ = ["fetch_file", "fetch_files"]


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
        bundle: folder, to which a listed local path is relative.
        stated: what the bundle says of the file.
        path: file to write, its folders too.

    Raises:
        FileNotFoundError, PermissionError, ValueError: one line.
    """
    from monai.apps.utils import download_url

    local = Path(stated.url) if "://" not in stated.url else None
    if local is not None and not (bundle / local).is_file():
        raise FileNotFoundError(f"{bundle / local}: no such file, to which {LARGE_FILES} points for {stated.path}")
    source = (bundle / local).resolve().as_uri() if local is not None else stated.url
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as partial:
        try:
            # checked below, in our words
            download_url(source, partial, hash_val=None, progress=False)
        except Exception as error:  # of urllib, of the connection
            raise ValueError(f"{stated.url}: cannot be fetched: {' '.join(str(error).split())}") from error
        if not partial.is_file():
            raise PermissionError(f"{path.parent}: nothing can be written here")
        if stated.hash_val and not stated.fits(partial):
            raise ValueError(
                f"{stated.url}: its {stated.hash_type} is {file_hash(partial, stated.hash_type)}, the bundle states "
                f"{stated.hash_val}: damaged, or another file; nothing was written"
            )
