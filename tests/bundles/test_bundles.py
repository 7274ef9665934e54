"""Every bundle, by discovery: what the Model Zoo, MONAI Label and a user's workflow ask of it.

Its files alone are looked at in test_model_zoo.py.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import save_weights
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_net_in_out
from monai.transforms import Resize

from medsr_monai.transforms import outer_corners
from medsr_monai.weights.load import load_weights

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(p.parent.parent for p in ROOT.glob("bundles/*/configs/metadata.json"))
CONFIGS = ("inference", "train", "evaluate", "multi_gpu_train")


@dataclass(frozen=True)
class Kind:
    """What is the same in all bundles of a kind, and may differ from those of another."""

    ids: frozenset  # top-level ids of inference.json and train.json, beside those of all kinds
    intended_differences: frozenset  # what makes a bundle another bundle; all else must be the same
    training_only: frozenset  # arguments of the network that matter only before the training
    tiny: dict  # overrides that give a small network
    untrained: dict = field(default_factory=dict)  # overrides without which a network refuses to run untrained


# light arguments, the form of its convolutions, their slower learning, and modalities that weigh the same
LGSR_DIFFERENCES = frozenset(
    [
        *("network_def#" + n for n in ("embed_dim", "num_groups", "blocks_per_group", "hidden_size", "num_layers")),
        *("network_def#grid_sample", "offset_learning_rate", "optimizer#params"),
        *("optimizer#params#" + n for n in ("_target_", "network", "layer_matches#0", "match_types#0", "lr_values#0")),
        *("balance", "train#sampler#balance"),
        *(
            f"validate#{metric}#{key}"
            for metric in ("key_metric#val_psnr", "additional_metrics#val_ssim")
            for key in ("_target_", "output_transform", "metric_fn#_target_", "metric_fn#_mode_")
        ),
    ]
)
# only the product's networks are told the point spread
TOLD = {"psf", "displayable_configs#psf", "inferer#psf", "inferer#find_psf#_target_", "inferer#find_psf#_mode_"}
SUPER_RESOLUTION = Kind(
    ids=frozenset({"plane", "scale", "degradation"}),
    intended_differences=frozenset(
        f"network_def#{name}"
        for name in ("_target_", "num_blocks", "bicubic_residual", "channels", "negative_slope", "res_scale")
    )
    | LGSR_DIFFERENCES
    | TOLD
    | {"scale"},
    training_only=frozenset(),
    tiny={"network_def#num_blocks": 1},
)
SEGMENTATION = Kind(
    ids=frozenset({"plane", "in_channels", "classes", "encoder"}),
    intended_differences=frozenset(),
    training_only=frozenset({"encoder_weights"}),
    tiny={"encoder": "resnet18"},
)
# enlarges one axis of the slices that contain it: trained like SUPER_RESOLUTION, run like THROUGH_PLANE
THICK_SLICES = Kind(
    ids=frozenset({"scale", "degradation"}),
    intended_differences=frozenset(),
    training_only=frozenset(),
    tiny={"network_def#num_blocks": 1},
)
THROUGH_PLANE = Kind(
    ids=frozenset({"thick_axis", "scale", "degradation"}),
    intended_differences=frozenset(),
    training_only=frozenset(),
    tiny={"network_def#size": 16, "network_def#style_dim": 8, "network_def#channels": [8, 8, 8]},
    untrained={"network_def#truncation": "none"},  # the centroids come with a prior
)
GENERATION = Kind(
    ids=frozenset({"size", "style_dim", "mapping_layers", "channels", "seed"}),
    intended_differences=frozenset(),
    training_only=frozenset(),
    tiny={"size": 16, "style_dim": 8, "mapping_layers": 2, "channels": [8, 8, 8]},
)
# the workflows of segmentation are tested in test_segmentation.py, those of thick slices in test_transmrsr_bundle.py
# and test_thick_slices.py, those of generation in test_transmrsr_prior.py
KINDS = {
    "comparison": SUPER_RESOLUTION,
    "lgsr": SUPER_RESOLUTION,
    "rdst": SUPER_RESOLUTION,
    "rdst_e": SUPER_RESOLUTION,
    "rdst_e_thick": THICK_SLICES,
    "rdst_e_x2": SUPER_RESOLUTION,
    "seg_unet": SEGMENTATION,
    "transmrsr": THROUGH_PLANE,
    "transmrsr_prior": GENERATION,
}
# its input is a latent: nothing for MONAI Label, no geometry, and not what MONAI's checks of networks feed
LATENT_BUNDLES = ("transmrsr_prior",)
TINY_LGSR = {"embed_dim": 8, "num_groups": 1, "blocks_per_group": 1, "hidden_size": 8, "num_layers": 1, "num_heads": 2}
# where it is not that of the kind
TINY = {"lgsr": {f"network_def#{name}": value for name, value in TINY_LGSR.items()}}
SR_BUNDLES = [b for b in BUNDLES if KINDS.get(b.name) is SUPER_RESOLUTION]

each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda p: p.name)
each_image_bundle = pytest.mark.parametrize(
    "bundle", [b for b in BUNDLES if b.name not in LATENT_BUNDLES], ids=lambda p: p.name
)
each_sr_bundle = pytest.mark.parametrize("bundle", SR_BUNDLES, ids=lambda p: p.name)


def tiny(bundle):
    """Overrides that give a bundle a small network."""
    return TINY.get(bundle.name, KINDS[bundle.name].tiny)


def config(bundle, name):
    return json.loads((bundle / "configs" / f"{name}.json").read_text())


def flat(tree, prefix=""):
    if isinstance(tree, dict | list):
        entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {
            k: v for key, value in entries for k, v in flat(value, f"{prefix}#{key}" if prefix else str(key)).items()
        }
    return {prefix: tree}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Two tiny anisotropic, oblique volumes with an intensity offset."""
    folder = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    angle = np.radians(12)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-1.0, 1.0, 4.0])
    affine[:3, 3] = (20, -30, 5)
    for number in range(2):
        smooth = Resize((40, 44, 3), mode="trilinear")(rng.random((1, 8, 8, 3)))[0].numpy()
        nib.save(nib.Nifti1Image((300 + 900 * smooth).astype(np.int16), affine), folder / f"case{number}.nii.gz")
    return folder


def workflow(bundle, names, kind, **overrides):
    files = [str(bundle / "configs" / f"{name}.json") for name in names]
    overrides = tiny(bundle) | {"bundle_root": str(bundle)} | overrides
    flow = ConfigWorkflow(files, workflow_type=kind, logging_file=False, **overrides)
    flow.initialize()
    return flow


def tiny_weights(bundle, folder, name="inference"):
    """Random weights of the bundle's network in miniature, as training would write them."""
    parser = ConfigParser(config(bundle, name))
    parser.update(tiny(bundle))
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    if getattr(network, "centroids", None) is not None:
        network.load_centroids(torch.randn(network.centroids.shape))
    return save_weights(network, folder / "model.pt"), network.eval()


def test_every_bundle_has_a_kind():
    assert {b.name for b in BUNDLES} == set(KINDS)


def test_bundles_differ_only_as_intended():
    first, *others = BUNDLES
    for other in others:
        for name in ("logging.conf", "multi_gpu_train.json"):
            assert (first / "configs" / name).read_bytes() == (other / "configs" / name).read_bytes(), name
    for kind in (SUPER_RESOLUTION, SEGMENTATION, GENERATION):
        first, *others = (b for b in BUNDLES if KINDS[b.name] is kind)
        for other in others:
            assert (first / "configs/evaluate.json").read_bytes() == (other / "configs/evaluate.json").read_bytes()
            for name in ("inference", "train"):
                ours, theirs = flat(config(first, name)), flat(config(other, name))
                differences = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}
                assert differences <= kind.intended_differences


@each_bundle
def test_configs_are_self_contained(bundle):
    kind = KINDS[bundle.name]
    wanted = {"bundle_root", "device", "dataset_dir", "output_dir", "ckpt_dir", *kind.ids}
    assert wanted <= config(bundle, "inference").keys()
    assert wanted | {"plane", "epochs", "max_steps", "training"} <= config(bundle, "train").keys()
    for name in CONFIGS:
        for key, value in flat(config(bundle, name)).items():
            # a macro of another file is opened relative to the working directory
            assert not (isinstance(value, str) and re.match(r"%.*::", value)), (name, key)
            # MONAI resolves short names of its own classes only
            if key.endswith("_target_") and value[0].islower():
                module = value.rsplit(".", 1)[0]
                assert __import__(module.split(".")[0]), value
    # by which an output is compared with its input
    assert config(bundle, "inference").get("degradation") == config(bundle, "train").get("degradation")
    trained = config(bundle, "train")["network_def"]
    assert kind.training_only <= trained.keys()
    kept = {name: value for name, value in trained.items() if name not in kind.training_only}
    assert config(bundle, "inference")["network_def"] == kept


def test_thick_slices_by_rdst_e():
    """Trained as RDST-E is, but for what thick slices are; run as TransMRSR is, but for the network."""
    thick = ROOT / "bundles" / "rdst_e_thick"
    for name, other, ids in (
        ("train", "rdst_e", {"scale", "scale#0", "scale#1", "degradation", "patch_size"}),
        ("evaluate", "rdst_e", set()),
        ("inference", "transmrsr", {"scale", "scale#0", "scale#1"} | TOLD),
    ):
        ours, theirs = flat(config(thick, name)), flat(config(thick.parent / other, name))
        differences = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}
        assert {k for k in differences if not k.startswith("network_def#")} == ids
    assert config(thick, "inference")["scale"] == config(thick, "train")["scale"] == [1, 4]


AVERAGE = "medsr_monai.handlers.StartMovingAverage"
LOGGING = {"StatsHandler", "TensorBoardStatsHandler", "TensorBoardImageHandler"}


@each_bundle
def test_overlays_mean_the_handlers_that_they_number(bundle):
    """A handler more in train.json moves those behind it, and with the wrong ones disabled processes wait for ever."""
    train = config(bundle, "train")
    for overlay in sorted((bundle / "configs").glob("*.json")):
        changed = [re.fullmatch(r"(\w+)#handlers#(\d+)#(.+)", key) for key in json.loads(overlay.read_text())]
        named = {(m[1], train[m[1]]["handlers"][int(m[2])]["_target_"], m[3]) for m in changed if m}
        assert {target for _, target, what in named if what != "off"} <= LOGGING, overlay.name
        assert {target for _, target, what in named if what == "off"} <= {AVERAGE}, overlay.name
        if overlay.stem == "multi_gpu_train":  # one process logs, all do the rest
            logging = {
                (part, one["_target_"], "_disabled_")
                for part in ("train", "validate")
                for one in train[part]["handlers"]
                if one["_target_"] in LOGGING
            }
            assert named == logging


@each_image_bundle
def test_network_in_and_out(bundle):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        extra_forward_args={},
        **KINDS[bundle.name].untrained,
    )


@each_image_bundle
def test_export_to_torchscript(bundle, tmp_path):
    path, network = tiny_weights(bundle, tmp_path)
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(path),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        key_in_ckpt="model",
        **tiny(bundle),
    )
    script = torch.jit.load(str(tmp_path / "model.ts"))
    for size in ((8, 8), (13, 21)):
        image = torch.rand(1, 1, *size)
        # optimized it runs in networks/test_contract.py, where that takes longer than all else
        with torch.no_grad(), torch.jit.optimized_execution(False):
            torch.testing.assert_close(script(image), network(image), rtol=0, atol=1e-6)


@each_bundle
def test_shipped_weights_fit_the_configuration(bundle):
    weights = bundle / "models" / "model.pt"
    network = ConfigParser(config(bundle, "inference")).get_parsed_content("network_def")
    if weights.is_file():
        load_weights(network, weights)
    else:
        with pytest.raises(FileNotFoundError, match=f"bundle {bundle.name} has no trained weights"):
            load_weights(network, weights)


@each_sr_bundle
def test_inference_workflow(bundle, volumes, tmp_path):
    path, network = tiny_weights(bundle, tmp_path / "models")
    scale = config(bundle, "inference")["scale"]
    flow = workflow(
        bundle,
        ["inference"],
        "infer",
        dataset_dir=str(volumes),
        output_dir=str(tmp_path / "out"),
        ckpt_dir=str(path.parent),
    )
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()
    for file in sorted(volumes.iterdir()):
        image, pred = nib.load(file), nib.load(tmp_path / "out" / f"{file.name.split('.')[0]}_sr.nii.gz")
        assert pred.shape == (40 * scale, 44 * scale, 3) and pred.get_data_dtype() == np.float32
        moved = outer_corners(pred.affine, pred.shape) - outer_corners(image.affine, image.shape)
        assert np.abs(moved).max() < 1e-3
        # the middle slice by hand: scaled, through the network, scaled back
        volume = image.get_fdata(dtype=np.float32)
        low, high = np.percentile(volume, (0.1, 99.9), method="nearest")
        with torch.no_grad():
            by_hand = network(torch.from_numpy((volume[None, None, :, :, 1] - low) / (high - low)))[0, 0].numpy()
        expected = by_hand * (high - low) + low
        # neighbouring ranks of the percentiles may be taken
        np.testing.assert_allclose(pred.get_fdata()[:, :, 1], expected, atol=0.02 * (high - low))
    # a second run must not replace the first one's result
    again = workflow(
        bundle,
        ["inference"],
        "infer",
        dataset_dir=str(volumes),
        output_dir=str(tmp_path / "out"),
        ckpt_dir=str(path.parent),
    )
    with pytest.raises(RuntimeError) as error:
        again.run()
    causes = [error.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert any(isinstance(cause, FileExistsError) for cause in causes)


@each_bundle
def test_inference_without_weights_is_refused(bundle, volumes, tmp_path):
    copy = tmp_path / bundle.name
    shutil.copytree(bundle / "configs", copy / "configs")
    flow = workflow(copy, ["inference"], "infer", dataset_dir=str(volumes))
    with pytest.raises(RuntimeError) as error:
        flow.run()
    assert f"bundle {bundle.name} has no trained weights" in str(error.value.__cause__)
    assert [p.name for p in copy.iterdir()] == ["configs"]


@each_sr_bundle
def test_monai_label_leaves_the_result_alone(bundle, volumes):
    """MONAI Label appends Restored: resize pred to the image's spatial_shape, take its original_affine."""
    parser = ConfigParser(config(bundle, "inference"))
    parser.update(tiny(bundle))
    parser["output_dir"] = None
    item = parser.get_parsed_content("preprocessing")({"image": str(volumes / "case0.nii.gz")})
    before = outer_corners(item["image"].affine, item["image"].shape[1:])
    item["pred"] = parser.get_parsed_content("inferer")(item["image"][None], parser.get_parsed_content("network_def"))[
        0
    ]
    item = parser.get_parsed_content("postprocessing")(item)
    meta = item["image"].meta
    scale = parser["scale"]
    assert tuple(meta["spatial_shape"]) == tuple(item["pred"].shape[1:]) == (40 * scale, 44 * scale, 3)
    restored = Resize(meta["spatial_shape"].tolist(), mode="nearest")(item["pred"])
    assert torch.equal(restored.as_tensor(), item["pred"].as_tensor())
    np.testing.assert_allclose(outer_corners(meta["original_affine"], restored.shape[1:]), before, atol=1e-3)


@each_sr_bundle
def test_training_workflows(bundle, volumes, tmp_path):
    options = {
        "dataset_dir": str(volumes),
        "ckpt_dir": str(tmp_path / "models"),
        "output_dir": str(tmp_path / "eval"),
        "patch_size": 32,
        "batch_size": 2,
        "epochs": 1,
    }
    flow = workflow(bundle, ["train"], "train", **options)
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == [
        "last.pt",
        "last.pt.json",
        "model.pt",
        "model.pt.json",
    ]
    assert list((tmp_path / "eval").glob("events*"))
    flow = workflow(bundle, ["train", "evaluate"], "train", **options, run_id="evaluating")
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()
    rows = (tmp_path / "eval" / "slices.csv").read_text().splitlines()
    assert rows[0] == "degradation,case,plane,slice,method,psnr,ssim,psnr_monai,ssim_monai,hf_power,hf_correlation"
    assert len(rows) == 1 + 3 * 3
    assert "| axial | network | 3 |" in (tmp_path / "eval" / "summary.md").read_text()
