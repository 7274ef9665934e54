"""A thick-slice scan as its own training set: in the plane of its slices it is sharp, across them it is not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medsr_monai.data import volume_name
from medsr_monai.inferers import DataConsistency, ThroughPlaneInferer, to_device
from medsr_monai.inferers.plane import UNKNOWN
from medsr_monai.metrics import axis_spectrum, estimate_noise
from medsr_monai.records.figures import usable_slices
from medsr_monai.records.sidecar import sha256
from medsr_monai.transforms import PLANE_ACROSS, PointSpread, parse_point_spread, sampling_matrix, spacing
from medsr_monai.transforms.geometry import SQUARE_RATIO, THICK_RATIO, with_corners_of
from medsr_monai.upscaling.point_spread import FoundPointSpread, find_point_spread

__all__ = ["OwnSlices"]

logger = logging.getLogger(__name__)

PATCH_AREA = 1024
"""The number of pixels of a coarse patch, by which a training step takes the same time whatever the ratio is."""
HELD_OUT = 10
"""Every tenth slice is held out, in blocks, since neighbouring slices show nearly the same."""
BLOCKS = 4
"""About this many blocks are held out of a scan with many slices."""
HELD_OUT_SIDE = 128
"""Of held-out slices the middle of so many pixels a side is compared."""
LEAST_SLICES = 10
"""So many slices with something to see are needed."""
COMPARED = 8
"""So many slices across are super-resolved to compare the output with the scan."""
LEAST_SIDE = 32
"""The shorter side of the slices has to have so many acquired pixels."""
STRUCTURE = 0.25
"""A slice is used if its standard deviation is above this part of the volume's."""
ALIKE = 1.1
"""Scans of one protocol have thicknesses, in pixels, that differ by this factor at most."""


class OwnSlices:
    """Training and held-out slices of scans, and how they have to be degraded to look like the scans across slices.

    The slices are those that were acquired, whose pixels are the truth. Where a scanner has filled k-space with zeros
    they are brought back to the acquired matrix, and to square pixels where its two edges differ.

    Args:
        scans: of one protocol. Each has an ``image``, as ``load`` reads it, and may have a ``header``, what is known of
            how its slices were made (see :func:`medsr_monai.upscaling.cases.header_of`), ``modality``, ``contrast`` and
            ``body_part``, a ``name`` for messages, and its ``sha256``. One that nothing can be learnt from is left out
            with a warning, if there are others.
        load: reads and scales one, see :func:`medsr_monai.recipes.load_volume`.
        inferer: by whose plan the thick axis is found.
        psf: the point spread across slices: KIND or KIND:FWHM_MM, ``unknown``, ``auto`` to find it, or what was found.
        most_held_out: so many slices at most are held out of all scans together.

    Attributes:
        digests: SHA-256 of each scan.
        training, validation: items for :class:`medsr_monai.data.SliceDataset`, whose ``volume_transform`` is
            :meth:`volume`.
        plane: of the acquired slices.
        ratio: thickness of the slices, in acquired pixels.
        patch_size: of square training patches.
        degradation: keyword arguments of a :class:`medsr_monai.transforms.RandPointSpread`.
        noise: standard deviation of the scans' noise, in parts of the intensity range.
        noise_std: standard deviation of the noise that degrading has averaged out of the scan, in parts of the
            intensity range: it is added again.
        found: point spread of each scan; empty where ``psf`` states it.

    Raises:
        ValueError: nothing can be learnt from any scan, or they differ; one line.
    """

    def __init__(
        self,
        scans: Sequence[Mapping[str, Any]],
        load: Callable[[Mapping], Mapping],
        inferer: ThroughPlaneInferer,
        *,
        psf: str | FoundPointSpread = "auto",
        most_held_out: int = 12,
    ) -> None:
        if not scans:
            raise ValueError("no scan to learn from: expected at least one")
        self.inferer = inferer
        self.most_held_out = max(1, most_held_out // len(scans))
        self.digests: list[str] = []
        self.images: list[MetaTensor] = []
        self.volumes: dict[str, MetaTensor] = {}
        self.training: list[dict[str, Any]] = []
        self.validation: list[dict[str, Any]] = []
        self.found: list[FoundPointSpread] = []
        self.plane = ""
        self.point_spreads: list[PointSpread | None] = []
        self.ratios: list[float] = []
        noises, sides, reasons = [], [], []
        for number, scan in enumerate(scans):
            try:
                volume, axis = self._take(scan, scan.get("name") or _name(scan["image"], number), load, psf)
            except ValueError as error:
                reasons.append(str(error))
                continue
            sides += [n for a, n in enumerate(volume.shape[1:]) if a != axis]
            noises.append(estimate_noise(volume[0].numpy(), axis) or 0.0)
        if not self.training:
            raise ValueError(reasons[0])
        for reason in reasons:
            logger.warning("left out: %s", reason)
        ratios = self.ratios
        if max(ratios) > ALIKE * min(ratios):
            raise ValueError(
                f"slices are {min(ratios):.2f} to {max(ratios):.2f} times as thick as the pixels: fit scans of one "
                "protocol, or each by itself"
            )
        self.ratio = round(float(np.median(ratios)), 3)
        if abs(self.ratio - round(self.ratio)) < 0.01:
            self.ratio = float(round(self.ratio))
        self.patch_size = min(round((PATCH_AREA * self.ratio) ** 0.5), *sides)
        self.point_spread = _common(self.point_spreads)
        self.degradation = _drawn(self.point_spread)
        self.noise = float(np.median(noises))
        self.noise_std = self.noise * _averaged(self.point_spread, self.ratio)

    @property
    def scale(self) -> list[float]:
        """Factors of the rows and the columns of a slice."""
        return [1, self.ratio]

    def volume(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Give the volume [1, X, Y, Z] of an item, scaled, on its acquired grid."""
        return dict(item) | {"image": self.volumes[item["image"]]}

    def residual(self, network: torch.nn.Module) -> float:
        """Compare what a network makes of some slices, made coarse again, with the scans: the RMS difference.

        Args:
            network: it is told the point spread if it can be.

        Returns:
            The mean over the scans, in parts of the intensity range; of an unknown point spread that of the likely kind
            that fits best.
        """
        spreads = [self.point_spread] if self.point_spread else [PointSpread("gaussian"), PointSpread("box")]
        told = self.point_spread if getattr(network, "psf_channels", 0) and self.point_spread else UNKNOWN
        found = []
        for image in self.images:
            one = self.inferer.plan(image.affine, image.shape[1:]).passes[0]
            picks = usable_slices(image.as_tensor(), one.axis, COMPARED)
            thin = MetaTensor(image.as_tensor().index_select(one.axis + 1, torch.tensor(picks)), affine=image.affine)
            inferer = self.inferer.of_plane(one.plane, thin)
            inferer.slices.psf, inferer.slices.find_psf = told, None
            with torch.inference_mode():
                made = inferer(to_device(thin[None], next(network.parameters()).device), network)[0].cpu()
            found.append(min(DataConsistency(spread).residual(made, thin).rms for spread in spreads))
        return float(np.mean(found))

    def record(self) -> dict[str, Any]:
        """Describe it for a sidecar."""
        return {
            "Ratio": self.ratio,
            "PointSpread": "unknown" if self.point_spread is None else str(self.point_spread),
            "PointSpreadFound": [one.record() for one in self.found] or None,
            "Noise": round(self.noise_std, 5),
            "PatchSize": self.patch_size,
            "Slices": sum(len(item["slices"][self.plane]) for item in self.training),
            "HeldOutSlices": sum(len(item["slices"][self.plane]) for item in self.validation),
        }

    def _take(
        self, scan: Mapping[str, Any], name: str, load: Callable[[Mapping], Mapping], psf: str | FoundPointSpread
    ) -> tuple[MetaTensor, int]:
        """Take a scan's slices to learn from; give its volume on the acquired grid, and the axis across its slices."""
        image = scan["image"] if isinstance(scan["image"], MetaTensor) else load({"image": scan["image"]})["image"]
        if "picture" in image.meta:
            raise ValueError(f"{name}: a picture has no slices to learn from")
        if image.shape[0] != 1:
            raise ValueError(f"{name}: {image.shape[0]} channels, expected one: fit a single grey volume")
        plan = self.inferer.plan(image.affine, image.shape[1:])
        axis, edges = plan.array_axis, spacing(image.affine).tolist()
        if psf == "auto" or isinstance(psf, FoundPointSpread):
            found = find_point_spread(image, (axis,), scan.get("header")) if psf == "auto" else psf
            spread = found.point_spread
        else:
            found, spread = None, None if psf == "unknown" else parse_point_spread(psf, edges[axis])
        inside = [a for a in range(3) if a != axis]
        pixels = {a: edges[a] / axis_spectrum(image[0].numpy(), a).share for a in inside}
        pixel = max(pixels.values())
        volume = image.as_tensor()
        for a in inside:
            size = round(image.shape[a + 1] * edges[a] / pixel)
            if size * SQUARE_RATIO < image.shape[a + 1]:
                matrix = sampling_matrix(image.shape[a + 1], size, "kspace").to(volume)
                volume = torch.movedim(torch.movedim(volume, a + 1, -1) @ matrix.T, -1, a + 1).contiguous()
        ratio = edges[axis] / pixel
        if ratio < THICK_RATIO:
            raise ValueError(
                f"{name}: slices are {edges[axis]:.3g} mm thick and acquired pixels {pixel:.3g} mm long, which is not "
                "sharp enough to learn from: use the weights as they are"
            )
        if min(volume.shape[a + 1] for a in inside) < LEAST_SIDE:
            raise ValueError(f"{name}: fewer than {LEAST_SIDE} acquired pixels a side: use the weights as they are")
        volume, plane = with_corners_of(image, volume), PLANE_ACROSS[plan.thick_axis]
        if self.plane not in ("", plane):
            raise ValueError(f"{name}: {plane} slices beside {self.plane} ones: fit each with weights of its own")
        learnt, held = _parts(volume, axis, self.most_held_out)
        if len(learnt) + len(held) < LEAST_SLICES:
            raise ValueError(
                f"{name}: {len(learnt) + len(held)} slices show something to learn from, expected at least "
                f"{LEAST_SLICES}: use the weights as they are"
            )
        key = f"{len(self.images)}/{name}"
        item = {k: scan[k] for k in ("modality", "contrast", "body_part") if scan.get(k)} | {"image": key}
        self.training.append(item | {"slices": {plane: learnt}})
        self.validation.append(item | {"slices": {plane: held}, "crop": {plane: [HELD_OUT_SIDE, HELD_OUT_SIDE]}})
        self.plane, self.volumes[key] = plane, volume
        self.images.append(image)
        self.digests.append(scan.get("sha256") or sha256(scan["image"]))
        self.found += [] if found is None else [found]
        self.point_spreads.append(spread)
        self.ratios.append(ratio)
        return volume, axis


def _name(image: object, number: int) -> str:
    """A scan's name for messages."""
    try:
        return volume_name(image)
    except TypeError:
        return f"scan {number + 1}"


def _parts(volume: MetaTensor, axis: int, most: int) -> tuple[list[int], list[int]]:
    """Slices to learn from, and those that are held out in blocks, of those that show something."""
    image = volume.as_tensor()
    stds = image.std(dim=[d for d in range(4) if d != axis + 1], correction=0)
    usable = torch.nonzero(stds > STRUCTURE * image.std(correction=0)).flatten().tolist()
    block = max(1, round(len(usable) / HELD_OUT / BLOCKS))
    held = [p for i, p in enumerate(usable) if i % (HELD_OUT * block) // block == HELD_OUT // 2]
    learnt = [position for position in usable if position not in held]
    picks = np.linspace(0, len(held) - 1, min(most, len(held))).round().astype(int)
    return learnt, [held[i] for i in picks]


def _common(spreads: Sequence[PointSpread | None]) -> PointSpread | None:
    """The point spread of a protocol; None if its scans' differ or one is unknown."""
    if None in spreads or len({one.kind for one in spreads}) > 1:
        return None
    return sorted(spreads, key=lambda one: one.width_over_spacing)[len(spreads) // 2]


def _drawn(spread: PointSpread | None) -> dict[str, Any]:
    """What training draws: the point spread, or where it is unknown all that are likely, of which nothing is told."""
    if spread is None:
        return {"kinds": ["gaussian", "box"], "width": [0.8, 1.2], "unknown": 1}
    return {"kinds": spread.kind, "width": spread.width, "gap": spread.gap, "sharpness": spread.sharpness}


def _averaged(spread: PointSpread | None, ratio: float) -> float:
    """Which part of white noise's deviation degrading takes away, so that adding it again makes the noise whole."""
    middle = sampling_matrix(round(16 * ratio), 16, spread or PointSpread("gaussian"))[8]
    return float((1 - middle.square().sum()).clamp(min=0).sqrt())
