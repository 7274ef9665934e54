"""Pack a bundle as the Model Zoo does."""

from __future__ import annotations

from medsr_monai.upscaling.bundles import bundle_folder, read_inference


def package(
    bundle: str,
    output: str = ".",
    thin: bool = False,
    weights: str | None = None,
    keep_large_files: bool = False,
    black: bool = False,
    trust_code: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a bundle as <name>_v<version>.zip, the Model Zoo's form, with its checksums.

    The zip holds the code that the bundle needs, in scripts/, so that it runs where medsr_monai is not installed: from
    its own folder, or with it on PYTHONPATH. The same bundle gives the same bytes. Beside it are written
    <...>.zip.sha256 and <...>.json, the entry for the Zoo's models/model_info.json, with sha1 as checksum and sha256;
    its source is for whoever hosts the zip.

    Args:
        bundle: name of a bundle (see `medsr models`) or path of its folder.
        output: folder, made if missing.
        thin: leave the code out; medsr_monai of this version has to be installed then.
        weights: other weights than the bundle's models/model.pt, such as your own; they have to fit its inference.json.
        keep_large_files: leave out the files that large_files.yml lists and keep the list, as in a pull request to the
            Zoo. Without it they are fetched, as for the Zoo's releases.
        black: format the code with isort and black as the Zoo's checks want it (pip install "medsr_monai[zoo]").
        trust_code: with --weights, build the network of a bundle whose configuration holds code that no installed
            bundle has.
        overwrite: replace existing outputs.
    """
    folder = bundle_folder(bundle)
    from medsr_monai.records.training_data import FILE_NAME, packed_training_data
    from medsr_monai.weights.package import write_package

    # of own weights the package holds the record that lies beside them, not that of the published ones
    replaced = {} if weights is None else {f"docs/{FILE_NAME}": packed_training_data(weights)}
    network = None if weights is None else read_inference(folder, trust_code).get_parsed_content("network_def")
    packed = write_package(
        folder,
        output,
        thin=thin,
        weights=weights,
        network=network,
        replaced=replaced,
        keep_large_files=keep_large_files,
        black=black,
        overwrite=overwrite,
    )
    print(f"{packed.path}: {packed.files} files, {packed.size / 2**20:.1f} MiB, sha256 {packed.sha256}")
