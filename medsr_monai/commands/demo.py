"""Show what a bundle does."""

from __future__ import annotations

from pathlib import Path

from medsr_monai.atomic import check_output
from medsr_monai.commands.degrade import degrade
from medsr_monai.commands.evaluate import sentence
from medsr_monai.upscaling.bundles import DEFAULT_BUNDLE, BundleRunner, bundle_folder, choose_device


def demo(output: str = "demo_out", bundle: str = DEFAULT_BUNDLE, device: str = "auto", overwrite: bool = False) -> None:
    """Make the small brain scan that ships with the package coarse, super-resolve it, compare with bicubic.

    It writes reference.nii.gz, input.nii.gz, bicubic.nii.gz, sr.nii.gz and demo.png, a picture of all four.

    Args:
        output: the folder for these files, made if missing.
        bundle: the bundle to run; it has to enlarge slices.
        device: where the network runs, such as cpu or cuda:0. auto takes a GPU where there is one.
        overwrite: replace existing files.
    """
    folder = Path(output)
    files = {name: folder / f"{name}.nii.gz" for name in ("reference", "input", "bicubic", "sr")} | {
        "picture": folder / "demo.png"
    }
    for file in files.values():
        check_output(file, overwrite)
    bundle_folder(bundle)
    from monai.transforms import Orientation

    from medsr_monai.data import LoadVolumed, sample_volume, write_volume
    from medsr_monai.evaluation.evaluate import evaluate
    from medsr_monai.metrics import comparison_picture
    from medsr_monai.networks import Bicubic
    from medsr_monai.transforms import intensity_range

    runner = BundleRunner(bundle, plane="sagittal", device=f"$torch.device('{choose_device(device)}')")
    scale = runner["scale"]
    load = LoadVolumed("image").load
    write_volume(load(sample_volume()), files["reference"])
    degrade(str(files["reference"]), str(files["input"]), scale=scale, plane="sagittal", overwrite=True)
    item = runner.read(files["input"])
    write_volume(runner.run(item, Bicubic(scale=scale)), files["bicubic"])
    write_volume(runner.run(item), files["sr"])
    volumes = {name: load(file) for name, file in files.items() if name != "picture"}
    titles = {"input": f"input, x{scale} coarser"}
    for name in ("bicubic", "sr"):
        (summary,) = evaluate(volumes[name], volumes["reference"], plane="sagittal").volumes
        print(f"{name}: {sentence(summary)}")
        titles[name] = f"{'bicubic' if name == 'bicubic' else Path(bundle).name}, {summary['psnr']:.2f} dB"
    titles["reference"] = "reference"
    slices = {}
    for name, title in titles.items():
        canonical = Orientation("RAS")(volumes[name])[0]
        slices[title] = canonical[canonical.shape[0] // 2].as_tensor().T.flip(0).numpy()
    window = intensity_range(volumes["reference"])
    comparison_picture(files["picture"], slices, slices["reference"].shape, window)
    print(f"{folder}: {', '.join(file.name for file in files.values())}")
