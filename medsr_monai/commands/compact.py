"""Store weights in half the bytes."""

from __future__ import annotations

from pathlib import Path

from medsr_monai.atomic import check_input, check_output


def compact(
    bundle: str,
    output: str,
    dataset_dir: str,
    datalist: str | None = None,
    weights: str | None = None,
    val_slices: int = 8,
    overwrite: bool = False,
) -> None:
    """Store a bundle's weights as float16, in half the bytes, if they are as good on every validation volume.

    The bundle's evaluation runs with both, which prints the PSNR of every volume and plane. Where one of them changes
    by 0.01 dB or more, nothing is written. Weights that are stored so are loaded as float32; to publish them, put the
    printed sha256 into the bundle's configs/metadata.json and docs/training_data.json.

    Args:
        bundle: the name of a bundle (see `medsr models`) or the path of its folder.
        output: the weights file to write.
        dataset_dir: the folder with the validation volumes.
        datalist: a datalist that names them. By default they are chosen as in training.
        weights: a weights file to store in place of the bundle's models/model.pt.
        val_slices: how many slices of each volume and plane are measured.
        overwrite: replace an existing output.
    """
    check_input(dataset_dir)
    check_output(Path(output), overwrite, weights)
    from medsr_monai.evaluation.compact import compact as store
    from medsr_monai.weights.stated import file_hash

    rows = store(bundle, output, dataset_dir, datalist, weights=weights, val_slices=val_slices, overwrite=overwrite)
    for row in rows:
        print(f"{row['volume']}, {row['plane']}: PSNR {row['float32']:.4f} dB, as float16 {row['float16']:.4f} dB "
              f"({row['difference']:+.4f})")  # fmt: skip
    print(f"{output}: {Path(output).stat().st_size / 1e6:.1f} MB, sha256 {file_hash(Path(output))}")
