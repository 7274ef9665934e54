"""Random patches of slices, made for a whole batch at once on its device; an item is a batch of one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Randomizable, Transform
from monai.utils import convert_to_tensor, ensure_tuple, ensure_tuple_rep

from medsr_monai.transforms.degradation import RandDegraded
from medsr_monai.transforms.thick_slices import SEGMENTATION, RandThickSliced
from medsr_monai.transforms.windows import cut_windows, to_device

__all__ = ["PatchBatches"]

Item = dict[Hashable, object]
TRIES = 8
"""So many patches of a slice are drawn at most until one has the ``structure`` that is wanted."""


class Draw(NamedTuple):
    """What is drawn for one item."""

    degradation: dict | None
    """The ``params`` of the transform that makes its pair; None where no pair is made."""
    psf: torch.Tensor | None
    """The vector of what a network is told of its point spread; None where no pair is made."""
    corner: tuple[int, int]
    """The first row and column of its patch in the slice; below 0 the patch begins with padding."""
    pose: tuple[bool, ...]
    """Whether it is mirrored along its rows' axis, along its columns' axis, and turned by a quarter."""
    brightness: float
    """The factor by which its intensities are multiplied."""


class PatchBatches(Randomizable, Transform):
    """Cut a random patch out of each slice, lay it in a random way, vary its intensities and degrade it.

    Calling it with an item draws from ``R``, as every ``Randomizable`` does; :meth:`batch` makes a whole batch, in
    which each item has a seed of its own. Both are the same code, and an item is the same in any batch, up to the
    rounding of its floating-point type.

    Args:
        keys: slices [C, H, W] of one size, of which the same patch is cut.
        patch_size: the size of the patch, as one number or as rows and columns.
        padding: what is put on both sides of smaller slices: "constant" for zeros, "replicate" for their border; None
            refuses such slices.
        poses: in how many ways a patch may lie: 1 as it is, 4 mirrored along both axes, 8 turned by a quarter as well,
            which only square patches are.
        intensity_factor: intensities are multiplied by 1 + u, u uniform in [-intensity_factor, 0.2]; 0 turns this off.
        brightened: the keys whose intensities are multiplied, by default all.
        pairs: makes ``image`` of ``label``: a :class:`medsr_monai.transforms.RandDegraded` works on the patches in the
            end, a :class:`medsr_monai.transforms.RandThickSliced` on the slices first, and the patches are cut out of
            both. None leaves the slices as they are.
        dtypes: the types that patches are converted to in the end, by key; others stay as they are.
        structure: a patch of the first key is drawn anew until its standard deviation is at least this part of its
            slice's, up to TRIES times, of which the last resort is the one with the largest; 0 takes what comes.

    Raises:
        ValueError: a negative ``structure``; when called: a slice that is smaller than its patch, without padding.
    """

    def __init__(
        self,
        keys: KeysCollection,
        patch_size: int | Sequence[int],
        *,
        padding: str | None = None,
        poses: int = 1,
        intensity_factor: float = 0.0,
        brightened: KeysCollection | None = None,
        pairs: RandDegraded | None = None,
        dtypes: Mapping[Hashable, torch.dtype] | None = None,
        structure: float = 0.0,
    ) -> None:
        if structure < 0:
            raise ValueError(f"structure is {structure}, expected a part of the slice's standard deviation such as 0.5")
        self.keys = ensure_tuple(keys)
        self.size = ensure_tuple_rep(patch_size, 2)
        self.padding = padding
        self.poses = min(poses, 8 if self.size[0] == self.size[1] else 4)
        self.intensity_factor = intensity_factor
        self.brightened = brightened if brightened is None else ensure_tuple(brightened)
        self.pairs = pairs
        self.thick = isinstance(pairs, RandThickSliced)
        self.dtypes = dict(dtypes or {})
        self.structure = structure
        self.set_random_state(seed=0)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> PatchBatches:
        super().set_random_state(seed, state)
        if self.pairs is not None:
            self.pairs.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, object]) -> Item:
        item, draw = self._drawn(data)
        return self._made([item], [draw], item[self.keys[0]].device)[0]

    def batch(self, items: Sequence[Mapping], seeds: Sequence[int], device: torch.device | str) -> list[Item]:
        """Make of each item what ``set_random_state(seed)`` and a call would, with the patches on ``device``.

        Args:
            items: items with slices [C, H, W], on any device, and other keys; they are not changed.
            seeds: one seed for each item, below 2**32.
            device: the device on which patches are degraded; they are cut out where the slices are.
        """
        pairs = zip(items, seeds, strict=True)
        turned, drawn = zip(*(self.set_random_state(seed)._drawn(item) for item, seed in pairs), strict=True)
        return self._made(turned, drawn, device)

    def _drawn(self, data: Mapping[Hashable, object]) -> tuple[Item, Draw]:
        """A copy of the item, turned where thick slices are made of it, and what is drawn for it."""
        item = dict(data) | {key: convert_to_tensor(data[key]) for key in self.keys}
        if self.pairs is not None:
            self.pairs.randomize()
        if self.thick:
            if SEGMENTATION in item:
                raise ValueError("label maps of slices are not cut into patches: leave them out of the training's keys")
            item = self.pairs.turned(item)
        sides = item[self.keys[0]].shape[1:]
        room = [side - n for side, n in zip(sides, self.size, strict=True)]
        if min(room) < 0 and self.padding is None:
            raise ValueError(
                f"a slice of {sides[0]}x{sides[1]} pixels has no patch of {self.size[0]}x{self.size[1]}: use a "
                "smaller patch_size, or larger slices"
            )
        corner = self._corner(item[self.keys[0]], room)
        chances = np.array([self.poses > 1, self.poses > 1, self.poses > 4]) / 2
        pose = tuple((self.R.random_sample(3) < chances).tolist())
        brightness = 1.0 + self.R.uniform(-self.intensity_factor, 0.2) if self.intensity_factor else 1.0
        pair = (None, None) if self.pairs is None else (self.pairs.params, self.pairs.psf)
        return item, Draw(*pair, corner, pose, brightness)

    def _corner(self, image: torch.Tensor, room: Sequence[int]) -> tuple[int, int]:
        """Draw the corner of a patch of a slice [C, H, W], larger by ``room``; smaller ones lie in its middle."""
        least, best = self.structure * float(image.std(correction=0)) if self.structure else 0.0, (-1.0, (0, 0))
        for _ in range(TRIES):
            top, left = (int(self.R.randint(n + 1)) if n >= 0 else -(-n // 2) for n in room)
            if not self.structure:
                return top, left
            window = image[:, max(top, 0) : top + self.size[0], max(left, 0) : left + self.size[1]]
            best = max(best, (float(window.std(correction=0)), (top, left)))
            if best[0] >= least:
                break
        return best[1]

    def _made(self, items: Sequence[Item], draws: Sequence[Draw], device: torch.device | str) -> list[Item]:
        """The items with their patches."""
        degradations, spreads, corners, poses, brightness = zip(*draws, strict=True)
        patches = {}
        for key in self.keys:
            cut = cut_windows([item[key] for item in items], corners, self.size, self.padding or "constant")
            patches[key] = to_device(cut, device)
        if self.thick:
            labels = [item[self.pairs.key] for item in items]
            patches[self.pairs.image_key] = self.pairs.windows(labels, degradations, corners, self.size, device)
        chosen = torch.tensor(poses, device=device)[:, :, None, None, None]
        factors = torch.tensor(brightness, device=device)[:, None, None, None]
        for key, patch in patches.items():
            for number in np.flatnonzero(np.any(poses, axis=0)):
                other = torch.rot90(patch, 1, (2, 3)) if number == 2 else patch.flip(int(number) + 2)
                patch = torch.where(chosen[:, number], other, patch)
            if self.intensity_factor and (self.brightened is None or key in self.brightened):
                patch = patch * factors.to(patch.dtype)
            patches[key] = patch.to(self.dtypes.get(key, patch.dtype))
        if self.pairs is not None and not self.thick:
            pair = self.pairs.pairs(patches[self.pairs.key], degradations)
            rows, columns = pair[0].shape[2:]
            patches = {key: patch[..., :rows, :columns] for key, patch in patches.items()}
            patches |= dict(zip((self.pairs.key, self.pairs.image_key), pair, strict=True))
        if self.pairs is not None:
            patches[self.pairs.psf_key] = to_device(torch.stack(spreads), device)
        return [item | {key: batch[b] for key, batch in patches.items()} for b, item in enumerate(items)]
