"""Tables of per-slice figures: image quality beside interpolation, overlap of label maps."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils import CommonKeys, ensure_tuple_rep

from medsr_monai.metrics.benchmark import network_figures
from medsr_monai.metrics.evaluation import DEGRADATION, HIGH_RESOLUTION, SliceEvaluation
from medsr_monai.metrics.report import markdown_table, write_rows
from medsr_monai.metrics.segmentation import dice_of_slice, pooled_dice, regions

__all__ = ["ReportDice", "ReportSlices"]

logger = logging.getLogger(__name__)

SEGMENTATION = "segmentation"
"""Key of a slice's label map, in a batch whose ``label`` is the high-resolution slice."""
BICUBIC = "bicubic"
UNKNOWN = "unknown"
"""Modality of slices whose item names none, see medsr_monai.data.SliceDataset."""


def _gathered(part: object) -> list | None:
    """Parts of all processes, for the one that writes; None for the others."""
    if not (dist.is_available() and dist.is_initialized()):
        return [part]
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts if dist.get_rank() == 0 else None


def _key(item: dict, group_by: Sequence[str] = ()) -> dict:
    key = {"case": item["case"], "plane": item["plane"], "slice": int(item["slice"])}
    return key | {name: item[name] for name in group_by if name not in key}


class ReportSlices:
    """Collect the figures of every slice for the network and for interpolations of its input.

    Image quality always; FID and the Dice of a frozen U-Net's predictions where their networks are given. The slices go
    into them as they are scaled, so choose the intensity scaling that the U-Net was trained with. A slice's label map
    is what the batch has under ``segmentation``. See :class:`medsr_monai.metrics.SliceEvaluation` for the columns and
    its ``write`` for the files, which are written when the evaluation ends; the pooled table is logged too, and the one
    by modality where the items of the data name theirs. Items that name their ``degradation`` get rows for each, see
    :class:`medsr_monai.data.SliceDataset`.

    Args:
        output_dir: made if missing.
        scale: factor per slice axis, for the bicubic interpolation of ``image``.
        border: pixels left out at every side, for the paper's PSNR and SSIM.
        network: the evaluated one, not wrapped for several processes, for its size, its operations and its speed on the
            first slice (see :func:`medsr_monai.metrics.network_figures`); None for none of these.
        inception: None for no FID.
        unet: None for no Dice.
        method: name of the network's rows.
        interpolation: name of the rows of the input, enlarged; with scale 1 they show the input itself, which another
            interpolation may have brought to the grid.
        interpolations: rows of further ones, by name: functions of a slice [C, h, w] and the size (H, W) that make
            [C, H, W] of it, such as :func:`medsr_monai.transforms.resample`.
        factor: with scale 1, by how much the input was interpolated along the item's ``thick_axis``, one of its
            ``axes``, for the figures of sharpness; None for ``scale``.
        padded_size, foreground, group_by: see :class:`medsr_monai.metrics.SliceEvaluation`.

    Raises:
        ValueError: the name of other rows, or one name for two.
    """

    def __init__(
        self,
        output_dir: str,
        scale: int | tuple[int, int],
        border: int = 4,
        network: torch.nn.Module | None = None,
        inception: torch.nn.Module | None = None,
        unet: torch.nn.Module | None = None,
        method: str = "network",
        interpolation: str = BICUBIC,
        interpolations: Mapping[str, Callable[[torch.Tensor, Sequence[int]], torch.Tensor]] | None = None,
        factor: int | None = None,
        padded_size: int | None = None,
        foreground: float | None = None,
        group_by: Sequence[str] = ("case", "plane"),
    ) -> None:
        self.interpolations = dict(interpolations or {})
        if method in (HIGH_RESOLUTION, interpolation, *self.interpolations):
            raise ValueError(f"method is {method!r}, which names other rows of the table: choose another name")
        if interpolation in self.interpolations:
            raise ValueError(f"two interpolations are called {interpolation!r}: choose another name")
        self.folder = Path(output_dir)
        self.scale = tuple(float(s) for s in ensure_tuple_rep(scale, 2))
        self.factor = factor
        self.network = network
        self.method = method
        self.interpolation = interpolation
        self.evaluation = SliceEvaluation(
            border,
            padded_size=padded_size,
            foreground=foreground,
            group_by=group_by,
            inception=inception,
            unet=unet,
        )
        self.first: torch.Tensor | None = None

    def attach(self, engine: Engine) -> None:
        """Measure after every batch, write at the end."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.measure)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def measure(self, engine: Engine) -> None:
        """Rows of one batch, decollated."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            image, label, pred = (output[k] for k in (CommonKeys.IMAGE, CommonKeys.LABEL, CommonKeys.PRED))
            if self.first is None:
                self.first = torch.as_tensor(image)[None]
                for prior in (self.evaluation.inception, self.evaluation.unet):
                    if prior is not None:
                        prior.to(image.device)
            cubic = F.interpolate(image[None], scale_factor=self.scale, mode="bicubic", align_corners=False)[0]
            others = {name: one(image, label.shape[-2:]) for name, one in self.interpolations.items()}
            preds = {self.interpolation: cubic, **others, self.method: pred}
            modality = item.get("modality", UNKNOWN)
            named = {} if modality == UNKNOWN else {"modality": modality}
            degraded = {DEGRADATION: item[DEGRADATION]} if DEGRADATION in item else {}
            key = degraded | _key(item, self.evaluation.group_by) | named
            self.evaluation.add(key, label, preds, item.get(SEGMENTATION), self._factors(item))

    def _factors(self, item: dict) -> tuple[float, float]:
        """By how much the rows and columns of a slice were enlarged, by the network or before it."""
        if self.factor is None:
            return self.scale
        thick = list(item["axes"]).index(item["thick_axis"])
        return (self.factor, 1) if thick == 0 else (1, self.factor)

    def write(self, engine: Engine) -> None:
        """Gather the rows of all processes and write the files."""
        parts = _gathered(self.evaluation.state())
        if parts is None:
            return
        if len(parts) > 1:
            self.evaluation.load(parts)
        extra = {}
        if self.network is not None:
            extra[self.method] = network_figures(self.network, self.first, amp=engine.amp)
        pooled = self.evaluation.pooled(extra)
        self.evaluation.write(self.folder, pooled)
        tables = [markdown_table(rows) for rows in (pooled, self.evaluation.modalities()) if rows]
        logger.info("%d slices, see %s\n%s", self.evaluation.slices(), self.folder, "\n\n".join(tables))


class ReportDice:
    """Collect the Dice of every class of every slice and over the whole region, all classes but the background.

    Writes, when the evaluation ends, ``slices.csv`` (a row per slice: Dice, and the pixels it is made of) and a row
    per class in ``dice.csv`` and ``dice.md`` (also logged):

    - ``pooled``: 2 |pred and label| / (|pred| + |label|), pixels summed over all slices; of the whole region also over
      the classes;
    - ``mean``, ``std``: over all slices, MONAI's Dice. A class that is in neither label map has Dice 1, one in only one
      of them 0;
    - ``mean_present``: over the ``slices_present`` slices whose label has the class, as MONAI's ``DiceMetric`` by
      default.

    Args:
        output_dir: made if missing.
        classes: background included.
    """

    def __init__(self, output_dir: str, classes: int) -> None:
        self.folder = Path(output_dir)
        self.classes = classes
        self.rows: list[dict] = []

    def attach(self, engine: Engine) -> None:
        """Measure after every batch, write at the end."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.measure)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def measure(self, engine: Engine) -> None:
        """Rows of one batch of label maps [1, H, W], decollated."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            dice = dice_of_slice(output[CommonKeys.PRED], output[CommonKeys.LABEL], self.classes)
            self.rows.append(_key(item) | dice)

    def summary(self) -> list[dict]:
        """One row per class, and one over the whole region."""
        rows = []
        for region in regions(self.classes):
            values = [row[f"dice_{region}"] for row in self.rows]
            present = [row[f"dice_{region}"] for row in self.rows if row[f"label_{region}"]]
            row = {"class": region, "slices": len(values), "pooled": pooled_dice(self.rows, region)}
            row |= {"mean": statistics.fmean(values), "std": statistics.pstdev(values), "slices_present": len(present)}
            rows.append(row | {"mean_present": statistics.fmean(present) if present else float("nan")})
        return rows

    def write(self, engine: Engine) -> None:
        """Gather the rows of all processes and write the files."""
        parts = _gathered(self.rows)
        if parts is None:
            return
        if len(parts) > 1:
            rows = (row for part in parts for row in part)
            self.rows = sorted(rows, key=lambda row: (row["case"], row["plane"], row["slice"]))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_rows(self.rows, self.folder / "slices.csv")
        rows = self.summary()
        write_rows(rows, self.folder / "dice.csv")
        text = markdown_table(rows)
        (self.folder / "dice.md").write_text(text + "\n")
        logger.info("%d slices, see %s\n%s", len(self.rows), self.folder, text)
