"""Results on disk and the references that they are compared with, matched by name."""

from __future__ import annotations

import os
from pathlib import Path

from medsr_monai.data.dicom.images import is_dicom_folder
from medsr_monai.data.find import find_volumes, volume_name

__all__ = ["match_results"]

SEPARATORS = "_-."


def match_results(
    pred: str | os.PathLike, ref: str | os.PathLike, labels: str | os.PathLike | None = None
) -> list[dict[str, str]]:
    """Pair results with their references, and with the references' label maps.

    Of two folders the files pair whose paths below them are equal without suffix; a result's or label map's name may go
    on after ``_``, ``-`` or ``.``: ``sub-1_sr.nii.gz`` is the result for ``sub-1.nii.gz``. The longest fitting name
    counts. Volumes and pictures are taken, hidden files are left out.

    Args:
        pred: file or folder of results, by whatever system.
        ref: file (or folder of one DICOM series) or folder of references.
        labels: file or folder of label maps in the references' grids.

    Returns:
        ``{"case": name, "pred": path, "ref": path}`` sorted by name, with ``"label"`` where labels are given.

    Raises:
        FileNotFoundError: no such folder or nothing in it; a reference without a result or a label map.
        ValueError: a file and a folder; a result or label map that fits no reference, or two that fit one.
    """
    paths = [pred, ref] if labels is None else [pred, ref, labels]
    single = [not Path(p).is_dir() or is_dicom_folder(p) for p in paths]
    if all(single):
        names = ("pred", "ref", "label")
        return [{"case": volume_name(ref)} | {name: str(p) for name, p in zip(names, paths, strict=False)}]
    if any(single):
        raise ValueError(
            f"{paths[single.index(True)]} is one image and {paths[single.index(False)]} a folder of images: give files "
            "only, or folders only"
        )
    found = [_by_name(p, label_maps=p is labels) for p in paths]
    cases = {name: {"case": name, "ref": str(path)} for name, path in found[1].items()}
    matches = {"pred": (pred, found[0])} | ({} if labels is None else {"label": (labels, found[2])})
    for kind, (folder, files) in matches.items():
        for name, path in files.items():
            fitting = [r for r in cases if name == r or (name.startswith(r) and name[len(r)] in SEPARATORS)]
            if not fitting:
                raise ValueError(f"{path}: no file of this name, with or without a postfix, in {ref}")
            case = cases[max(fitting, key=len)]
            if kind in case:
                raise ValueError(f"{path}: {case[kind]} fits {case['ref']} too: move one of the two away")
            case[kind] = str(path)
        if alone := [case["ref"] for case in cases.values() if kind not in case]:
            raise FileNotFoundError(f"{folder}: has no file for {alone[0]} ({len(alone)} such): names must be equal")
    return list(cases.values())


def _by_name(folder: str | os.PathLike, label_maps: bool) -> dict[str, Path]:
    """Files of a folder by their path below it, without suffix."""
    files: dict[str, Path] = {}
    for found in find_volumes(folder, pictures=True, label_maps=label_maps):
        path = Path(found)
        name = (path.relative_to(folder).parent / volume_name(path)).as_posix()
        if name in files:
            raise ValueError(f"{path}: {files[name]} has the same name but for its suffix, move one of them away")
        files[name] = path
    return files
