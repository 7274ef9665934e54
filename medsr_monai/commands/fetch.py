"""Get what a bundle lists as large files."""

from __future__ import annotations

import os
from pathlib import Path

from medsr_monai.upscaling.bundles import bundle_folder
from medsr_monai.weights.stated import LARGE_FILES, OFFLINE_FOLDER, StatedFile, file_hash, stated_files


def fetch(bundle: str, output: str | None = None, overwrite: bool = False) -> None:
    """Download or copy the files that a bundle's large_files.yml lists, and verify them.

    The only command that uses the network, and only if an entry's `url` asks for it: it may be a local file too.

    Args:
        bundle: name of a bundle (see `medsr models`) or path of its folder.
        output: folder of weights, in which `<bundle>/models/model.pt` is written, for another machine's MEDSR_WEIGHTS;
            by default the folder that MEDSR_WEIGHTS names, if it does, else the bundle itself.
        overwrite: replace files that are there and are not the listed ones.
    """
    folder = bundle_folder(bundle)
    wanted = [stated for stated in stated_files(folder).values() if stated.url]
    if not wanted:
        raise ValueError(f"{folder}: no {LARGE_FILES} that lists files with a url, so there is nothing to fetch")
    root = output or os.environ.get(OFFLINE_FOLDER)
    target = Path(root) / folder.resolve().name if root else folder
    for stated in wanted:
        path = target / stated.path
        if path.exists():
            if stated.fits(path):
                print(f"{path}: is here, {stated.hash_type} {stated.hash_val}")
                continue
            if not overwrite:
                raise FileExistsError(
                    f"{path}: exists and is not the file that {LARGE_FILES} lists, move it or add --overwrite"
                )
        fetch_file(folder, stated, path)
        checksum = f"{stated.hash_type} {stated.hash_val}" if stated.hash_val else "unverified: no hash_val is listed"
        print(f"{path}: {checksum}")


def fetch_file(bundle: Path, stated: StatedFile, path: Path) -> None:
    """Write a listed file to ``path``, or nothing if it cannot be had or is not what is stated."""
    from monai.apps.utils import download_url

    from medsr_monai.atomic import written_atomically

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
