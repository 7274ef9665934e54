"""Training pairs for thick slices: a sharp slice, and the same grid interpolated from thick samples along one axis."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

from medsr_monai.transforms.degradation import Method, RandDegraded, white_noise
from medsr_monai.transforms.geometry import AXES
from medsr_monai.transforms.interpolation import spline_matrix
from medsr_monai.transforms.point_spread import point_spread_of, sampling_matrices
from medsr_monai.transforms.windows import cut_windows, to_device

__all__ = ["RandThickSliced", "TurnBackd"]

SEGMENTATION, REFERENCE, TURNED = "segmentation", "reference", "turned"


class RandThickSliced(RandDegraded):
    """Write what thick slices show of ``label``, interpolated back to its grid, to ``image``.

    A slice [C, H, W] is turned so that the thick axis runs along its columns (the last axis), where
    :class:`medsr_monai.inferers.ThroughPlaneInferer` puts it, cropped at the far end of this axis to a multiple of
    ``factor``, degraded along it (:func:`medsr_monai.transforms.sampling_matrix`) and brought back to its
    size by cubic B-splines (:func:`medsr_monai.transforms.interpolation.spline_matrix`). Both keep the outer corners,
    so ``image`` lies on ``label``. Both are plain tensors. An item is a batch of one, see :meth:`windows`.

    The name of the thick axis is written to ``thick_axis``, and to ``turned`` whether the slice was turned (see
    :class:`TurnBackd`). A label map, ``segmentation``, and a sharp slice of another contrast, ``reference``, are turned
    and cropped with the slice. What was drawn lies in ``params`` and ``axis`` (0 for rows); calling with
    ``randomize=False`` replays it.

    Args:
        keys: the high-resolution slice (one key), [C, H, W].
        image_key: the key that the interpolated slice is written to.
        factor: slice thickness, in pixels of the label.
        thick_axis: left-right, posterior-anterior or inferior-superior, one of the two that the item's ``axes`` name
            (see :class:`medsr_monai.data.SliceDataset`); None draws one of the two for each item.
        method, fwhm, noise_std, psf_key: see :class:`medsr_monai.transforms.RandDegraded`; the noise is that of the
            thick slices.

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
        method: Method | Sequence[str] = "gaussian",
        fwhm: tuple[float, float] | None = None,
        noise_std: tuple[float, float] = (0.0, 0.0),
        psf_key: str = "psf",
    ) -> None:
        if thick_axis is not None and thick_axis not in AXES:
            raise ValueError(f"thick axis is {thick_axis!r}, expected one of {', '.join(AXES)}, or none to draw it")
        factors = (1, factor)
        super().__init__(
            keys, image_key, factors=factors, method=method, fwhm=fwhm, noise_std=noise_std, psf_key=psf_key
        )
        self.factor = factor
        self.thick_axis = thick_axis
        self.axis = 0

    def randomize(self, data: object = None) -> None:
        self.axis = int(self.R.randint(2))
        super().randomize(data)

    def __call__(self, data: Mapping[Hashable, object], randomize: bool = True) -> dict[Hashable, object]:
        if randomize:
            self.randomize()
        d = self.turned(data)
        label = d[self.key]
        image = self.windows([label], [self.params], [(0, 0)], label.shape[1:], label.device)[0]
        return d | {self.image_key: image, self.psf_key: self.psf}

    def turned(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Turn the slices of an item by the ``axis`` that was drawn, crop them, and describe both in the item."""
        d = dict(data)
        axes = tuple(d["axes"])
        if self.thick_axis is not None and self.thick_axis not in axes:
            raise ValueError(
                f"the slice's axes are {' and '.join(axes)}, not the thick axis {self.thick_axis}: use slices of the "
                "other planes"
            )
        axis = self.axis if self.thick_axis is None else axes.index(self.thick_axis)
        width = d[self.key].shape[axis + 1]
        if width < self.factor:
            raise ValueError(f"a slice of {width} pixels is smaller than the factor {self.factor}: use a smaller one")
        for key in {self.key, SEGMENTATION, REFERENCE} & d.keys():
            image = convert_to_tensor(d[key])
            d[key] = (image if axis else image.mT)[..., : width // self.factor * self.factor].contiguous()
        return d | {"axes": (axes[1 - axis], axes[axis]), "thick_axis": axes[axis], TURNED: axis == 0}

    def windows(
        self,
        labels: Sequence[torch.Tensor],
        drawn: Sequence[dict],
        corners: Sequence[tuple[int, int]],
        size: Sequence[int],
        device: torch.device | str,
    ) -> torch.Tensor:
        """Make windows [B, C, *size] of what thick slices show of each turned slice [C, H, W], on a device.

        The rows of a window are degraded over their whole length, and interpolated at its columns: what the window of
        the whole slice would show, for less. Shorter slices than the longest, and windows that reach beyond a slice,
        get zeros.

        Args:
            labels: the turned slices, of any heights and widths.
            drawn: the ``params`` of each slice.
            corners, size: see :func:`medsr_monai.transforms.windows.cut_windows`.
            device: the device on which the windows are made.
        """
        widths = [label.shape[2] for label in labels]
        width = max(widths)
        tops = [(top, 0) for top, _ in corners]
        rows = to_device(cut_windows(labels, tops, (size[0], width), "constant"), device)
        down = rows.new_zeros(len(labels), width // self.factor, width)
        up = rows.new_zeros(len(labels), size[1], width // self.factor)
        noise = rows.new_zeros(*rows.shape[:3], width // self.factor, device="cpu")
        for wide in set(widths):
            here, small = [b for b, n in enumerate(widths) if n == wide], wide // self.factor
            spreads = [point_spread_of(drawn[b]["method"], drawn[b]["fwhm"], self.factor) for b in here]
            down[here, :small, :wide] = sampling_matrices(wide, small, spreads, rows.device).to(down)
            spline = _spline_on(small, wide, rows.device).to(up)
            for b in here:
                top, left = corners[b]
                columns = slice(max(left, 0), min(left + size[1], wide))
                up[b, columns.start - left : columns.stop - left, :small] = spline[columns]
                if drawn[b]["noise_std"]:
                    inside = noise[b, :, max(-top, 0) : labels[b].shape[1] - top, :small]
                    inside.copy_(white_noise(drawn[b], inside.shape))
        low = rows @ down.mT[:, None]
        if any(one["noise_std"] for one in drawn):
            low = low + to_device(noise, rows.device)
        return low @ up.mT[:, None]


@lru_cache(maxsize=64)
def _spline_on(small: int, size: int, device: torch.device) -> torch.Tensor:
    return spline_matrix(small, size).to(device)


class TurnBackd(MapTransform):
    """Turn slices as they lie in the volume, where :class:`RandThickSliced` has turned them.

    For whatever looks at a slice as a whole, such as a segmentation network; keys that an item lacks are passed over.
    The item's ``axes`` are then those of the rows and columns again.

    Args:
        keys: slices [C, H, W].
    """

    def __init__(self, keys: KeysCollection = ("image", "label", "pred", SEGMENTATION, REFERENCE)) -> None:
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
