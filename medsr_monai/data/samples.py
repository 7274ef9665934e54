"""Latents to sample images from, and the images on disk."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from PIL import Image
from torch import Tensor

from medsr_monai.atomic import written_atomically
from medsr_monai.data.write import NiftiWriter

__all__ = ["FORMATS", "SaveSampled", "list_latents"]

FORMATS = ("nii.gz", "png")


def list_latents(count: int, style_dim: int, seed: int = 0) -> list[dict[str, object]]:
    """Draw latents from N(0, I), a MONAI data list: ``[{"latent": [style_dim], "name": "seed0_0000"}, ...]``.

    Number k of a seed is the same whatever the count.

    Raises:
        ValueError: no latents are wanted, or a seed below 0.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"{count} images of seed {seed}: expected 1 or more, and a seed of 0 or more")
    items = []
    for number in range(count):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**32)
        items.append({"latent": torch.randn(style_dim, generator=generator), "name": f"seed{seed}_{number:04d}"})
    return items


class SaveSampled(MapTransform):
    """Save generated images, one file each: ``<output_dir>/<name>.nii.gz`` or ``.png``.

    NIfTI: float32 as generated, one slice, voxels of 1 mm, since a generated image has no size of its own. PNG: 8 bits,
    0 is black, 1 is white and what lies beyond is clipped; grey or colour. Both hold the image's first axis from left
    to right.

    Args:
        keys: the keys of the images [C, H, W].
        output_dir: the folder to write to, made if missing.
        output_format: nii.gz or png.
        overwrite: replace existing files.
        name_key: the key of the file's name.

    Raises:
        ValueError: another format.
        FileExistsError: the file is there and ``overwrite`` is False.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        output_dir: str = ".",
        output_format: str = "nii.gz",
        overwrite: bool = False,
        name_key: str = "name",
    ) -> None:
        super().__init__(keys)
        if output_format not in FORMATS:
            raise ValueError(f"the format is {output_format!r}, expected one of {', '.join(FORMATS)}")
        self.output_dir = Path(output_dir)
        self.output_format = output_format
        self.overwrite = overwrite
        self.name_key = name_key

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        path = self.output_dir / f"{data[self.name_key]}.{self.output_format}"
        if path.exists() and not self.overwrite:
            raise FileExistsError(f"{path}: exists, choose another output_dir or set overwrite to true")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for key in self.key_iterator(data):
            (_save_png if self.output_format == "png" else _save_nifti)(torch.as_tensor(data[key]), path)
        return dict(data)


def _save_nifti(image: Tensor, path: Path) -> None:
    writer = NiftiWriter(output_dtype=np.float32)
    writer.set_data_array(image[..., None])
    writer.set_metadata({"affine": np.eye(4)}, resample=False)
    writer.write(path)


def _save_png(image: Tensor, path: Path) -> None:
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(2, 1, 0).cpu().numpy()
    with written_atomically(path) as partial:
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(partial)
