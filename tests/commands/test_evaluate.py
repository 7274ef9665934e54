"""evaluate.json as it is documented: data lists with label maps, FID, a frozen U-Net, two processes."""

import csv
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_copies import save_weights
from monai.bundle import ConfigWorkflow
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from torchvision.models import inception_v3

from medsr_monai.metrics import (
    count_macs,
    count_macs_as_published,
    count_parameters,
    fid,
    high_frequency_figures,
    inception_features,
)
from medsr_monai.networks import SegmentationUNet, build_network, load_inception_features
from medsr_monai.weights.load import load_network

METHODS = ["HR", "bicubic", "spline", "network"]
BUNDLES = Path(__file__).parents[2] / "bundles"
SMALL = dict(embed_dim=12, growth_rate=6, num_heads=2, num_blocks=1, num_dense_blocks=1, bicubic_residual=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """PNG pictures with masks of 0 and 255 in a data list, and networks of random weights."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    lists = {"training": [], "validation": [], "test": []}
    for number, part in enumerate(("training", "validation", "validation", "validation", "test", "test")):
        mask = np.zeros((52, 46), dtype=bool)
        row, column = rng.integers(8, 24, 2)
        mask[row : row + 14, column : column + 14] = True
        image = gaussian_filter(0.2 + 0.5 * mask, 1) + 0.05 * rng.standard_normal(mask.shape)
        Image.fromarray((255 * image.clip(0, 1)).astype(np.uint8)).save(folder / f"image{number}.png")
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(folder / f"mask{number}.png")
        item = {"image": f"image{number}.png", "label": f"mask{number}.png", "label_map": {"255": 1}}
        item |= {"slices": {"axial": [0]}, "crop": {"axial": [40, 48]}, "subject": f"s{number}"}
        lists[part].append(item)
    (folder / "datalist.json").write_text(json.dumps(lists))
    torch.manual_seed(0)
    save_weights(build_network({"_target_": "medsr_monai.networks.RDST", **SMALL}), folder / "model.pt")
    unet = SegmentationUNet(1, 2, encoder="resnet18")
    for module in unet.modules():  # so that predictions follow the image
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    save_weights(unet, folder / "unet.pt")
    inception = inception_v3(weights=None, aux_logits=False, init_weights=False)
    for module in inception.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(inception.state_dict(), folder / "inception.pth")
    return folder


def options(files, out, **more):
    return {
        "bundle_root": str(out),
        "dataset_dir": str(files),
        "datalist": str(files / "datalist.json"),
        "weights": str(files / "model.pt"),
        "device": "$torch.device('cpu')",
        **{f"network_def#{name}": value for name, value in SMALL.items()},
        **more,
    }


def workflow(settings, names=("train", "evaluate"), bundle="rdst_e"):
    paths = [str(BUNDLES / bundle / "configs" / f"{name}.json") for name in names]
    flow = ConfigWorkflow(paths, workflow_type="train", logging_file=False, run_id="evaluating", **settings)
    flow.initialize()
    return flow


def get(flow, name):
    return flow.parser.get_parsed_content(name)


def cause(settings):
    with pytest.raises(RuntimeError) as error:
        workflow(settings).run()
    causes = [error.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return causes[-1]


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def evaluated(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated")
    settings = {"unet_path": str(files / "unet.pt"), "inception_path": str(files / "inception.pth"), "patch_size": 32}
    flow = workflow(options(files, out, **settings))
    assert flow.check_properties() == []
    flow.run()
    return flow, out / "eval", json.loads((out / "eval" / "summary.json").read_text())


def test_everything_in_one_table(evaluated, files):
    """FID, size and image quality by hand from the slices and the networks."""
    flow, out, summary = evaluated
    _, bicubic, spline, network = summary["pooled"]
    assert [row["method"] for row in summary["pooled"]] == METHODS and summary["slices"] == 3
    model = load_network(files / "model.pt")
    labels, cubics, splines, preds = [], [], [], []
    for item in (get(flow, "validate#dataset")[index] for index in range(3)):
        # the array's axes are columns and rows: 46 x 52 pixels, cropped in the middle
        assert item["label"].shape == item["segmentation"].shape == (1, 40, 48) and item["image"].shape == (1, 10, 12)
        labels.append(item["label"])
        preds.append(model(item["image"][None])[0].detach())
        cubics.append(torch.nn.functional.interpolate(item["image"][None], scale_factor=4, mode="bicubic")[0])
        splines.append(torch.from_numpy(zoom(item["image"], (1, 4, 4), order=3, mode="reflect", grid_mode=True)))
    for row, images in ((spline, splines), (network, preds)):
        mse = [float((p - t)[:, 4:-4, 4:-4].square().mean()) for p, t in zip(images, labels, strict=True)]
        assert row["psnr"] == pytest.approx(np.mean(-10 * np.log10(mse)), abs=1e-3)
        sharpness = [high_frequency_figures(p, t, (4, 4)) for p, t in zip(images, labels, strict=True)]
        for name in ("hf_power", "hf_correlation"):
            assert row[name] == pytest.approx(np.mean([one[name] for one in sharpness]), rel=1e-2, abs=1e-3)
    mse = [float((p - t)[:, 4:-4, 4:-4].square().mean()) for p, t in zip(preds, labels, strict=True)]
    assert network["psnr"] == pytest.approx(np.mean(-10 * np.log10(mse)), abs=1e-4)
    assert network["psnr_std"] == pytest.approx(np.std(-10 * np.log10(mse)), abs=1e-4)
    inception = load_inception_features(files / "inception.pth")
    truth, *features = (inception_features(inception, torch.stack(s))[:, 0] for s in (labels, cubics, preds))
    for row, one in zip((bicubic, network), features, strict=True):  # no spline: one of the two tells
        assert row["fid"] == pytest.approx(fid(one, truth), rel=1e-3) and row["fid"] > 0
    shape = (1, 1, 10, 12)
    assert (network["input"], network["parameters"]) == ("1x1x10x12", count_parameters(model))
    assert (network["macs"], network["macs_as_published"]) == (
        count_macs(model, shape),
        count_macs_as_published(model, shape),
    )
    assert network["fps"] > 0 and "fps" not in bicubic
    assert [row["method"] for row in rows(out / "slices.csv")] == METHODS * 3
    assert len(rows(out / "summary.csv")) == 4 + 3 * 4
    text = (out / "summary.md").read_text()
    assert "label map" in text and "- bicubic: the PSNR of network is below that of spline on " in text
    better = [max(p) for p in zip(*([float(r["psnr"]) for r in rows(out / "slices.csv") if r["method"] == m]
                                    for m in METHODS[1:3]), strict=True)]  # fmt: skip
    differences = [float(r["psnr"]) - b for r, b in zip(rows(out / "slices.csv")[3::4], better, strict=True)]
    # every picture is a volume of its own
    worst = get(flow, "report").worst["bicubic"].worst()
    assert [one.difference for one in worst] == pytest.approx(sorted(differences), abs=1e-9) and len(worst) == 3
    assert [list(one.images) for one in worst] == [
        ["input", one.interpolation, "network", "reference"] for one in worst
    ]
    assert Image.open(out / "failures.png").width > 1000


def test_dice_of_the_reference_is_that_of_the_bundle_seg_unet(evaluated, files, tmp_path):
    flow, _, summary = evaluated
    settings = {
        "bundle_root": str(tmp_path), "dataset_dir": str(files), "datalist": str(files / "datalist.json"), "classes": 2,
        "encoder": "resnet18", "intensity": "minmax", "weights": str(files / "unet.pt"),
        "device": "$torch.device('cpu')",
    }  # fmt: skip
    workflow(settings, bundle="seg_unet").run()
    expected = {row["class"]: row for row in rows(tmp_path / "eval" / "dice.csv")}
    hr, bicubic, _, network = summary["pooled"]
    assert hr["dice_against"] == "label map" and 0.01 < hr["dice_1_pooled"] < 0.99
    for region in ("1", "all"):
        assert hr[f"dice_{region}_pooled"] == pytest.approx(float(expected[region]["pooled"]), abs=1e-9)
        assert hr[f"dice_{region}"] == pytest.approx(float(expected[region]["mean"]), abs=1e-6)
        assert hr[f"dice_{region}_std"] == pytest.approx(float(expected[region]["std"]), abs=1e-6)
    workflow({**settings, "evaluate_list": "test"}, bundle="seg_unet").run()
    assert [row["slices"] for row in rows(tmp_path / "eval" / "dice.csv")] == ["2", "2"]
    # the network's by hand
    unet, model = load_network(files / "unet.pt"), load_network(files / "model.pt")
    both = sizes = 0
    for index in range(3):
        item = get(flow, "validate#dataset")[index]
        with torch.no_grad():
            pred = unet(model(item["image"][None])).argmax(1)[0] == 1
        label = item["segmentation"][0] == 1
        assert label.sum() == 14 * 14  # none is cut off by the crop
        both, sizes = both + int((pred & label).sum()), sizes + int(pred.sum() + label.sum())
    assert network["dice_1_pooled"] == pytest.approx(2 * both / sizes)
    assert network["dice_1_pooled"] != hr["dice_1_pooled"] != bicubic["dice_1_pooled"]


def test_another_list_and_the_u_nets_own_truth(files, tmp_path):
    own = options(files, tmp_path, evaluate_list="test", unet_path=str(files / "unet.pt"), label_key=None)
    own["dice_regions"] = {"Dice-WT": [1]}
    workflow(own).run()
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    hr, *_, network = summary["pooled"]
    cases = {row["case"].split("/")[-1] for row in summary["groups"]}
    assert summary["slices"] == 2 and cases == {"image4", "image5"}
    assert hr["dice_against"] == "prediction on HR" and hr["dice_1_pooled"] == 1 > network["dice_1_pooled"]
    for kind in ("", "_std", "_pooled"):
        assert (
            network[f"Dice-WT{kind}"] == network[f"Dice-Avg{kind}"] == pytest.approx(network[f"dice_1{kind}"], abs=1e-6)
        )
    patients = [row["Dice-WT_pooled"] for row in summary["groups"] if row["method"] == "network"]
    assert network["Dice-WT_patients"] == pytest.approx(np.mean(patients)) and network["Dice-WT_patients_std"] > 0
    assert "fid" not in network and summary["border"] == 4
    assert not list((tmp_path / "eval").glob("events*"))


def test_without_priors_there_are_no_columns_of_theirs(files, tmp_path):
    """At x2, where the paper leaves out 2 pixels at the border."""
    bicubic = {"network_def": {"_target_": "medsr_monai.networks.Bicubic", "scale": 2}, "weights": None, "scale": 2}
    settings = {name: value for name, value in options(files, tmp_path).items() if not name.startswith("network_def#")}
    workflow(settings | bicubic).run()
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert summary["border"] == 2
    assert [row["method"] for row in summary["pooled"]] == METHODS[1:]
    assert not [name for row in summary["pooled"] for name in row if name.startswith(("dice", "fid"))]


def test_rows_for_every_degradation(files, tmp_path):
    """Each equals the run that has only this degradation, noise included."""
    more = {"method": "ours"}
    single = [{"noise_std": 0.05}, {"degradation": "gaussian", "fwhm": 6}]
    workflow(options(files, tmp_path / "all", conditions=single, **more)).run()
    together = json.loads((tmp_path / "all" / "eval" / "summary.json").read_text())
    names = ["bicubic, noise 0.05", "gaussian, fwhm 6"]
    assert together["slices"] == 3
    assert list(dict.fromkeys(row["degradation"] for row in together["pooled"])) == names
    for number, (ids, name) in enumerate(zip(single, names, strict=True)):
        out = tmp_path / str(number)
        workflow(options(files, out, **ids, **more)).run()
        alone = json.loads((out / "eval" / "summary.json").read_text())
        for part in ("pooled", "groups"):
            expected = [row for row in together[part] if row["degradation"] == name]
            assert [strip(row) for row in alone[part]] == [strip(row) for row in expected] and expected
    assert len({row["psnr"] for row in together["pooled"]}) == len(together["pooled"])
    table = rows(tmp_path / "all" / "eval" / "summary.csv")
    assert table[0]["degradation"] == names[0] and table[0]["case"] == "all"
    assert list(table[0])[:3] == ["degradation", "case", "plane"]
    pictures = sorted(path.name for path in (tmp_path / "all" / "eval").glob("*.png"))
    assert pictures == ["failures_1.png", "failures_2.png"]


def strip(row):
    return {name: value for name, value in row.items() if name != "fps"}


@pytest.mark.parametrize(("settings", "kind", "message"), [
    ({"conditions": [{"noise": 1}]}, ValueError, "a condition has noise, expected any of degradation, fwhm, noise_std"),
    ({"inception_path": "absent.pth"}, FileNotFoundError, "inception_path is absent.pth: expected a file"),
    ({"unet_path": "absent.pt"}, FileNotFoundError, "absent.pt: no such weights file"),
    ({"method": "bicubic"}, ValueError, "method is 'bicubic', which names other rows"),
    ({"method": "spline"}, ValueError, "method is 'spline', which names other rows"),
    ({"evaluate_list": "tset"}, ValueError, "no list 'tset': the data have training, validation, test"),
])  # fmt: skip
def test_what_is_given_but_missing_is_refused(files, tmp_path, settings, kind, message):
    error = cause(options(files, tmp_path, **settings))
    assert isinstance(error, kind) and str(error).startswith(message) and "\n" not in str(error)
    assert not (tmp_path / "eval").exists()


def test_an_item_without_its_label_map_is_refused(files, tmp_path):
    lists = json.loads((files / "datalist.json").read_text())
    del lists["validation"][1]["label"]
    (tmp_path / "list.json").write_text(json.dumps(lists))
    more = {"datalist": str(tmp_path / "list.json"), "unet_path": str(files / "unet.pt")}
    assert "image2: its item has no 'label'" in str(cause(options(files, tmp_path, **more)))


def test_two_processes_equal_one(warm_python, evaluated, files, tmp_path):
    paths = [str(BUNDLES / "rdst_e" / "configs" / f"{name}.json") for name in ("train", "evaluate", "multi_gpu_train")]
    arguments = [warm_python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    arguments += ["monai.bundle", "run", "evaluating", "--config_file", str(paths)]
    more = {"unet_path": str(files / "unet.pt"), "inception_path": str(files / "inception.pth")}
    for name, value in options(files, tmp_path, **more).items():
        arguments += [f"--{name}", str(value)]
    done = subprocess.run(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ours = json.loads((tmp_path / "eval" / "summary.json").read_text())
    _, out, theirs = evaluated
    for part in ("pooled", "groups"):
        for our, their in zip(ours[part], theirs[part], strict=True):
            assert our.keys() == their.keys()
            for name in our.keys() - {"fps"}:
                expected = pytest.approx(their[name], rel=1e-4) if isinstance(their[name], float) else their[name]
                assert our[name] == expected, name
    assert [r["case"] for r in rows(tmp_path / "eval" / "slices.csv")] == [r["case"] for r in rows(out / "slices.csv")]
