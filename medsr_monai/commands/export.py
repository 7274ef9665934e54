"""Write a bundle's network for other runtimes."""

from __future__ import annotations

from pathlib import Path

from medsr_monai.atomic import check_output
from medsr_monai.upscaling.bundles import BundleRunner, bundle_folder


def export(
    bundle: str,
    output: str,
    format: str | None = None,
    weights: str | None = None,
    precision: str = "float32",
    trust_code: bool = False,
    overwrite: bool = False,
) -> int:
    """Write a bundle's network with its weights as an ONNX or TorchScript file, for slices of any number and size.

    Before the file gets its name, its results are compared with the network's on random images of several sizes. `medsr
    upscale --weights FILE` runs it, and so does any program that reads the format. It takes image [B, C, H, W] and
    gives pred, both float32, with intensities scaled as the bundle scales them. ONNX needs pip install
    "medsr_monai[export]".

    Args:
        bundle: the name of a bundle that super-resolves (see `medsr models`) or the path of its folder.
        output: the file to write, with a name that ends in .onnx or .ts.
        format: onnx or torchscript. By default the ending of the name says which.
        weights: a weights file to use in place of the bundle's models/model.pt.
        precision: float32, or float16 for a file of half the size.
        trust_code: export a bundle whose configuration holds code that no installed bundle has.
        overwrite: replace an existing output.
    """
    folder = bundle_folder(bundle)
    check_output(Path(output), overwrite, weights)
    from medsr_monai.exchange.run import SUFFIXES, is_exported

    if not is_exported(output):
        raise ValueError(f"{output}: give a name that ends in {' or '.join(SUFFIXES.values())}")
    if weights is not None and is_exported(weights):
        raise ValueError(f"{weights}: is an exported network, give the weights that it was made of")
    if format is None:
        format = next(name for name, suffix in SUFFIXES.items() if suffix == Path(output).suffix)
    from medsr_monai import __version__
    from medsr_monai.atomic import read_json
    from medsr_monai.exchange.write import export_network
    from medsr_monai.records.sidecar import sha256
    from medsr_monai.records.training_data import find_training_data
    from medsr_monai.weights.stated import METADATA

    runner = BundleRunner(bundle, weights, trust_code=trust_code, device="$torch.device('cpu')")
    digest = runner.weights and sha256(runner.weights)
    trained_on = digest and find_training_data(folder, runner.weights, digest)
    information = {
        "bundle": folder.resolve().name,
        "bundle_version": read_json(folder / METADATA, "a bundle's metadata").get("version"),
        "weights_sha256": digest,
        **({"training_data": trained_on.content()} if trained_on else {}),
        "medsr_monai": __version__,
        "notice": "research use only, not for clinical use",
    }
    try:
        parity = export_network(runner.network, output, format, precision=precision, information=information)
    except ImportError as error:  # in one line
        raise ValueError(str(error)) from error
    sizes = ", ".join(f"{batch}x{height}x{width}" for batch, height, width in parity.sizes)
    size = Path(output).stat().st_size / 1e6
    print(
        f"{output}: {format} {precision}, {size:.1f} MB, differs from the network by {parity.difference:.1e} at most "
        f"(outputs up to {parity.largest:.2g}, images of {sizes})"
    )
    return 0
