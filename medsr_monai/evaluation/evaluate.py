"""Results against their references: image quality of every slice, and what networks make of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsr_monai.atomic import check_input, check_output
from medsr_monai.data import LoadLabeld, check_same_grid, match_results, volume_name
from medsr_monai.errors import MedsrError, naming
from medsr_monai.evaluation.tables import compare_volumes
from medsr_monai.metrics import EVALUATION_FILES, SliceEvaluation, write_rows
from medsr_monai.networks import load_inception_features
from medsr_monai.transforms import intensity_range
from medsr_monai.upscaling.bundles import choose_device
from medsr_monai.upscaling.kinds import name_of, to_volume
from medsr_monai.weights.load import load_network

if TYPE_CHECKING:
    from medsr_monai.upscaling.kinds import Volume

__all__ = ["Evaluated", "evaluate"]

RESULT = "pred"
"""What tables call the method that made the results."""


@dataclass(frozen=True)
class Evaluated:
    """Figures of results against their references, as rows whose keys are the columns of :class:`SliceEvaluation`.

    Attributes:
        slices: a row for each slice; with a U-Net also one for each slice of the references, by the method "HR".
        volumes: a row for each volume, plane and method, with means and standard deviations over the slices. Rows of
            results also have ``psnr_volume``, the PSNR of the whole volume in dB.
        pooled: a row for each method over all slices, with the FID where it was asked for.
    """

    slices: list[dict[str, Any]]
    volumes: list[dict[str, Any]]
    pooled: list[dict[str, Any]]


def evaluate(
    pred: Volume,
    ref: Volume,
    *,
    plane: str = "auto",
    border: int = 4,
    frame: int | None = None,
    csv: str | os.PathLike | None = None,
    overwrite: bool = False,
    intensity: str = "minmax",
    inception: str | os.PathLike | None = None,
    unet: str | os.PathLike | None = None,
    labels: Volume | None = None,
    label_map: Mapping[str, int] | None = None,
    regions: str | Mapping[str, list] | None = None,
    output: str | os.PathLike | None = None,
    device: str = "auto",
) -> Evaluated:
    """PSNR and SSIM of super-resolved images against their references, per slice and as means; also FID and Dice.

    All are scaled by the reference's range. Slices whose standard deviation is below a quarter of the reference
    volume's (air) are left out. Two folders are matched by name, see :func:`medsr_monai.data.match_results`. Nothing is
    written unless ``csv`` or ``output`` is given.

    Args:
        pred: super-resolved volume or picture, or the path of a folder of them. A single volume may be a path, a
            nibabel image, a MetaTensor or a pair (array, affine), see :mod:`medsr_monai.upscaling.kinds`.
        ref: likewise, in the same grid; where :func:`medsr_monai.degrade` has cropped its far end, the rest is
            compared.
        plane: axial, coronal or sagittal, whose slices are compared; auto for the one with the finest pixels.
        border: pixels left out at each side of a slice (not for MONAI's PSNR and SSIM).
        frame: the frame of references with four axes, counted from 0.
        csv: file for the figures of every slice (of two volumes without further options: psnr and ssim).
        overwrite: replace existing files.
        intensity: what is scaled to [0, 1], minmax or percentile (0.1 and 99.9).
        inception: file of torchvision's Inception-v3 weights, for the FID.
        unet: weights file of a segmentation U-Net, for the Dice of its predictions on the results and on the
            references.
        labels: label map, or the path of a folder of them, in the references' grids; by default the U-Net's predictions
            on the references are the truth.
        label_map: labels to be replaced, and what by, such as ``{"255": 1}``.
        regions: Dice by a paper's names: oasis, brats, acdc or covid_ct, or labels by name such as
            ``{"Dice-WT": [1, 2, 3]}``, see :func:`medsr_monai.metrics.named_regions`.
        output: folder for slices.csv, summary.csv, summary.md and summary.json, made if missing.
        device: where the networks run: auto, cpu or cuda:0.

    Raises:
        MedsrError: one line: an option, a file that is missing or exists, volumes that cannot be compared.
    """
    if border < 0:
        raise MedsrError(f"border is {border}, expected 0 or more pixels")
    if unet is None and (labels is not None or label_map or regions):
        raise MedsrError("labels are compared with what a U-Net makes of the results: give --unet too")
    volumes = {"pred": pred, "ref": ref} | ({} if labels is None else {"label": labels})
    paths = [one for one in volumes.values() if isinstance(one, (str, os.PathLike))]
    with naming():
        for path in (*paths, *filter(None, (unet, inception))):
            check_input(path)
            if csv is not None:
                check_output(Path(csv), overwrite, path)
        for name in EVALUATION_FILES if output is not None else ():
            check_output(Path(output) / name, overwrite)
        one = [{"case": volume_name(name_of(ref))} | volumes]
        cases = match_results(*paths) if len(paths) == len(volumes) else one
        place = choose_device(device)
        networks = {
            "inception": None if inception is None else load_inception_features(inception).to(place),
            "unet": None if unet is None else load_network(unet).to(place),
        }
        evaluation, whole = SliceEvaluation(border, dice_regions=regions, **networks), {}
        for case in cases:
            whole[case["case"]] = _add(evaluation, case, plane, frame, intensity, label_map or {})
        pooled = evaluation.pooled()
        if csv is not None:
            plain = len(cases) == 1 and unet is None and inception is None
            Path(csv).parent.mkdir(parents=True, exist_ok=True)
            write_rows(evaluation.rows, csv, ("plane", "slice", "psnr", "ssim") if plain else None)
        if output is not None:
            evaluation.write(output, pooled)
    rows = [row | (whole[row["case"]] if row["method"] == RESULT else {}) for row in evaluation.groups()]
    return Evaluated(evaluation.rows, rows, pooled)


def _add(
    evaluation: SliceEvaluation,
    case: Mapping[str, Any],
    plane: str,
    frame: int | None,
    intensity: str,
    label_map: Mapping[str, int],
) -> dict[str, float]:
    """Measure one volume; returns the figure of all its voxels."""
    pred_name, ref_name = name_of(case["pred"]), name_of(case["ref"])
    image = to_volume(case["pred"], pictures=True)
    with naming(pred_name):
        if not image.isfinite().all():
            raise MedsrError("has voxels that are NaN or infinite, which cannot be compared")
    reference = to_volume(case["ref"], frame, pictures=True)
    with naming(ref_name):
        for channel in reference:
            intensity_range(channel, "minmax")
    segmentation = None
    if "label" in case:
        label_name = name_of(case["label"])
        with naming(label_name):
            label = case["label"]
            if not isinstance(label, (str, os.PathLike)):
                label = to_volume(label, label_maps=True)
            segmentation = LoadLabeld("label", pictures=True)({"label": label, "label_map": label_map})["label"]
            # a mask seldom states the size of its pixels
            placed = reference if "picture" in segmentation.meta else segmentation
            grids = [(tuple(segmentation.shape[1:]), placed.affine), (tuple(reference.shape[1:]), reference.affine)]
            check_same_grid(label_name, grids[0], ref_name, grids[1])
    with naming(pred_name):
        return compare_volumes(
            *(image, reference, evaluation, plane),
            case=case["case"],
            method=RESULT,
            intensity=intensity,
            segmentation=segmentation,
        )
