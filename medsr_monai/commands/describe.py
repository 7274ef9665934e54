"""Describe what weights were trained on."""

from __future__ import annotations

import json
from pathlib import Path

from medsr_monai.atomic import check_output
from medsr_monai.upscaling.bundles import bundle_folder


def describe(
    bundle: str,
    dataset_dir: str,
    datalist: str | None = None,
    weights: str | None = None,
    output: str | None = None,
    modality: str | None = None,
    body_part: str | None = None,
    degradation: str | None = None,
    scale: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write the description of the data behind a bundle's weights, by which `medsr upscale` tells unlike inputs.

    It measures the training volumes as the bundle's train.json degrades them: size of the pixels, intensities. It names
    no file and no patient. What it writes lies beside the weights, where `medsr upscale --weights FILE` finds it.

    Args:
        bundle: name of a bundle (see `medsr models`) or path of its folder.
        dataset_dir: folder of the volumes, as for the training.
        datalist: MONAI datalist JSON, as for the training; its items may state modality, contrast and body_part.
        weights: file that was trained on these data. Default: the bundle's models/model.pt.
        output: JSON file to write. Default: beside the weights, model.training_data.json of model.pt.
        modality: of all items that do not state theirs, such as MR or CT.
        body_part: likewise, such as brain.
        degradation: that the training was given, if it is not the bundle's; several with commas between them.
        scale: likewise; of thick slices their thickness.
        overwrite: replace an existing output.
    """
    folder = bundle_folder(bundle)
    file = Path(weights) if weights is not None else folder / "models" / "model.pt"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such weights file, give the one that was trained on these data")
    from medsr_monai.records.training_data import TrainingData, find_training_data, path_beside
    from medsr_monai.weights.stated import file_hash

    out = Path(output) if output is not None else path_beside(file)
    check_output(out, overwrite)
    digest = file_hash(file)
    if output is None and not overwrite and find_training_data(folder, file, digest) is not None:
        raise FileExistsError(
            f"{file}: its data are described already, give the weights that were trained on these as --weights, "
            "or add --overwrite"
        )
    from monai.bundle import ConfigParser

    from medsr_monai import __version__
    from medsr_monai.atomic import written_atomically
    from medsr_monai.records.figures import training_groups

    parser = ConfigParser()
    parser.read_config(folder / "configs" / "train.json")
    if "degradation" not in parser:
        raise ValueError(f"bundle {bundle} does not super-resolve: there is nothing to describe")
    methods = degradation.split(",") if degradation and "," in degradation else degradation
    given = {"dataset_dir": dataset_dir, "datalist": datalist, "degradation": methods}
    # slices that are interpolated to the target have a factor; of a scale for each axis it is the larger one
    name = "factor" if "factor" in parser else "scale"
    if scale is not None:
        axes = parser[name]
        given[name] = [scale if one > 1 else 1 for one in axes] if isinstance(axes, list) else scale
    parser.update({key: value for key, value in given.items() if value is not None})
    dataset = parser.get_parsed_content("train#dataset")
    pairs = parser.get_parsed_content("validate#preprocessing")
    factor = parser["factor"] if name == "factor" else 1
    described = TrainingData(
        groups=training_groups(dataset, pairs, modality=modality, body_part=body_part, factor=factor),
        degradation={"method": parser["degradation"], "scale": parser[name]},
        weights_sha256=digest,
        generated_by=f"medsr_monai {__version__}, describe",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(out) as partial:
        partial.write_text(json.dumps(described.content(), indent=2) + "\n")
    print(f"{out}: {described.sentence}")
