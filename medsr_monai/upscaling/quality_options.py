"""Quality of `upscale`'s outputs: consistency with the input, the picture beside each, the page of a cohort."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from medsr_monai.atomic import check_output
from medsr_monai.errors import naming
from medsr_monai.upscaling.cases import Case

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from medsr_monai.upscaling.bundles import BundleRunner


class QualityOptions(NamedTuple):
    """What a command line asks for."""

    picture: bool = True
    bound: float | None = None
    """For the residual's RMS, in parts of the input's intensity range; None leaves the network's output as it is."""
    noise: float | None = None

    def settings(self) -> dict[str, float]:
        """Those that the output depends on, for its sidecar."""
        if self.bound is None:
            return {}
        return {"consistency_bound": self.bound} | ({} if self.noise is None else {"noise": self.noise})


def quality_options(picture: bool, enforce: bool, bound: float | None, noise: float | None) -> QualityOptions:
    """Options of a command line, checked."""
    if bound is not None and not enforce:
        raise ValueError("consistency_bound is of --enforce-consistency: add that, or drop it")
    if bound is not None and not 0 <= bound < 1:
        raise ValueError(f"consistency_bound is {bound}, expected a part of the intensity range such as 0.001")
    if noise is not None and not 0 <= noise < float("inf"):
        raise ValueError(f"noise is {noise}, expected a standard deviation in the input's units, 0 for none")
    if enforce and bound is None:
        from medsr_monai.upscaling.quality import BOUND

        bound = BOUND
    return QualityOptions(picture, bound, noise)


def quality_path(output: str | os.PathLike) -> Path:
    """Of an output's picture: ``sr.nii.gz`` has ``sr.quality.png``, which no search takes for an input."""
    from medsr_monai.data import volume_name
    from medsr_monai.suffixes import QUALITY_SUFFIX

    return Path(output).with_name(volume_name(output) + QUALITY_SUFFIX)


def check_pictures(cases: Iterable[Case], overwrite: bool) -> None:
    """Refuse pictures that are there already; those of an output that is there, or was ours, are left to its check."""
    from medsr_monai.records.sidecar import is_ours

    for case in cases:
        if not case.output.exists() and not is_ours(case.output):
            check_output(quality_path(case.output), overwrite, case.source)


def checked_quality(
    runner: BundleRunner, item: Mapping[str, MetaTensor], result: MetaTensor, out: Path, options: QualityOptions
) -> tuple[MetaTensor, dict[str, Any] | None, Callable[[Path], None] | None]:
    """An output made consistent if this is asked for, its figures, and what writes its picture to a path.

    Args:
        runner: that made the output.
        item: preprocessed input.
        result: output.
        out: file of the output.
        options: of the command line; without a picture the last one returned is None.
    """
    from monai.transforms import Compose

    from medsr_monai.data import stored_values
    from medsr_monai.transforms import MergeChromad, RestoreIntensityd
    from medsr_monai.upscaling.quality import QualityCheck

    image = Compose([RestoreIntensityd("image"), MergeChromad("image")])(dict(item))["image"]
    check = QualityCheck(image, runner.degradation, noise=options.noise)
    if options.bound is not None:
        result, figures = check.check(result, options.bound)
    if "picture" in result.meta:
        result = stored_values(result)
        measured = check.check(result)[1]
        if options.bound is not None:  # rounding and clipping come last
            measured["enforced"] = figures["enforced"]
            measured["enforced"]["reached"] = measured["residual"]["rms"] <= figures["enforced"]["bound"]
        figures = measured
    elif options.bound is None:
        figures = check.check(result)[1]

    def write_picture(path: Path) -> None:
        with naming(quality_path(out)):
            check.write(path, result, out.name, figures, f"bundle {Path(runner.folder).resolve().name}")

    return result, figures, write_picture if options.picture else None


def check_page(folder: str | os.PathLike, overwrite: bool) -> None:
    """Refuse a folder of outputs in which the page would replace another file."""
    from medsr_monai.upscaling.report_page import INDEX_NAME, check_index

    check_index(Path(folder) / INDEX_NAME, overwrite)


def write_page(
    folder: str | os.PathLike,
    rows: Sequence[Mapping[str, Any]],
    sidecar_of: Callable[[Path], Mapping[str, Any] | None],
    note: str,
) -> Path:
    """Write a cohort's page, ``index.html``, with every picture that is beside an output.

    Args:
        folder: of the outputs.
        rows: ``case``, ``output`` (below the folder), ``status``, ``reason`` and ``seconds``, as in the status table.
        sidecar_of: sidecar of an output, None where there is none.
        note: sentence below the title.
    """
    from medsr_monai.upscaling.quality import RESEARCH_USE
    from medsr_monai.upscaling.report_page import INDEX_NAME, PageRow, write_index

    page = []
    for row in rows:
        output = Path(folder) / row["output"]
        sidecar = sidecar_of(output) or {}
        figures = sidecar.get("DataConsistency") or {}
        residual, picture = figures.get("residual") or {}, quality_path(output)
        rms, seconds = residual.get("rms"), row.get("seconds")
        page.append(
            PageRow(
                row["case"],
                row["status"],
                row.get("reason") or "",
                None if seconds in (None, "") else float(seconds),
                None if rms is None else rms / figures["intensity_range"],
                residual.get("rms_per_noise"),
                picture if output.exists() and picture.is_file() else None,
                "; ".join(sidecar.get("Warnings") or ()),
            )
        )
    path = Path(folder) / INDEX_NAME
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_index(path, page, f"Super-resolution of {Path(folder).resolve().name}", f"{note} {RESEARCH_USE}")
    return path
