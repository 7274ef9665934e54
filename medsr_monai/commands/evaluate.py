"""Measure results against references."""

from __future__ import annotations

import json as jsonlib

from medsr_monai.atomic import check_input


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
    regions: str | None = None,
    output: str | None = None,
    device: str = "auto",
) -> None:
    """Measure super-resolved images against their references with PSNR and SSIM, on request also with FID and Dice.

    It prints means over the slices. Intensities are scaled by the reference's range. Slices of air, whose standard
    deviation is below a quarter of the reference volume's, are left out. The files of two folders are matched by name,
    whatever system made the results.

    Args:
        pred: a super-resolved volume or picture, or a folder of them. A name may go on after the reference's, as with
            _sr.
        ref: the reference in the same grid, or a folder of references. Where `medsr degrade` has cropped the far end,
            only the rest is compared.
        plane: axial, coronal or sagittal, the plane whose slices are compared. auto takes the one with the finest
            pixels.
        border: how many pixels are left out at each side of a slice. The columns psnr_monai and ssim_monai, which MONAI
            computes, use the whole slice.
        frame: which frame of 4D references to take, counted from 0.
        csv: a file for the figures of every slice. For one pair of volumes without further options these are PSNR and
            SSIM.
        json: print JSON, in which the infinite PSNR of equal volumes is null.
        overwrite: replace existing files.
        intensity: what is scaled to 0 and 1, minmax for the extremes or percentile for the percentiles 0.1 and 99.9.
            For Dice choose what the U-Net was trained with.
        inception: torchvision's weights of Inception-v3 (inception_v3_google-0cc3c7bd.pth), which turn on the FID.
        unet: the weights of a segmentation U-Net, from the bundle seg_unet or from `medsr convert`, which turn on Dice.
            It segments the results, and also the references, which are the row HR.
        labels: a label map in the reference's grid, or a folder of them. By default the U-Net's segmentation of the
            references is the truth.
        label_map: labels to replace, as JSON such as '{"255": 1}'.
        regions: Dice by a paper's names, of each slice and of each patient. Give oasis, brats, acdc or covid_ct, or
            names with the labels whose union counts, as JSON.
        output: a folder for slices.csv, summary.csv, summary.md and summary.json.
        device: where these networks run, such as cpu or cuda:0. auto takes a GPU where there is one.
    """
    for path in (pred, ref, *filter(None, (labels, unet, inception))):
        check_input(path)
    options = {"plane": plane, "border": border, "frame": frame, "csv": csv, "overwrite": overwrite, "device": device}
    options |= {"intensity": intensity, "inception": inception, "unet": unet, "labels": labels, "output": output}
    replaced, options["regions"] = _label_map(label_map), _regions(regions)
    from medsr_monai.evaluation.evaluate import evaluate as evaluate_volumes
    from medsr_monai.metrics import json_text, markdown_table

    result = evaluate_volumes(pred, ref, label_map=replaced, **options)
    if len(result.volumes) == 1 and unet is None and inception is None:
        print(json_text(result.volumes[0]) if json else sentence(result.volumes[0]))
    else:
        rows = result.pooled
        print(f"[{', '.join(map(json_text, rows))}]" if json else markdown_table(rows))


def _label_map(text: str | None) -> dict[str, int]:
    try:
        value = {} if text is None else jsonlib.loads(text)
        return {str(int(old)): int(new) for old, new in value.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"label_map is {text!r}, expected JSON such as '{{\"255\": 1}}'") from error


def _regions(text: str | None) -> str | dict[str, list] | None:
    """A data set's name as it is, JSON as what it says."""
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return jsonlib.loads(text)
    except ValueError as error:
        raise ValueError(f"regions is {text!r}, expected JSON such as '{{\"Dice-WT\": [1, 2, 3]}}'") from error


def sentence(summary: dict) -> str:
    return (
        f"{summary['plane']}, {summary['slices']} slices: PSNR {summary['psnr']:.2f} dB (whole volume "
        f"{summary['psnr_volume']:.2f} dB), SSIM {summary['ssim']:.4f}"
    )
