"""List the bundles."""

from __future__ import annotations

import json as jsonlib

from medsr_monai import __version__
from medsr_monai.atomic import read_json
from medsr_monai.upscaling.bundles import bundle_folders, references
from medsr_monai.weights.stated import MAIN_WEIGHTS, METADATA, examine, file_hash

SOFTWARE = """@software{{medsr_monai,
  author = {{The medsr_monai developers}},
  title = {{medsr_monai: medical image super-resolution as MONAI Bundles}},
  version = {{{version}}},
  license = {{Apache-2.0}}
}}"""
USABLE = ("verified", "own", "unverified")


def models(json: bool = False, cite: str | None = None) -> None:
    """List the bundles, whether their weights are here and verified, and where missing weights belong.

    The weights of a bundle are in one of these states. They are verified if they have the checksum that the bundle
    states; own if they are complete but not the published file, as those that were trained here; unverified if the
    bundle states no checksum; mismatch, and refused, if they are damaged or not the stated file in the folder
    MEDSR_WEIGHTS; or missing.

    Args:
        json: print JSON.
        cite: print BibTeX instead, of the papers of this bundle and of this software.
    """
    if cite is not None:
        print("\n\n".join([*references(cite), SOFTWARE.format(version=__version__)]))
        return
    from medsr_monai.records.training_data import find_training_data

    rows = []
    for name, folder in bundle_folders().items():
        metadata = read_json(folder / METADATA, "a bundle's metadata")
        found = examine(folder / MAIN_WEIGHTS)
        sha256 = file_hash(found.file) if found.file else None
        described = find_training_data(folder, found.file, sha256) if found.file else None
        rows.append(
            {
                "bundle": name,
                "version": metadata.get("version"),
                "task": metadata.get("task"),
                "folder": str(folder),
                "weights": str(found.file or folder / MAIN_WEIGHTS),
                "trained": found.state in USABLE,
                "state": found.state,
                "reason": found.reason or None,
                "sha256": sha256,
                "trained_on": described.sentence if described else None,
                "expected": found.stated.hash_val if found.stated else None,
                "expected_hash_type": found.stated.hash_type if found.stated else None,
                "url": found.stated.url if found.stated else None,
            }
        )
    if json:
        print(jsonlib.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['bundle']} {row['version']}: {row['task']}")
        if row["sha256"]:
            reason = f": {row['reason']}" if row["reason"] else ""
            print(f"  weights {row['weights']}, sha256 {row['sha256'][:16]}, {row['state']}{reason}")
            if row["trained_on"]:
                print(f"  {row['trained_on']}")
        elif row["url"]:
            print(f"  weights missing: `medsr fetch {row['bundle']}`, or put model.pt at {row['weights']}")
        elif row["expected"]:
            print(f"  weights missing: put model.pt (sha256 {row['expected'][:16]}) at {row['weights']}")
        else:
            print(f"  no trained weights: train the bundle, or put model.pt at {row['weights']}")
