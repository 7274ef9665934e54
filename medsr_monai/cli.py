"""The command ``medsr``: plain typed functions; heavy imports happen inside the one that is called."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json as jsonlib
import logging
import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from monai.data import MetaTensor

    from medsr_monai.compare import Runner

DEFAULT_BUNDLE = "rdst_e"
NIFTI_SUFFIXES = (".nii", ".nii.gz")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".mgz", ".mgh")
ERRORS = (ValueError, OSError, RuntimeError, MemoryError)
"""What a user can mend: told in one line. Anything else is a bug of ours and shows its traceback."""


# bundles


def bundle_folders() -> dict[str, Path]:
    """Bundles by name: those inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    root = next((r for r in (package / "bundles", package.parent / "bundles") if r.is_dir()), None)
    return {p.parent.parent.name: p.parent.parent for p in sorted(root.glob("*/configs/metadata.json"))} if root else {}


def bundle_folder(bundle: str) -> Path:
    """Folder of a bundle, given by name or by path."""
    known = bundle_folders()
    folder = known.get(bundle, Path(bundle))
    if not (folder / "configs" / "inference.json").is_file():
        raise FileNotFoundError(f"no bundle {bundle!r}: choose {', '.join(known)}, or give a bundle's folder")
    return folder


def _device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} is not available here, choose cpu or cuda:0") from error
    return device


class BundleRunner:
    """A bundle's inference pipeline on single volumes: configuration parsed and weights loaded once.

    Args:
        bundle: name or folder.
        weights: file, or None for the bundle's own.
        overrides: ids of the bundle's inference.json and their values.
    """

    def __init__(self, bundle: str, weights: str | None = None, **overrides: Any) -> None:
        folder = bundle_folder(bundle)
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"{weights}: no such weights file")
        from monai.bundle import ConfigParser

        from medsr_monai.handlers import load_weights

        self.parser = ConfigParser()
        self.parser.read_config(folder / "configs" / "inference.json")
        if "scale" not in self.parser:
            raise ValueError(
                f"bundle {bundle} does not super-resolve: run it as its docs/README.md says, with monai.bundle"
            )
        for name in overrides:
            if name.partition("#")[0] not in self.parser:
                raise ValueError(f"bundle {bundle} has no option --{name.replace('_', '-')}: {self._use()}")
        progress = {"inferer#progress": sys.stderr.isatty()}
        self.parser.update({"bundle_root": str(folder), "output_dir": None} | progress | overrides)
        self.parser.parse()
        self.weights = weights or self["weights"]
        self.network = self["network"].eval()
        if self.weights:
            load_weights(self.network, self.weights)
            numbers = self.network.state_dict().items()
            if broken := [name for name, tensor in numbers if not tensor.isfinite().all()]:
                raise ValueError(
                    f"{self.weights}: numbers that are not finite in {', '.join(broken[:3])}: an unfinished training?"
                )

    def _use(self) -> str:
        if "thick_axis" in self.parser:
            return (
                "it refines thick slices, for which `medsr upscale` has --thick-axis, --target-spacing, --refine and "
                "--force"
            )
        return "it enlarges the slices of a --plane"

    def __getitem__(self, name: str) -> Any:
        return self.parser.get_parsed_content(name)

    @property
    def scale_factors(self) -> tuple[int, int]:
        """By which the rows and the columns of a slice grow."""
        from monai.utils import ensure_tuple_rep

        return ensure_tuple_rep(self["scale"], 2)

    def read(self, path: str | Path) -> dict[str, MetaTensor]:
        """Preprocessed input."""
        return self["preprocessing"]({"image": str(path)})

    def run(self, item: dict[str, MetaTensor], network: torch.nn.Module | None = None) -> MetaTensor:
        """Super-resolved volume [C, X, Y, Z] of a preprocessed input, with another network if one is given."""
        import torch

        device = self["device"]
        # as MONAI's evaluator does it in `monai.bundle run`
        with torch.inference_mode(), torch.autocast(device.type, enabled=self["amp"]):
            pred = self["inferer"](item["image"][None].to(device), network or self.network)[0].cpu()
        return self["postprocessing"](item | {"pred": pred})["pred"]


# files


def _nifti_output(path: str, overwrite: bool, source: str) -> Path:
    out = Path(path)
    if not out.name.endswith(NIFTI_SUFFIXES):
        raise ValueError(f"{out}: the output is written as NIfTI, give a name that ends in .nii.gz")
    _check_output(out, overwrite, source)
    return out


def _output(path: str, overwrite: bool, source: str) -> Path:
    """Output file of an input file: NIfTI for a volume, a picture for a picture."""
    # whether it is one is asked where the names do not say it, since that imports monai
    if Path(source).name.lower().endswith(VOLUME_SUFFIXES) or not Path(source).is_file():
        return _nifti_output(path, overwrite, source)
    from medsr_monai.data import PICTURE_SUFFIXES, is_dicom_file, is_picture

    if not is_picture(source) or (is_dicom_file(source) and path.endswith(NIFTI_SUFFIXES)):
        return _nifti_output(path, overwrite, source)
    out = Path(path)
    if not out.name.lower().endswith(PICTURE_SUFFIXES):
        dicom = ", or .nii.gz; DICOM is not written" if is_dicom_file(source) else ""
        raise ValueError(
            f"{out}: of a picture a picture is written, give a name that ends in {', '.join(PICTURE_SUFFIXES)}{dicom}"
        )
    _check_output(out, overwrite, source)
    return out


def _check_output(path: Path, overwrite: bool, source: str | None = None) -> None:
    """Refuse an output file before any work: it is the input, is there already, or has no folder to be written to."""
    if source is not None and path.resolve() == Path(source).resolve():
        raise ValueError(f"{path}: is the input, which is never overwritten, choose another name")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, give the name of a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists, choose another name or add --overwrite")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: nothing can be written to {parent}, choose another output")


def _check_input(path: str) -> None:
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file or folder")


def _write(volume: MetaTensor, path: Path) -> None:
    import numpy as np

    from medsr_monai.data import NiftiWriter, write_picture

    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.name.endswith(NIFTI_SUFFIXES):
            write_picture(volume, path)
            return
        writer = NiftiWriter(output_dtype=np.float32)
        writer.set_data_array(volume, channel_dim=0)
        writer.set_metadata(volume.meta, resample=False)
        writer.write(path)


def _describe(volume: MetaTensor) -> str:
    from medsr_monai.transforms import describe_grid, format_edges, spacing

    if "picture" in volume.meta:
        size = f" of {format_edges(spacing(volume.affine)[:2])} mm" if volume.meta["picture_spacing"] == "file" else ""
        return f"{volume.shape[1]}x{volume.shape[2]} pixels{size}"
    return describe_grid(volume.affine, volume.shape[1:])


def _cases(source: str, target: str, overwrite: bool) -> list[tuple[str, Path]]:
    """(input, output file) of a file, or of what a folder holds; outputs are checked, no voxels are read."""
    _check_input(source)
    path, out = Path(source), Path(target)
    # a file is refused by its output's name before monai is imported
    if path.is_file() and not out.is_dir():
        return [(source, _output(target, overwrite, source))]
    from medsr_monai.data import list_volumes, volume_name

    found = [source] if path.is_file() else [item["image"] for item in list_volumes(source)]
    single = found == [source]
    if single and not out.is_dir():
        return [(source, _nifti_output(target, overwrite, source))]
    if out.is_file() or (not out.is_dir() and out.name.endswith(NIFTI_SUFFIXES)):
        raise ValueError(f"{path}: is a folder of volumes, give an output folder, {out} is the name of a file")
    if single:
        cases = [(source, out / f"{volume_name(path)}_sr{_suffix(source)}")]
    else:
        cases = [(f, out / Path(f).relative_to(path).parent / f"{volume_name(f)}_sr{_suffix(f)}") for f in found]
    inputs = {Path(name).resolve() for name, _ in cases}
    written = {}
    for name, file in cases:
        if file in written:
            raise ValueError(f"{file}: would be written for {written[file]} and for {name}, rename one of them")
        if file.resolve() in inputs:
            raise ValueError(f"{file}: is an input too, choose another output folder")
        written[file] = name
        _check_output(file, overwrite)
    return cases


def _suffix(source: str) -> str:
    """Of the output that is made of ``source`` in a folder."""
    from medsr_monai.data import is_picture, output_suffix

    return output_suffix(source) if is_picture(source) else ".nii.gz"


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: MONAI's Compose wraps what a transform raises."""
    while error.__cause__ is not None and isinstance(error, RuntimeError):
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Errors raised inside name the file, as checks of voxels cannot do."""
    try:
        yield
    except ERRORS as error:
        reason = _reason(error)
        raise ValueError(reason if str(path) in reason else f"{path}: {reason}") from error


def _json(value: dict[str, Any]) -> str:
    """JSON, which has no infinite numbers: they become null."""
    from medsr_monai.metrics import json_values

    return jsonlib.dumps(json_values(value), allow_nan=False)


# commands


def upscale(
    input: str,
    output: str,
    bundle: str = DEFAULT_BUNDLE,
    plane: str = "auto",
    device: str = "auto",
    weights: str | None = None,
    frame: int | None = None,
    slice_batch: int = 4,
    tile: int | None = None,
    thick_axis: str = "auto",
    target_spacing: float | None = None,
    refine: str = "both",
    force: bool = False,
    overwrite: bool = False,
) -> int:
    """Super-resolve a volume or a picture, or all of a folder, with a bundle.

    Of a volume it writes float32 NIfTI in the input's units, of a picture (grey or RGB, 8 or 16 bits) a picture of the
    same kind, whose pixel size, where the input states it, is divided too.

    Most bundles enlarge the slices of one plane; a bundle for thick slices, such as transmrsr, makes them thin.

    Args:
        input: NIfTI file (.nii, .nii.gz), FreeSurfer file (.mgz), folder of such files, or folder with a DICOM series;
            PNG, TIFF, JPEG or single DICOM file, or a folder of these without volumes.
        output: NIfTI file, or PNG, TIFF or JPEG file for a picture (of a DICOM file either), or a folder (made if
            missing), in which pictures are written as PNG, those of TIFF files as TIFF.
        bundle: name of a bundle (see `medsr models`) or path of its folder.
        plane: axial, coronal or sagittal: the plane whose slices are enlarged; auto is the one with the finest pixels.
        device: auto, cpu, cuda:0.
        weights: another weights file than the bundle's models/model.pt.
        frame: of a 4D file, counted from 0.
        slice_batch: slices computed at a time.
        tile: side in pixels of tiles, to save memory; leaves faint seams. Default: whole slices.
        thick_axis: of thick slices, the direction across them: left-right (sagittal slices), posterior-anterior
            (coronal) or inferior-superior (axial); auto is that of the longest voxel edge.
        target_spacing: of thick slices: the thickness in mm to be reached, as nearly as whole slices within the same
            outer corners allow. Default: the smaller edge of the pixels.
        refine: of thick slices: both planes that contain the thick axis, averaged, or one of them, in half the time:
            axial, coronal or sagittal.
        force: of thick slices: refine voxels that are nearly isotropic, too.
        overwrite: replace existing outputs.
    """
    bundle_folder(bundle)
    cases = _cases(input, output, overwrite)
    from medsr_monai.data import check_format, is_dicom_file
    from medsr_monai.transforms import PLANES

    if plane not in ("auto", *PLANES):
        raise ValueError(f"plane is {plane!r}, expected auto, {', '.join(PLANES)}")
    if slice_batch < 1 or (tile is not None and tile < 32):
        raise ValueError("slice_batch must be at least 1 and tile at least 32 pixels")
    device = _device(device)
    overrides = {"frame": frame, "sw_batch_size": slice_batch, "device": f"$torch.device('{device}')"}
    # what is not given is left to the bundle, which has some of these
    if plane != "auto":
        overrides["plane"] = plane
    if thick_axis != "auto":
        overrides["thick_axis"] = thick_axis
    if target_spacing is not None:
        overrides["target_spacing"] = target_spacing
    if refine != "both":
        overrides["refine"] = refine
    if force:
        overrides["force"] = True
    if tile is not None:
        overrides["inferer#roi_size"] = [tile, tile]
    if any(is_dicom_file(path) and out.name.endswith(NIFTI_SUFFIXES) for path, out in cases):
        overrides["preprocessing#pictures"] = False  # it is a volume of one slice then
    runner = BundleRunner(bundle, weights, **overrides)
    inferer = runner["inferer"]  # checks its options
    failed = 0
    for path, out in cases:
        try:
            with _naming(path):
                item = runner.read(path)
                what = _describe(item["image"])
                if "picture" not in item["image"].meta:
                    what += f", {inferer.describe(item['image'])}"
                elif "plane" not in runner.parser or plane not in ("auto", "axial"):
                    asked = f"plane is {plane!r}" if "plane" in runner.parser else f"{bundle} is for thick slices"
                    raise ValueError(f"{asked}, but a picture has one slice, which is enlarged in its own plane")
                else:
                    check_format(out, item["image"])
                print(f"{path}: {what}", flush=True)
                result = runner.run(item)
                _write(result, out)
                print(f"{out}: {_describe(result)}", flush=True)
        except ValueError as error:
            failed += 1
            print(f"medsr: error: {_reason(error)}", file=sys.stderr, flush=True)
    if failed and len(cases) > 1:
        print(f"medsr: error: {failed} of {len(cases)} volumes failed", file=sys.stderr)
    return 1 if failed else 0


def degrade(
    input: str,
    output: str,
    scale: int = 4,
    direction: str = "in-plane",
    plane: str = "auto",
    method: str | None = None,
    fwhm: float | None = None,
    noise: float = 0.0,
    seed: int = 0,
    frame: int | None = None,
    overwrite: bool = False,
) -> None:
    """Make a low-resolution volume of a high-resolution one; its outer corners stay where they are.

    Args:
        input: NIfTI or FreeSurfer file.
        output: NIfTI file.
        scale: integer factor.
        direction: in-plane (larger pixels) or through-plane (thicker slices, as `upscale --bundle transmrsr` takes).
        plane: axial, coronal or sagittal, auto for the one with the finest pixels.
        method: bicubic (default in-plane), gaussian (default through-plane), box or kspace.
        fwhm: width of the Gaussian slice profile in voxels, default the scale.
        noise: standard deviation of Gaussian noise as a fraction of the intensity range.
        seed: of the noise.
        frame: of a 4D file, counted from 0.
        overwrite: replace an existing output.
    """
    _check_input(input)
    out = _nifti_output(output, overwrite, input)
    if direction not in ("in-plane", "through-plane"):
        raise ValueError(f"direction is {direction!r}, expected in-plane or through-plane")
    if scale < 2:
        raise ValueError(f"scale is {scale}, expected at least 2")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise is {noise}, expected a fraction of the intensity range such as 0.02")
    from medsr_monai.data import LoadVolumed
    from medsr_monai.transforms import AXES, PLANES, axis_factors, intensity_range, plane_axis, sharp_plane
    from medsr_monai.transforms import degrade as degrade_volume

    with _naming(input):
        volume = LoadVolumed("image", frame=frame).load(input)
        low, high = intensity_range(volume, "minmax")
    chosen = sharp_plane(volume.affine, volume.shape[1:]) if plane == "auto" else plane
    axis = plane_axis(volume.affine, chosen)
    if direction == "in-plane":
        factors = axis_factors(axis, scale)
    else:
        factors = tuple(scale if a == axis else 1 for a in range(3))
    result = degrade_volume(
        volume,
        factors,
        method or ("bicubic" if direction == "in-plane" else "gaussian"),
        fwhm=fwhm,
        noise_std=noise * (high - low),
        noise_seed=seed,
    )
    cropped = [n % f for n, f in zip(volume.shape[1:], factors, strict=True)]
    if any(cropped):
        print(f"{input}: cropped by {'x'.join(map(str, cropped))} voxels at the far end, to a multiple of {scale}")
    _write(result, out)
    thick = f", thick axis {AXES[PLANES.index(chosen)]}" if direction == "through-plane" else ""
    print(f"{out}: {_describe(result)}, {direction}, plane {chosen}{thick}")


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
        _check_input(path)
        if csv is not None:
            _check_output(Path(csv), overwrite, path)
    if border < 0:
        raise ValueError(f"border is {border}, expected 0 or more pixels")
    if unet is None and (labels or label_map):
        raise ValueError("labels are compared with what a U-Net makes of the results: give --unet too")
    replaced = _label_map(label_map)
    from medsr_monai.compare import compare_volumes
    from medsr_monai.data import LoadLabeld, LoadVolumed, check_same_grid, match_results
    from medsr_monai.handlers import load_network
    from medsr_monai.metrics import EVALUATION_FILES, SliceEvaluation, markdown_table
    from medsr_monai.networks import load_inception_features
    from medsr_monai.transforms import intensity_range

    if output is not None:
        for name in EVALUATION_FILES:
            _check_output(Path(output) / name, overwrite)
    cases = match_results(pred, ref, labels)
    place = _device(device)
    evaluation = SliceEvaluation(
        border,
        inception=None if inception is None else load_inception_features(inception).to(place),
        unet=None if unet is None else load_network(unet).to(place),
    )
    for case in cases:
        with _naming(case["pred"]):
            image = LoadVolumed("image", pictures=True).load(case["pred"])
            if not image.isfinite().all():
                raise ValueError("has voxels that are NaN or infinite, which cannot be compared")
        with _naming(case["ref"]):
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
        with _naming(case["pred"]):
            volume = compare_volumes(
                image, reference, evaluation, plane, case=case["case"], intensity=intensity, segmentation=segmentation
            )
    plain = len(cases) == 1 and unet is None and inception is None
    if csv is not None:
        Path(csv).parent.mkdir(parents=True, exist_ok=True)
        evaluation.table().write_csv(csv, ("plane", "slice", "psnr", "ssim") if plain else None)
    pooled = evaluation.pooled()
    if output is not None:
        evaluation.write(output, pooled)
    if plain:
        summary = evaluation.groups()[0] | volume
        print(_json(summary) if json else _sentence(summary))
    else:
        print(f"[{', '.join(map(_json, pooled))}]" if json else markdown_table(pooled))


def _label_map(text: str | None) -> dict[str, int]:
    try:
        value = {} if text is None else jsonlib.loads(text)
        return {str(int(old)): int(new) for old, new in value.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"label_map is {text!r}, expected JSON such as '{{\"255\": 1}}'") from error


def _sentence(summary: dict) -> str:
    return (
        f"{summary['plane']}, {summary['slices']} slices: PSNR {summary['psnr']:.2f} dB (whole volume "
        f"{summary['psnr_volume']:.2f} dB), SSIM {summary['ssim']:.4f}"
    )


def convert(source: str, output: str, family: str = "rdst", overwrite: bool = False) -> None:
    """Turn an official checkpoint into a weights file of this package.

    Args:
        source: the authors' checkpoint.
        output: file to write, {"model": state dict, "network": constructor arguments}.
        family: kind of network, see the error of an unknown one.
        overwrite: replace an existing output.
    """
    out = Path(output)
    _check_output(out, overwrite, source)
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such file")
    from medsr_monai.convert import load_official
    from medsr_monai.handlers import save_atomically
    from medsr_monai.networks import NetworkArguments

    with _naming(source):
        network = load_official(source, family)
    arguments = NetworkArguments(network).state_dict()
    save_atomically({"network": arguments, "model": network.state_dict()}, out)
    print(f"{out}: {arguments}")


def prepare(
    dataset: str,
    root: str,
    output: str = "datalist.json",
    seed: int = 0,
    contrast: str | None = None,
    all_subjects: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a MONAI datalist for your copy of a public dataset: its paper's slices, crops, labels and subject split.

    Train with it by --datalist and, as --dataset_dir, the same root. Images are read, none is copied or changed.

    Args:
        dataset: oasis, brats, acdc, covid_ct or ixi.
        root: folder of the dataset in its official structure.
        output: JSON file to write, with paths relative to root.
        seed: of the split of subjects.
        contrast: of ixi, T1 or T2; default both. The split does not depend on it.
        all_subjects: use more subjects than the paper did, in its proportions.
        overwrite: replace an existing output.
    """
    out = Path(output)
    _check_output(out, overwrite)
    from medsr_monai.data import prepare_datalist, write_datalist

    datalist = prepare_datalist(dataset, root, seed=seed, contrast=contrast, all_subjects=all_subjects)
    write_datalist(datalist, out)
    for part in ("training", "validation", "test", "prior"):
        if items := datalist.get(part):
            subjects = len({item["subject"] for item in items})
            slices = sum(len(s) for item in items for s in item.get("slices", {}).values())
            chosen = f"{slices} slices" if slices else "all planes"
            print(f"{part}: {subjects} subjects, {len(items)} images, {chosen}")
    print(f"{out}: {datalist['name']}, {datalist['description']}")


def models(json: bool = False) -> None:
    """List the bundles, whether their weights are here, and where missing ones belong.

    Args:
        json: print JSON.
    """
    import hashlib

    rows = []
    for name, folder in bundle_folders().items():
        metadata = jsonlib.loads((folder / "configs" / "metadata.json").read_text())
        weights = folder / "models" / "model.pt"
        there = weights.is_file()
        rows.append(
            {
                "bundle": name,
                "version": metadata["version"],
                "task": metadata["task"],
                "folder": str(folder),
                "weights": str(weights),
                "trained": there,
                "sha256": hashlib.sha256(weights.read_bytes()).hexdigest() if there else None,
            }
        )
    if json:
        print(jsonlib.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['bundle']} {row['version']}: {row['task']}")
        if row["trained"]:
            print(f"  weights {row['weights']}, sha256 {row['sha256'][:16]}")
        else:
            print(f"  no trained weights: train the bundle, or put model.pt at {row['weights']}")


def demo(output: str = "demo_out", bundle: str = DEFAULT_BUNDLE, device: str = "auto", overwrite: bool = False) -> None:
    """Degrade the small real volume that ships with the package, super-resolve it, compare it with bicubic.

    Writes reference.nii.gz, input.nii.gz, bicubic.nii.gz, sr.nii.gz and demo.png.

    Args:
        output: folder, made if missing.
        bundle: bundle to run, x4 in-plane.
        device: auto, cpu, cuda:0.
        overwrite: replace existing files.
    """
    folder = Path(output)
    files = {name: folder / f"{name}.nii.gz" for name in ("reference", "input", "bicubic", "sr")} | {
        "picture": folder / "demo.png"
    }
    for file in files.values():
        _check_output(file, overwrite)
    bundle_folder(bundle)
    from monai.transforms import Orientation

    from medsr_monai.compare import compare_volumes
    from medsr_monai.data import LoadVolumed, sample_volume
    from medsr_monai.metrics import SliceEvaluation, comparison_picture
    from medsr_monai.networks import Bicubic
    from medsr_monai.transforms import intensity_range

    runner = BundleRunner(bundle, plane="sagittal", device=f"$torch.device('{_device(device)}')")
    scale = runner["scale"]
    load = LoadVolumed("image").load
    _write(load(sample_volume()), files["reference"])
    degrade(str(files["reference"]), str(files["input"]), scale=scale, plane="sagittal", overwrite=True)
    item = runner.read(files["input"])
    _write(runner.run(item, Bicubic(scale=scale)), files["bicubic"])
    _write(runner.run(item), files["sr"])
    volumes = {name: load(file) for name, file in files.items() if name != "picture"}
    titles = {"input": f"input, x{scale} coarser"}
    for name in ("bicubic", "sr"):
        evaluation = SliceEvaluation()
        volume = compare_volumes(volumes[name], volumes["reference"], evaluation, "sagittal")
        summary = evaluation.groups()[0] | volume
        print(f"{name}: {_sentence(summary)}")
        titles[name] = f"{'bicubic' if name == 'bicubic' else Path(bundle).name}, {summary['psnr']:.2f} dB"
    titles["reference"] = "reference"
    slices = {}
    for name, title in titles.items():
        canonical = Orientation("RAS")(volumes[name])[0]
        slices[title] = canonical[canonical.shape[0] // 2].as_tensor().T.flip(0).numpy()
    window = intensity_range(volumes["reference"])
    comparison_picture(files["picture"], slices, slices["reference"].shape, window)
    print(f"{folder}: {', '.join(file.name for file in files.values())}")


def benchmark(
    bundle: str | None = None,
    networks: str | None = None,
    size: str = "160x160",
    device: str = "auto",
    runs: int = 5,
    csv: str | None = None,
    json: bool = False,
    overwrite: bool = False,
) -> int:
    """Print size, speed and peak memory of networks on one slice, beside this machine's matrix product, as Markdown.

    Each network runs in a process of its own; its weights do not matter. Weights and MACs are the true ones, and as the
    tables of the RDST paper count them.

    Args:
        bundle: name or folder; by default rdst_e, unless networks are named.
        networks: all, or names with commas between them such as RDSTE,EDSRLite: one channel, x4.
        size: HxW of the low-resolution slice.
        device: auto (the CPU, and the GPU where there is one), cpu, cuda:0.
        runs: timed runs after two warm-up runs, the median counts; 0 prints the counts only.
        csv: write the table to this file.
        json: print JSON, with null for what was not measured.
        overwrite: replace an existing CSV file.
    """
    sides = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)
    if not sides:
        raise ValueError(f"size is {size!r}, expected HxW such as 160x160")
    if runs < 0:
        raise ValueError(f"runs is {runs}, expected at least 1, or 0 to count only")
    if csv is not None:
        _check_output(Path(csv), overwrite)
    height, width = map(int, sides.groups())
    if bundle is None and networks is None:
        bundle = DEFAULT_BUNDLE
    folder = None if bundle is None else bundle_folder(bundle)
    from medsr_monai.metrics import benchmark_header, benchmark_line, benchmark_network, write_benchmark
    from medsr_monai.networks import build_network

    chosen, failed = {}, False
    if folder is not None:
        chosen[bundle] = _bundle_network(folder)
    if networks is not None:
        named, missing = _named_networks(networks)
        chosen |= named
        failed = bool(missing) and networks != "all"
        for name, reason in missing.items():
            print(f"medsr: {'error: ' if failed else ''}{name} is left out: {reason}", file=sys.stderr)
    devices = [_device(device)]
    if device == "auto" and runs and devices != ["cpu"]:
        devices.insert(0, "cpu")
    rows = []
    for name, arguments in chosen.items():
        shape = (1, arguments["in_channels"], height, width)
        for place in devices:
            try:
                row = benchmark_network(functools.partial(build_network, arguments), shape, place, runs)
            except (MemoryError, RuntimeError) as error:
                failed = True
                print(f"medsr: error: {name} on {place}: {_reason(error)}", file=sys.stderr)
                continue
            rows.append(row | {"network": name})
            # a line as soon as it is known: large networks take minutes
            if not json:
                print(benchmark_header() + "\n" if len(rows) == 1 else "", benchmark_line(rows[-1]), sep="", flush=True)
    if csv is not None:
        Path(csv).parent.mkdir(parents=True, exist_ok=True)
        write_benchmark(rows, csv)
    if json:
        print(f"[{', '.join(map(_json, rows))}]")
    return 1 if failed else 0


_UNTRAINED = {"truncation": "none"}
"""Of TransMRSR: its centroids come with trained weights only; they cost one small product."""


def _bundle_network(folder: Path) -> dict[str, Any]:
    """Arguments of a bundle's network, which is built without memory for its weights."""
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.json"))
    with torch.device("meta"):
        arguments = parser.get_parsed_content("network_def").arguments
    if "in_channels" not in arguments:
        raise ValueError(f"bundle {folder.name} takes no images: choose one that does, see medsr models")
    return arguments | _UNTRAINED if "truncation" in arguments else arguments


def _named_networks(names: str) -> tuple[dict[str, dict], dict[str, str]]:
    """Arguments of networks by name for one channel and x4, and why others cannot be built here."""
    import torch

    from medsr_monai.networks import NETWORKS

    known = [name for name in NETWORKS.names if "scale" in inspect.signature(NETWORKS[name]).parameters]
    wanted = known if names == "all" else names.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"no network {', '.join(map(repr, unknown))}: choose all, or some of {','.join(known)}")
    built, missing = {}, {}
    for name in wanted:
        untrained = _UNTRAINED if name == "TransMRSR" else {}
        try:
            with torch.device("meta"):
                built[name] = NETWORKS[name](1, 1, 4, **untrained).arguments
        except ImportError as error:
            missing[name] = str(error)
    return built, missing


def compare(
    input: str,
    output: str = "compare_out",
    reference: str | None = None,
    bundles: str | None = None,
    networks: str | None = None,
    plane: str = "auto",
    scale: int | None = None,
    method: str | None = None,
    fwhm: float | None = None,
    slice: int | None = None,
    crop: str | None = None,
    border: int = 4,
    device: str = "auto",
    frame: int | None = None,
    slice_batch: int = 4,
    save_volumes: bool = False,
    json: bool = False,
    overwrite: bool = False,
) -> int:
    """Super-resolve one volume with several systems beside bicubic: a table of their figures, and a picture.

    Writes compare.md, compare.csv and compare.json (PSNR and SSIM as `evaluate` computes them, weights, seconds),
    slices.csv and compare.png: a column a system, the slice, a crop, the absolute error, PSNR and SSIM.

    Args:
        input: high-resolution volume, which is degraded and is the reference; with --reference a low-resolution one.
        output: folder, made if missing.
        reference: high-resolution volume of the same space as the input.
        bundles: names or folders of bundles with commas between them; NAME=FILE for other weights than their own. By
            default rdst_e, unless networks are named.
        networks: weights files, as FILE or as NAME=FILE with commas between them; each records its network, a NAME of
            your own is what the table calls it. Bundles too, as above. Bicubic is always the first row.
        plane: axial, coronal or sagittal, whose slices are enlarged; auto is the one with the finest pixels.
        scale: of the degradation; by default that of the systems.
        method: of the degradation: bicubic (default), gaussian (a slice profile), box or kspace.
        fwhm: width of the Gaussian profile in voxels, default the scale.
        slice: of the picture, counted as in slices.csv; by default the middle one of those that are compared.
        crop: top,left,height,width in pixels of the pictured slice; by default a quarter of its sides, where the
            reference's gradients are strongest.
        border: pixels left out at each side of a slice.
        device: auto, cpu, cuda:0.
        frame: of 4D files, counted from 0.
        slice_batch: slices computed at a time.
        save_volumes: write every result too, NAME_sr.nii.gz, and the degraded input.nii.gz.
        json: print compare.json instead of the table.
        overwrite: replace existing files.
    """
    for path in (input, reference):
        if path is not None:
            _check_input(path)
    if border < 0:
        raise ValueError(f"border is {border}, expected 0 or more pixels")
    if slice_batch < 1:
        raise ValueError(f"slice_batch is {slice_batch}, expected at least 1")
    if reference is not None and (method is not None or fwhm is not None):
        raise ValueError("method and fwhm are of the degradation, and with a reference nothing is degraded: drop them")
    box = None
    if crop is not None:
        if not re.fullmatch(r"\d+(,\d+){3}", crop):
            raise ValueError(f"crop is {crop!r}, expected top,left,height,width such as 40,60,32,32")
        box = tuple(map(int, crop.split(",")))
    if bundles is None and networks is None:
        bundles = DEFAULT_BUNDLE
    chosen = [system for names in (bundles, networks) if names is not None for system in _named_systems(names)]
    from medsr_monai.compare import FILES, Comparison, NetworkRunner, common_scale
    from medsr_monai.data import LoadVolumed
    from medsr_monai.networks import Bicubic
    from medsr_monai.transforms import PLANES, axis_factors, intensity_range, plane_axis, sharp_plane
    from medsr_monai.transforms import degrade as degrade_volume

    if plane not in ("auto", *PLANES):
        raise ValueError(f"plane is {plane!r}, expected auto, {', '.join(PLANES)}")
    folder = Path(output)
    for name in FILES:
        _check_output(folder / name, overwrite)
    load = LoadVolumed("image", frame=frame).load
    volumes = {}
    for path in filter(None, (input, reference)):
        with _naming(path):
            volumes[path] = load(path)
            intensity_range(volumes[path], "minmax")
    image, ref = volumes[input], volumes[reference or input]
    plane = sharp_plane(image.affine, image.shape[1:]) if plane == "auto" else plane
    options = {"plane": plane, "device": _device(device), "slice_batch": slice_batch, "progress": sys.stderr.isatty()}
    options["frame"] = None if reference is None else frame
    systems = _load_systems(chosen, **options)
    scale = common_scale(systems, scale)
    systems = {"Bicubic": NetworkRunner(Bicubic(scale=scale), **options)} | systems
    if save_volumes:
        for name in (*(["input.nii.gz"] if reference is None else []), *(f"{name}_sr.nii.gz" for name in systems)):
            _check_output(folder / name, overwrite, input)
    note = f"{Path(input).name} against {Path(reference).name}" if reference else f"{Path(input).name}, degraded"
    with contextlib.ExitStack() as stack:
        source = Path(input)
        if reference is None:
            factors = axis_factors(plane_axis(ref.affine, plane), scale)
            image = degrade_volume(ref, factors, method or "bicubic", fwhm=fwhm)
            note += f" ({method or 'bicubic'})"
            place = folder if save_volumes else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            source = place / "input.nii.gz"
        with _naming(input):
            comparison = Comparison(
                source, image, ref, plane, scale, border=border, slice_number=slice, note=note, device=options["device"]
            )
            box = comparison.checked_crop(box)
        if reference is None:
            _write(image, source)
        failed = False
        for name, runner in systems.items():
            try:
                result = comparison.add(name, runner)
            except (ValueError, MemoryError, RuntimeError) as error:
                failed = True
                print(f"medsr: error: {name}: {_reason(error)}", file=sys.stderr)
                continue
            if not json:
                # a line as soon as it is known: large networks take minutes
                header = comparison.header() + "\n" if len(comparison.rows) == 1 else ""
                print(header, comparison.line(comparison.rows[-1]), sep="", flush=True)
            if save_volumes:
                _write(result, folder / f"{name}_sr.nii.gz")
    if comparison.rows:
        report = comparison.write(folder, box)
        print(jsonlib.dumps(report) if json else f"{folder}: {', '.join(FILES)}")
    return 1 if failed else 0


def _named_systems(names: str) -> list[tuple[str | None, str | None, str | None]]:
    """Name, bundle and weights file of systems, None for what is not known yet; nothing is loaded.

    Raises:
        ValueError, FileNotFoundError: what is unknown, or a network without trained weights.
    """
    known, chosen = bundle_folders(), []
    for entry in names.split(","):
        name, equals, file = entry.partition("=")
        if equals and not Path(file).is_file():
            raise FileNotFoundError(f"{file}: no such weights file")
        if name in known or (Path(name) / "configs" / "inference.json").is_file():
            chosen.append((Path(name).resolve().name, name, file or None))
        elif equals:
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise ValueError(f"a system is called {name!r}: give it a name of letters, digits, dots, + and -")
            chosen.append((name, None, file))
        elif Path(name).is_file():
            chosen.append((None, None, name))
        elif name != "Bicubic":
            from medsr_monai.networks import NETWORKS

            if name in NETWORKS.names:
                raise ValueError(f"{name} is an untrained network: give its weights, {name}=path/to/model.pt")
            raise ValueError(
                f"no bundle or weights file {name!r}: choose from the bundles {', '.join(known)}, or give "
                "NAME=path/to/model.pt"
            )
    return chosen


def _load_systems(chosen: list[tuple[str | None, str | None, str | None]], **options: Any) -> dict[str, Runner]:
    """What `_named_systems` has found, loaded, by name; options are those of a `NetworkRunner`."""
    from medsr_monai.compare import load_runner

    device = f"$torch.device('{options['device']}')"
    overrides = {"plane": options["plane"], "frame": options["frame"], "sw_batch_size": options["slice_batch"]}
    systems: dict[str, Runner] = {}
    for name, bundle, file in chosen:
        if bundle is None:
            with _naming(file):
                runner = load_runner(file, name, **options)
            name = name or type(runner.network).__name__
        else:
            if "thick_axis" in jsonlib.loads((bundle_folder(bundle) / "configs" / "inference.json").read_text()):
                raise ValueError(
                    f"bundle {bundle} makes thick slices thin, compare enlarges slices: compare it by "
                    "`medsr degrade --direction through-plane`, `medsr upscale` and `medsr evaluate`"
                )
            runner = BundleRunner(bundle, file, device=device, **overrides)
            if not runner.weights:
                raise ValueError(f"bundle {bundle} names no weights: give {bundle}=path/to/model.pt")
        if name in (*systems, "Bicubic", "input", "reference"):
            raise ValueError(f"{name} is another column's name: give this one its own, NAME=path/to/model.pt")
        systems[name] = runner
    return systems


COMMANDS = {f.__name__: f for f in (upscale, degrade, evaluate, convert, prepare, models, demo, benchmark, compare)}


def main(argv: list[str] | None = None) -> None:
    """Run ``medsr``: exit code 0, 1 for an error (one line on stderr), 2 for a wrong command line."""
    from medsr_monai.command_line import parse

    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        from medsr_monai import __version__

        print(__version__)
        return
    logging.basicConfig(level=logging.WARNING, format="medsr: %(message)s")
    # headers are checked by medsr_monai.data, in words for users
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    # an optional GPU decoder of MONAI's that nobody asked for
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries, for developers; ours are logged
    try:
        call = parse(COMMANDS, arguments, "medsr")
        code = None
        if call:
            function, args, kwargs = call
            code = function(*args, **kwargs)
    except KeyboardInterrupt:
        print("medsr: interrupted", file=sys.stderr)
        sys.exit(130)
    except ERRORS as error:
        print(f"medsr: error: {_reason(error)}", file=sys.stderr)
        sys.exit(1)
    sys.exit(code or 0)
