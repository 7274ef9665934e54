"""Tables of per-slice figures: image quality beside interpolation, overlap of label maps."""

from __future__ import annotations

import csv
import logging
import statistics
from pathlib import Path

import torch.distributed as dist
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.metrics import compute_dice
from monai.networks import one_hot
from monai.utils import CommonKeys, ensure_tuple_rep

from medsr_monai.metrics.image import psnr, ssim
from medsr_monai.metrics.report import SliceTable
from medsr_monai.metrics.segmentation import count_pixels

__all__ = ["ReportDice", "ReportSlices"]

logger = logging.getLogger(__name__)


def _gather(table: SliceTable) -> bool:
    """Give the table the rows of all processes; whether this process is the one that writes it."""
    if not (dist.is_available() and dist.is_initialized()):
        return True
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, table.rows)
    table.rows = sorted((row for part in parts for row in part), key=lambda r: (r["case"], r["plane"], r["slice"]))
    return dist.get_rank() == 0


class ReportSlices:
    """Collect PSNR and SSIM of every slice for the network and for bicubic interpolation, per volume and plane.

    Writes ``slices.csv`` (a row per slice) and ``summary.md`` (means per volume and plane, also logged) when the
    evaluation ends.

    Args:
        output_dir: made if missing.
        scale: factor per slice axis, for the bicubic interpolation of ``image``.
        border: pixels left out at every side.
    """

    def __init__(self, output_dir: str, scale: int | tuple[int, int], border: int = 4) -> None:
        self.folder = Path(output_dir)
        self.scale = tuple(float(s) for s in ensure_tuple_rep(scale, 2))
        self.border = border
        self.table = SliceTable(("case", "plane"), ("psnr_bicubic", "psnr", "ssim_bicubic", "ssim"))

    def attach(self, engine: Engine) -> None:
        """Measure after every batch, write at the end."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.measure)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def measure(self, engine: Engine) -> None:
        """Rows of one batch, decollated."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            image, label, pred = output[CommonKeys.IMAGE], output[CommonKeys.LABEL], output[CommonKeys.PRED]
            cubic = F.interpolate(image[None], scale_factor=self.scale, mode="bicubic", align_corners=False)[0]
            row = {"case": item["case"], "plane": item["plane"], "slice": int(item["slice"])}
            row |= {"psnr_bicubic": psnr(cubic, label, self.border), "psnr": psnr(pred, label, self.border)}
            row |= {"ssim_bicubic": ssim(cubic, label, self.border), "ssim": ssim(pred, label, self.border)}
            self.table.extend([row])

    def write(self, engine: Engine) -> None:
        """Gather the rows of all processes and write the files."""
        if not _gather(self.table):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.table.write_csv(self.folder / "slices.csv")
        (self.folder / "summary.md").write_text(self.table.markdown() + "\n")
        logger.info("%d slices, see %s\n%s", len(self.table.rows), self.folder, self.table.markdown())


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
        self.regions = [*(str(c) for c in range(1, classes)), "all"]
        self.table = SliceTable(("case", "plane"), [f"dice_{region}" for region in self.regions])

    def attach(self, engine: Engine) -> None:
        """Measure after every batch, write at the end."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.measure)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def measure(self, engine: Engine) -> None:
        """Rows of one batch of label maps [1, H, W], decollated."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            pred, label = output[CommonKeys.PRED][None], output[CommonKeys.LABEL][None]
            onehot = [one_hot(m, self.classes) for m in (pred, label)]
            dice = compute_dice(*onehot, include_background=False, ignore_empty=False)[0].tolist()
            counts = count_pixels(pred, label, self.classes)[0, 1:]
            counts = [*counts.tolist(), counts.sum(0).tolist()]
            dice.append(_dice(*counts[-1], empty=1.0))
            row = {"case": item["case"], "plane": item["plane"], "slice": int(item["slice"])}
            row |= {f"dice_{region}": value for region, value in zip(self.regions, dice, strict=True)}
            for region, (both, in_pred, in_label) in zip(self.regions, counts, strict=True):
                row |= {f"both_{region}": both, f"pred_{region}": in_pred, f"label_{region}": in_label}
            self.table.extend([row])

    def summary(self) -> list[dict]:
        """One row per class, and one over the whole region."""
        rows = []
        for region in self.regions:
            values = [row[f"dice_{region}"] for row in self.table.rows]
            present = [row[f"dice_{region}"] for row in self.table.rows if row[f"label_{region}"]]
            sums = [sum(row[f"{name}_{region}"] for row in self.table.rows) for name in ("both", "pred", "label")]
            row = {"class": region, "slices": len(values), "pooled": _dice(*sums, empty=float("nan"))}
            row |= {"mean": statistics.fmean(values), "std": statistics.pstdev(values), "slices_present": len(present)}
            rows.append(row | {"mean_present": statistics.fmean(present) if present else float("nan")})
        return rows

    def write(self, engine: Engine) -> None:
        """Gather the rows of all processes and write the files."""
        if not _gather(self.table):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.table.write_csv(self.folder / "slices.csv")
        rows = self.summary()
        with (self.folder / "dice.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        cells = [[f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
        lines = [f"| {' | '.join(line)} |" for line in (rows[0], *cells)]
        text = "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])
        (self.folder / "dice.md").write_text(text + "\n")
        logger.info("%d slices, see %s\n%s", len(self.table.rows), self.folder, text)


def _dice(both: int, pred: int, label: int, empty: float) -> float:
    return 2 * both / (pred + label) if pred + label else empty
