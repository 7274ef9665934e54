"""A table of per-slice image quality, beside interpolation."""

from __future__ import annotations

import logging
from pathlib import Path

import torch.distributed as dist
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils import CommonKeys, ensure_tuple_rep

from medsr_monai.metrics.image import psnr, ssim
from medsr_monai.metrics.report import SliceTable

__all__ = ["ReportSlices"]

logger = logging.getLogger(__name__)


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
        if dist.is_available() and dist.is_initialized():
            parts: list = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self.table.rows)
            self.table.rows = sorted(
                (row for part in parts for row in part), key=lambda r: (r["case"], r["plane"], r["slice"])
            )
            if dist.get_rank():
                return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.table.write_csv(self.folder / "slices.csv")
        (self.folder / "summary.md").write_text(self.table.markdown() + "\n")
        logger.info("%d slices, see %s\n%s", len(self.table.rows), self.folder, self.table.markdown())
