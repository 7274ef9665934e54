"""Scans that were made alike, and the weights that are fitted to all of them together."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsr_monai.data import volume_name
from medsr_monai.data.read import read_grid
from medsr_monai.errors import line_of, naming
from medsr_monai.records.figures import contrast_of
from medsr_monai.records.sidecar import read_sidecar, sha256, source_record
from medsr_monai.transforms import spacing
from medsr_monai.upscaling.adaptation import Adaptation, check_adaptable, fit, save_adapted
from medsr_monai.upscaling.bundles import BundleRunner, choose_device
from medsr_monai.upscaling.cases import Case, bids_sidecar, header_of, scans_of

__all__ = ["adapt_files", "fit_protocols", "protocols_of"]

logger = logging.getLogger(__name__)

MOST_SCANS = 4
"""So many scans of a protocol at most are learnt from."""
WORDS = ("Modality", "Manufacturer", "MagneticFieldStrength", "ScanningSequence", "SequenceName", "ContrastBolusAgent")
"""Attributes of DICOM, or of a BIDS sidecar, that are the same for scans of one protocol."""
TIMES = ("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle")
"""Attributes that differ by TOLERANCE at most."""
TOLERANCE = 0.05
"""So far spacings, matrices and times of one protocol may lie apart, as a part of them."""
FOLDER = "adapted"
"""The folder of the fitted weights in that of a cohort's outputs."""


@dataclass(frozen=True)
class _Marks:
    """What tells protocols apart: words, and positive numbers with their names."""

    words: tuple[str, ...]
    numbers: tuple[tuple[str, float], ...]

    def fits(self, other: _Marks) -> bool:
        if self.words != other.words or [n for n, _ in self.numbers] != [n for n, _ in other.numbers]:
            return False
        pairs = zip(self.numbers, other.numbers, strict=True)
        return all(abs(a - b) <= TOLERANCE * max(a, b) for (_, a), (_, b) in pairs)


def protocols_of(cases: Sequence[Case], damaged: bool = False) -> list[list[Case]]:
    """Sort scans by protocol: the same manufacturer, sequence, contrast, matrix and spacing of the slices.

    They are taken from the DICOM header, or from the BIDS sidecar beside a NIfTI file; without one the grid and the
    contrast that the file's name tells have to do.

    Args:
        cases: the scans.
        damaged: leave out scans whose grid cannot be read, which somebody else tells.
    """
    found: list[tuple[_Marks, list[Case]]] = []
    for case in cases:
        try:
            marks = _marks(case)
        except Exception as error:  # whatever lies in a damaged file
            if not damaged:
                raise
            logger.info("%s: no protocol: %s", case.source, line_of(error))
            continue
        group = next((members for known, members in found if known.fits(marks)), None)
        if group is None:
            found.append((marks, [case]))
        else:
            group.append(case)
    return [members for _, members in found]


def _marks(case: Case) -> _Marks:
    if case.series is None:
        shape, affine = read_grid(case.source)
        edges, said = spacing(affine), bids_sidecar(case.source)
    else:
        shape, edges, header = case.series.shape, np.array(case.series.spacing), case.series.headers()[0]
        said = {name: header.get(name) for name in (*WORDS, *TIMES)}
    across = int(np.argmax(edges))
    words = [str(said.get(name) or "") for name in WORDS]
    if not any(words):
        words.append(contrast_of(volume_name(case.source)) or "")
    numbers = {f"edge {axis}": edges[axis] for axis in range(3)}
    numbers |= {f"size {axis}": shape[axis] for axis in range(3) if axis != across}
    for name in TIMES:
        value = said.get(name)
        try:
            numbers |= {name: float(value)} if value not in (None, "") and float(value) > 0 else {}
        except (TypeError, ValueError):
            words.append(f"{name} {value}")
    return _Marks((str(across), *words), tuple((name, float(value)) for name, value in sorted(numbers.items())))


def _scans(runner: BundleRunner, cases: Sequence[Case], inputs: Sequence[Mapping]) -> list[dict[str, Any]]:
    """The scans as a training takes them."""
    scans = []
    for case, source in zip(cases, inputs, strict=True):
        with naming(case.source):
            image = runner.read(case.input)["image"]
            facts = {"header": header_of(case), "sha256": source["SHA256"], "name": case.source}
            scans.append(facts | {"image": image})
    return scans


def adapt_files(sources: Sequence[str], out: str, options: Any, adaptation: Adaptation) -> int:
    """Fit a bundle's weights to the scans that paths name, and write them; see ``medsr adapt``.

    Args:
        sources: files, folders and DICOM studies.
        out: the weights file to write.
        options: :class:`medsr_monai.upscaling.upscaler.Options`.
        adaptation: limits and seed.

    Returns:
        The exit code: 0 if weights were written, 1 if none were better.

    Raises:
        ValueError, OSError: what is wrong, one line.
    """
    device = choose_device(options.device)
    chosen = options.overrides(device) | {"device": f"$torch.device('{device}')"}
    runner = BundleRunner(options.bundle, options.weights, trust_code=options.trust_code, **chosen)
    check_adaptable(runner, options.trust_code)
    cases = [case for source in sources for case in scans_of(source)]
    groups = protocols_of(cases)
    if len(groups) > 1:
        raise ValueError(
            f"{cases[0].source} and {groups[1][0].source} were not made alike (manufacturer, sequence, contrast, "
            "matrix or spacing): fit each protocol by itself"
        )
    taken = _spread(cases)
    scans = _scans(runner, taken, [source_record(case.source, case.files) for case in taken])
    adapted = fit(runner, scans, adaptation, psf=options.psf, trust_code=options.trust_code)
    print(f"{len(taken)} of {len(cases)} scans: {adapted.sentence}", flush=True)
    if adapted.content is None:
        print(f"{out}: not written", flush=True)
        return 1
    save_adapted(adapted, out)
    print(f"{out}: use it with `medsr upscale ... --bundle {runner.folder.name} --weights {out}`", flush=True)
    return 0


def _spread(cases: Sequence[Case]) -> list[Case]:
    picks = np.linspace(0, len(cases) - 1, min(MOST_SCANS, len(cases))).round().astype(int)
    return [cases[i] for i in picks]


def fit_protocols(
    runner: BundleRunner,
    cases: Sequence[Case],
    folder: Path,
    options: Any,
    adaptation: Adaptation,
    say: Callable[[str], object],
) -> dict[Path, Path]:
    """Fit one set of weights to each protocol of a folder; what an earlier run has fitted to the same scans is kept.

    Args:
        runner: the bundle with the weights to begin with.
        cases: all scans.
        folder: of the outputs, in which ``adapted`` holds the weights.
        options: :class:`medsr_monai.upscaling.upscaler.Options`.
        adaptation: limits and seed.
        say: called with what becomes of each.

    Returns:
        The weights of each output; those of protocols where none were better, or nothing could be learnt, are missing.
    """
    made: dict[Path, Path] = {}
    parent = sha256(runner.weights)
    for number, group in enumerate(protocols_of(cases, damaged=True), start=1):
        taken = _spread(group)
        inputs = [source_record(case.source, case.files) for case in taken]
        key = [parent, *(one["SHA256"] for one in inputs)]
        key += [str(adaptation.recorded()), options.psf, options.thick_axis]
        file = folder / FOLDER / f"{hashlib.sha256(' '.join(key).encode()).hexdigest()[:16]}.pt"
        name = f"protocol {number} ({len(group)} scans, such as {Path(group[0].source).name})"
        if file.is_file() and read_sidecar(file) is not None:
            say(f"{name}: {file.name}, fitted by an earlier run, is kept")
        else:
            try:
                scans = _scans(runner, taken, inputs)
                adapted = fit(runner, scans, adaptation, psf=options.psf, trust_code=options.trust_code)
            except (ValueError, OSError) as error:
                say(f"{name}: not fitted: {line_of(error)}")
                continue
            say(f"{name}: {adapted.sentence}")
            if adapted.content is None:
                continue
            save_adapted(adapted, file)
        made |= {case.output: file for case in group}
    return made
