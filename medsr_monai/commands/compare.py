"""Compare systems on one volume."""

from __future__ import annotations

import contextlib
import json as jsonlib
import re
import sys
import tempfile
from pathlib import Path

from medsr_monai.atomic import check_input, check_output
from medsr_monai.command_line import is_verbose, print_traceback
from medsr_monai.errors import line_of, naming
from medsr_monai.evaluation.systems import load_systems, named_systems
from medsr_monai.upscaling.bundles import DEFAULT_BUNDLE, choose_device


def compare(
    input: str,
    output: str = "compare_out",
    reference: str | None = None,
    bundles: str | None = None,
    networks: str | None = None,
    plane: str = "auto",
    scale: int | None = None,
    slice: int | None = None,
    crop: str | None = None,
    border: int = 4,
    device: str = "auto",
    frame: int | None = None,
    save_volumes: bool = False,
    json: bool = False,
    trust_code: bool = False,
    overwrite: bool = False,
) -> int:
    """Super-resolve one volume with several methods, and compare them with bicubic in a table and a picture.

    It writes compare.md, compare.csv and compare.json (PSNR and SSIM as `medsr evaluate` computes them, the number of
    weights, the seconds), slices.csv, and compare.png, which has a column for each method with a slice, a detail of it,
    the absolute error, PSNR and SSIM.

    Args:
        input: a high-resolution volume, which is made coarse by bicubic interpolation and is the reference. With
            --reference it is a low-resolution volume, such as `medsr degrade` makes in other ways.
        output: the folder for the results, made if missing.
        reference: a high-resolution volume of the same space as the input.
        bundles: names or folders of bundles with commas between them, or NAME=FILE for a bundle with other weights than
            its own. By default rdst_e, unless --networks names others.
        networks: weights files with commas between them, as FILE or as NAME=FILE, in which NAME is what the table calls
            the network. Each file records its network. Bundles may stand here too. Bicubic is always the first row.
        plane: axial, coronal or sagittal, the plane whose slices are enlarged. auto takes the one with the finest
            pixels.
        scale: by how much the input is made coarse. By default it is the scale of the methods.
        slice: the number of the slice in the picture, counted as in slices.csv. By default it is the middle one of
            those that are compared.
        crop: the detail in the picture, as top,left,height,width in pixels of the slice. By default it is a quarter of
            the sides, where the reference has the strongest edges.
        border: how many pixels are left out at each side of a slice.
        device: where the networks run, such as cpu or cuda:0. auto takes a GPU where there is one.
        frame: which frame of 4D files to take, counted from 0.
        save_volumes: also write every result as NAME_sr.nii.gz, and the coarse volume as input.nii.gz.
        json: print compare.json instead of the table.
        trust_code: run TorchScript files, and bundles whose configuration holds code that no installed bundle has.
        overwrite: replace existing files.
    """
    for path in (input, reference):
        if path is not None:
            check_input(path)
    if border < 0:
        raise ValueError(f"border is {border}, expected 0 or more pixels")
    box = None
    if crop is not None:
        if not re.fullmatch(r"\d+(,\d+){3}", crop):
            raise ValueError(f"crop is {crop!r}, expected top,left,height,width such as 40,60,32,32")
        box = tuple(map(int, crop.split(",")))
    if bundles is None and networks is None:
        bundles = DEFAULT_BUNDLE
    chosen = [system for names in (bundles, networks) if names is not None for system in named_systems(names)]
    from medsr_monai.data import LoadVolumed, write_volume
    from medsr_monai.evaluation.tables import FILES, Comparison, NetworkRunner, common_scale
    from medsr_monai.networks import Bicubic
    from medsr_monai.transforms import PLANES, axis_factors, intensity_range, plane_axis, sharp_plane
    from medsr_monai.transforms import degrade as degrade_volume

    if plane not in ("auto", *PLANES):
        raise ValueError(f"plane is {plane!r}, expected auto, {', '.join(PLANES)}")
    folder = Path(output)
    for name in FILES:
        check_output(folder / name, overwrite)
    load = LoadVolumed("image", frame=frame).load
    volumes = {}
    for path in filter(None, (input, reference)):
        with naming(path):
            volumes[path] = load(path)
            intensity_range(volumes[path], "minmax")
    image, ref = volumes[input], volumes[reference or input]
    plane = sharp_plane(image.affine, image.shape[1:]) if plane == "auto" else plane
    device = choose_device(device)
    overrides = {"plane": plane, "device": f"$torch.device('{device}')", "frame": frame if reference else None}
    systems = load_systems(chosen, trust_code, **overrides)
    scale = common_scale(systems, scale)
    systems = {"Bicubic": NetworkRunner(Bicubic(scale=scale), **overrides)} | systems
    if save_volumes:
        for name in (*(["input.nii.gz"] if reference is None else []), *(f"{name}_sr.nii.gz" for name in systems)):
            check_output(folder / name, overwrite, input)
    note = f"{Path(input).name} against {Path(reference).name}" if reference else f"{Path(input).name}, degraded"
    with contextlib.ExitStack() as stack:
        source = Path(input)
        if reference is None:
            factors = axis_factors(plane_axis(ref.affine, plane), scale)
            image = degrade_volume(ref, factors)
            note += " (bicubic)"
            place = folder if save_volumes else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            source = place / "input.nii.gz"
        with naming(input):
            comparison = Comparison(
                source, image, ref, plane, scale, border=border, slice_number=slice, note=note, device=device
            )
            box = comparison.checked_crop(box)
        if reference is None:
            write_volume(image, source)
        failed = False
        for name, runner in systems.items():
            try:
                result = comparison.add(name, runner)
            except Exception as error:
                failed = True
                if is_verbose():
                    print_traceback()
                print(f"medsr: error: {name}: {line_of(error)}", file=sys.stderr)
                continue
            if not json:
                # a line as soon as it is known: large networks take minutes
                header = comparison.header() + "\n" if len(comparison.rows) == 1 else ""
                print(header, comparison.line(comparison.rows[-1]), sep="", flush=True)
            if save_volumes:
                write_volume(result, folder / f"{name}_sr.nii.gz")
    if comparison.rows:
        report = comparison.write(folder, box)
        print(jsonlib.dumps(report) if json else f"{folder}: {', '.join(FILES)}")
    return 1 if failed else 0
