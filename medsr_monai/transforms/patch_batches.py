"""Random patches of slices, made for a whole batch at once on its device.

Random numbers are drawn item by item with MONAI's own transforms, then applied to all patches together: a batch is
what the same transforms make of its slices one by one, up to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from monai.transforms import (
    CastToTyped,
    Compose,
    RandFlipd,
    Randomizable,
    RandRotate90d,
    RandScaleIntensityd,
    RandSpatialCropd,
    SpatialPadd,
)
from monai.utils import ensure_tuple_rep
from torch import Tensor

from medsr_monai.transforms.degradation import RandDegraded, sampling_matrices
from medsr_monai.transforms.interpolation import spline_matrix
from medsr_monai.transforms.thick_slices import SEGMENTATION, RandThickSliced

__all__ = ["PatchBatches"]

MAX_SEED = 2**32
Item = dict[Hashable, object]


class PatchBatches(Compose):
    """A ``Compose`` of patch transforms that also makes a whole batch of patches at once, see :meth:`batch`.

    Args:
        transforms: in this order, most of them at will: a :class:`medsr_monai.transforms.RandThickSliced`;
            ``SpatialPadd`` (zeros or "edge", both sides), ``RandSpatialCropd`` to a fixed size; ``RandFlipd``,
            ``RandRotate90d`` of square patches, ``RandScaleIntensityd``, :class:`medsr_monai.transforms.RandDegraded`,
            ``CastToTyped``.

    Raises:
        ValueError: no crop, a transform of another kind, or one at a place where a batch cannot have it.
    """

    def __init__(self, transforms: Sequence[Callable]) -> None:
        super().__init__(transforms)
        kinds = [type(step) for step in self.transforms]
        if kinds.count(RandSpatialCropd) != 1:
            raise ValueError(f"{kinds.count(RandSpatialCropd)} RandSpatialCropd: batches need exactly one")
        place = kinds.index(RandSpatialCropd)
        if set(kinds[:place]) - {SpatialPadd, RandThickSliced} or RandThickSliced in kinds[1:]:
            raise ValueError("before RandSpatialCropd there may be RandThickSliced, first, and SpatialPadd")
        self.pad = next((step for step in self.transforms[:place] if type(step) is SpatialPadd), None)
        self.crop = self.transforms[place]
        self.thick = self.transforms[0] if kinds[0] is RandThickSliced else None
        self.rest = self.transforms[place + 1 :]
        if unknown := [kind.__name__ for kind in kinds[place + 1 :] if kind not in BATCHED]:
            raise ValueError(f"{', '.join(unknown)} after RandSpatialCropd: expected {', '.join(map(_name, BATCHED))}")
        self.set_random_state(seed=0)  # a state of its own for every transform, to be seeded again

    def batch(self, items: Sequence[Mapping], seeds: Sequence[int], device: torch.device | str) -> list[Item]:
        """What ``set_random_state(seed)`` and a call make of each item, with the patches on ``device``.

        Args:
            items: slices [C, H, W], anywhere, beside other keys; they are not changed.
            seeds: one for each item, below 2**32.
            device: where the patches are degraded; they are cut out where the slices are.
        """
        if self.thick is not None and any(SEGMENTATION in item for item in items):
            raise ValueError("label maps of slices are not cut into patches: leave them out of the training's keys")
        states = [self._states(seed) for seed in seeds]
        made: list[Item] = [dict(item) for item in items]
        thick = None
        if self.thick is not None:
            thick = [_turned(self.thick, item, state[0]) for item, state in zip(made, states, strict=True)]
        size = ensure_tuple_rep(self.crop.cropper.roi_size, 2)
        first = "label" if thick else self.crop.keys[0]
        corners = []
        for item, state in zip(made, states, strict=True):
            corners.append(self._corner(item[first].shape[1:], state[len(self.transforms) - len(self.rest) - 1]))
        mode = "constant" if self.pad is None else self.pad.mode[0]
        patches = {}
        for key in self.crop.keys:
            if thick and key == self.thick.image_key:
                continue
            patches[key] = _moved(_windows([item[key] for item in made], corners, size, mode), device)
        if thick:
            patches[self.thick.image_key] = _thick_windows(self.thick, made, thick, corners, size, device)
        for number, step in enumerate(self.rest, start=len(self.transforms) - len(self.rest)):
            BATCHED[type(step)](step, patches, [state[number] for state in states])
        for position, item in enumerate(made):
            item.update({key: batch[position] for key, batch in patches.items()})
        return made

    def _states(self, seed: int) -> list[int]:
        """Seeds of the transforms, as ``Compose.set_random_state`` draws them."""
        self.R.seed(seed % MAX_SEED)
        return [int(self.R.randint(MAX_SEED, dtype="uint32")) if isinstance(t, Randomizable) else 0
                for t in self.transforms]  # fmt: skip

    def _corner(self, sides: Sequence[int], seed: int) -> tuple[int, int]:
        """First row and column of the patch in a slice, below 0 where padding begins."""
        before = [0, 0]
        if self.pad is not None:
            sizes = ensure_tuple_rep(self.pad.padder.spatial_size, 2)
            before = [max(n - side, 0) // 2 for n, side in zip(sizes, sides, strict=True)]
            sides = [max(n, side) for n, side in zip(sizes, sides, strict=True)]
        cropper = self.crop.cropper
        size = ensure_tuple_rep(cropper.roi_size, 2)
        if min(side - n for side, n in zip(sides, size, strict=True)) < 0:
            raise ValueError(
                f"a slice of {sides[0]}x{sides[1]} pixels has no patch of {size[0]}x{size[1]}: use a smaller "
                "patch_size, or larger slices"
            )
        cropper.R.seed(seed)
        cropper.randomize(tuple(sides))
        return tuple(s.start - b for s, b in zip(cropper._slices, before, strict=True))


def _name(kind: type) -> str:
    return kind.__name__


def _windows(images: Sequence[Tensor], corners: Sequence[tuple[int, int]], size: Sequence[int], mode: str) -> Tensor:
    """Windows [B, C, h, w] of images [C, H, W], which may reach beyond them."""
    windows = []
    for image, corner in zip(images, corners, strict=True):
        inside = [(max(c, 0), min(c + n, side)) for c, n, side in zip(corner, size, image.shape[1:], strict=True)]
        (top, bottom), (left, right) = inside
        window = image[:, top:bottom, left:right]
        if window.shape[1:] != tuple(size):
            (up, before) = (top - corner[0], left - corner[1])
            margins = (before, size[1] - before - (right - left), up, size[0] - up - (bottom - top))
            kind = {"edge": "replicate"}.get(mode, mode)
            window = F.pad(window.float()[None], margins, kind)[0].to(window.dtype)
        windows.append(window)
    return torch.stack(windows)


def _moved(batch: Tensor, device: torch.device | str) -> Tensor:
    """To the device; to a GPU from pinned memory, so that nothing waits for the copy."""
    device = torch.device(device)
    if device.type == "cuda" and batch.device.type == "cpu":
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


def _drawn(step: Randomizable, seed: int) -> bool:
    step.R.seed(seed)
    step.randomize(None)
    return step._do_transform


def _where(patches: dict, keys: Sequence[Hashable], chosen: Sequence[bool], change: Callable[[Tensor], Tensor]) -> None:
    """Change the patches that are chosen."""
    if not any(chosen):
        return
    for key in keys:
        batch = patches[key]
        mask = torch.tensor(chosen).view(-1, 1, 1, 1).to(batch.device)
        patches[key] = torch.where(mask, change(batch), batch)


def _flip(step: RandFlipd, patches: dict, seeds: Sequence[int]) -> None:
    axis = step.flipper.spatial_axis + 2
    _where(patches, step.keys, [_drawn(step, seed) for seed in seeds], lambda batch: batch.flip(axis))


def _turn(step: RandRotate90d, patches: dict, seeds: Sequence[int]) -> None:
    quarters = [step._rand_k if _drawn(step, seed) else 0 for seed in seeds]
    axes = [axis + 2 for axis in step.spatial_axes]
    for count in set(quarters) - {0}:
        chosen = [k == count for k in quarters]
        _where(patches, step.keys, chosen, lambda batch, count=count: torch.rot90(batch, count, axes))


def _scale(step: RandScaleIntensityd, patches: dict, seeds: Sequence[int]) -> None:
    factors = []
    for seed in seeds:
        factors.append(1.0)
        if _drawn(step, seed) and _drawn(step.scaler, seed):
            factors[-1] += step.scaler.factor
    for key in step.keys:
        batch = patches[key]
        patches[key] = batch * _per_item(factors, batch)


def _degrade(step: RandDegraded, patches: dict, seeds: Sequence[int]) -> None:
    (key,) = step.keys
    params = [_params(step, seed) for seed in seeds]
    factors = ensure_tuple_rep(step.factors, 2)
    rows, columns = (n // f * f for n, f in zip(patches[key].shape[2:], factors, strict=True))
    patches[key] = low = patches[key][:, :, :rows, :columns]
    methods, widths = [one["method"] for one in params], [one["fwhm"] for one in params]
    matrices = {}
    for axis, size, factor in ((2, rows, factors[0]), (3, columns, factors[1])):
        if factor > 1:
            if (size, factor) not in matrices:
                matrix = sampling_matrices(size, size // factor, methods, widths, low.device)
                matrices[size, factor] = matrix.to(low).transpose(-1, -2)[:, None]
            low = torch.movedim(torch.movedim(low, axis, -1) @ matrices[size, factor], -1, axis)
    patches[step.image_key] = (low + _noise(params, low)).contiguous() if _noisy(params) else low.contiguous()


def _cast(step: CastToTyped, patches: dict, seeds: Sequence[int]) -> None:
    for key, dtype in zip(step.keys, step.dtype, strict=True):
        patches[key] = patches[key].to(dtype)


BATCHED = {
    RandFlipd: _flip, RandRotate90d: _turn, RandScaleIntensityd: _scale, RandDegraded: _degrade, CastToTyped: _cast,
}  # fmt: skip


def _params(step: RandDegraded, seed: int) -> dict:
    step.R.seed(seed)
    step.randomize()
    return step.params


def _per_item(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).view(-1, 1, 1, 1).to(like.device)


def _noisy(params: Sequence[dict]) -> bool:
    return any(one["noise_std"] for one in params)


def _noise_of(params: dict, shape: Sequence[int]) -> Tensor:
    """What :func:`degrade` adds: the CPU's random numbers, wherever the patches are."""
    generator = torch.Generator().manual_seed(params["noise_seed"])
    return params["noise_std"] * torch.randn(tuple(shape), generator=generator, dtype=torch.float64).float()


def _noise(params: Sequence[dict], low: Tensor) -> Tensor:
    noise = torch.stack([_noise_of(one, low.shape[1:]) for one in params])
    return _moved(noise, low.device)


def _turned(step: RandThickSliced, item: Item, seed: int) -> dict:
    """Turn a slice and crop it as RandThickSliced does, and return what was drawn."""
    (key,) = step.keys
    params = _params(step, seed)
    axes = tuple(item["axes"])
    axis = step.along(axes)
    label = item[key].transpose(1, 2) if axis == 0 else item[key]
    factor = step.factors[1]
    item[key] = label[:, :, : label.shape[2] // factor * factor]
    item.update(step.described(axes, axis))
    if item[key].shape[2] == 0:
        raise ValueError(f"slice of {tuple(label.shape[1:])} is smaller than the factor {factor}: use a smaller one")
    return params


@lru_cache(maxsize=64)
def _spline(small: int, size: int, device: torch.device) -> Tensor:
    return spline_matrix(small, size).float().to(device)


def _thick_windows(
    step: RandThickSliced,
    items: Sequence[Item],
    params: Sequence[dict],
    corners: Sequence[tuple[int, int]],
    size: Sequence[int],
    device: torch.device | str,
) -> Tensor:
    """Windows of the interpolated slices: rows of the window, all columns, to thick samples, to the window's columns.

    Slices have different widths; shorter ones get zeros, which change nothing.
    """
    (key,) = step.keys
    device, factor = torch.device(device), step.factors[1]
    labels = [item[key] for item in items]
    widths = [label.shape[2] for label in labels]
    width = max(widths)
    starts = [(corner[0], 0) for corner in corners]
    rows = _moved(_windows(labels, starts, (size[0], width), "constant"), device)
    down = rows.new_zeros(len(items), width, width // factor)
    up = rows.new_zeros(len(items), width // factor, size[1])
    noise = None
    if _noisy(params):
        noise = torch.zeros(len(items), rows.shape[1], size[0], width // factor)
    for wide in set(widths):
        here = [b for b, n in enumerate(widths) if n == wide]
        small = wide // factor
        methods, fwhms = [params[b]["method"] for b in here], [params[b]["fwhm"] for b in here]
        matrices = sampling_matrices(wide, small, methods, fwhms, device).to(rows)
        spline = _spline(small, wide, device)
        for number, b in enumerate(here):
            down[b, :wide, :small] = matrices[number if len(matrices) > 1 else 0].T
            left = corners[b][1]
            first, last = max(left, 0), min(left + size[1], wide)
            up[b, :small, first - left : last - left] = spline[first:last].T
            if noise is not None:
                top = corners[b][0]
                high = labels[b].shape[1]
                drawn = _noise_of(params[b], (rows.shape[1], high, small))
                inside = slice(max(top, 0), min(top + size[0], high))
                noise[b, :, inside.start - top : inside.stop - top, :small] = drawn[:, inside]
    low = rows @ down[:, None]
    if noise is not None:
        low = low + _moved(noise, device)
    return low @ up[:, None]
