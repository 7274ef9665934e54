"""Fit a network to scans."""

from __future__ import annotations

from pathlib import Path

from medsr_monai.atomic import check_output


def adapt(
    *paths: str,
    bundle: str = "rdst_e_thick",
    weights: str | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    psf: str = "auto",
    thick_axis: str = "auto",
    device: str = "auto",
    trust_code: bool = False,
    overwrite: bool = False,
) -> int:
    """Fit the weights of a bundle for thick slices to one scan, or to scans of one protocol, for later use.

    In the plane of its slices a scan is sharp, across them it is not. Its own slices, made coarse as the scanner does
    across them, are what the network learns from. Every tenth slice is held out, in blocks, and the weights are
    written only if they do better on these, and fit the measured slices no worse. Then `medsr upscale OTHER OUT
    --weights WEIGHTS.pt` with the same bundle uses them.

    The exit code is 0 if weights were written and 1 if not.

    Args:
        paths: one or more inputs, each a NIfTI or FreeSurfer file, a folder of them, or a DICOM study, and last the
            weights file to write, whose name ends in .pt.
        bundle: the name of a bundle for thick slices, or the path of its folder.
        weights: a weights file to begin with in place of the bundle's.
        minutes: for how long the network is fitted at most. By default 5.
        steps: fit for so many steps instead, which repeats an earlier fit bit for bit.
        seed: of the patches that are drawn.
        psf: how the scanner blurs across the slices, see `medsr upscale --help`.
        thick_axis: the direction across the slices, see `medsr upscale --help`.
        device: where the network is fitted, such as cpu or cuda:0.
        trust_code: run code of a bundle that is not installed.
        overwrite: replace an existing weights file.
    """
    *sources, out = paths if len(paths) > 1 else (*paths, "")
    if not sources or not out.endswith(".pt"):
        raise ValueError(
            f"{out or 'no weights file'}: give one or more scans and then the file to write, such as fit.pt"
        )
    check_output(Path(out), overwrite)
    from medsr_monai.upscaling.adaptation import Adaptation
    from medsr_monai.upscaling.protocols import adapt_files
    from medsr_monai.upscaling.upscaler import Options

    limits = {"steps": steps, "seed": seed} | ({} if minutes is None else {"minutes": minutes})
    options = Options(bundle, weights=weights, psf=psf, thick_axis=thick_axis, device=device, trust_code=trust_code)
    return adapt_files(sources, out, options, Adaptation(**limits))
