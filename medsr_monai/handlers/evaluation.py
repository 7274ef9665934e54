"""Handlers that write tables of every slice's figures: image quality beside interpolation, overlap of label maps."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils import CommonKeys, ensure_tuple_rep

from medsr_monai.atomic import written_atomically
from medsr_monai.handlers.process_group import gathered, process_number
from medsr_monai.metrics.benchmark import network_figures
from medsr_monai.metrics.evaluation import DEGRADATION, HIGH_RESOLUTION, SliceEvaluation
from medsr_monai.metrics.failures import Failure, WorstSlices, failure_grid
from medsr_monai.metrics.report import markdown_table, write_rows
from medsr_monai.metrics.segmentation import dice_of_slice, pooled_dice, regions

__all__ = ["ReportDice", "ReportSlices"]

logger = logging.getLogger(__name__)

SEGMENTATION = "segmentation"
"""Key of a slice's label map in an item whose ``label`` is the high-resolution slice."""
BICUBIC = "bicubic"
"""Default name of the rows of the input, enlarged by bicubic interpolation."""
UNKNOWN = "unknown"
"""Modality of slices whose item names none (:class:`medsr_monai.data.SliceDataset`); no row is made for it."""


def _key(item: dict, group_by: Sequence[str] = ()) -> dict:
    key = {"case": item["case"], "plane": item["plane"], "slice": int(item["slice"])}
    return key | {name: item[name] for name in group_by if name not in key}


class ReportSlices:
    """Collect the figures of every slice for the network and for interpolations of its input.

    Image quality is always measured; FID and the Dice of a frozen U-Net's predictions are where their networks are
    given. Slices go into these as they are scaled, so choose the intensity scaling that the U-Net was trained with. A
    slice's label map is what its item has under ``segmentation``. The columns are those of
    :class:`medsr_monai.metrics.SliceEvaluation`, whose ``write`` makes the files when the evaluation ends. The pooled
    table is logged too, and the one by modality if items name their modality. Where items name their ``degradation``
    there are rows for each (see :class:`medsr_monai.data.SliceDataset`).

    Args:
        output_dir: folder of the files; it is made if missing.
        scale: factor per slice axis, for the bicubic interpolation of ``image``.
        border: pixels left out at every side, for the paper's PSNR and SSIM.
        network: the evaluated network, not wrapped for several processes, of which size, operations and speed on the
            first slice are told (see :func:`medsr_monai.metrics.network_figures`); None leaves them out.
        inception: network of the FID, see :func:`medsr_monai.metrics.inception_features`; None leaves it out.
        unet: segmentation network of the Dice, slices -> logits [B, classes, H, W]; None leaves it out.
        method: name of the network's rows.
        interpolation: name of the rows of the enlarged input. With scale 1 they show the input itself, which another
            interpolation may have brought to the grid.
        interpolations: further interpolations by the name of their rows: functions of a slice [C, h, w] and the size
            (H, W) that return [C, H, W], such as :func:`medsr_monai.transforms.resample`.
        factor: with scale 1, by how much the input was interpolated along the item's ``thick_axis``, one of its
            ``axes``, for the figures of sharpness; None takes ``scale``.
        padded_size, foreground, group_by, dice_regions: see :class:`medsr_monai.metrics.SliceEvaluation`.
        failures: number of volumes and planes for which ``failures.png`` shows the slice whose PSNR is lowest beside
            that of the best interpolation, see :class:`medsr_monai.metrics.WorstSlices`; 0 draws no picture. With
            several degradations there is a picture for each, ``failures_1.png`` and so on, in the order of the tables.

    Raises:
        ValueError: two kinds of rows have one name, or ``failures`` is below 0.
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
        failures: int = 0,
        dice_regions: str | Mapping[str, Sequence] | None = None,
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
            dice_regions=dice_regions,
            method=method,
            interpolations=(interpolation, *self.interpolations),
        )
        self.failures = failures
        self.worst: dict[str, WorstSlices] = {}
        WorstSlices(failures)  # which refuses what is no number of them
        self.first: torch.Tensor | None = None

    def attach(self, engine: Engine) -> None:
        """Measure the slices after every batch and write the files at the end."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.measure)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def measure(self, engine: Engine) -> None:
        """Add the rows of one batch, which the engine has decollated."""
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
            patient = {"subject": item["subject"]} if self.evaluation.dice_regions and "subject" in item else {}
            key = degraded | patient | _key(item, self.evaluation.group_by) | named
            self.evaluation.add(key, label, preds, item.get(SEGMENTATION), self._factors(item))
            self._compare(key, item, image, label, preds)

    def _compare(
        self, key: dict, item: dict, image: torch.Tensor, label: torch.Tensor, preds: dict[str, torch.Tensor]
    ) -> None:
        """Keep the slice for the picture if it is among the worst."""
        rows = {row["method"]: row for row in self.evaluation.rows[-len(preds) :]}
        best = max((self.interpolation, *self.interpolations), key=lambda name: rows[name]["psnr"])
        ours, theirs = rows[self.method]["psnr"], rows[best]["psnr"]
        difference = 0.0 if ours == theirs else ours - theirs
        worst = self.worst.setdefault(key.get(DEGRADATION, ""), WorstSlices(self.failures))
        group = tuple(str(key[name]) for name in self.evaluation.group_by)
        if not worst.is_worse(group, difference):
            return
        shown = {best: preds[best], self.method: preds[self.method], "reference": label}
        if image.shape != label.shape:
            shown = {"input": image, **shown}
        # of several channels their mean
        images = {name: torch.as_tensor(one).detach().float().mean(dim=0).cpu().numpy() for name, one in shown.items()}
        figures = {name: f"{rows[name]['psnr']:.2f} dB / {rows[name]['ssim']:.4f}" for name in (best, self.method)}
        name = f"{key['case']}, {key['plane']} slice {key['slice']}"
        edges = tuple(float(edge) for edge in item.get("spacing", (1.0, 1.0)))
        towards = item.get("towards", "")
        worst.add(group, Failure(name, difference, best, images, figures, edges, towards))

    def _factors(self, item: dict) -> tuple[float, float]:
        """By how much the rows and columns of a slice were enlarged, by the network or before it."""
        if self.factor is None:
            return self.scale
        thick = list(item["axes"]).index(item["thick_axis"])
        return (self.factor, 1) if thick == 0 else (1, self.factor)

    def write(self, engine: Engine) -> None:
        """Gather the rows of all processes and write the files."""
        parts, worst = gathered(self.evaluation.state()), gathered(self.worst)
        if process_number() > 0:
            return
        if len(parts) > 1:
            self.evaluation.load(parts)
            self.worst = _merged(worst, self.failures)
        extra = {}
        if self.network is not None:
            extra[self.method] = network_figures(self.network, self.first, amp=engine.amp)
        pooled = self.evaluation.pooled(extra)
        self.evaluation.write(self.folder, pooled)
        self._draw()
        tables = [markdown_table(rows) for rows in (pooled, self.evaluation.modalities()) if rows]
        logger.info("%d slices, see %s\n%s", self.evaluation.slices(), self.folder, "\n\n".join(tables))
        for line in self.evaluation.where_below():
            logger.info(line)

    def _draw(self) -> None:
        """A picture for each degradation; those of an earlier evaluation go."""
        for path in self.folder.glob("failures*.png"):
            path.unlink()
        for number, (degradation, worst) in enumerate(self.worst.items(), start=1):
            if not worst.kept:
                continue
            suffix = f"_{number}" if len(self.worst) > 1 else ""
            title = f"Where {self.method} is worst beside interpolation"
            foot = "the worst slice of each of these volumes and planes; PSNR / SSIM of the slice; research use only"
            figure = failure_grid(worst.worst(), f"{title}; degradation: {degradation}" if degradation else title, foot)
            with written_atomically(self.folder / f"failures{suffix}.png") as temporary:
                figure.savefig(temporary, format="png")


def _merged(parts: Sequence[Mapping[str, WorstSlices]], count: int) -> dict[str, WorstSlices]:
    """What several processes keep, by degradation in the order of their names."""
    merged: dict[str, WorstSlices] = {}
    for degradation in sorted({name for part in parts for name in part}):
        worst = merged[degradation] = WorstSlices(count)
        found = [item for part in parts if degradation in part for item in part[degradation].kept.items()]
        for group, failure in sorted(found, key=lambda item: (item[1].difference, item[0], item[1].name)):
            worst.add(group, failure)
    return merged


class ReportDice:
    """Collect the Dice of every class of every slice, and of the whole region: all classes but the background.

    When the evaluation ends, it writes ``slices.csv`` (a row per slice: its Dice and the pixels that make it) and, with
    a row per class and one for the whole region, ``dice.csv`` and ``dice.md``, which is logged too:

    - ``pooled``: 2 |pred and label| / (|pred| + |label|) with the pixels summed over all slices, for the whole region
      also over the classes;
    - ``mean``, ``std``: mean and standard deviation of MONAI's Dice over all slices. A class that is in neither label
      map has Dice 1, and one that is in only one of them 0;
    - ``mean_present``: mean over the ``slices_present`` slices whose label has the class, as MONAI's ``DiceMetric``
      computes it by default.

    Args:
        output_dir: folder of the files; it is made if missing.
        classes: number of classes, the background included.
    """

    def __init__(self, output_dir: str, classes: int) -> None:
        self.folder = Path(output_dir)
        self.classes = classes
        self.rows: list[dict] = []

    def attach(self, engine: Engine) -> None:
        """Measure the slices after every batch and write the files at the end."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.measure)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def measure(self, engine: Engine) -> None:
        """Add the rows of one batch of label maps [1, H, W], which the engine has decollated."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            dice = dice_of_slice(output[CommonKeys.PRED], output[CommonKeys.LABEL], self.classes)
            self.rows.append(_key(item) | dice)

    def summary(self) -> list[dict]:
        """Return one row for each class and one for the whole region."""
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
        parts = gathered(self.rows)
        if process_number() > 0:
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
