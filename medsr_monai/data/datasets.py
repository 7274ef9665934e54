"""2D slices of volumes, drawn reproducibly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from monai.data import CacheDataset, DistributedSampler
from monai.transforms import CenterSpatialCrop, Compose, Randomizable, SelectItemsd
from monai.utils import convert_to_tensor
from torch.utils.data import Dataset

from medsr_monai.data.find import volume_name
from medsr_monai.transforms.geometry import AXES, PLANE_ACROSS, PLANES, plane_axis, spacing

__all__ = ["SliceDataset", "SliceSampler"]

logger = logging.getLogger(__name__)


class SliceDataset(Dataset):
    """Slices of volumes in one or more anatomical planes; the volumes are read once and cached.

    An item is the dictionary that ``transform`` makes of ``{"label": [C, H, W], "case": str, "plane": str,
    "slice": int, "modality": str, "axes": (str, str), "towards": str, "spacing": (float, float)}``; the modality is
    what the item of ``data`` states, else "unknown" (and a ``subject`` that it states comes too), the axes are the
    world axes (AXES) that rows and columns run along; ``towards`` are two letters of RLAPSI for where they lead, and
    ``spacing`` the pixels' edges in mm, both as the slice lies in the volume, whatever a transform does. Random
    transforms are seeded by
    (seed, item number, pass), so an item of a pass is the same whatever was drawn before, in any worker, in any
    process: a resumed training sees what an uninterrupted one sees.

    An item of ``data`` may choose its slices itself (as those of :func:`medsr_monai.data.prepare_datalist` do):
        - ``slices``: positions by plane, ``{"axial": [40, 41]}``; planes that it does not name have none, and air is
          not looked for;
        - ``crop``: size by plane of the centre that is kept of a slice, ``{"axial": [128, 160]}``, in the order of the
          volume's array axes; a side that is smaller stays as it is.

    Args:
        data: MONAI data list, items with the key ``image``.
        volume_transform: deterministic MONAI transforms; gets the whole item and reads ``image`` as a ``MetaTensor``
            [C, X, Y, Z].
        transform: applied to each slice; or several by name, as of :func:`medsr_monai.recipes.slice_pairs`
            with conditions: then each slice comes once with each of them, its name under ``degradation``, and the
            random numbers of a slice are the same with all.
        plane: one or more of sagittal, coronal, axial.
        contains: a world axis, one of AXES. The planes that it runs across are left out; None takes all.
        min_size: shortest side in pixels that a slice must have; the planes of a volume that have smaller slices are
            left out.
        max_anisotropy: largest ratio of the pixel edges of a usable plane: thick slices seen from the side are no
            high-resolution truth.
        min_std: a slice is usable if its standard deviation is above this fraction of its volume's, which leaves out
            air.
        slices_per_volume: how many usable slices are taken per plane of a volume, evenly spread; None takes all.
        keys: volumes and what their slices are called. By default the image is the high-resolution truth; for
            segmentation take ``{"image": "image", "label": "label"}``, with ``label`` in the grid of ``image``.
        reference: the key of a sharp volume of another contrast in the grid of ``image``, whose slices are called
            ``reference`` in the items; None for none.
        seed: the seed of the random transforms.
        num_workers: threads that read the volumes.
        device: where a transform that makes whole batches (:class:`medsr_monai.transforms.PatchBatches`) makes them,
            and where the slices of all others go. On a GPU the volumes are kept there too if they take no more than a
            quarter of its free memory, else in main memory. A GPU is for loaders without worker processes.
        if_empty: gives the data in place of an empty list, see :func:`medsr_monai.data.server_volumes`.

    Raises:
        ValueError: unknown plane or axis, an item without one of the keys, no usable slice in any volume, chosen slices
            that a volume does not have, or volumes of one item that differ in shape.
    """

    def __init__(
        self,
        data: Sequence[dict],
        volume_transform: Callable,
        transform: Callable | Mapping[str, Callable],
        plane: str | Sequence[str] = PLANES,
        *,
        contains: str | None = None,
        min_size: int = 1,
        max_anisotropy: float = 2.0,
        min_std: float = 0.25,
        slices_per_volume: int | None = None,
        keys: Mapping[str, str] | None = None,
        reference: str | None = None,
        seed: int = 0,
        num_workers: int = 1,
        device: torch.device | str = "cpu",
        if_empty: Callable[[], Sequence[dict]] | None = None,
    ) -> None:
        if not data and if_empty is None:
            raise ValueError("no volume to take slices of: the data list is empty")
        self.data = data = data or if_empty()
        self.device = torch.device(device)
        self.transform = None if isinstance(transform, Mapping) else _composed(transform)
        self.by_degradation = {}
        if isinstance(transform, Mapping):
            self.by_degradation = {name: _composed(one) for name, one in transform.items()}
        self.seed = seed
        self.keys = {"image": "label"} if keys is None else dict(keys)
        self.keys |= {} if reference is None else {reference: "reference"}
        for number, item in enumerate(data):
            if missing := [key for key in self.keys if key not in item and "image" in item]:
                raise ValueError(f"{self.case(number)}: its item has no {missing[0]!r}, which is read of every item")
        # CacheDataset takes a Compose inside a Compose for random, and would read the volume for every slice
        load = Compose([volume_transform, SelectItemsd(sorted({"image", *self.keys}))]).flatten()
        self.volumes = CacheDataset(data, load, num_workers=num_workers, progress=False)
        self.items: list[tuple[int, int, str, int]] = []
        self.axes: list[list[str]] = []  # world axis of every array axis, by volume
        self.grids: list[tuple[list[str], list[float]]] = []  # where array axes lead, and voxel edges, by volume
        left_out = []
        planes = (plane,) if isinstance(plane, str) else tuple(plane)
        if contains is not None:
            if contains not in AXES:
                raise ValueError(f"slices are to contain the axis {contains!r}, expected one of {', '.join(AXES)}")
            planes = tuple(name for name in planes if name != PLANE_ACROSS[contains])
        for number in range(len(self.volumes)):
            image = self.volumes[number]["image"]
            self._check_shapes(number)
            world = {plane_axis(image.affine, name): along for along, name in PLANE_ACROSS.items()}
            self.axes.append([world[a] for a in range(3)])
            self.grids.append(([_towards(image.affine, a, world[a]) for a in range(3)], spacing(image.affine).tolist()))
            chosen = data[number].get("slices")
            for name in planes:
                axis = plane_axis(image.affine, name)
                if chosen is not None and name not in chosen:
                    continue
                sides = [n for i, n in enumerate(image.shape[1:]) if i != axis]
                sides = [min(n, c) for n, c in zip(sides, self.crop(number, name) or sides, strict=True)]
                edges = np.delete(spacing(image.affine), axis)
                if min(sides) < min_size or edges.max() > max_anisotropy * edges.min():
                    left_out.append(f"{self.case(number)} {name} ({sides[0]}x{sides[1]})")
                    continue
                if chosen is None:
                    positions = _usable(image, axis, min_std)
                else:
                    positions = [int(i) for i in chosen[name]]
                    if positions and not 0 <= min(positions) <= max(positions) < image.shape[axis + 1]:
                        raise ValueError(
                            f"{self.case(number)}: {name} slices {min(positions)} to {max(positions)} chosen, it has 0 "
                            f"to {image.shape[axis + 1] - 1}: was the datalist made for another file?"
                        )
                self.items += [(number, axis, name, i) for i in _thinned(positions, slices_per_volume)]
        if left_out:
            logger.warning(
                "planes left out, slices smaller than %d pixels or thicker than %g pixels: %s",
                min_size,
                max_anisotropy,
                ", ".join(left_out),
            )
        if not self.items:
            raise ValueError(
                f"no slice of {len(data)} volumes in {', '.join(planes) or 'no plane'} has {min_size} or more pixels a "
                f"side{f' and contains the {contains} axis' if contains else ''}: use a smaller patch_size, other "
                "planes or other volumes"
            )

        self.images = self._kept()

    def _kept(self) -> list[dict[str, torch.Tensor]]:
        """The volumes as plain tensors, on the device if they fit there well."""
        volumes = (self.volumes[number] for number in range(len(self.volumes)))
        images = [{key: volume[key].as_tensor() for key in self.keys} for volume in volumes]
        if self.device.type != "cuda":
            return images
        size = sum(image.nbytes for one in images for image in one.values())
        free, _ = torch.cuda.mem_get_info(self.device)
        if not fits_on_device(size, free):
            logger.info("volumes of %.1f GiB stay in main memory, patches are made on %s", size / 2**30, self.device)
            return images
        return [{key: image.to(self.device) for key, image in one.items()} for one in images]

    def _check_shapes(self, number: int) -> None:
        shapes = {key: tuple(self.volumes[number][key].shape[1:]) for key in self.keys}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"{self.case(number)}: volumes of different shapes, {shapes}: resample them to one grid")

    def crop(self, number: int, plane: str) -> list[int] | None:
        """Give the size of the centre that is kept of a volume's slices in a plane, None for whole slices."""
        return self.data[number].get("crop", {}).get(plane)

    def stated(self, number: int, key: str) -> str:
        """Give what the item of a volume states as its ``modality`` or ``contrast``, else "unknown"."""
        return str(self.data[number].get(key, "unknown"))

    def case(self, number: int) -> str:
        """Name a volume by its last folder and its (first) file name."""
        image = self.data[number]["image"]
        path = str(image[0] if isinstance(image, (list, tuple)) else image).rstrip("/")
        return "/".join([*path.split("/")[-2:-1], volume_name(path)])

    def __len__(self) -> int:
        return len(self.items) * max(1, len(self.by_degradation))

    def __getitem__(self, key: int) -> dict:
        """Item ``key % len(self)`` of pass ``key // len(self)`` (see :class:`SliceSampler`)."""
        item = self._slice(key)
        for name in self.keys.values():
            item[name] = item[name].to(self.device, copy=True)
        transform = self.transform
        if self.by_degradation:
            times, index = divmod(key, len(self))
            number, index = divmod(index, len(self.items))
            item["degradation"], transform = list(self.by_degradation.items())[number]
            key = times * len(self) + index
        transform.set_random_state(seed=self._seed(key))
        return transform(item)

    def __getitems__(self, keys: Sequence[int]) -> list[dict]:
        """Items of a batch, made together where the transform can do it; loaders ask for them so."""
        if not hasattr(self.transform, "batch"):
            return [self[key] for key in keys]
        return self.transform.batch([self._slice(key) for key in keys], [self._seed(key) for key in keys], self.device)

    def _seed(self, key: int) -> int:
        return (self.seed * 1_000_003 + key) % 2**32

    def _slice(self, key: int) -> dict:
        """An item before its transform; its slices are views of the volumes."""
        index = key % len(self) % len(self.items)
        number, axis, plane, position = self.items[index]
        size = self.crop(number, plane)
        item: dict = {
            "case": self.case(number),
            "plane": plane,
            "slice": position,
            "modality": self.stated(number, "modality"),
        }
        others = [a for a in range(3) if a != axis]
        if "subject" in self.data[number]:
            item["subject"] = self.stated(number, "subject")
        item["axes"] = tuple(self.axes[number][a] for a in others)
        letters, edges = self.grids[number]
        item["towards"] = "".join(letters[a] for a in others)
        item["spacing"] = tuple(edges[a] for a in others)
        for volume, name in self.keys.items():
            image = self.images[number][volume].select(axis + 1, position)
            item[name] = image if size is None else convert_to_tensor(CenterSpatialCrop(size)(image))
        return item


def _composed(transform: Callable) -> Randomizable:
    return transform if isinstance(transform, Randomizable) else Compose([transform])


def _towards(affine: torch.Tensor, axis: int, along: str) -> str:
    """R, L, A, P, S or I: the side that an array axis along a world axis leads to."""
    number = AXES.index(along)
    return ("LR", "PA", "IS")[number][int(float(affine[number, axis]) > 0)]


def fits_on_device(size: int, free: int) -> bool:
    """Say whether volumes of so many bytes leave enough of a GPU's free memory to the training."""
    return 4 * size <= free


def _usable(image: torch.Tensor, axis: int, min_std: float) -> list[int]:
    """Positions along ``axis`` whose slices are worth using."""
    others = [d for d in range(image.ndim) if d != axis + 1]
    stds = image.as_tensor().std(dim=others, correction=0)
    return torch.nonzero(stds > min_std * image.as_tensor().std(correction=0)).flatten().tolist()


def _thinned(positions: list[int], count: int | None) -> list[int]:
    """Choose ``count`` of the positions, evenly spread."""
    if count is None or len(positions) <= count:
        return positions
    picks = np.linspace(0, len(positions) - 1, 2 * count + 1)[1::2]
    return [positions[round(pick)] for pick in picks]


class SliceSampler(DistributedSampler):
    """Items of one pass, numbered so that :class:`SliceDataset` knows the pass.

    MONAI's engines tell every ``DistributedSampler`` the epoch; a single process is the case of one replica.

    Args:
        dataset: a :class:`SliceDataset`.
        shuffle: True for training: shuffled, and each process draws equally many items. False for validation: natural
            order, always pass 0, and every item exactly once over all processes.
        seed: the seed of the shuffling.
        balance: "modality" or "contrast" draws equally many slices of each one that the items state, with ``shuffle``
            only. An epoch is as long as without it, rounded up; each goes through its own slices, shuffled pass after
            pass, across epochs, so that few slices of one come again sooner, in other patches. None draws every slice
            once an epoch.

    Raises:
        ValueError: another ``balance``, or one without ``shuffle``.
    """

    def __init__(self, dataset: SliceDataset, shuffle: bool = True, seed: int = 0, balance: str | None = None) -> None:
        if balance not in (None, "modality", "contrast"):
            raise ValueError(f"balance is {balance!r}, expected 'modality', 'contrast' or None")
        if balance and not shuffle:
            raise ValueError("balance needs shuffle: without it every slice comes exactly once")
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        super().__init__(
            dataset,
            even_divisible=shuffle,
            num_replicas=None if distributed else 1,
            rank=None if distributed else 0,
            shuffle=shuffle,
            seed=seed,
        )
        self.groups: list[list[int]] = []
        if balance:
            groups: dict[str, list[int]] = {}
            for index, (number, *_) in enumerate(dataset.items):
                groups.setdefault(dataset.stated(number, balance), []).append(index)
            self.groups = list(groups.values())
            self.quota = -(-len(dataset) // len(groups))
            self.num_samples = -(-self.quota * len(groups) // self.num_replicas)
            self.total_size = self.num_samples * self.num_replicas

    def __iter__(self) -> Iterator[int]:
        if self.groups:
            return self._balanced()
        offset = self.epoch * len(self.dataset) if self.shuffle else 0
        return (offset + index for index in super().__iter__())

    def _balanced(self) -> Iterator[int]:
        keys = [key for number in range(len(self.groups)) for key in self._draws(number)]
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(keys))
        # the first ones once more, so that all processes draw equally many
        order = np.resize(order, self.total_size)
        return (keys[i] for i in order[self.rank :: self.num_replicas])

    def _draws(self, number: int) -> list[int]:
        """This epoch's part of a group's endless stream of shuffled passes, as keys of the dataset."""
        group = self.groups[number]
        keys = []
        for draw in range(self.epoch * self.quota, (self.epoch + 1) * self.quota):
            times, position = divmod(draw, len(group))
            if position == 0 or not keys:
                order = np.random.default_rng((self.seed, number, times)).permutation(group)
            keys.append(times * len(self.dataset) + int(order[position]))
        return keys
