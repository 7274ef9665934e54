"""Bundle transmrsr: train.json and every overlay in miniature, from a prior of random weights."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.transforms import Resize

from medsr_monai.data import prepare_datalist, write_datalist
from medsr_monai.metrics import high_frequency_figures
from medsr_monai.networks import (
    NetworkArguments,
    SegmentationUNet,
    StyleSwinDiscriminator,
    StyleSwinGenerator,
    TransMRSR,
    VGG19Features,
)
from medsr_monai.networks.blocks.filters import haar

CONFIGS = Path(__file__).parents[2] / "bundles" / "transmrsr" / "configs"
SMALL = {"size": 16, "style_dim": 8, "channels": [8, 8, 8]}
TINY = {f"network_def#{name}": value for name, value in SMALL.items()}
FROZEN = ("ablation_frozen_prior", "ablation_frozen_prior_no_encoder_features")
UNTRUNCATED = ("ablation_no_prior", "ablation_no_truncation")
ABLATIONS = ("ablation_no_encoder_features", "ablation_no_skip", *UNTRUNCATED, *FROZEN)


def save(network, path, **more):
    torch.save({"network": NetworkArguments(network).state_dict(), "model": network.state_dict(), **more}, path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three volumes, a prior with centroids, a U-Net and a state dict as torchvision's VGG19."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "volumes").mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        image = Resize((24, 22, 20), mode="trilinear")(rng.random((1, 8, 8, 8)))[0].numpy()
        path = folder / "volumes" / f"case{number}.nii.gz"
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.diag([-1, 1, 1, 1])), path)
    torch.manual_seed(0)
    save(StyleSwinGenerator(mapping_layers=1, **SMALL), folder / "prior.pt", centroids=torch.randn(8, 8))
    save(SegmentationUNet(1, 3, encoder="resnet18"), folder / "unet.pt")
    torch.save(VGG19Features(14).state_dict(), folder / "vgg19.pth")
    return folder


def options(files, out, **more):
    return {
        "bundle_root": str(out),
        "dataset_dir": str(files / "volumes"),
        "prior": str(files / "prior.pt"),
        "patch_size": 16,
        "min_size": 16,
        "batch_size": 4,
        "epochs": 1,
        "val_slices": 1,
        "plane": "axial",
        "train#dataset#slices_per_volume": 4,
        "device": "$torch.device('cpu')",
        **TINY,
        **more,
    }


def workflow(files, out, overlays=(), run_id="training", drop=(), **more):
    settings = {name: value for name, value in options(files, out, **more).items() if name not in drop}
    names = [str(CONFIGS / f"{name}.json") for name in ("train", *overlays)]
    flow = ConfigWorkflow(names, workflow_type="train", logging_file=False, run_id=run_id, **settings)
    flow.initialize()
    return flow


def get(flow, name):
    return flow.parser.get_parsed_content(name)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def decoder(state):
    return {name: value for name, value in state.items() if name.startswith("decoder.")}


def prior_of(files):
    content = torch.load(files / "prior.pt", weights_only=True)
    return decoder(content["model"]), content["centroids"]


def at_the_first_step(flow):
    """Weights of the network and of its moving average, and the input and output, at the first forward pass."""
    seen = {}

    def keep(network, args, output):
        if not seen:
            averaged = get(flow, "ema").ema_model.state_dict()
            seen["averaged"] = {name: value.clone() for name, value in averaged.items()}
            seen["model"] = {name: value.clone() for name, value in network.state_dict().items()}
            seen["image"], seen["pred"] = args[0].clone(), output.detach().clone()

    get(flow, "network_def").register_forward_hook(keep)
    return seen


@pytest.mark.parametrize("factor", [4, 8])
def test_the_prior_is_in_use_at_the_first_step(files, tmp_path, factor):
    flow = workflow(files, tmp_path, factor=factor)
    assert flow.check_properties() == []
    fresh = {name: value.clone() for name, value in get(flow, "network_def").state_dict().items()}
    seen, losses = at_the_first_step(flow), []
    get(flow, "train#trainer").add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output[0]["loss"])
    )
    flow.run()
    flow.finalize()
    weights, centroids = prior_of(files)
    for part in ("model", "averaged"):
        assert_same(decoder(seen[part]), weights)
        assert_same({"centroids": seen[part]["centroids"]}, {"centroids": centroids})
    assert any(not torch.equal(fresh[name], weights[name]) for name in weights)
    # by hand: a network that was given nothing but these weights
    by_hand = TransMRSR(**SMALL)
    rest = {name: value for name, value in fresh.items() if not name.startswith("decoder.") and name != "centroids"}
    by_hand.load_state_dict({**rest, **weights, "centroids": centroids})
    with torch.no_grad():
        torch.testing.assert_close(by_hand(seen["image"]), seen["pred"], rtol=0, atol=1e-6)
    # 2 volumes of 4 slices in batches of 4, one part of the weights as good as another
    assert len(losses) == 2 and all(np.isfinite(losses))
    trained = torch.load(tmp_path / "models" / "last.pt", weights_only=True)["state"]["model"]
    assert all(not torch.equal(trained[n], seen["model"][n]) for n in ("to_latents.weight", "decoder.constant"))
    assert_same({"centroids": trained["centroids"]}, {"centroids": centroids})


def test_resume_is_exact_and_needs_no_prior(files, tmp_path):
    milestones = {"milestones": [1, 3], "ema_momentum": 0.5}
    workflow(files, tmp_path / "whole", epochs=2, **milestones).run()
    workflow(files, tmp_path / "parts", epochs=1, **milestones).run()
    flow = workflow(files, tmp_path / "parts", epochs=2, resume=True, prior=str(tmp_path / "gone.pt"), **milestones)
    seen = at_the_first_step(flow)
    first = torch.load(tmp_path / "parts" / "models" / "last.pt", weights_only=True)
    flow.run()
    assert_same(seen["model"], first["state"]["model"])
    assert_same(seen["averaged"], first["state"]["ema"])
    whole, parts = (torch.load(tmp_path / n / "models/last.pt", weights_only=True) for n in ("whole", "parts"))
    assert whole["trainer"] == parts["trainer"] and whole["best"] == parts["best"]
    assert whole["state"]["lr_scheduler"] == parts["state"]["lr_scheduler"]
    for part in ("model", "ema"):
        assert_same(whole["state"][part], parts["state"][part])
    for number, moments in whole["state"]["optimizer"]["state"].items():
        assert_same(moments, parts["state"]["optimizer"]["state"][number])


@pytest.mark.parametrize("overlay", ABLATIONS)
def test_ablations_isolate_one_thing_and_are_evaluated(files, tmp_path, overlay):
    drop = ("prior",) if overlay == "ablation_no_prior" else ()
    flow = workflow(files, tmp_path, [overlay], drop=drop)
    full, network = TransMRSR(**SMALL).arguments, get(flow, "network_def")
    seen = at_the_first_step(flow)
    flow.run()
    differing = {name: value for name, value in network.arguments.items() if full[name] != value}
    expected = {
        "ablation_no_encoder_features": {"encoder_features": False},
        "ablation_no_skip": {"feature_skip": False},
        "ablation_no_truncation": {"truncation": "none"},
        "ablation_no_prior": {"truncation": "none"},
        "ablation_frozen_prior": {},
        "ablation_frozen_prior_no_encoder_features": {"encoder_features": False},
    }
    assert differing == expected[overlay]
    weights = prior_of(files)[0]
    taken = all(torch.equal(seen["model"][name], weights[name]) for name in weights)
    assert taken == (overlay != "ablation_no_prior")
    trained = torch.load(tmp_path / "models" / overlay / "last.pt", weights_only=True)["state"]["model"]
    kept = [name for name in weights if torch.equal(trained[name], seen["model"][name])]
    assert (kept == list(weights)) == (overlay in FROZEN)
    assert not torch.equal(trained["last.weight"], seen["model"]["last.weight"])
    assert {p.name for p in (tmp_path / "models" / overlay).iterdir()} == {
        "last.pt",
        "last.pt.json",
        "model.pt",
        "model.pt.json",
    }
    flow = workflow(files, tmp_path, [overlay, "evaluate"], "evaluating", drop=("prior",))
    flow.run()
    pooled = json.loads((tmp_path / "eval" / overlay / "summary.json").read_text())["pooled"]
    assert [row["method"] for row in pooled] == ["spline", "network"]
    assert pooled[1]["parameters"] == sum(p.numel() for p in network.parameters()) and pooled[1]["macs"] > 0


def psnr(a, b):
    return float(-10 * torch.log10((a - b).double().square().mean()))


def test_evaluation_beside_the_spline(files, tmp_path):
    """Figures of one volume along one axis by hand; the U-Net sees slices as they lie in the volume."""
    workflow(files, tmp_path).run()
    more = {"thick_axis": "left-right", "val_slices": None, "unet_path": str(files / "unet.pt"), "intensity": "minmax"}
    flow = workflow(files, tmp_path, ["evaluate"], "evaluating", drop=("prior",), **more, padded_size=32)
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    hr, spline, network = summary["pooled"]
    assert [row["method"] for row in (hr, spline, network)] == ["HR", "spline", "network"]
    assert {(row["plane"], row["thick_axis"]) for row in summary["groups"]} == {("axial", "left-right")}
    content = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    model, unet = TransMRSR(**SMALL), get(flow, "unet")
    model.load_state_dict(content["model"])
    dataset = get(flow, "validate#dataset")
    sharpness = []
    figures, overlap, sizes, errors, pixels = [], 0, 0, 0.0, 0
    for number in range(len(dataset)):
        item = dataset[number]
        # left-right runs along the rows of an axial slice of this volume: 24 of them
        image, label = item["image"], item["label"]
        assert image.shape == label.shape == (1, 22, 24) and bool(item["turned"])
        with torch.no_grad():
            pred = model(image[None])[0]
            maps = [unet(x.transpose(1, 2)[None]).argmax(1) == 1 for x in (pred, label)]
        overlap += 2 * int((maps[0] & maps[1]).sum())
        sizes += int(maps[0].sum() + maps[1].sum())
        inside = label > 0.1
        errors, pixels = errors + float((image - label)[inside].square().sum()), pixels + int(inside.sum())
        padding = (4, 4, 5, 5)
        padded = [torch.nn.functional.pad(x.clip(0, 1), padding) for x in (image, pred, label)]
        inner = [x[:, 4:-4, 4:-4] for x in (image, pred, label)]
        sharp = [high_frequency_figures(x, label, (1, 4)) for x in (image, pred)]
        sharpness.append([one[name] for one in sharp for name in ("hf_power", "hf_correlation")])
        figures.append([psnr(*inner[::2]), psnr(*inner[1:]), psnr(*padded[::2]), psnr(*padded[1:])])
    expected = np.mean(figures, axis=0)
    assert [spline["psnr"], network["psnr"]] == pytest.approx(expected[:2], abs=1e-4)
    found = [row[name] for row in (spline, network) for name in ("hf_power", "hf_correlation")]
    assert found == pytest.approx(np.mean(sharpness, axis=0), rel=1e-3, abs=1e-4)
    assert [spline["psnr_padded"], network["psnr_padded"]] == pytest.approx(expected[2:], abs=1e-4)
    assert spline["psnr_foreground"] == pytest.approx(10 * np.log10(pixels / errors), abs=1e-4)
    assert network["ssim_padded"] > network["ssim"]
    assert sizes and network["dice_1_pooled"] == pytest.approx(overlap / sizes) and hr["dice_1_pooled"] == 1


def test_paper_size(files, tmp_path):
    flow = workflow(files, tmp_path, ["paper_size"], drop=(*TINY, "patch_size", "batch_size"))
    config = flow.parser.config
    assert (config["patch_size"], config["batch_size"]) == (256, 6)
    arguments = {k: v for k, v in config["network_def"].items() if k not in ("_target_", "scale")}
    with torch.device("meta"):
        paper, network = TransMRSR(), TransMRSR(**arguments)
    assert network.arguments == paper.arguments
    # whole slices in a square
    item = get(flow, "train#dataset")[0]
    assert item["image"].shape == item["label"].shape == (1, 256, 256)
    workflow(files, tmp_path, ["paper_size"], patch_size=32).run()
    assert (tmp_path / "models" / "paper_size" / "model.pt").is_file()


def test_perceptual_loss_of_vgg19(files, tmp_path):
    flow = workflow(files, tmp_path, vgg_path=str(files / "vgg19.pth"))
    loss, features = get(flow, "loss"), get(flow, "features").features
    a, b = torch.rand(2, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        layers = [[(image.expand(-1, 3, -1, -1) - mean.view(3, 1, 1)) / std.view(3, 1, 1)] for image in (a, b)]
        for outputs in layers:
            for layer in features:
                outputs.append(layer(outputs[-1]))
        layers = [outputs[1:] for outputs in layers]
        grams = [[torch.einsum("bchw,bdhw->bcd", f, f) / f[0].numel() for f in outputs] for outputs in layers]
        content = sum((layers[0][i] - layers[1][i]).square().mean() for i in (2, 4, 7, 10))
        style = sum((grams[0][i] - grams[1][i]).square().mean() for i in (1, 3, 5, 9, 13))
        assert content > 0 and style > 0
        torch.testing.assert_close(loss(a, b), (a - b).abs().mean() + 0.5 * (content + style))
    flow.run()
    assert (tmp_path / "models" / "model.pt").is_file()


def test_perceptual_loss_of_a_segmentation_network(files, tmp_path):
    flow = workflow(files, tmp_path, ["features_seg_unet"], features_path=str(files / "unet.pt"))
    loss, encoder = get(flow, "loss"), get(flow, "features_def").encoder
    a, b = torch.rand(2, 2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # the encoder's own list: after the stem, layer1, layer2
        maps = [encoder(image)[1:4] for image in (a, b)]
        grams = [[torch.einsum("bchw,bdhw->bcd", f, f) / f[0].numel() for f in part] for part in maps]
        content = sum((x - y).square().mean() for x, y in zip(maps[0][:2], maps[1][:2], strict=True))
        style = sum((x - y).square().mean() for x, y in zip(*grams, strict=True))
        torch.testing.assert_close(loss(a, b), (a - b).abs().mean() + 0.5 * (content + style))
    flow.run()
    kept = torch.load(files / "unet.pt", weights_only=True)["model"]
    assert_same(get(flow, "features_def").state_dict(), kept)


def test_perceptual_loss_of_the_priors_discriminator(files, tmp_path):
    """From the training state of bundle transmrsr_prior; a batch that the discriminator cannot compare is left out."""
    torch.manual_seed(0)
    critic = StyleSwinDiscriminator(16, 1, channels=[8, 8, 8])
    torch.save({"state": {"discriminator": critic.state_dict()}}, tmp_path / "last.pt")
    more = {"features_path": str(tmp_path / "last.pt"), "discriminator_def#channels": [8, 8, 8]}
    more["perceptual#style"] = ["from_image.0", "blocks.0"]  # so small a network has one block only
    flow = workflow(files, tmp_path, ["features_discriminator"], **more, **{"train#dataset#slices_per_volume": 3})
    loss = get(flow, "loss")
    a, b = torch.rand(2, 4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = []
        for image in (a, b):
            maps.append([critic.from_image[0](haar(image))])
            maps[-1].append(critic.blocks[0](maps[-1][0]))
        content = sum((x - y).square().mean() for x, y in zip(maps[0][:2], maps[1][:2], strict=True))
        grams = [[torch.einsum("bchw,bdhw->bcd", f, f) / f[0].numel() for f in part] for part in maps]
        style = sum((x - y).square().mean() for x, y in zip(*grams, strict=True))
        torch.testing.assert_close(loss(a, b), (a - b).abs().mean() + 0.5 * (content + style))
    flow.run()
    assert torch.load(tmp_path / "models/last.pt", weights_only=True)["trainer"]["iteration"] == 1  # 6 slices
    assert_same(get(flow, "features").state_dict(), critic.state_dict())


def test_without_features_the_loss_is_l1(files, tmp_path):
    flow = workflow(files, tmp_path)
    assert get(flow, "perceptual_weight") == 0 and get(flow, "features") is None
    a, b = torch.rand(2, 2, 1, 16, 16)
    assert get(flow, "loss")(a, b) == (a - b).abs().mean()
    assert get(workflow(files, tmp_path, vgg_path="vgg19.pth"), "perceptual_weight") == 0.5


def complaint(flow):
    """What a run that fails says first of all."""
    with pytest.raises(Exception) as error:
        flow.run()
    causes = [error.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return str(causes[-1])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"vgg_path": "nowhere/vgg19.pth"}, "vgg_path is nowhere/vgg19.pth: expected a file"),
        ({"perceptual_weight": 0.5}, "vgg_path is None: expected a file"),
        ({"overlays": ["features_seg_unet"]}, "no weights file given"),
        (
            {"overlays": ["features_discriminator"], "patch_size": 64},
            "None: expected the last.pt of a training with a discriminator",
        ),
        ({"prior": "nowhere/model.pt"}, "nowhere/model.pt: no such weights file"),
        ({"prior": None}, "no prior, and so no centroids for the truncation: give --prior"),
        ({"network_def#style_dim": 16}, "style_dim"),
        ({"thick_axis": "axial"}, "thick axis is 'axial', expected one of left-right"),
        ({"thick_axis": "inferior-superior"}, "contains the inferior-superior axis"),
    ],
)
def test_mistakes_are_named_in_one_line(files, tmp_path, more, message):
    text = complaint(workflow(files, tmp_path, **more))
    assert message in text and "\n" not in text


def test_a_prior_without_centroids(files, tmp_path):
    content = torch.load(files / "prior.pt", weights_only=True)
    del content["centroids"]
    torch.save(content, tmp_path / "prior.pt")
    text = complaint(workflow(files, tmp_path, prior=str(tmp_path / "prior.pt")))
    assert "a prior without centroids: cluster its latents first" in text
    workflow(files, tmp_path, ["ablation_no_truncation"], prior=str(tmp_path / "prior.pt")).run()


def test_degradation_varies_as_the_configuration_says(files, tmp_path):
    more = {"degradation": ["gaussian", "box"], "fwhm": [3, 5], "noise_std": [0.01, 0.03]}
    dataset = get(workflow(files, tmp_path, **more), "train#dataset")
    degrade, drawn = dataset.transform.pairs, []
    for number in range(len(dataset)):
        dataset[number]
        drawn.append(dict(degrade.params))
    assert {p["method"] for p in drawn} == {"gaussian", "box"}
    assert all(0.01 <= p["noise_std"] <= 0.03 for p in drawn) and len({p["noise_std"] for p in drawn}) == len(drawn)
    widths = [p["fwhm"] for p in drawn if p["method"] == "gaussian"]  # a box has the width of the slice
    assert all(3 <= width <= 5 for width in widths) and len(set(widths)) == len(widths)


def test_early_stopping_asks_for_a_gain(files, tmp_path):
    """Validation scores by hand: gains of 0.04 count when they add up to more than 0.05."""
    scores = iter([20.0, 20.04, 20.08, 20.09, 20.1, 20.11, 30.0])
    flow = workflow(files, tmp_path, epochs=7, patience=3)
    evaluator = get(flow, "validate#evaluator")

    def give(engine):
        engine.state.metrics["val_psnr"] = next(scores)

    evaluator.add_event_handler(Events.COMPLETED, give)
    flow.run()
    # 20 counts, 20.04 does not, 20.08 does, then three do not
    assert get(flow, "train#trainer").state.epoch == 6


def test_training_on_each_contrast_of_ixi(tmp_path):
    """The datalist of `medsr prepare ixi --contrast` feeds the same command."""
    rng = np.random.default_rng(0)
    root = tmp_path / "ixi"
    for contrast in ("T1", "T2"):
        (root / f"IXI-{contrast}").mkdir(parents=True)
        for subject in range(4):
            image = Resize((20, 24, 18), mode="trilinear")(rng.random((1, 8, 8, 8)))[0].numpy()
            file = root / f"IXI-{contrast}" / f"IXI{subject:03}-Guys-{subject:04}-{contrast}.nii.gz"
            nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), file)
    for contrast, plane in (("T1", "sagittal"), ("T2", "axial")):
        datalist = tmp_path / f"{contrast}.json"
        write_datalist(prepare_datalist("ixi", root, contrast=contrast), datalist)
        flow = workflow(
            Path("."),
            tmp_path / contrast,
            ["ablation_no_prior"],
            drop=("prior", "plane"),
            dataset_dir=str(root),
            datalist=str(datalist),
        )
        dataset = get(flow, "train#dataset")
        assert {name for _, _, name, _ in dataset.items} == {plane}
        assert {dataset.case(number)[-2:] for number in range(len(dataset.data))} == {contrast}
        flow.run()
        assert (tmp_path / contrast / "models" / "ablation_no_prior" / "model.pt").is_file()
