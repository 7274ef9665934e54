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
    options = {"plane": plane, "border": border, "frame": frame, "csv": csv, "overwrite": overwrite, "device": device}
    options |= {"intensity": intensity, "inception": inception, "unet": unet, "labels": labels, "output": output}
    replaced = _label_map(label_map)
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


def sentence(summary: dict) -> str:
    return (
        f"{summary['plane']}, {summary['slices']} slices: PSNR {summary['psnr']:.2f} dB (whole volume "
        f"{summary['psnr_volume']:.2f} dB), SSIM {summary['ssim']:.4f}"
    )
