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
    """Pack a bundle into one zip as MONAI's Model Zoo does, <name>_v<version>.zip, with checksums.

    The zip holds the code that the bundle needs, in its folder scripts, so that it runs where medsr_monai is not
    installed, from the bundle's own folder or with that folder on PYTHONPATH. The same bundle always gives the same
    bytes. Two files are written beside it, <...>.zip.sha256 and <...>.json. The latter is the entry for the Zoo's
    models/model_info.json, with its checksum sha1 and also sha256; whoever hosts the zip adds its address.

    Args:
        bundle: the name of a bundle (see `medsr models`) or the path of its folder.
        output: the folder to write to, made if missing.
        thin: leave the code out. The zip then needs an installed medsr_monai of this version.
        weights: weights of your own to pack in place of the bundle's models/model.pt. They have to fit its
            inference.json.
        keep_large_files: leave out the files that large_files.yml lists and keep the list, as pull requests to the Zoo
            want it. Without this option they are fetched and packed, as in the Zoo's releases.
        black: format the code with isort and black as the Zoo's checks want it (pip install "medsr_monai[zoo]").
        trust_code: with --weights, accept a bundle whose configuration holds code that no installed bundle has.
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
