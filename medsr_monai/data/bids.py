"""Raw BIDS data sets: the images in them, and the names and the description of what is derived from them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsr_monai.atomic import read_json, written_atomically
from medsr_monai.data.find import volume_name

__all__ = ["ANATOMICAL", "BidsImage", "bids_images", "describe_derivative"]

ANATOMICAL = ("T1w", "T2w", "PDw", "FLAIR", "T2starw", "UNIT1", "inplaneT1", "inplaneT2")
"""The suffixes of images that are taken by default; masks and label maps have others."""
VERSION = "1.10.0"
"""The version of BIDS that derivatives follow."""
DESCRIPTION = "dataset_description.json"
LINK = "raw"
"""The name of the raw data set in the derivative's DatasetLinks."""
NAME = re.compile(r"sub-(?P<subject>[a-zA-Z0-9]+)(_ses-(?P<session>[a-zA-Z0-9]+))?(_[a-z]+-[a-zA-Z0-9]+)*_"
                  r"(?P<suffix>[a-zA-Z0-9]+)\.nii(\.gz)?")  # fmt: skip
IGNORED = ("status.csv", "status.json", "index.html", "*.quality.png")
"""What a run writes beside the data, for the validator."""
README = """Anatomical images, made finer by medsr_monai. Research use only, not for clinical use.

The sidecar beside each image says by which bundle and weights, of what, and how; res-fine is its finer grid, whose
voxels Resolution states, and desc-sr its super-resolution.
"""


@dataclass(frozen=True)
class BidsImage:
    """An image of a raw data set.

    Attributes:
        path: relative to the data set.
        subject, session: labels; the session is None where there is none.
        suffix: such as T1w.
    """

    path: Path
    subject: str
    session: str | None
    suffix: str

    @property
    def derived(self) -> Path:
        """Give the name of what is made of it, relative to the derivative data set."""
        stem = volume_name(self.path).removesuffix(f"_{self.suffix}")
        return self.path.with_name(f"{stem}_res-fine_desc-sr_{self.suffix}.nii.gz")

    def facts(self, root: str | os.PathLike) -> tuple[tuple[str, object], ...]:
        """Give what BIDS wants in the sidecar of a derivative; raw images have a skull unless their sidecar says so."""
        sidecar = (Path(root) / self.path).with_name(f"{volume_name(self.path)}.json")
        stated = read_json(sidecar) if sidecar.is_file() else {}
        return ("Sources", [self.uri]), ("SkullStripped", stated.get("SkullStripped") is True)

    @property
    def uri(self) -> str:
        """Give the BIDS URI that the derivative names it by."""
        return f"bids:{LINK}:{self.path.as_posix()}"


def bids_images(
    root: str | os.PathLike,
    subjects: Sequence[str] | None = None,
    sessions: Sequence[str] | None = None,
    suffixes: Sequence[str] | None = None,
) -> list[BidsImage]:
    """List the images of a raw BIDS data set, sorted; derivatives, masks and hidden files are none.

    Args:
        root: the data set.
        subjects, sessions: labels, with or without ``sub-`` and ``ses-``; None for all.
        suffixes: such as T1w; None for :data:`ANATOMICAL`.

    Raises:
        FileNotFoundError: no data set, or no such image in it; one line.
        ValueError: it is a derivative already.
    """
    root = Path(root)
    if not (root / DESCRIPTION).is_file():
        raise FileNotFoundError(f"{root}: no BIDS data set, it has no {DESCRIPTION}")
    if read_json(root / DESCRIPTION, "a BIDS description").get("DatasetType", "raw") != "raw":
        raise ValueError(f"{root}: is no raw BIDS data set but a derivative: give the one that it was made of")
    found = list(_images(root))
    for name, prefix, wanted in (
        ("subject", "sub-", subjects),
        ("session", "ses-", sessions),
        ("suffix", "", suffixes),
    ):
        labels = None if wanted is None else [label.removeprefix(prefix) for label in wanted]
        known = {getattr(image, name) for image in found}
        if labels and (missing := [label for label in labels if label not in known]):
            there = ", ".join(sorted(filter(None, known))) or "none"
            raise FileNotFoundError(f"{root}: no {name} {', '.join(missing)} in it, there is {there}")
        if name == "suffix" and labels is None:
            labels = ANATOMICAL
        found = [image for image in found if labels is None or getattr(image, name) in labels]
    if not found:
        raise FileNotFoundError(f"{root}: no image for these labels ({', '.join(suffixes or ANATOMICAL)}) in it")
    return found


def _images(root: Path) -> Iterator[BidsImage]:
    for path in sorted(root.glob("sub-*/**/*.nii*")):
        match, inner = NAME.fullmatch(path.name), path.relative_to(root)
        if match is None or "_desc-" in path.name or not path.is_file():
            continue
        folders = [f"sub-{match['subject']}", *([f"ses-{match['session']}"] if match["session"] else [])]
        if list(inner.parts[:-2]) == folders:
            yield BidsImage(inner, match["subject"], match["session"], match["suffix"])


def describe_derivative(root: str | os.PathLike, output: str | os.PathLike, version: str) -> None:
    """Write the description of a derivative data set, and what its validator is to leave alone.

    Args:
        root: the raw data set, which it names relative to itself.
        output: the derivative data set, made if missing.
        version: of this software.

    Raises:
        FileExistsError: the folder holds another data set.
    """
    file = Path(output) / DESCRIPTION
    content = {
        "Name": f"Super-resolved: {read_json(Path(root) / DESCRIPTION).get('Name', 'a BIDS data set')}",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "medsr_monai", "Version": version, "Description": "medsr bids"}],
        "DatasetLinks": {LINK: Path(os.path.relpath(root, output)).as_posix()},
    }
    if file.exists():
        by = read_json(file, "a BIDS description").get("GeneratedBy")
        if not (isinstance(by, list) and by and isinstance(by[0], dict) and by[0].get("Name") == "medsr_monai"):
            raise FileExistsError(f"{file}: describes a data set that medsr has not written, choose another output")
    Path(output).mkdir(parents=True, exist_ok=True)
    with written_atomically(file) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
    with written_atomically(Path(output) / ".bidsignore") as partial:
        partial.write_text("".join(f"{name}\n" for name in IGNORED))
    with written_atomically(Path(output) / "README") as partial:
        partial.write_text(README)
