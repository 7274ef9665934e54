"""Training pairs for thick slices: a sharp slice, and the same grid interpolated from thick samples along one axis."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

from medsr_monai.transforms.degradation import RandDegraded
from medsr_monai.transforms.geometry import AXES
from medsr_monai.transforms.interpolation import resample

__all__ = ["RandThickSliced", "TurnBackd"]

SEGMENTATION, TURNED = "segmentation", "turned"


class RandThickSliced(RandDegraded):
    """Write what thick slices show of ``label``, interpolated back to its grid, to ``image``.

    A slice [C, H, W] is turned so that the thick axis runs along its columns (the last axis), where
    :class:`medsr_monai.inferers.ThroughPlaneInferer` puts it, cropped at the far end of this axis to a multiple of
    ``factor``, degraded along it (:func:`medsr_monai.transforms.degradation.degrade`) and brought back to its size by
    cubic B-splines (:func:`medsr_monai.transforms.interpolation.resample`). Both keep the outer corners, so ``image``
    lies on ``label``. Both are plain tensors.

    The name of the thick axis is written to ``thick_axis``, and to ``turned`` whether the slice was turned (see
    :class:`TurnBackd`). A label map, ``segmentation``, is turned and cropped with the slice. What was drawn lies in
    ``params`` and ``axis`` (0 for rows); calling with ``randomize=False`` replays it.

    Args:
        keys: the high-resolution slice (one key), [C, H, W].
        image_key: where the interpolated slice goes.
        factor: slice thickness, in pixels of the label.
        thick_axis: left-right, posterior-anterior or inferior-superior, one of the two that the item's ``axes`` name
            (see :class:`medsr_monai.data.SliceDataset`); None draws one of the two for each item.
        method: see :func:`medsr_monai.transforms.degradation.degradation_matrix`; of several, one is drawn for each
            slice.
        fwhm: range (low, high) in pixels that the width of the slice profile is drawn from, or None for ``factor``.
        noise_std: range (low, high) that the noise level of the thick slices is drawn from.

    Raises:
        ValueError: an unknown axis; a slice that does not contain it, or is smaller than ``factor`` along it.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        image_key: str = "image",
        *,
        factor: int,
        thick_axis: str | None = None,
        method: str | Sequence[str] = "gaussian",
        fwhm: tuple[float, float] | None = None,
        noise_std: tuple[float, float] = (0.0, 0.0),
        allow_missing_keys: bool = False,
    ) -> None:
        if thick_axis is not None and thick_axis not in AXES:
            raise ValueError(f"thick axis is {thick_axis!r}, expected one of {', '.join(AXES)}, or none to draw it")
        super().__init__(
            keys,
            image_key,
            factors=(1, factor),
            method=method,
            fwhm=fwhm,
            noise_std=noise_std,
            allow_missing_keys=allow_missing_keys,
        )
        self.thick_axis = thick_axis
        self.axis = 0

    def randomize(self, data: object = None) -> None:
        super().randomize(data)
        self.axis = int(self.R.randint(2))

    def __call__(self, data: Mapping[Hashable, object], randomize: bool = True) -> dict[Hashable, object]:
        d = dict(data)
        if randomize:
            self.randomize()
        axes = tuple(d["axes"])
        axis = self.along(axes)
        if axis == 0:
            for key in {*self.key_iterator(d), SEGMENTATION} & d.keys():
                d[key] = convert_to_tensor(d[key]).transpose(1, 2).contiguous()
        d = super().__call__(d, randomize=False)
        for key in self.key_iterator(d):
            d[self.image_key] = resample(d[self.image_key], d[key].shape[1:])
            if SEGMENTATION in d:
                d[SEGMENTATION] = d[SEGMENTATION][..., : d[key].shape[2]]
        return d | self.described(axes, axis)

    def along(self, axes: Sequence[str]) -> int:
        """The thick one of a slice's axes: as configured, or as drawn."""
        if self.thick_axis is None:
            return self.axis
        if self.thick_axis not in axes:
            raise ValueError(
                f"the slice's axes are {' and '.join(axes)}, not the thick axis {self.thick_axis}: use slices of the "
                "other planes"
            )
        return axes.index(self.thick_axis)

    @staticmethod
    def described(axes: Sequence[str], axis: int) -> dict[Hashable, object]:
        """What is said of a slice with ``axes`` that was turned so that ``axis`` runs along its columns."""
        return {"axes": (axes[1 - axis], axes[axis]), "thick_axis": axes[axis], TURNED: axis == 0}


class TurnBackd(MapTransform):
    """Turn slices as they lie in the volume, where :class:`RandThickSliced` has turned them.

    For whatever looks at a slice as a whole, such as a segmentation network; keys that an item lacks are passed over.
    The item's ``axes`` are then those of the rows and columns again.

    Args:
        keys: slices [C, H, W].
    """

    def __init__(self, keys: KeysCollection = ("image", "label", "pred", SEGMENTATION)) -> None:
        super().__init__(keys, allow_missing_keys=True)

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        d = dict(data)
        if bool(d[TURNED]):
            for key in self.key_iterator(d):
                d[key] = d[key].transpose(1, 2).contiguous()
            if "axes" in d:
                d["axes"] = tuple(reversed(d["axes"]))
            d[TURNED] = False
        return d
