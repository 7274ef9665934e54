"""The figures of a paper's table of super-resolution results, collected slice by slice."""

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
from medsr_monai.metrics.report import group_rows, json_values, markdown_table, summarise_rows, write_rows
from medsr_monai.metrics.segmentation import (
    average,
    dice_of_regions,
    dice_of_slice,
    named_regions,
    pooled_dice,
    regions,
)
from medsr_monai.metrics.sharpness import high_frequency_figures

__all__ = ["EVALUATION_FILES", "HIGH_RESOLUTION", "SliceEvaluation", "image_figures"]

EVALUATION_FILES = ("slices.csv", "summary.csv", "summary.md", "summary.json")
"""Names of the files that :meth:`SliceEvaluation.write` makes."""
HIGH_RESOLUTION = "HR"
"""Name of the method whose rows show what the U-Net makes of the reference itself."""
LABELS, PREDICTION = "label map", "prediction on HR"
"""What the U-Net's predictions are compared with, as the column ``dice_against`` says it."""
DEGRADATION = "degradation"
"""Key of a slice that says how its low resolution was made, if one evaluation has several ways."""
FOREGROUND = ("foreground_error", "foreground_pixels")
"""Columns of which the PSNR of the foreground is made."""
WINDOW = 11
"""Side of the window of MONAI's SSIM in pixels; smaller slices have none."""


def image_figures(
    pred: Tensor,
    label: Tensor,
    border: int = 4,
    padded_size: int | None = None,
    foreground: float | None = None,
    factors: Sequence[int] | None = None,
) -> dict[str, float | None]:
    """Return the figures of one slice: PSNR in dB and SSIM by two or three definitions, and what else is asked for.

    - ``psnr``, ``ssim``: those of the RDST paper, without the border, see :func:`medsr_monai.metrics.psnr` and
      :func:`medsr_monai.metrics.ssim`;
    - ``psnr_monai``, ``ssim_monai``: MONAI's metrics of the whole slice, with a Gaussian window of 11 pixels and a
      standard deviation of 1.5. The SSIM of a smaller slice is None;
    - ``psnr_padded``, ``ssim_padded``: those of the TransMRSR paper, see :func:`medsr_monai.metrics.padded_psnr` and
      :func:`medsr_monai.metrics.padded_ssim`;
    - ``foreground_error``, ``foreground_pixels``: the sum of squared differences over the pixels whose label is above
      ``foreground``, and their number;
    - ``hf_power``, ``hf_correlation``: sharpness, see :func:`medsr_monai.metrics.high_frequency_figures`, of all
      channels together.

    The figures of several channels are pooled (the PSNR of the mean squared error over all, the mean SSIM). Those of
    each channel, such as a modality, follow as ``psnr_modality_1`` and so on.

    Args:
        pred, label: result and reference [C, H, W]; the data range is 1.
        border: pixels left out at every side for ``psnr`` and ``ssim``.
        padded_size: side of the square for ``psnr_padded`` and ``ssim_padded``; None leaves these out.
        foreground: intensity for ``foreground_error`` and ``foreground_pixels``; None leaves these out.
        factors: by which rows and columns were enlarged, for ``hf_power`` and ``hf_correlation``; None leaves these
            out.
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
    """The figures of every slice for one or more methods, and their tables.

    - image quality (:func:`image_figures`), with mean and standard deviation over slices;
    - ``fid``: :func:`medsr_monai.metrics.fid` between all slices of a method and of the reference, and with several
      channels ``fid_modality_1`` and so on;
    - ``dice_1`` ... ``dice_all``: :func:`medsr_monai.metrics.dice_of_slice` of what a frozen U-Net makes of the slices
      of each method and of the reference ("HR"), against the label map or, if there is none, against its own prediction
      on the reference; ``dice_against`` says which. There are mean and standard deviation over slices, and
      ``dice_1_pooled`` and so on with the pixels of all slices summed;
    - with ``dice_regions`` the Dice by a paper's names, such as ``Dice-WT``, and their mean ``Dice-Avg``, see
      :func:`medsr_monai.metrics.dice_of_regions`: mean and standard deviation over slices; ``Dice-WT_pooled`` and so on
      with the pixels of all slices summed; and ``Dice-WT_patients`` and so on, mean and standard deviation over
      patients (the key ``subject``, else ``case``) with the pixels of each one's slices summed, leaving out those in
      whom the region is not;
    - ``psnr_foreground``, in the summaries: the PSNR of the ``foreground`` pixels of all slices together.

    Networks are used in eval mode, on their own device.

    Args:
        border, padded_size, foreground: see :func:`image_figures`.
        group_by: keys of a slice that make a row of the summary, besides the method.
        inception: network of the FID, see :func:`medsr_monai.metrics.inception_features`; None leaves it out.
        unet: network of the Dice, slices [B, C, H, W] -> logits [B, classes, H, W]; None leaves it out.
        dice_regions: see :func:`medsr_monai.metrics.named_regions`, whose errors it raises; None for no names.
        method, interpolations: names of rows. The summary rows of the method count, as ``below_bicubic`` and so on,
            the slices on which its PSNR is below that of each interpolation; None does not count.
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
        dice_regions: str | Mapping[str, Sequence] | None = None,
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
        self.dice_regions = named_regions(dice_regions)
        if self.dice_regions and unet is None:
            raise ValueError("regions of the Dice are named, but there is no U-Net to segment them: give one")
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
            key: ``case``, ``plane`` and ``slice``, what else ``group_by`` names, and, if known, ``modality`` and
                ``degradation``. There are rows for each modality and degradation.
            label: the reference [C, H, W], with intensities scaled to about [0, 1].
            preds: results [C, H, W] by method, whose name is any but "HR".
            segmentation: label map [1, H, W]; None if there is none.
            factors: see :func:`image_figures`.

        Raises:
            ValueError: the slices differ in shape, the U-Net has one class, labels are beyond its classes, or only
                some slices have a label map.
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
        for name, unions in self.dice_regions.items():
            if beyond := sorted(label for union in unions for label in union if label >= classes):
                raise ValueError(f"region {name!r} has the label {beyond[0]}, the U-Net has 0 to {classes - 1}")
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
        for row, pred in zip(rows.values(), preds, strict=True):
            row |= dice_of_regions(pred, target, self.dice_regions)
        return {method: {"dice_against": against, **row} for method, row in rows.items()}

    def state(self) -> tuple[list[dict], dict[tuple[str | None, str], list[Tensor]]]:
        """Return what has been measured, to be sent to another process."""
        return self.rows, self.features

    def load(self, states: Sequence[tuple[list[dict], dict[tuple[str | None, str], list[Tensor]]]]) -> None:
        """Replace what has been measured by the :meth:`state` of several processes, with rows sorted by slice."""
        rows = [row for part, _ in states for row in part]
        self.rows = sorted(rows, key=lambda row: (row.get(DEGRADATION, ""), row["case"], row["plane"], row["slice"]))
        names = dict.fromkeys(method for _, part in states for method in part)
        self.features = {m: [one for _, part in states for one in part.get(m, [])] for m in names}

    def slices(self) -> int:
        """Return the number of slices."""
        return len({tuple(row[k] for k in ("case", "plane", "slice")) for row in self.rows})

    def _by(self, *names: str) -> tuple[str, ...]:
        """Return these names of columns, after that of the degradation if slices name theirs."""
        return (*([DEGRADATION] if any(DEGRADATION in row for row in self.rows) else []), *names)

    def groups(self) -> list[dict]:
        """Return a row for each method and each volume and plane, or what else ``group_by`` names."""
        return self._summary(self._by(*self.group_by, "method"))

    def modalities(self) -> list[dict]:
        """Return a row for each modality and method; none if no slice names its modality."""
        return self._summary(self._by("modality", "method")) if any("modality" in row for row in self.rows) else []

    def pooled(self, extra: Mapping[str, Mapping] | None = None) -> list[dict]:
        """Return a row for each method (and degradation) over all slices, with the FID.

        Args:
            extra: further columns by method, such as those of :func:`medsr_monai.metrics.network_figures`.

        Raises:
            ValueError: the FID is wanted of fewer than two slices.
        """
        rows = self._summary(self._by("method"))
        for row in rows:
            row |= self._fid(row.get(DEGRADATION), row["method"]) | dict((extra or {}).get(row["method"], {}))
        return rows

    def _summary(self, group_by: tuple[str, ...]) -> list[dict]:
        other = {"case", "subject", "plane", "slice", "method", "modality", DEGRADATION, *self.group_by}
        other |= {"dice_against", *FOREGROUND}
        values = [n for n in self.rows[0] if n not in other and not n.startswith(("both_", "pred_", "label_"))]
        out = summarise_rows(self.rows, group_by, values)
        for entry, rows in zip(out, group_rows(self.rows, group_by).values(), strict=True):
            if self.foreground is not None and entry["method"] != HIGH_RESOLUTION:
                entry["psnr_foreground"] = _foreground_psnr(rows)
            if self.unet is not None:
                classes = sum(name.startswith("both_") for name in rows[0]) - len(self.dice_regions)
                entry |= {f"dice_{name}_pooled": pooled_dice(rows, name) for name in regions(classes)}
                entry |= self._named_dice(rows) | {"dice_against": rows[0]["dice_against"]}
            if entry["method"] == self.method:
                entry |= {f"below_{other}": self._below(rows, other) for other in self.interpolations}
        return out

    def _named_dice(self, rows: Sequence[Mapping]) -> dict[str, float | None]:
        """Return the Dice of the named regions with the pixels of all rows summed, and of each patient's."""
        if not self.dice_regions:
            return {}
        pooled = {f"{name}_pooled": pooled_dice(rows, name) for name in self.dice_regions}
        pooled |= average(pooled, self.dice_regions, "_pooled")
        patients: dict[str, list[Mapping]] = {}
        for row in rows:
            patients.setdefault(row.get("subject", row["case"]), []).append(row)
        table = []
        for own in patients.values():
            dice = {name: pooled_dice(own, name) for name in self.dice_regions}
            table.append({name: None if math.isnan(value) else value for name, value in dice.items()})
            present = {name: value for name, value in dice.items() if not math.isnan(value)}
            table[-1] |= average(present, present)
        [summary] = summarise_rows(table, (), list(dict.fromkeys(name for row in table for name in row)))
        named = [name for name in summary if name != "slices" and not name.endswith("_std")]
        columns = {f"{name}_patients": summary[name] for name in named}
        columns |= {f"{name}_patients_std": summary[f"{name}_std"] for name in named}
        return pooled | columns

    def _below(self, rows: Sequence[Mapping], other: str) -> int:
        """Count the slices on which another method has a higher PSNR than these rows."""
        theirs = {_slice_of(row): row["psnr"] for row in self.rows if row["method"] == other}
        return sum(row["psnr"] < theirs[_slice_of(row)] for row in rows)

    def where_below(self) -> list[str]:
        """Return sentences that say on how many slices, and in which volumes, the method is below interpolation."""
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

        ``summary.csv`` has with all digits the pooled rows and those of every modality, with "all" in the columns of
        ``group_by``, and those of every volume and plane. ``summary.md`` has the same as tables of mean (standard
        deviation), and says where the method is below interpolation. ``summary.json`` has all lists, with null for
        what is not finite.

        Args:
            folder: folder of the files; it is made if missing.
            pooled: the rows of :meth:`pooled`, which may take a while to compute.
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
    """Return the PSNR in dB with data range 1; NaN if there is no foreground."""
    error, pixels = (sum(row[name] for row in rows) for name in FOREGROUND)
    if not pixels:
        return math.nan
    return 10 * math.log10(pixels / error) if error else math.inf


def _stack(images: Mapping[str, Tensor], network: nn.Module) -> Tensor:
    """Return slices as one batch on the device of a network."""
    device = next(network.parameters(), torch.empty(0)).device
    return torch.stack([torch.as_tensor(image).float().to(device) for image in images.values()])


def _slice_of(row: Mapping) -> tuple:
    return tuple(row.get(name) for name in (DEGRADATION, "case", "plane", "slice"))


def _name(key: Mapping) -> str:
    return f"{key['case']}, {key['plane']} slice {key['slice']}"
