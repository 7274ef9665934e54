"""List the bundles."""

from __future__ import annotations

import json as jsonlib

from medsr_monai.commands.bundles import bundle_folders


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
