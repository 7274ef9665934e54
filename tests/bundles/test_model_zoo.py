"""What the Model Zoo's continuous integration asks of a bundle's files, of every bundle in every form we ship it in.

The Zoo's other checks need the network: those of its shapes, TorchScript and workflows are in test_bundles.py,
test_segmentation.py, test_thick_slices.py, test_transmrsr_bundle.py and test_transmrsr_prior.py.
"""

import importlib.metadata
import json
import re
import zipfile
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, verify_metadata

import medsr_monai
from medsr_monai.commands.package import package
from medsr_monai.weights.stated import MAIN_WEIGHTS, examine, stated_files

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(p.parent.parent for p in ROOT.glob("bundles/*/configs/metadata.json"))
FORMS = ("repository", "thin", "self-contained")
ZOO_LIMIT = 25 * 2**20
CONFIGS = ("inference", "train", "evaluate", "multi_gpu_train")
# of its template; the first is the title's place
CARD_HEADINGS = (
    "Authors",
    "Tags",
    "Model Description",
    "Data",
    "Preprocessing",
    "Performance",
    "Additional Usage Steps",
    "System Configuration",
    "Limitations",
    "Citation",
)
SCHEMA_URL = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
TEXTS = ("name", "task", "description", "authors", "copyright", "data_source", "data_type", "image_classes")
TENSOR = {"type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Unpack every package once."""
    root = tmp_path_factory.mktemp("packages")

    def unpack(bundle, form):
        folder = root / form
        if not (folder / bundle.name).exists():
            package(str(bundle), str(folder), thin=form == "thin")
            version = config(bundle, "metadata")["version"]
            zipfile.ZipFile(folder / f"{bundle.name}_v{version}.zip").extractall(folder)
        return folder / bundle.name

    return unpack


@pytest.fixture(params=[(b, f) for b in BUNDLES for f in FORMS], ids=lambda p: f"{p[0].name}-{p[1]}")
def shipped(request, unpacked):
    """A bundle's folder, and the form it is in."""
    bundle, form = request.param
    return (bundle if form == "repository" else unpacked(bundle, form)), form


def config(bundle, name):
    return json.loads((bundle / "configs" / f"{name}.json").read_text())


def of_latents(bundle):
    """Whether the input is no image, which MONAI Label and MONAI's check of a network's input do not know."""
    return "image" not in config(bundle, "metadata")["network_data_format"]["inputs"]


def test_file_set(shipped):
    bundle, form = shipped
    files = ["LICENSE", "configs/logging.conf", "docs/README.md", "docs/data_license.txt"]
    files += [f"configs/{name}.json" for name in (*CONFIGS, "metadata")]
    assert [f for f in files if not (bundle / f).is_file()] == []
    for file in [p for p in bundle.rglob("*") if p.is_file()]:
        # a training in the repository leaves files beside the published ones
        if form != "repository" or file.parent.name != "models":
            assert file.stat().st_size <= ZOO_LIMIT, file
        if file.suffix in (".json", ".conf", ".md", ".txt", ".py"):
            assert not re.search(r"(^|[^\w.])/(home|root|work|Users)/", file.read_text()), file
    if form != "repository":
        inside = {p.relative_to(bundle).parts[0] for p in bundle.rglob("*") if p.is_file()}
        assert inside - {"models"} == {"LICENSE", "configs", "docs"} | (set() if form == "thin" else {"scripts"})
        code = [p.relative_to(bundle).as_posix() for p in bundle.rglob("*.py")]
        assert bool(code) == (form == "self-contained") and all(p.startswith("scripts/") for p in code)


def test_weights_are_the_stated_ones_or_said_to_be_missing(shipped):
    bundle, form = shipped
    metadata = config(bundle, "metadata")
    stated = stated_files(bundle)
    assert all(file.hash_type == "sha256" and re.fullmatch("[0-9a-f]{64}", file.hash_val) for file in stated.values())
    if stated:
        assert MAIN_WEIGHTS in stated
        for path, file in stated.items():
            listed = file.url is not None
            assert examine(bundle / path).state == ("missing" if listed and form == "repository" else "verified")
    else:
        # the Zoo wants a model.pt or its place in large_files.yml; whoever ships none must not claim figures
        assert metadata["eval_metrics"] == {}
        assert form == "repository" or not (bundle / "models").exists()


def test_metadata_fits_the_schema(shipped):
    bundle, _ = shipped
    schema = ROOT / "tests" / "schema" / "meta_schema_20240725.json"
    # the schema file is there, so nothing is downloaded
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(schema))


def test_metadata_field_by_field(shipped):
    bundle, _ = shipped
    metadata = config(bundle, "metadata")
    assert metadata["schema"] == SCHEMA_URL
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["version"]) and metadata["version"] in metadata["changelog"]
    assert all(isinstance(text, str) and text for text in metadata["changelog"].values())
    for key in ("monai_version", "pytorch_version", "numpy_version"):
        assert re.fullmatch(r"\d+\.\d+(\.\d+)?", metadata[key]), key
    assert [k for k in TEXTS if not (isinstance(metadata[k], str) and metadata[k].strip())] == []
    assert "research use only" in metadata["intended_use"]
    assert metadata["supported_apps"] == {}
    assert metadata["references"] and all(isinstance(text, str) for text in metadata["references"])
    assert all(isinstance(value, float) for value in metadata["eval_metrics"].values())
    assert not re.search("detection|classification|deep", bundle.name)  # MONAI Label chooses another task by these


def test_data_format_is_that_of_the_network(shipped):
    bundle, _ = shipped
    formats = config(bundle, "metadata")["network_data_format"]
    assert list(formats["inputs"])[:1] == ["latent" if of_latents(bundle) else "image"]
    assert list(formats["outputs"])[:1] == ["pred"]
    for name, tensor in (formats["inputs"] | formats["outputs"]).items():
        is_latent = name == "latent"
        assert TENSOR - ({"modality"} if is_latent else set()) <= tensor.keys() <= TENSOR | {"channel_def"}
        assert tensor["dtype"] == "float32" and tensor["is_patch_data"] is False
        # 2D networks; MONAI feeds * as one pixel, which windows and U-Nets refuse
        shape = tensor["spatial_shape"]
        assert len(shape) == (0 if is_latent else 2) and "*" not in shape
        if not is_latent:
            low, high = tensor["value_range"]
            assert low < high
    pred = formats["outputs"]["pred"]
    # MONAI Label makes its labels of it
    assert ("channel_def" in pred) == (pred["format"] == "segmentation")
    if "channel_def" in pred:
        assert list(pred["channel_def"]) == [str(c) for c in range(pred["num_channels"])]
    parser = ConfigParser(config(bundle, "inference"))
    definition = {k: parser.get_parsed_content(f"network_def#{k}") for k in parser["network_def"] if k[0] != "_"}
    assert next(iter(formats["inputs"].values()))["num_channels"] == definition.get(
        "in_channels", definition.get("style_dim")
    )
    assert pred["num_channels"] == definition.get("out_channels", definition.get("classes"))


def test_required_packages(shipped):
    bundle, form = shipped
    metadata = config(bundle, "metadata")
    if form != "self-contained":
        assert metadata["required_packages_version"] == {"medsr_monai": medsr_monai.__version__}
        return
    # the Zoo pins them exactly
    pins = metadata["required_packages_version"] | metadata.get("optional_packages_version", {})
    assert {"pytorch-ignite", "nibabel", "itk", "torchvision", "scikit-image"} <= pins.keys()
    assert "medsr_monai" not in pins
    for name, version in pins.items():
        assert importlib.metadata.version(name).partition("+")[0] == version


def test_card(shipped):
    bundle, form = shipped
    text = (bundle / "docs" / "README.md").read_text()
    assert re.match(r"# \S", text)
    assert [h for h in CARD_HEADINGS if not re.search(rf"^#+ {h}", text, re.M)] == []
    assert "research use only" in text.lower()
    # those that the Zoo's checks leave out have to say so
    assert re.search(r"TorchScript:\s(not )?supported", text) and "TensorRT" in text
    assert not of_latents(bundle) or "`verify_net_in_out`" in text
    if form == "self-contained":
        assert "`scripts/`" in text and f"bundles/{bundle.name}/" not in text
        assert "from medsr_monai" not in text and "Paths are those of a checkout" not in text


def test_nothing_that_spoils_super_resolution(shipped):
    """Invertd brings the coarse grid back, and MONAI's buffered or cached sliding windows cannot enlarge."""
    bundle, _ = shipped
    for file in (bundle / "configs").rglob("*.json"):
        assert not re.search(r'"Invertd"|\.Invertd"|buffer_steps|cache_roi_weight_map', file.read_text()), file


def test_names_are_unique():
    titles = [config(bundle, "metadata")["name"] for bundle in BUNDLES]
    assert len(set(titles)) == len(titles) > 1
