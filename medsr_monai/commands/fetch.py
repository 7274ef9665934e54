"""Get what a bundle lists as large files."""

from __future__ import annotations

import os
from pathlib import Path

from medsr_monai.upscaling.bundles import bundle_folder
from medsr_monai.weights.fetch import fetch_files
from medsr_monai.weights.stated import OFFLINE_FOLDER


def fetch(bundle: str, output: str | None = None, overwrite: bool = False) -> None:
    """Download or copy the files that a bundle's large_files.yml lists, and verify them.

    The only command that uses the network, and only if an entry's `url` asks for it: it is an http or https URL, or the
    path of a file inside the bundle. An entry without a checksum is refused.

    Args:
        bundle: name of a bundle (see `medsr models`) or path of its folder.
        output: folder of weights, in which `<bundle>/models/model.pt` is written, for another machine's MEDSR_WEIGHTS;
            by default the folder that MEDSR_WEIGHTS names, if it does, else the bundle itself.
        overwrite: replace files that are there and are not the listed ones.
    """
    folder = bundle_folder(bundle)
    root = output or os.environ.get(OFFLINE_FOLDER)
    target = Path(root) / folder.resolve().name if root else folder
    for path, stated, written in fetch_files(folder, target, overwrite):
        print(f"{path}: {'' if written else 'is here, '}{stated.hash_type} {stated.hash_val}")
