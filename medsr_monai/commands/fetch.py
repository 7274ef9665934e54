"""Get what a bundle lists as large files."""

from __future__ import annotations

import os
from pathlib import Path

from medsr_monai.upscaling.bundles import bundle_folder
from medsr_monai.weights.fetch import fetch_files
from medsr_monai.weights.stated import OFFLINE_FOLDER


def fetch(bundle: str, output: str | None = None, overwrite: bool = False) -> None:
    """Get the weights and other large files of a bundle, which its large_files.yml lists, and verify them.

    This is the only command that uses the network, and it does so only where the list gives an http or https address.
    The address may also be the path of a file inside the bundle. An entry without a checksum is refused.

    Args:
        bundle: the name of a bundle (see `medsr models`) or the path of its folder.
        output: a folder for the weights of several bundles, in which <bundle>/models/model.pt is written, to be carried
            to another machine as its MEDSR_WEIGHTS. By default the folder that MEDSR_WEIGHTS names, or else the bundle
            itself.
        overwrite: replace files that are there and are not the listed ones.
    """
    folder = bundle_folder(bundle)
    root = output or os.environ.get(OFFLINE_FOLDER)
    target = Path(root) / folder.resolve().name if root else folder
    for path, stated, written in fetch_files(folder, target, overwrite):
        print(f"{path}: {'' if written else 'is here, '}{stated.hash_type} {stated.hash_val}")
