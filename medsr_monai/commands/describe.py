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
    """Describe the data that weights were trained on, so that `medsr upscale` can warn of inputs that are unlike them.

    It measures the pixel sizes and intensities of the training volumes, made coarse as in the training. No file and no
    patient is named. The description lies beside the weights, where `medsr upscale --weights FILE` finds it.

    Args:
        bundle: the name of a bundle (see `medsr models`) or the path of its folder.
        dataset_dir: the folder of the volumes, as it was given to the training.
        datalist: the MONAI datalist (JSON), as it was given to the training. Its items may state modality, contrast and
            body_part.
        weights: the file that was trained on these data. By default it is the bundle's models/model.pt.
        output: the JSON file to write. By default it lies beside the weights, as model.training_data.json beside
            model.pt.
        modality: the modality, such as MR or CT, of all items that do not state theirs.
        body_part: the part of the body, such as brain, of all items that do not state theirs.
        degradation: how the training made volumes coarse, if not as the bundle does; several with commas between them.
        scale: the scale of the training, if not the bundle's. For thick slices it is their thickness in pixels.
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
