"""Label maps: read with whole numbers, never interpolated."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapLabelValue

from medsr_monai.data.read import LoadVolumed

__all__ = ["LoadLabeld"]


class LoadLabeld(LoadVolumed):
    """Read a label map [1, X, Y, Z], float32 with whole numbers, as :class:`LoadVolumed` does.

    An item's ``label_map``, a dictionary such as ``{"4": 3}`` (JSON has no other keys than strings), replaces its
    labels; labels that it does not name stay.

    Args:
        keys, pictures: see :class:`LoadVolumed`.
        classes: labels are 0 to classes - 1 after the replacement; None for any.

    Raises:
        FileNotFoundError, ValueError: as :class:`LoadVolumed`, for voxels that are not whole numbers, and for labels
            of other classes.
    """

    labels = True

    def __init__(
        self,
        keys: KeysCollection = "label",
        allow_missing_keys: bool = False,
        *,
        classes: int | None = None,
        pictures: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys, pictures=pictures)
        self.classes = classes

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        d = dict(data)
        replaced = {int(old): int(new) for old, new in (d.get("label_map") or {}).items()}
        for key in self.key_iterator(d):
            path = d[key]
            d[key] = self.load(path, d.get("orientation"))
            if not torch.equal(d[key].as_tensor(), d[key].as_tensor().round()):
                raise ValueError(f"{path}: has voxels that are not whole numbers, this is no label map")
            if replaced:
                d[key] = MapLabelValue(replaced.keys(), replaced.values(), dtype=np.float32)(d[key])
            if self.classes is not None:
                others = {int(v) for v in d[key].as_tensor().unique().tolist()} - set(range(self.classes))
                if others:
                    raise ValueError(
                        f"{path}: labels {', '.join(map(str, sorted(others)))}, expected 0 to {self.classes - 1}: give "
                        f'another number of classes, or a label_map such as {{"{max(others)}": 1}}'
                    )
        return d
