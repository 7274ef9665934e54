"""Measure results against references."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path

from medsr_monai.atomic import check_input, check_output
from medsr_monai.errors import naming
from medsr_monai.upscaling.bundles import choose_device


def evaluate(
    pred: str,
    ref: str,
    plane: str = "auto",
    border: int = 4,
    frame: int | None = None,
    csv: str | None = None,
    json: bool = False,
    overwrite: bool = False,
    intensity: str = "minmax",
    inception: str | None = None,
    unet: str | None = None,
    labels: str | None = None,
    label_map: str | None = None,
    output: str | None = None,
    device: str = "auto",
) -> None:
    """PSNR and SSIM of super-resolved images against their references, per slice and as means; also FID and Dice.

    All are scaled by the reference's range. Slices whose standard deviation is below a quarter of the reference
    volume's (air) are left out. Two folders are matched by name, whatever system made the results.

    Args:
        pred: super-resolved volume or picture, or a folder of them; names may end in a postfix such as _sr.
        ref: reference in the same grid, or a folder of them; where `degrade` has cropped its far end, the rest is
            compared.
        plane: whose slices are compared; auto as in `upscale`.
        border: pixels left out at each side of a slice (not for MONAI's PSNR and SSIM, the columns psnr_monai and
            ssim_monai).
        frame: of 4D references, counted from 0.
        csv: write the figures of every slice to this file (of two volumes without further options: psnr and ssim).
        json: print JSON; an infinite PSNR (equal volumes) is null.
        overwrite: replace existing files.
        intensity: what is scaled to [0, 1], minmax or percentile (0.1 and 99.9); for Dice as the U-Net was trained.
        inception: torchvision's Inception-v3 weights (inception_v3_google-0cc3c7bd.pth), for the FID.
        unet: weights of a segmentation U-Net (bundle seg_unet, or made by `convert`), for the Dice of its predictions
            on the results, and on the references as the row HR.
        labels: label map, or folder of them, in the references' grids; by default the U-Net's predictions on the
            references are the truth.
        label_map: replaced labels as JSON, such as '{"255": 1}'.
        output: folder for slices.csv, summary.csv, summary.md and summary.json.
        device: auto, cpu, cuda:0; of the networks.
    """
    for path in (pred, ref, *filter(None, (labels, unet, inception))):
        check_input(path)
        if csv is not None:
            check_output(Path(csv), overwrite, path)
    if border < 0:
        raise ValueError(f"border is {border}, expected 0 or more pixels")
    if unet is None and (labels or label_map):
        raise ValueError("labels are compared with what a U-Net makes of the results: give --unet too")
    replaced = _label_map(label_map)
    from medsr_monai.data import LoadLabeld, LoadVolumed, check_same_grid, match_results
    from medsr_monai.evaluation.tables import compare_volumes
    from medsr_monai.metrics import EVALUATION_FILES, SliceEvaluation, json_text, markdown_table, write_rows
    from medsr_monai.networks import load_inception_features
    from medsr_monai.transforms import intensity_range
    from medsr_monai.weights.load import load_network

    if output is not None:
        for name in EVALUATION_FILES:
            check_output(Path(output) / name, overwrite)
    cases = match_results(pred, ref, labels)
    place = choose_device(device)
    evaluation = SliceEvaluation(
        border,
        inception=None if inception is None else load_inception_features(inception).to(place),
        unet=None if unet is None else load_network(unet).to(place),
    )
    for case in cases:
        with naming(case["pred"]):
            image = LoadVolumed("image", pictures=True).load(case["pred"])
            if not image.isfinite().all():
                raise ValueError("has voxels that are NaN or infinite, which cannot be compared")
        with naming(case["ref"]):
            reference = LoadVolumed("image", frame=frame, pictures=True).load(case["ref"])
            for channel in reference:
                intensity_range(channel, "minmax")
        segmentation = None
        if "label" in case:
            item = {"label": case["label"], "label_map": replaced}
            segmentation = LoadLabeld("label", pictures=True)(item)["label"]
            # a mask seldom states the size of its pixels
            placed = reference if "picture" in segmentation.meta else segmentation
            grids = [(tuple(segmentation.shape[1:]), placed.affine), (tuple(reference.shape[1:]), reference.affine)]
            check_same_grid(case["label"], grids[0], case["ref"], grids[1])
        with naming(case["pred"]):
            volume = compare_volumes(
                image, reference, evaluation, plane, case=case["case"], intensity=intensity, segmentation=segmentation
            )
    plain = len(cases) == 1 and unet is None and inception is None
    if csv is not None:
        Path(csv).parent.mkdir(parents=True, exist_ok=True)
        write_rows(evaluation.rows, csv, ("plane", "slice", "psnr", "ssim") if plain else None)
    pooled = evaluation.pooled()
    if output is not None:
        evaluation.write(output, pooled)
    if plain:
        summary = evaluation.groups()[0] | volume
        print(json_text(summary) if json else sentence(summary))
    else:
        print(f"[{', '.join(map(json_text, pooled))}]" if json else markdown_table(pooled))


def _label_map(text: str | None) -> dict[str, int]:
    try:
        value = {} if text is None else jsonlib.loads(text)
        return {str(int(old)): int(new) for old, new in value.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"label_map is {text!r}, expected JSON such as '{{\"255\": 1}}'") from error


def sentence(summary: dict) -> str:
    return (
        f"{summary['plane']}, {summary['slices']} slices: PSNR {summary['psnr']:.2f} dB (whole volume "
        f"{summary['psnr_volume']:.2f} dB), SSIM {summary['ssim']:.4f}"
    )
