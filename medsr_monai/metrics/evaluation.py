"""What a paper's table of super-resolution results holds, collected slice by slice."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from monai.metrics import PSNRMetric, SSIMMetric
from torch import Tensor, nn

from medsr_monai.metrics.fid import fid, inception_features
from medsr_monai.metrics.image import padded_psnr, padded_ssim, psnr, ssim
from medsr_monai.metrics.report import SliceTable, json_values, markdown_table, write_rows
from medsr_monai.metrics.segmentation import dice_of_slice, pooled_dice, regions
from medsr_monai.metrics.sharpness import high_frequency_figures

__all__ = ["EVALUATION_FILES", "HIGH_RESOLUTION", "SliceEvaluation", "image_figures"]

EVALUATION_FILES = ("slices.csv", "summary.csv", "summary.md", "summary.json")
HIGH_RESOLUTION = "HR"
"""The method whose rows show what the U-Net makes of the reference itself."""
LABELS, PREDICTION = "label map", "prediction on HR"
DEGRADATION = "degradation"
"""Of the keys of a slice: how its low resolution was made, where one evaluation has several ways."""
FOREGROUND = ("foreground_error", "foreground_pixels")
WINDOW = 11
"""Of MONAI's SSIM."""


def image_figures(
    pred: Tensor,
    label: Tensor,
    border: int = 4,
    padded_size: int | None = None,
    foreground: float | None = None,
    factors: Sequence[int] | None = None,
) -> dict[str, float | None]:
    """PSNR in dB and SSIM of one slice [C, H, W] with data range 1, by two definitions.

    - ``psnr``, ``ssim``: the RDST paper's, see :func:`medsr_monai.metrics.psnr` and :func:`medsr_monai.metrics.ssim`:
      ``border`` pixels left out at every side, uniform 7x7 window;
    - ``psnr_monai``, ``ssim_monai``: MONAI's metrics of the whole slice, Gaussian window 11 with sigma 1.5 (None where
      the slice is smaller);
    - ``psnr_padded``, ``ssim_padded``, where ``padded_size`` is given: the TransMRSR paper's, see
      :func:`medsr_monai.metrics.padded_psnr` and :func:`medsr_monai.metrics.padded_ssim`;
    - ``foreground_error``, ``foreground_pixels``, where ``foreground`` is given: sum of squared differences over the
      pixels whose label is above it, and their number;
    - ``hf_power``, ``hf_correlation``, where the ``factors`` are given by which rows and columns were enlarged:
      sharpness, see :func:`medsr_monai.metrics.high_frequency_figures`; all channels together.

    Those of several channels are pooled (PSNR of the mean squared error over all, mean SSIM); then the channels, such
    as modalities, follow one by one, ``psnr_modality_1`` and so on.
    """
    pred, label = (torch.as_tensor(image).detach().cpu() for image in (pred, label))
    row = _figures(pred, label, border)
    if padded_size is not None:
        row |= {
            "psnr_padded": padded_psnr(pred, label, padded_size),
            "ssim_padded": padded_ssim(pred, label, padded_size),
        }
    if foreground is not None:
        inside = label > foreground
        errors = (pred.double() - label.double())[inside].square()
        row |= dict(zip(FOREGROUND, (float(errors.sum()), int(inside.sum())), strict=True))
    if factors is not None:
        row |= high_frequency_figures(pred, label, factors)
    if len(label) > 1:
        for number, (p, t) in enumerate(zip(pred, label, strict=True), start=1):
            row |= {f"{name}_modality_{number}": v for name, v in _figures(p[None], t[None], border).items()}
    return row


def _figures(pred: Tensor, label: Tensor, border: int) -> dict[str, float | None]:
    doubles = pred[None].double(), label[None].double()
    whole = min(label.shape[-2:]) >= WINDOW
    return {
        "psnr": psnr(pred, label, border),
        "ssim": ssim(pred, label, border),
        "psnr_monai": float(PSNRMetric(max_val=1.0)(*doubles)),
        "ssim_monai": float(SSIMMetric(spatial_dims=2, data_range=1.0)(*doubles)) if whole else None,
    }


class SliceEvaluation:
    """Figures of every slice for one or more methods, and their tables.

    - image quality (:func:`image_figures`), mean and standard deviation over slices;
    - ``fid``: :func:`medsr_monai.metrics.fid` between the slices of a method and of the reference, over all slices
      (also ``fid_modality_1`` and so on);
    - ``dice_1`` ... ``dice_all``: what a frozen U-Net makes of the slices of each method and of the reference ("HR")
      against the label map, or against its own prediction on the reference where there is none
      (:func:`medsr_monai.metrics.dice_of_slice`); mean and standard deviation over slices, and ``dice_1_pooled`` and so
      on with the pixels of all slices summed. ``dice_against`` says against what;
    - ``psnr_foreground``, in the summaries: the PSNR of the ``foreground`` pixels of all slices together.

    Networks are used in eval mode, on their own device.

    Args:
        border: pixels left out at every side, for the paper's PSNR and SSIM.
        padded_size, foreground: see :func:`image_figures`; None for none of their figures.
        group_by: of the keys of a slice, what makes a row of the summary besides the method.
        inception: see :func:`medsr_monai.metrics.inception_features`; None for no FID.
        unet: slices [B, C, H, W] -> logits [B, classes, H, W]; None for no Dice.
        method, interpolations: names of rows: the summary rows of the method count the slices on which its PSNR is
            below that of each interpolation, ``below_bicubic`` and so on. None for no count.
    """

    def __init__(
        self,
        border: int = 4,
        *,
        padded_size: int | None = None,
        foreground: float | None = None,
        group_by: Sequence[str] = ("case", "plane"),
        inception: nn.Module | None = None,
        unet: nn.Module | None = None,
        method: str | None = None,
        interpolations: Sequence[str] = (),
    ) -> None:
        self.method = method
        self.interpolations = tuple(interpolations)
        self.border = border
        self.padded_size = padded_size
        self.foreground = foreground
        self.group_by = tuple(group_by)
        self.inception = None if inception is None else inception.eval()
        self.unet = None if unet is None else unet.eval()
        self.rows: list[dict] = []
        self.features: dict[tuple[str | None, str], list[Tensor]] = {}

    def add(
        self,
        key: Mapping[str, object],
        label: Tensor,
        preds: Mapping[str, Tensor],
        segmentation: Tensor | None = None,
        factors: Sequence[int] | None = None,
    ) -> None:
        """Measure one slice.

        Args:
            key: ``case``, ``plane`` and ``slice``, what else ``group_by`` names, and, where it is known, ``modality``
                and ``degradation``: what has several of these has rows for each in all tables.
            label: the reference [C, H, W], intensities scaled to about [0, 1].
            preds: results [C, H, W] by method, any name but "HR".
            segmentation: label map [1, H, W].
            factors: see :func:`image_figures`.

        Raises:
            ValueError: slices of different shapes, a U-Net of one class or of other channels, labels beyond its
                classes, or label maps of some slices only.
        """
        for method, pred in preds.items():
            if pred.shape != label.shape:
                raise ValueError(
                    f"{_name(key)}: {method} is {tuple(pred.shape)}, expected {tuple(label.shape)} as the reference"
                )
        images = {HIGH_RESOLUTION: label, **preds}
        options = (self.border, self.padded_size, self.foreground, factors)
        figures = {method: image_figures(pred, label, *options) for method, pred in preds.items()}
        figures[HIGH_RESOLUTION] = dict.fromkeys(next(iter(figures.values())))
        dice = {} if self.unet is None else self._dice(key, images, segmentation)
        for method in images if dice else preds:
            self.rows.append({**key, "method": method, **figures[method], **dice.get(method, {})})
        if self.inception is not None:
            features = inception_features(self.inception, _stack(images, self.inception))
            for method, one in zip(images, features, strict=True):
                self.features.setdefault((key.get(DEGRADATION), method), []).append(one)

    @torch.no_grad()
    def _dice(self, key: Mapping, images: Mapping[str, Tensor], segmentation: Tensor | None) -> dict[str, dict]:
        logits = self.unet(_stack(images, self.unet))
        classes = logits.shape[1]
        if classes < 2:
            raise ValueError(f"the U-Net has {classes} class, expected 2 or more, background included")
        against = PREDICTION if segmentation is None else LABELS
        if self.rows and self.rows[0]["dice_against"] != against:
            raise ValueError(f"{_name(key)}: label maps of some slices only, give one for each or for none")
        preds = logits.argmax(1, keepdim=True).cpu()
        target = preds[0] if segmentation is None else torch.as_tensor(segmentation).cpu().long()
        if target.shape != preds.shape[1:]:
            raise ValueError(f"{_name(key)}: the label map is {tuple(target.shape)}, expected {tuple(preds.shape[1:])}")
        if others := sorted(set(target.unique().tolist()) - set(range(classes))):
            raise ValueError(
                f"{_name(key)}: labels {', '.join(map(str, others))}, the U-Net has 0 to {classes - 1}: give a "
                f'label_map such as {{"{others[-1]}": 1}}, or another U-Net'
            )
        rows = {m: dice_of_slice(pred, target, classes) for m, pred in zip(images, preds, strict=True)}
        return {method: {"dice_against": against, **row} for method, row in rows.items()}

    def state(self) -> tuple[list[dict], dict[tuple[str | None, str], list[Tensor]]]:
        """What has been measured, to be sent to another process."""
        return self.rows, self.features

    def load(self, states: Sequence[tuple[list[dict], dict[tuple[str | None, str], list[Tensor]]]]) -> None:
        """Replace what has been measured by what several processes have; rows are sorted by slice."""
        rows = [row for part, _ in states for row in part]
        self.rows = sorted(rows, key=lambda row: (row.get(DEGRADATION, ""), row["case"], row["plane"], row["slice"]))
        names = dict.fromkeys(method for _, part in states for method in part)
        self.features = {m: [one for _, part in states for one in part.get(m, [])] for m in names}

    def slices(self) -> int:
        """Number of slices."""
        return len({tuple(row[k] for k in ("case", "plane", "slice")) for row in self.rows})

    def table(self) -> SliceTable:
        """Rows of all slices and methods; the summary is by volume, plane and method."""
        other = {"case", "plane", "slice", "method", "modality", DEGRADATION, *self.group_by}
        other |= {"dice_against", *FOREGROUND}
        values = [n for n in self.rows[0] if n not in other and not n.startswith(("both_", "pred_", "label_"))]
        table = SliceTable(self._by(*self.group_by, "method"), values)
        table.extend(self.rows)
        return table

    def _by(self, *names: str) -> tuple[str, ...]:
        """Names of columns, after the degradation's where slices name theirs."""
        return (*([DEGRADATION] if any(DEGRADATION in row for row in self.rows) else []), *names)

    def groups(self) -> list[dict]:
        """One row per volume, plane (or what ``group_by`` names) and method."""
        return self._summary(self._by(*self.group_by, "method"))

    def modalities(self) -> list[dict]:
        """One row per modality and method; none where no slice names its modality."""
        return self._summary(self._by("modality", "method")) if any("modality" in row for row in self.rows) else []

    def pooled(self, extra: Mapping[str, Mapping] | None = None) -> list[dict]:
        """One row per method (and degradation), over all slices; with the FID.

        Args:
            extra: more columns by method, such as `medsr_monai.metrics.network_figures`.
        """
        rows = self._summary(self._by("method"))
        for row in rows:
            row |= self._fid(row.get(DEGRADATION), row["method"]) | dict((extra or {}).get(row["method"], {}))
        return rows

    def _summary(self, group_by: tuple[str, ...]) -> list[dict]:
        table = self.table()
        out = []
        for entry, rows in zip(table.summary(group_by), table.groups(group_by).values(), strict=True):
            if self.foreground is not None and entry["method"] != HIGH_RESOLUTION:
                entry["psnr_foreground"] = _foreground_psnr(rows)
            if self.unet is not None:
                classes = sum(name.startswith("both_") for name in rows[0])
                entry |= {f"dice_{name}_pooled": pooled_dice(rows, name) for name in regions(classes)}
                entry["dice_against"] = rows[0]["dice_against"]
            if entry["method"] == self.method:
                entry |= {f"below_{other}": self._below(rows, other) for other in self.interpolations}
            out.append(entry)
        return out

    def _below(self, rows: Sequence[Mapping], other: str) -> int:
        """Of so many of these slices another method has the higher PSNR."""
        theirs = {_slice_of(row): row["psnr"] for row in self.rows if row["method"] == other}
        return sum(row["psnr"] < theirs[_slice_of(row)] for row in rows)

    def where_below(self) -> list[str]:
        """Sentences that say on how many slices, and in which volumes' means, the method is below interpolation."""
        if self.method is None:
            return []
        groups = self.groups()
        names = self._by(*self.group_by)
        sentences = []
        for row in self._summary(self._by("method")):
            if row["method"] != self.method:
                continue
            own = [one for one in groups if one.get(DEGRADATION) == row.get(DEGRADATION)]
            for other in self.interpolations:
                theirs = {tuple(one[n] for n in names): one["psnr"] for one in own if one["method"] == other}
                ours = [one for one in own if one["method"] == self.method]
                lower = [one for one in ours if one["psnr"] < theirs[tuple(one[n] for n in names)]]
                which = "; ".join(", ".join(str(one[n]) for n in self.group_by) for one in lower)
                what = f"{row[DEGRADATION]}: " if DEGRADATION in row else ""
                sentences.append(
                    f"{what}the PSNR of {self.method} is below that of {other} on {row[f'below_{other}']} of "
                    f"{row['slices']} slices, and in the mean of {len(lower)} of {len(ours)} volumes and planes"
                    f"{f' ({which})' if which else ''}."
                )
        return sentences

    def _fid(self, degradation: str | None, method: str) -> dict[str, float]:
        if self.inception is None or method == HIGH_RESOLUTION:
            return {}
        pred, label = (torch.stack(self.features[degradation, m]) for m in (method, HIGH_RESOLUTION))
        if len(pred) < 2:
            raise ValueError("FID needs at least 2 slices, 1 was evaluated: evaluate more, or leave the FID out")
        channels = pred.shape[1]
        single = (
            {f"fid_modality_{c + 1}": fid(pred[:, c], label[:, c]) for c in range(channels)} if channels > 1 else {}
        )
        return {"fid": fid(pred.flatten(0, 1), label.flatten(0, 1)), **single}

    def write(self, folder: str | Path, pooled: Sequence[dict]) -> None:
        """Write ``slices.csv`` (a row per slice and method), ``summary.csv``, ``summary.md`` and ``summary.json``.

        ``summary.csv`` has the pooled rows and those of every modality ("all" in the columns of ``group_by``), and
        those of every volume and plane, all digits; ``summary.md`` the same as tables, mean (standard deviation),
        and where the method is below interpolation;
        ``summary.json`` all lists, with null for what is not finite.

        Args:
            folder: made if missing.
            pooled: see :meth:`pooled`, which may take a while.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        groups, modalities = self.groups(), self.modalities()
        write_rows(self.rows, folder / "slices.csv")
        everything = dict.fromkeys(self._by(*self.group_by), "all")
        write_rows([everything | row for row in [*pooled, *modalities]] + groups, folder / "summary.csv")
        tables = {f"Over all {self.slices()} slices": pooled, "By modality": modalities, "By volume and plane": groups}
        tables = {title: rows for title, rows in tables.items() if rows}
        text = (f"{title}: mean (standard deviation)\n\n{markdown_table(rows)}\n" for title, rows in tables.items())
        below = [f"- {line}\n" for line in self.where_below()]
        (folder / "summary.md").write_text("\n".join([*text, *(["".join(below)] if below else [])]))
        lists = {"pooled": pooled, "modalities": modalities, "groups": groups}
        content = {"slices": self.slices(), "border": self.border} | {k: rows for k, rows in lists.items() if rows}
        (folder / "summary.json").write_text(json.dumps(json_values(content), indent=2, allow_nan=False) + "\n")


def _foreground_psnr(rows: Sequence[Mapping]) -> float:
    """Of data range 1; NaN where there is no foreground."""
    error, pixels = (sum(row[name] for row in rows) for name in FOREGROUND)
    if not pixels:
        return math.nan
    return 10 * math.log10(pixels / error) if error else math.inf


def _stack(images: Mapping[str, Tensor], network: nn.Module) -> Tensor:
    """Slices as one batch on the device of a network."""
    device = next(network.parameters(), torch.empty(0)).device
    return torch.stack([torch.as_tensor(image).float().to(device) for image in images.values()])


def _slice_of(row: Mapping) -> tuple:
    return tuple(row.get(name) for name in (DEGRADATION, "case", "plane", "slice"))


def _name(key: Mapping) -> str:
    return f"{key['case']}, {key['plane']} slice {key['slice']}"
