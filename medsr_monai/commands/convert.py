"""Read official checkpoints."""

from __future__ import annotations

from pathlib import Path

from medsr_monai.atomic import check_output
from medsr_monai.errors import naming


def convert(source: str, output: str, family: str = "rdst", overwrite: bool = False) -> None:
    """Turn a checkpoint that the authors of a network have published into a weights file of this package.

    Args:
        source: the authors' checkpoint.
        output: the file to write, a dictionary with the state dict, "model", and the arguments of the network,
            "network".
        family: the kind of network; an unknown one is answered with a list of all.
        overwrite: replace an existing output.
    """
    out = Path(output)
    check_output(out, overwrite, source)
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such file")
    from medsr_monai.convert import load_official
    from medsr_monai.networks import NetworkArguments
    from medsr_monai.weights.load import save_atomically

    with naming(source):
        network = load_official(source, family)
    arguments = NetworkArguments(network).state_dict()
    save_atomically({"network": arguments, "model": network.state_dict()}, out)
    print(f"{out}: {arguments}")
