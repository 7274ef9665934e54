"""Stage 2: every overlay on train.json, from stage-1 weights, with a prior of random weights."""

import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import save_weights
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from medsr_monai.networks import SegmentationUNet, VGG19Features, build_network, initialize_weights
from medsr_monai.weights.load import load_network

BUNDLES = Path(__file__).parents[2] / "bundles"
CONFIGS = BUNDLES / "rdst_e" / "configs"
UNET, VGG = ("finetune_e1", "finetune_d", "finetune_hrl"), ("finetune_vgg", "finetune_wgan_vgg")
OVERLAYS = ("finetune_l1", *UNET, *VGG)
SMALL = dict(embed_dim=12, growth_rate=6, num_heads=2, num_blocks=1, num_dense_blocks=1, bicubic_residual=False)
TINY = {f"network_def#{name}": value for name, value in SMALL.items()}
TINY_VGG = {"prior_def#layer": "VGG22"}
TINY_GAN = {"discriminator_def#channels": 4, "discriminator_def#hidden_channels": 8}

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Volumes, stage-1 weights, a U-Net with 3 classes and a state dict as torchvision's VGG19."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "volumes").mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        image = rng.random((48, 48, 6)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.diag([1, 1, 4, 1])), folder / "volumes" / f"case{number}.nii.gz")
    torch.manual_seed(0)
    save_weights(build_network({"_target_": "medsr_monai.networks.RDST", **SMALL}), folder / "stage1.pt")
    save_weights(SegmentationUNet(1, 3, encoder="resnet18"), folder / "unet.pt")
    torch.save(VGG19Features("VGG22").state_dict(), folder / "vgg19.pth")
    return folder


def options(files, out, overlay, **more):
    prior = {"unet_path": str(files / "unet.pt")} if overlay in UNET else {}
    prior = {"vgg_path": str(files / "vgg19.pth"), **TINY_VGG} if overlay in VGG else prior
    return {
        "bundle_root": str(out),
        "dataset_dir": str(files / "volumes"),
        "weights": str(files / "stage1.pt"),
        "plane": "axial",
        "patch_size": 32,
        "batch_size": 4,
        "max_steps": 6,
        "val_slices": 1,
        "device": "$torch.device('cpu')",
        **TINY,
        **prior,
        **(TINY_GAN if overlay == "finetune_wgan_vgg" else {}),
        **more,
    }


def workflow(files, out, overlay, **more):
    flow = ConfigWorkflow(
        [str(CONFIGS / f"{name}.json") for name in ("train", overlay)],
        workflow_type="train",
        logging_file=False,
        **options(files, out, overlay, **more),
    )
    flow.initialize()
    return flow


def get(flow, name):
    return flow.parser.get_parsed_content(name)


def last(out, overlay):
    return torch.load(out / "models" / overlay / "last.pt", weights_only=True)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@each_overlay
def test_overlay_trains_from_stage_1_and_resumes_exactly(files, tmp_path, overlay):
    stage1 = torch.load(files / "stage1.pt", weights_only=True)["model"]
    flow = workflow(files, tmp_path / "whole", overlay)
    assert flow.check_properties() == []
    trainer, optimizer = get(flow, "train#trainer"), get(flow, "optimizer")
    steps = []
    trainer.add_event_handler(
        Events.STARTED, lambda _: assert_same(get(flow, "network_def").state_dict(), stage1) or steps.append("loaded")
    )
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda _: steps.append(optimizer.param_groups[0]["lr"]))
    flow.run()
    # 3 steps an epoch; halved after 3, 4 and 5 of 6 steps as after 10k, 15k and 17.5k of 20k
    assert steps == ["loaded", *[1e-4] * 3, 5e-5, 2.5e-5, 1.25e-5]
    whole = last(tmp_path / "whole", overlay)
    assert whole["trainer"] == {"iteration": 6, "epoch_length": 3, "max_epochs": 2}
    assert all((whole["state"]["model"][name] - stage1[name]).abs().max() > 0 for name in stage1)
    assert (tmp_path / "whole" / "models" / overlay / "model.pt").is_file()
    if overlay == "finetune_wgan_vgg":
        moments = whole["state"]["discriminator_optimizer"]["state"]
        assert len(moments) == len(list(get(flow, "discriminator").parameters()))
        assert moments[0]["step"] == 6 and moments[0]["exp_avg_sq"].any()
    if overlay in UNET:  # the prior that trained with it is the one on disk, batch statistics included
        assert_same(get(flow, "prior").state_dict(), torch.load(files / "unet.pt", weights_only=True)["model"])
        assert not any(p.requires_grad or p.grad is not None for p in get(flow, "prior").parameters())

    parts = tmp_path / "parts"
    milestones = [3, 4, 5]
    workflow(files, parts, overlay, max_steps=3, milestones=milestones).run()
    assert last(parts, overlay)["trainer"]["iteration"] == 3
    workflow(files, parts, overlay, milestones=milestones, resume=True).run()
    parts = last(parts, overlay)
    assert parts["trainer"] == whole["trainer"] and parts["best"] == whole["best"]
    assert parts["state"].keys() == whole["state"].keys()
    assert parts["state"]["lr_scheduler"] == whole["state"]["lr_scheduler"]
    for part in whole["state"].keys() & {"model", "ema", "discriminator"}:
        assert_same(parts["state"][part], whole["state"][part])
    for part in whole["state"].keys() & {"optimizer", "discriminator_optimizer"}:
        for number, moments in whole["state"][part]["state"].items():
            assert_same(parts["state"][part]["state"][number], moments)


def test_a_fine_tuned_network_is_evaluated_without_its_prior(files, tmp_path):
    workflow(files, tmp_path, "finetune_e1", max_steps=1, milestones=[1]).run()
    settings = options(files, tmp_path, "finetune_e1", val_slices=None)
    del settings["weights"], settings["unet_path"]
    names = [str(CONFIGS / f"{name}.json") for name in ("train", "finetune_e1", "evaluate")]
    flow = ConfigWorkflow(names, workflow_type="train", logging_file=False, run_id="evaluating", **settings)
    flow.initialize()
    assert get(flow, "weights") == str(tmp_path / "models" / "finetune_e1" / "model.pt")
    flow.run()
    rows = (tmp_path / "eval" / "finetune_e1" / "slices.csv").read_text().splitlines()
    assert rows[0].startswith("degradation,case,plane,slice") and len(rows) == 1 + 3 * 6


def test_overlays_are_those_of_the_paper():
    for overlay in OVERLAYS:
        texts = {
            (BUNDLES / bundle / "configs" / f"{overlay}.json").read_bytes()
            for bundle in ("rdst", "rdst_e", "comparison")
        }
        assert len(texts) == 1, overlay
        content = json.loads(texts.pop())
        assert (content["max_steps"], content["learning_rate"]) == (20000, 1e-4)
        if overlay != "finetune_l1":
            assert (content["alpha"], content["lambda_"]) == (1, 10)


@each_overlay
def test_milestones_of_the_full_length(files, tmp_path, overlay):
    flow = workflow(files, tmp_path, overlay, max_steps=20000)
    assert sorted(get(flow, "lr_scheduler").milestones.elements()) == [10000, 15000, 17500]


@pytest.mark.parametrize("overlay", ["finetune_e1", "finetune_d", "finetune_hrl", "finetune_vgg"])
def test_loss_is_what_its_name_says(files, tmp_path, overlay):
    """By hand from the parts of the prior: mean difference of pixels plus 10 times that of the features."""
    flow = workflow(files, tmp_path, overlay)
    loss, prior = get(flow, "loss"), get(flow, "prior")
    a, b = torch.rand(2, 2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if overlay == "finetune_e1":
            term = (prior.encoder(a)[1] - prior.encoder(b)[1]).abs().mean()
        elif overlay == "finetune_d":
            term = (prior.decoder(prior.encoder(a)) - prior.decoder(prior.encoder(b))).abs().mean()
        elif overlay == "finetune_hrl":
            p, y = prior(a).softmax(1), prior(b).argmax(1)
            dice = [2 * p[:, c][y == c].sum() / (p[:, c].sum() + (y == c).sum()) for c in (1, 2)]
            assert all((y == c).any() for c in (1, 2))
            term = 1 - sum(dice) / 2
        else:
            term = (prior(a.repeat(1, 3, 1, 1)) - prior(b.repeat(1, 3, 1, 1))).square().mean()
        assert term > 0
        torch.testing.assert_close(loss(a, b), (a - b).abs().mean() + 10 * term)


@pytest.mark.parametrize("layers", [[1], [2], [3], [4], [5], [1, 2, 3, 4, 5]], ids=str)
def test_every_layer_and_their_sum_is_a_value_of_one_overlay(files, tmp_path, layers):
    flow = workflow(files, tmp_path, "finetune_e1", **{"loss#perceptual#encoder": layers})
    loss, prior = get(flow, "loss"), get(flow, "prior")
    a, b = torch.rand(2, 2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = [prior.encoder(image) for image in (a, b)]
        term = sum((features[0][k] - features[1][k]).abs().mean() for k in layers)
        torch.testing.assert_close(loss(a, b), (a - b).abs().mean() + 10 * term)


def two_stages(files, out, overlays, **more):
    settings = options(files, out, overlays[-1], **more)
    settings = {
        k: v for k, v in settings.items() if k not in ("batch_size", "max_steps", "network_def#bicubic_residual")
    }
    settings |= {"weights": None} if overlays == ("paper_stage1",) else {}
    names = [str(CONFIGS / f"{name}.json") for name in ("train", *overlays)]
    flow = ConfigWorkflow(names, workflow_type="train", logging_file=False, **settings | more)
    flow.initialize()
    return flow


def test_the_papers_first_stage(files, tmp_path):
    """Length, rate and batch of the overlay; the run is short. Its network keeps nothing of ours."""
    config = two_stages(files, tmp_path, ("paper_stage1",)).parser
    assert [config[n] for n in ("max_steps", "learning_rate", "batch_size", "patch_size")] == [100000, 2e-4, 32, 32]
    assert json.loads((CONFIGS / "train.json").read_text())["patch_size"] == 96
    assert "lr_scheduler" not in config
    flow = two_stages(files, tmp_path, ("paper_stage1",), max_steps=6, batch_size=4)
    network, trainer, optimizer = get(flow, "network_def"), get(flow, "train#trainer"), get(flow, "optimizer")
    assert network.arguments["bicubic_residual"] is False and network.last.weight.abs().max() > 0
    dataset, steps = get(flow, "train#dataset"), []
    patches = [dataset[i] for i in range(6)]
    whole = [dataset._slice(i)["label"] for i in range(6)]
    for patch, image in zip(patches, whole, strict=True):  # as it lies in the slice, and as bright
        windows = image[0].unfold(0, 32, 1).unfold(1, 32, 1)
        assert (windows == patch["label"][0]).flatten(2).all(2).any()
    evaluator = get(flow, "validate#evaluator")

    def falling(engine):
        engine.state.metrics["val_psnr"] = -float(len(steps))

    evaluator.add_event_handler(Events.COMPLETED, falling)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: steps.append(optimizer.param_groups[0]["lr"]))
    flow.run()
    assert steps == [2e-4] * 6
    folder = tmp_path / "models" / "paper_stage1"
    kept = torch.load(folder / "model.pt", weights_only=True)["model"]
    state = torch.load(folder / "last.pt", weights_only=True)["state"]
    assert_same(kept, network.state_dict())  # the last one, though the first was better, and no average
    assert_same(state["ema"], state["model"])


def test_the_papers_second_stage_goes_on_from_its_first(files, tmp_path):
    overlays = ("paper_stage1", "finetune_hrl")
    flow = two_stages(files, tmp_path, overlays, max_steps=2, batch_size=4)
    full = two_stages(files, tmp_path, overlays)
    assert [full.parser[n] for n in ("max_steps", "learning_rate", "batch_size")] == [20000, 1e-4, 32]
    assert sorted(get(full, "lr_scheduler").milestones.elements()) == [10000, 15000, 17500]
    flow.run()
    kept = torch.load(tmp_path / "models" / "finetune_hrl" / "model.pt", weights_only=True)["model"]
    assert_same(kept, get(flow, "network_def").state_dict())


def test_the_initialization_of_the_papers_sentence(files, tmp_path):
    as_code = get(two_stages(files, tmp_path, ("paper_stage1",)), "network")
    sentence = get(two_stages(files, tmp_path, ("paper_stage1",), initialization="kaiming_uniform"), "network")
    for name, linear in sentence.named_modules():
        if isinstance(linear, torch.nn.Linear):
            bound = (6 / linear.in_features) ** 0.5
            assert 0.8 * bound < linear.weight.abs().max() <= bound
            assert as_code.get_submodule(name).weight.std() < 0.03
    with pytest.raises(Exception, match="initialization is 'xavier', expected one of code, kaiming_uniform"):
        initialize_weights(sentence, "xavier")


@pytest.mark.parametrize("bundle", ["rdst", "rdst_e", "comparison"])
def test_the_first_stage_is_the_same_for_all(bundle):
    ours, other = (json.loads((BUNDLES / b / "configs/paper_stage1.json").read_text()) for b in ("rdst", bundle))
    ours.pop("network_def#bicubic_residual")
    assert other.pop("network_def#bicubic_residual", False) is False and ours == other
    handlers = json.loads((BUNDLES / bundle / "configs" / "train.json").read_text())["train"]["handlers"]
    assert handlers[4]["_target_"] == "medsr_monai.handlers.StartMovingAverage"


@pytest.mark.parametrize("bundle", ["rdst", "rdst_e"])
def test_global_feature_fusion_trains_and_infers(files, tmp_path, bundle):
    configs = BUNDLES / bundle / "configs"
    more = {k: v for k, v in options(files, tmp_path, "gff").items() if k != "weights"} | {"max_steps": 1}
    names = [str(configs / f"{name}.json") for name in ("train", "gff")]
    flow = ConfigWorkflow(names, workflow_type="train", logging_file=False, **more)
    flow.initialize()
    flow.run()
    content = torch.load(tmp_path / "models" / "gff" / "model.pt", weights_only=True)
    assert content["network"]["global_feature_fusion"] and "global_fusion.1.weight" in content["model"]
    own = ("bundle_root", "dataset_dir", "plane", "device", *TINY)
    names = [str(configs / f"{name}.json") for name in ("inference", "gff")]
    flow = ConfigWorkflow(names, workflow_type="infer", logging_file=False, **{name: more[name] for name in own})
    flow.initialize()
    flow.run()
    assert nib.load(tmp_path / "eval" / "gff" / "case0_sr.nii.gz").shape == (192, 192, 6)


def test_another_networks_weights_and_prior(files, tmp_path):
    """The overlays fine-tune any network; a prior with other classes is read as it was trained."""
    stage1 = build_network({"_target_": "medsr_monai.networks.RDST", "scale": 4, "embed_dim": 6, "growth_rate": 6,
                            "num_heads": 1, "num_blocks": 1, "num_dense_blocks": 1, "window_size": 4})  # fmt: skip
    save_weights(stage1, tmp_path / "stage1.pt")
    save_weights(SegmentationUNet(1, 5, encoder="resnet18"), tmp_path / "unet.pt")
    more = {"network_def": stage1.arguments, "weights": str(tmp_path / "stage1.pt"), "max_steps": 1, "milestones": [1]}
    more["unet_path"] = str(tmp_path / "unet.pt")
    settings = {k: v for k, v in options(files, tmp_path, "finetune_hrl", **more).items() if k not in TINY}
    names = [str(CONFIGS / f"{name}.json") for name in ("train", "finetune_hrl")]
    flow = ConfigWorkflow(names, workflow_type="train", logging_file=False, **settings)
    flow.initialize()
    flow.run()
    content = last(tmp_path, "finetune_hrl")
    assert content["network"] == stage1.arguments
    assert load_network(tmp_path / "models" / "finetune_hrl" / "model.pt").arguments == stage1.arguments


@pytest.mark.parametrize("overlay, option, message", [
    ("finetune_e1", "unet_path", "no weights file given: expected the path of a"),
    ("finetune_vgg", "vgg_path", "vgg_path is None: expected a file with torchvision's VGG19 weights"),
])  # fmt: skip
def test_a_missing_prior_is_named(files, tmp_path, overlay, option, message):
    with pytest.raises(RuntimeError) as error:
        workflow(files, tmp_path, overlay, **{option: None}).run()
    causes = [error.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert isinstance(causes[-1], FileNotFoundError) and str(causes[-1]).startswith(message)
    assert "\n" not in str(causes[-1]) and not (tmp_path / "models").exists()


def test_the_documented_command(warm_python, files, tmp_path):
    arguments = [warm_python, "-m", "monai.bundle", "run", "training", "--config_file"]
    arguments.append(str([str(CONFIGS / "train.json"), str(CONFIGS / "finetune_e1.json")]))
    for name, value in options(files, tmp_path, "finetune_e1", max_steps=1).items():
        arguments += [f"--{name}", str(value)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert last(tmp_path, "finetune_e1")["trainer"]["iteration"] == 3
