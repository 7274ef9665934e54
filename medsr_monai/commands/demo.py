"""Show what upscale does."""

from __future__ import annotations

from pathlib import Path

from medsr_monai.atomic import check_output

ERRORS = "Errors: black where there is none,\nbright where it is large."
CASES = {
    "thick": (
        "Thick slices made thin: 4 mm become 1 mm",
        f"A sagittal slice of a volume whose\naxial slices are 4 mm thick (their\nprofile a Gaussian).\n\n{ERRORS}",
    ),
    "coarse": (
        "Coarse pixels made fine: 2 mm become 1 mm",
        f"The same slice in pixels of 2 mm:\nk-space cut to its central part, as\na scanner measures it.\n\n{ERRORS}",
    ),
}
"""What is made of the sample: what the picture says of it, in a line and in some more."""
METHODS = {"spline": "B-spline", "sr": "medsr upscale"}


def demo(output: str = "demo_out", device: str = "auto", overwrite: bool = False) -> None:
    """Make the small brain scan that ships with the package coarse in two ways, upscale it, compare with B-splines.

    First its slices are made four times as thick from below to above, and then its pixels twice as large, by cutting
    k-space as a scanner does. It writes reference.nii.gz, thick.nii.gz and coarse.nii.gz, for each of these two what
    cubic B-splines and medsr make of it, such as thick_spline.nii.gz and thick_sr.nii.gz, and demo.png, a picture of
    all.

    Args:
        output: the folder for these files, made if missing.
        device: where the networks run, such as cpu or cuda:0. auto takes a GPU where there is one.
        overwrite: replace existing files.
    """
    folder = Path(output)
    names = ["reference", *(f"{case}{ending}" for case in CASES for ending in ("", "_spline", "_sr"))]
    files = {name: folder / f"{name}.nii.gz" for name in names}
    for file in (*files.values(), folder / "demo.png"):
        check_output(file, overwrite)
    from medsr_monai.data import LoadVolumed, sample_volume, write_volume
    from medsr_monai.evaluation.degrade import degrade
    from medsr_monai.evaluation.evaluate import evaluate
    from medsr_monai.metrics import Story, comparison_picture
    from medsr_monai.transforms import intensity_range, resample, with_corners_of
    from medsr_monai.upscaling.upscaler import Upscaler

    reference = LoadVolumed("image").load(sample_volume())
    volumes = {"reference": reference}
    # across its 12 slices the sample is smooth, so the networks work within them
    volumes["thick"] = degrade(reference, 4, direction="through-plane", plane="axial")
    volumes["coarse"] = degrade(reference, 2, plane="sagittal", method="kspace")
    upscalers = {
        "thick": Upscaler(device=device, refine="sagittal"),
        "coarse": Upscaler(device=device, plane="sagittal"),
    }
    stories = []
    for case, (title, note) in CASES.items():
        coarse = volumes[case]
        volumes[f"{case}_spline"] = with_corners_of(coarse, resample(coarse, reference.shape[1:]))
        volumes[f"{case}_sr"] = upscalers[case](coarse)
        bundle = volumes[f"{case}_sr"].record["Bundle"]["Name"]
        figures, results = {}, {}
        for ending, method in METHODS.items():
            (summary,) = evaluate(volumes[f"{case}_{ending}"], reference, plane="sagittal").volumes
            named = f"{method} ({bundle})" if ending == "sr" else method
            figures[named] = f"PSNR {summary['psnr']:.2f} dB, SSIM {summary['ssim']:.3f}"
            results[named] = _slice(volumes[f"{case}_{ending}"])
            print(f"{case}, {named}: {figures[named]}, {summary['slices']} sagittal slices")
        stories.append(Story(title, note, _slice(coarse), results, _slice(reference), figures))
    for name, file in files.items():
        write_volume(volumes[name], file)
    low, high = intensity_range(reference)
    window = (low + 0.1 * (high - low), high - 0.1 * (high - low))  # the contrast of tissue
    comparison_picture(folder / "demo.png", stories, window)
    print(f"{folder}: {', '.join([file.name for file in files.values()] + ['demo.png'])}")


def _slice(volume):
    """The middle sagittal slice [rows from above to below, columns from the back to the front]."""
    from monai.transforms import Orientation

    canonical = Orientation("RAS")(volume)[0]
    return canonical[canonical.shape[0] // 2].as_tensor().T.flip(0).numpy()
