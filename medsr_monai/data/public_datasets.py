"""Datalists for the papers' public datasets, from the user's own copies: which files, slices, crops and subjects."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from medsr_monai.data.datalists import check_subjects
from medsr_monai.data.read import LoadVolumed, check_nifti, check_same_grid, read_grid
from medsr_monai.transforms.geometry import PLANES, plane_axis

__all__ = ["PUBLIC_DATASETS", "PublicDataset", "prepare_datalist"]

logger = logging.getLogger(__name__)

BRATS_MODALITIES = ("t1ce", "t1", "t2", "flair")
IXI_PLANES = {"T1": "sagittal", "T2": "axial"}


@dataclass(frozen=True)
class Scan:
    """Files of one scan, which need not exist: a channel each, and a label map.

    ``plane`` is the one that slices are taken in, None for the plane across the third array axis.
    """

    subject: str
    images: tuple[Path, ...]
    label: Path | None = None
    plane: str | None = None
    contrast: str | None = None


@dataclass(frozen=True)
class PublicDataset:
    """What differs between the datasets.

    Attributes:
        title: name and edition of the dataset.
        scans: a function that lists the scans below a folder by their official names.
        expected: the files that it looks for, for the error of a wrong folder.
        modalities: the modalities of the image's channels, or with ``contrasts`` of one image each.
        subjects: the number of subjects that the paper has in each list.
        source: where selection, crop and split were taken from.
        labels: what the labels of the label map mean, after ``label_map``.
        label_map: labels to be replaced.
        crop: the size of the centre of a slice that is kept, in the order of the volume's array axes.
        min_sum: slices are taken whose values in the label map add up to more than this, or whose values in the image,
            where there is no label map or ``select_by_image`` is set.
        orientation: the orientation of Analyze files, see :class:`medsr_monai.data.LoadVolumed`.
        contrasts: the contrasts of a dataset whose images of one subject are used one by one.
    """

    title: str
    scans: Callable[[Path], list[Scan]]
    expected: str
    modalities: tuple[str, ...]
    subjects: Mapping[str, int]
    source: str
    labels: Mapping[int, str] = field(default_factory=dict)
    label_map: Mapping[int, int] = field(default_factory=dict)
    crop: tuple[int, int] | None = None
    min_sum: float = 0
    select_by_image: bool = False
    orientation: str | None = None
    contrasts: tuple[str, ...] = ()


def _first_matching(root: Path, *patterns: str) -> list[Path]:
    """What the first of the patterns that finds anything finds."""
    return next((found for pattern in patterns if (found := sorted(root.glob(pattern)))), [])


def _oasis(root: Path) -> list[Scan]:
    scans = []
    for session in _first_matching(root, "OAS1_*_MR*", "disc*/OAS1_*_MR*"):
        folder = session / "PROCESSED" / "MPRAGE" / "T88_111"
        image = next(iter(sorted(folder.glob("*_masked_gfc.img"))), folder / f"{session.name}_*_masked_gfc.img")
        label = session / "FSL_SEG" / f"{image.stem}_fseg.img"
        # the second session of a subject, _MR2, is the same brain
        scans.append(Scan(session.name.rsplit("_", 1)[0], (image,), label))
    return scans


def _brats(root: Path) -> list[Scan]:
    scans = []
    for folder in _first_matching(root, "[HL]GG/Brats1[78]_*", "*/[HL]GG/Brats1[78]_*"):
        images = tuple(folder / f"{folder.name}_{modality}.nii.gz" for modality in BRATS_MODALITIES)
        # Brats17_<institution>_<patient>_<visit>
        subject = re.sub(r"^Brats\d+_|_\d+$", "", folder.name)
        scans.append(Scan(subject, images, folder / f"{folder.name}_seg.nii.gz"))
    return scans


def _acdc(root: Path) -> list[Scan]:
    scans = []
    for folder in _first_matching(root, "patient*", "training/patient*", "database/training/patient*"):
        for image in sorted(folder.glob(f"{folder.name}_frame*.nii.gz")):
            if not image.name.endswith("_gt.nii.gz"):
                label = folder / image.name.replace(".nii.gz", "_gt.nii.gz")
                scans.append(Scan(folder.name, (image,), label))
    return scans


def _covid_ct(root: Path) -> list[Scan]:
    scans = []
    for image in _first_matching(root, "COVID-19-CT-Seg_20cases/*.nii.gz"):
        name = image.name.removesuffix(".nii.gz")
        # radiopaedia_10_85902_1 and radiopaedia_10_85902_3 are scans of one case
        subject = re.sub(r"^(radiopaedia_\d+)_.*$", r"\1", name)
        scans.append(Scan(subject, (image,), root / "Lung_and_Infection_Mask" / image.name))
    return scans


def _ixi(root: Path) -> list[Scan]:
    files = {c: _first_matching(root, f"IXI-{c}/IXI*-{c}.nii.gz", f"IXI*-{c}.nii.gz") for c in IXI_PLANES}
    names = {c: {f.name.removesuffix(f"-{c}.nii.gz"): f for f in found} for c, found in files.items()}
    scans = []
    for contrast in (c for c in IXI_PLANES if files[c]):
        folder = files[contrast][0].parent
        for name in sorted(set().union(*names.values())):
            image = names[contrast].get(name, folder / f"{name}-{contrast}.nii.gz")
            scans.append(Scan(name.split("-")[0], (image,), plane=IXI_PLANES[contrast], contrast=contrast))
    return scans


RDST = "RDST (arXiv 2302.11184)"
PUBLIC_DATASETS = {
    "oasis": PublicDataset(
        title="OASIS-1",
        scans=_oasis,
        expected="OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_*_masked_gfc.img (with its .hdr) and "
        "OAS1_0001_MR1/FSL_SEG/OAS1_0001_MR1_*_masked_gfc_fseg.img, or these below disc1, disc2, ...",
        modalities=("T1",),
        subjects={"training": 27, "validation": 3, "test": 9},
        source=f"{RDST}: slices with any brain, margins of 24 pixels cut",
        # the authors' comment names them GM, WM, CSF; the mean T1 intensity of the labels says what they are
        labels={0: "background", 1: "CSF", 2: "GM", 3: "WM"},
        crop=(128, 160),
        select_by_image=True,
        # the convention of Analyze 7.5 for unflipped transverse slices; the axes count here, not their signs
        orientation="LAS",
    ),
    "brats": PublicDataset(
        title="BraTS 2017",
        scans=_brats,
        expected="HGG/Brats17_*_1/Brats17_*_1_{t1ce,t1,t2,flair,seg}.nii.gz and LGG/..., or these one folder below "
        "(the training data of 2017 or 2018)",
        modalities=BRATS_MODALITIES,
        subjects={"training": 108, "validation": 12, "test": 30},
        source=f"{RDST}: slices with tumour, centre of 192x192",
        labels={0: "background", 1: "necrotic and non-enhancing tumour", 2: "oedema", 3: "enhancing tumour"},
        label_map={4: 3},
        crop=(192, 192),
        min_sum=100,
    ),
    "acdc": PublicDataset(
        title="ACDC",
        scans=_acdc,
        expected="patient001/patient001_frame01.nii.gz and patient001_frame01_gt.nii.gz, or these below training or "
        "database/training",
        modalities=("cine MR",),
        subjects={"training": 72, "validation": 8, "test": 20},
        source=f"{RDST}: slices with the heart, centre of 128x128",
        labels={0: "background", 1: "right ventricle", 2: "myocardium", 3: "left ventricle"},
        crop=(128, 128),
        min_sum=100,
    ),
    "covid_ct": PublicDataset(
        title="COVID-19-CT-Seg (Zenodo 3757476)",
        scans=_covid_ct,
        expected="COVID-19-CT-Seg_20cases/coronacases_001.nii.gz and "
        "Lung_and_Infection_Mask/coronacases_001.nii.gz (a folder for each archive)",
        modalities=("CT",),
        subjects={"training": 14, "validation": 2, "test": 4},
        source=f"{RDST}: slices with lung, centre of 512x512",
        labels={0: "background", 1: "left lung", 2: "right lung", 3: "infection"},
        crop=(512, 512),
        min_sum=100,
    ),
    "ixi": PublicDataset(
        title="IXI",
        scans=_ixi,
        expected="IXI-T1/IXI002-Guys-0828-T1.nii.gz and IXI-T2/IXI002-Guys-0828-T2.nii.gz, or these files without "
        "folders",
        modalities=("T1", "T2"),
        subjects={"training": 25, "validation": 5, "test": 10, "prior": 536},
        source="TransMRSR (arXiv 2306.06669): slices that are not empty, sagittal of T1, axial of T2, all planes for "
        "the prior",
        contrasts=("T1", "T2"),
    ),
}
"""The datasets by the name that ``medsr prepare`` takes.

Of the papers' training subjects a tenth is the validation part here, so that no test subject chooses a model; the RDST
authors validate on as many test subjects. IXI has its validation subjects from the TransMRSR paper.
"""


def _without_damage(dataset: PublicDataset, scans: Iterable[Scan]) -> tuple[list[Scan], str]:
    """Scans of the subjects whose files are all there and fit together, by their headers, and the first fault."""
    faults: dict[str, str] = {}
    scans = list(scans)
    for scan in scans:
        try:
            _check_files(scan, dataset.orientation)
        except (OSError, ValueError) as error:
            faults.setdefault(scan.subject, str(error))
    for subject, fault in sorted(faults.items()):
        logger.warning("subject %s left out: %s", subject, fault)
    return [scan for scan in scans if scan.subject not in faults], next(iter(faults.values()), "")


def _check_files(scan: Scan, orientation: str | None) -> None:
    for path in (*scan.images, *filter(None, [scan.label])):
        check_nifti(path)
    first, *others = scan.images
    grid = read_grid(first, orientation)
    for path in others:
        check_same_grid(path, read_grid(path, orientation), first, grid)
    if scan.label is not None:
        shape, affine = read_grid(scan.label, orientation)
        # the papers pair voxels by index; headers of public label maps do not always hold the image's place
        check_same_grid(scan.label, (shape, grid[1]), first, grid)
        try:
            check_same_grid(scan.label, (shape, affine), first, grid)
        except ValueError as error:
            logger.warning("%s; taken voxel by voxel, as in the paper", error)


def _plane(scan: Scan, orientation: str | None) -> str:
    if scan.plane is not None:
        return scan.plane
    affine = read_grid(scan.images[0], orientation)[1]
    return next(plane for plane in PLANES if plane_axis(affine, plane) == 2)


def _slices(dataset: PublicDataset, scan: Scan, plane: str) -> list[int]:
    """Positions of the slices that the paper takes."""
    by_image = dataset.select_by_image or scan.label is None
    path = scan.images[0] if by_image else scan.label
    volume = LoadVolumed("image", label_maps=True).load(path, dataset.orientation)
    # the label map's own header may name its axes otherwise
    axis = plane_axis(read_grid(scan.images[0], dataset.orientation)[1], plane)
    sums = volume.as_tensor()[0].double().sum(dim=[d for d in range(3) if d != axis])
    return (sums > dataset.min_sum).nonzero().flatten().tolist()


def _item(dataset: PublicDataset, name: str, scan: Scan, root: Path, whole: bool) -> dict:
    """Datalist item; ``whole`` leaves the choice of slices to whoever reads it."""
    images = [path.relative_to(root).as_posix() for path in scan.images]
    # a subject's bare name can be a folder's, which MONAI's reader of datalists would turn into a path
    item = {"image": images if len(images) > 1 else images[0], "subject": f"{name}-{scan.subject}"}
    if scan.label is not None:
        item["label"] = scan.label.relative_to(root).as_posix()
    if dataset.orientation is not None:
        item["orientation"] = dataset.orientation
    if dataset.label_map:
        item["label_map"] = {str(old): new for old, new in dataset.label_map.items()}
    if not whole:
        plane = _plane(scan, dataset.orientation)
        item["slices"] = {plane: _slices(dataset, scan, plane)}
        if dataset.crop is not None:
            item["crop"] = {plane: list(dataset.crop)}
    return item


def _split(subjects: Sequence[str], wanted: Mapping[str, int], seed: int, all_subjects: bool) -> dict[str, list[str]]:
    """Subjects of each list: the wanted numbers, or their proportions where there are too few or all are to be used.

    ``prior`` gets what the other lists leave.
    """
    counts = {part: count for part, count in wanted.items() if part != "prior"}
    total = sum(counts.values())
    found = len(subjects)
    if found < len(counts):
        raise ValueError(
            f"{found} complete subjects, expected at least {len(counts)}: one for each of {', '.join(counts)}"
        )
    if found < total or (all_subjects and "prior" not in wanted):
        for part in ("validation", "test"):
            counts[part] = max(1, round(found * wanted[part] / total))
        counts["training"] = found - counts["validation"] - counts["test"]
    rest = found - sum(counts.values())
    if "prior" in wanted and rest:
        counts["prior"] = rest if all_subjects else min(rest, wanted["prior"])
    order = iter(np.random.default_rng(seed).permutation(sorted(subjects)).tolist())
    return {part: sorted(next(order) for _ in range(count)) for part, count in counts.items()}


def prepare_datalist(
    dataset: str,
    root: str | os.PathLike,
    *,
    seed: int = 0,
    contrast: str | None = None,
    all_subjects: bool = False,
) -> dict:
    """Make a MONAI datalist of a public dataset, with its paper's slices, crops, label map and numbers of subjects.

    Files are read, none is written. Subjects with a missing or damaged file, and scans without a slice to take, are
    left out with a warning. Subjects, never scans, are split.

    Args:
        dataset: name in :data:`PUBLIC_DATASETS`.
        root: folder of the dataset in its official structure.
        seed: the seed of the split, and of the choice where more subjects are found than the paper has.
        contrast: for IXI, T1 or T2; None for both. The split does not depend on it.
        all_subjects: use all, in the paper's proportions; for IXI, the prior gets those left over.

    Returns:
        The lists ``training``, ``validation``, ``test`` (IXI: and ``prior``) beside ``name``, ``description``,
        ``modality``, ``labels`` and ``seed``. Items hold ``image`` (a list of files where there are several
        channels), ``label``, ``subject``, ``slices``, ``crop``, ``label_map`` and ``orientation``, as
        :class:`medsr_monai.data.SliceDataset`, :class:`medsr_monai.data.LoadVolumed` and
        :class:`medsr_monai.data.LoadLabeld` take them; paths are relative to ``root``.

    Raises:
        FileNotFoundError: no such folder, or not the dataset's structure.
        ValueError: unknown dataset or contrast, or too few complete subjects.

    Source: RDST (arXiv 2302.11184) and its authors' code; TransMRSR (arXiv 2306.06669) for IXI.
    """
    if dataset not in PUBLIC_DATASETS:
        raise ValueError(f"dataset is {dataset!r}, expected one of {', '.join(PUBLIC_DATASETS)}")
    recipe = PUBLIC_DATASETS[dataset]
    if contrast is not None and contrast not in recipe.contrasts:
        choice = f"expected {' or '.join(recipe.contrasts)}" if recipe.contrasts else "leave it out"
        raise ValueError(f"contrast is {contrast!r}, {choice}: {dataset} has {', '.join(recipe.modalities)}")
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder, expected the one of {recipe.title}")
    found = recipe.scans(root)
    if not any(contrast in (None, scan.contrast) for scan in found):
        kind = f"{recipe.title} {contrast}" if contrast else recipe.title
        raise FileNotFoundError(f"{root}: no scan of {kind} in this folder, expected {recipe.expected}")
    scans, fault = _without_damage(recipe, found)
    try:
        parts = _split(sorted({scan.subject for scan in scans}), recipe.subjects, seed, all_subjects)
    except ValueError as error:
        raise ValueError(f"{root}: {error}" + (f" (first fault: {fault})" if fault else "")) from error
    lists: dict[str, list[dict]] = {}
    for part, subjects in parts.items():
        lists[part] = []
        chosen = [s for s in scans if s.subject in subjects and contrast in (None, s.contrast)]
        for scan in tqdm(chosen, desc=part, disable=None):
            item = _item(recipe, dataset, scan, root, whole=part == "prior")
            if part == "prior" or any(item["slices"].values()):
                lists[part].append(item)
            else:
                logger.warning("%s left out: no slice sums up to more than %g", scan.images[0], recipe.min_sum)
        if not lists[part]:
            raise ValueError(f"{root}: no scan for {part} has a slice to take: is this {recipe.title}?")
    check_subjects(lists)
    return {
        "name": recipe.title,
        "description": f"{recipe.source}; image paths relative to the dataset's folder",
        "modality": {str(i): m for i, m in enumerate([contrast] if contrast else recipe.modalities)},
        "labels": {str(value): label for value, label in recipe.labels.items()},
        "seed": seed,
        **lists,
    }
