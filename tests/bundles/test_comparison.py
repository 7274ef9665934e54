"""Bundle comparison: every overlay of configs/networks through training, fine-tuning, evaluation and inference."""

import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from medsr_monai.networks import COMPARISON, GFPGAN, NetworkArguments
from medsr_monai.transforms import outer_corners

BUNDLE = Path(__file__).parents[2] / "bundles" / "comparison"
THICK = "../../transmrsr/configs"
OVERLAYS = sorted(p.stem for p in BUNDLE.glob("configs/networks/*.json"))
RESIDUAL_GROUPS = dict(channels=8, num_groups=1, num_blocks=1, reduction=1)
SWIN = dict(embed_dim=12, depths=[2], num_heads=[3], window_size=4, drop_path_rate=0.0)
# reduced numbers of every network
SMALL = {
    "EDSR": dict(channels=8, num_blocks=1),
    "EDSRLite": dict(channels=8, num_blocks=1),
    "RDN": dict(channels=8, growth_rate=4, num_layers=2, num_blocks=2),
    "RCAN": RESIDUAL_GROUPS,
    "RCANAda": RESIDUAL_GROUPS,
    "HAN": RESIDUAL_GROUPS,
    "MINet": RESIDUAL_GROUPS,
    "ConvNetLite": dict(channels=8, num_blocks=1),
    "ConvNetLarge": dict(channels=8, num_blocks=1),
    "SwinIR": SWIN,
    "SwinIRLite": SWIN,
    "GFPGAN": dict(image_size=32, num_style_feat=8, narrow=1 / 64, num_mlp=1),
    "Restormer": dict(channels=8, depths=[1, 1, 1], num_heads=[1, 2, 4], num_refinement_blocks=1),
}
NEEDS = {"SwinIR": "spandrel", "SwinIRLite": "spandrel", "GFPGAN": "spandrel"}


def installed(name):
    lacks = name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None
    return pytest.param(name, marks=pytest.mark.skipif(lacks, reason=f"{NEEDS.get(name)} is not installed"))


each_overlay = pytest.mark.parametrize("name", [installed(name) for name in OVERLAYS])


def content(name):
    return json.loads((BUNDLE / "configs" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Three tiny oblique volumes."""
    folder = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    cos, sin = np.cos(0.2), np.sin(0.2)
    affine = np.array([[-cos, -sin, 0, 20], [-sin, cos, 0, -30], [0, 0, 4, 5], [0, 0, 0, 1.0]])
    for number in range(3):
        image = (300 + 900 * rng.random((40, 36, 3))).astype(np.float32)
        nib.save(nib.Nifti1Image(image, affine), folder / f"case{number}.nii.gz")
    return folder


def workflow(volumes, out, files, name, kind="train", **more):
    options = {
        "bundle_root": str(BUNDLE),
        "dataset_dir": str(volumes),
        "ckpt_dir": str(out / "models"),
        "output_dir": str(out / "out"),
        "plane": "axial",
        "device": "$torch.device('cpu')",
        **{f"network_def#{key}": value for key, value in SMALL[name].items()},
        **more,
    }
    paths = [str(BUNDLE / "configs" / f"{file}.json") for file in files]
    flow = ConfigWorkflow(paths, workflow_type=kind, logging_file=False, **options)
    flow.initialize()
    return flow


def train(volumes, out, files, name, **more):
    """Two steps: two volumes of three slices, in batches of three."""
    flow = workflow(volumes, out, files, name, patch_size=32, batch_size=3, max_steps=2, val_slices=1, **more)
    before = {key: value.clone() for key, value in flow.parser.get_parsed_content("network_def").state_dict().items()}
    flow.run()
    flow.finalize()
    last = torch.load(out / "models" / "last.pt", weights_only=True)
    assert last["trainer"]["iteration"] == 2
    return before, last


def test_every_comparison_network_has_an_overlay():
    assert set(OVERLAYS) == COMPARISON.keys() - {"Bicubic"} == set(SMALL)  # bicubic has nothing to train


@each_overlay
def test_an_overlay_replaces_the_network_and_nothing_else(name):
    overlay = content(f"networks/{name}")
    assert list(overlay) == ["network_def"] and overlay["network_def"]["scale"] == "@scale"
    with torch.device("meta"):
        network = ConfigParser({"scale": 4, **overlay}).get_parsed_content("network_def")
        assert network.arguments == COMPARISON[name][1](1, 1, 4).arguments


def test_the_default_is_edsr_lite():
    network = content("networks/EDSRLite")["network_def"]
    assert network == content("train")["network_def"] == content("inference")["network_def"]


@each_overlay
def test_training_evaluation_and_inference(volumes, tmp_path, name):
    overlay = f"networks/{name}"
    before, last = train(volumes, tmp_path, ["train", overlay], name)
    after = last["state"]["model"]
    assert last["network"]["_target_"] == content(overlay)["network_def"]["_target_"]
    assert before.keys() == after.keys() and any(not torch.equal(before[key], after[key]) for key in before)
    rows = evaluate(volumes, tmp_path, ["train", overlay, "evaluate"], name)
    assert list(rows) == ["bicubic", "spline", "network"] and np.isfinite(rows["network"]["psnr"])
    assert rows["network"]["parameters"] > 0
    workflow(volumes, tmp_path, ["inference", overlay], name, "infer").run()
    for file in sorted(volumes.iterdir()):
        image, pred = nib.load(file), nib.load(tmp_path / "out" / f"{file.name.split('.')[0]}_sr.nii.gz")
        assert pred.shape == (160, 144, 3) and np.isfinite(pred.get_fdata()).all()
        moved = outer_corners(pred.affine, pred.shape) - outer_corners(image.affine, image.shape)
        assert np.abs(moved).max() < 1e-3


def evaluate(volumes, out, files, name, **more):
    """The rows of the summary over all slices by method."""
    more = {"val_slices": 1, "failures": 0, "run_id": "evaluating"} | more
    workflow(volumes, out, files, name, **more).run()
    return {row["method"]: row for row in json.loads((out / "out" / "summary.json").read_text())["pooled"]}


@each_overlay
def test_through_plane_with_the_data_degradation_and_schedule_of_transmrsr(volumes, tmp_path, name):
    files = [f"{THICK}/train", f"networks/{name}"]
    before, last = train(volumes, tmp_path, files, name, **{"train#dataset#slices_per_volume": 1}, min_size=32)
    after = last["state"]["model"]
    assert last["network"]["_target_"] == content(files[1])["network_def"]["_target_"]
    assert last["network"]["scale"] == 1 and any(not torch.equal(before[key], after[key]) for key in before)
    rows = evaluate(volumes, tmp_path, [*files, f"{THICK}/evaluate"], name)
    assert list(rows) == ["spline", "network"] and rows["network"]["macs"] > 0
    assert all(np.isfinite(row["psnr"]) and np.isfinite(row["ssim_padded"]) for row in rows.values())


def test_a_prior_is_not_for_every_network(volumes, tmp_path):
    with pytest.raises(RuntimeError) as error:
        train(volumes, tmp_path, [f"{THICK}/train", "networks/RDN"], "RDN", prior="prior.pt", min_size=32)
    assert str(error.value.__cause__.__cause__ or error.value.__cause__) == (
        "prior.pt: RDN is built around no prior: leave --prior out"
    )


@pytest.mark.skipif(importlib.util.find_spec("spandrel") is None, reason="spandrel is not installed")
def test_gfpgan_starts_from_a_prior_of_its_own(volumes, tmp_path):
    torch.manual_seed(7)
    prior = GFPGAN(1, 1, 1, **SMALL["GFPGAN"])
    content = {"network": NetworkArguments(prior).state_dict(), "model": prior.state_dict()}
    torch.save(content, tmp_path / "prior.pt")
    files = [f"{THICK}/train", "networks/GFPGAN"]
    more = {"prior": str(tmp_path / "prior.pt"), "patch_size": 32, "batch_size": 3, "min_size": 32, "val_slices": 1}
    flow = workflow(volumes, tmp_path, files, "GFPGAN", max_steps=1, **more)
    network, seen = flow.parser.get_parsed_content("network_def"), []
    network.register_forward_pre_hook(lambda one, _: seen.append({k: v.clone() for k, v in one.state_dict().items()}))
    flow.run()
    same = {name for name, value in prior.state_dict().items() if torch.equal(value, seen[0][name])}
    decoder = {name for name in prior.state_dict() if name.startswith("network.stylegan_decoder.")}
    assert decoder <= same and "network.conv_body_first.weight" not in same
    with pytest.raises(ValueError, match=r"^The prior does not fit, \d+ tensors differ: network.stylegan_decoder"):
        GFPGAN(1, 1, 1, **SMALL["GFPGAN"] | {"image_size": 16}).load_prior(prior.state_dict())


@pytest.mark.parametrize(
    ("train_file", "evaluate_file", "second"),
    [
        ("train", "evaluate", "second_contrast"),
        (f"{THICK}/train", f"{THICK}/evaluate", f"{THICK}/second_contrast"),
    ],
    ids=["in-plane", "through-plane"],
)
def test_minet_is_guided_by_a_second_contrast(volumes, tmp_path, train_file, evaluate_file, second):
    """One that is linear in the first, so that its patches have to be the labels."""
    items = []
    for file in sorted(volumes.glob("*.nii.gz")):
        image = nib.load(file)
        other = tmp_path / f"other_{file.name}"
        nib.save(nib.Nifti1Image(7 + 3 * np.asarray(image.dataobj), image.affine), other)
        items.append({"image": str(file), "reference": str(other)})
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"training": items[:2], "validation": items[2:]}))
    files, seen = [train_file, "networks/MINet", second], []
    more = {"datalist": str(datalist), "patch_size": 32, "batch_size": 3, "val_slices": 1}
    more |= {} if second == "second_contrast" else {"min_size": 32}
    flow = workflow(volumes, tmp_path, files, "MINet", max_steps=2, **more)
    network = flow.parser.get_parsed_content("network_def")

    def keep(one, args):
        if one.training:
            batch = flow.parser.get_parsed_content("train#trainer").state.batch
            seen.append((batch["label"], batch["reference"], args[1]))

    network.register_forward_pre_hook(keep)
    flow.run()
    assert len(seen) == 2
    for label, reference, given in seen:
        torch.testing.assert_close(reference, label, rtol=0, atol=1e-5)
        torch.testing.assert_close(given, reference)
    evaluated = [*files, evaluate_file]
    guided = evaluate(volumes, tmp_path, evaluated, "MINet", datalist=str(datalist))["network"]
    alone = evaluate(volumes, tmp_path, [train_file, files[1], evaluate_file], "MINet", datalist=str(datalist))[
        "network"
    ]
    assert guided["psnr"] != alone["psnr"] and np.isfinite(guided["psnr"])


def test_evaluation_and_fine_tuning_follow_the_overlay(volumes, tmp_path):
    files = ["train", "networks/RDN"]
    train(volumes, tmp_path, files, "RDN")
    workflow(volumes, tmp_path, [*files, "evaluate"], "RDN", run_id="evaluating").run()
    rows = (tmp_path / "out" / "slices.csv").read_text().splitlines()
    assert rows[0].startswith("degradation,case,plane,slice,method,psnr") and len(rows) == 1 + 3 * 3
    weights = tmp_path / "models" / "model.pt"
    _, last = train(volumes, tmp_path / "tuned", [*files, "finetune_l1"], "RDN", weights=str(weights))
    assert last["network"] == torch.load(weights, weights_only=True)["network"]
    assert "lr_scheduler" in last["state"]


def test_weights_of_another_network_are_refused(volumes, tmp_path):
    train(volumes, tmp_path, ["train", "networks/RDN"], "RDN")
    flow = workflow(volumes, tmp_path, ["inference"], "EDSRLite", "infer")
    with pytest.raises(RuntimeError) as error:
        flow.run()
    assert "The weights belong to another network: _target_ is 'medsr_monai.networks.RDN'" in str(error.value.__cause__)
