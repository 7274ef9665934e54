"""PNG pictures of single slices, read as volumes of one slice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from PIL import Image

__all__ = ["is_picture", "load_picture"]

SUFFIX = ".png"
IMAGE_MODES = ("L", "I", "I;16", "RGB")
"""Of Pillow: 8, 32 and 16 bits of grey, and colour; a palette's numbers are no intensities."""
LABEL_MODES = ("1", "L", "P", "I", "I;16")


def is_picture(path: str | os.PathLike) -> bool:
    """Whether a path has the suffix of a PNG file."""
    return Path(path).name.lower().endswith(SUFFIX)


def load_picture(path: str | os.PathLike, modes: Sequence[str] = IMAGE_MODES) -> MetaTensor:
    """Read a PNG file as a float32 volume [C, W, H, 1]: columns, rows, one slice; C is 3 for colour, else 1.

    A PNG holds no geometry. It counts as an axial slice as radiologists look at it, the patient's left on the right
    and posterior below, with voxels of 1 mm.

    Args:
        path: of the file.
        modes: Pillow's pixel formats that are accepted.

    Raises:
        FileNotFoundError, ValueError: no such file, not a picture, or another pixel format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with Image.open(path) as picture:
            mode, pixels = picture.mode, np.array(picture)
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"{path}: cannot be read as a picture: damaged or misnamed?") from error
    if mode not in modes:
        raise ValueError(f"{path}: pixels of the format {mode}, expected one of {', '.join(modes)}: convert it first")
    channels = torch.from_numpy(pixels.astype(np.float32)).reshape(*pixels.shape[:2], -1).permute(2, 1, 0)
    affine = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    meta = {"filename_or_obj": str(path), "spatial_shape": np.array((*channels.shape[1:], 1))}
    meta["original_affine"] = affine.numpy().copy()
    return MetaTensor(channels[..., None].contiguous(), affine=affine, meta=meta)
