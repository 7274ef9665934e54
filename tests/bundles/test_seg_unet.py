"""The bundle seg_unet: a small U-Net learns to find bright shapes in volumes and in PNG pictures."""

import csv
import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import save_weights
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.transforms import Resize
from PIL import Image
from scipy.ndimage import gaussian_filter

from medsr_monai.networks import SegmentationUNet
from medsr_monai.transforms import outer_corners
from medsr_monai.weights.load import load_network, load_weights

BUNDLES = Path(__file__).parents[2] / "bundles"
CONFIGS = BUNDLES / "seg_unet" / "configs"
CLASSES = 3


def labelled_slice(rng, size):
    """A square of class 1 and a brighter one of class 2 on a dark, noisy ground; sometimes only one of them."""
    label = np.zeros(size, dtype=np.uint8)
    for value in (1, 2):
        if rng.random() < 0.85:
            row, column = rng.integers(2, np.array(size) - 14)
            label[row : row + 12, column : column + 12] = value
    image = gaussian_filter(np.array([0.1, 0.5, 0.9])[label], 0.7) + 0.03 * rng.standard_normal(size)
    return image, label


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """images/ and labels/ with oblique, anisotropic volumes of 4 subjects, int16 with an offset."""
    folder = tmp_path_factory.mktemp("volumes")
    angle = np.radians(12)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-1.0, 1.0, 4.0])
    affine[:3, 3] = (20, -30, 5)
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for number in range(4):
        slices = [labelled_slice(rng, (40, 44)) for _ in range(5)]
        image, label = (np.stack(arrays, axis=-1) for arrays in zip(*slices, strict=True))
        nib.save(nib.Nifti1Image((300 + 900 * image).astype(np.int16), affine), folder / f"images/case{number}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / f"labels/case{number}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """images/ and labels/ with PNG pictures of 4 subjects; the label map has 0 and 255, as masks do."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for subject in range(4):
        for number in range(5):
            image, label = labelled_slice(rng, (40, 44))
            name = f"SC-N-0{subject}-IM-000{number}.dcm.png"
            Image.fromarray((40 + 180 * image).clip(0, 255).astype(np.uint8)).save(folder / "images" / name)
            Image.fromarray(np.where(label > 0, 255, 0).astype(np.uint8)).save(folder / "labels" / name)
    return folder


def options(data, out, **more):
    kind = {"classes": CLASSES}
    if (data / "images" / "SC-N-00-IM-0000.dcm.png").exists():
        kind = {"classes": 2, "label_map": {"255": 1}, "subject_pattern": "SC-N-\\d+"}
    return {
        "bundle_root": str(out),
        "dataset_dir": str(data),
        "encoder": "resnet18",
        "patch_size": 32,
        "batch_size": 5,
        "max_steps": 6,
        "val_slices": None,
        "device": "$torch.device('cpu')",
        **kind,
        **more,
    }


def workflow(data, out, names=("train",), **more):
    files = [str(CONFIGS / f"{name}.json") for name in names]
    flow = ConfigWorkflow(
        files, workflow_type="train", logging_file=False, run_id="evaluating" if "evaluate" in names else "run",
        **options(data, out, **more),
    )  # fmt: skip
    flow.initialize()
    return flow


def get(flow, name):
    return flow.parser.get_parsed_content(name)


def cause(flow):
    """What a workflow fails of."""
    with pytest.raises(RuntimeError) as error:
        flow().run()
    causes = [error.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return causes[-1]


def last(out):
    return torch.load(out / "models" / "last.pt", weights_only=True)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def train(data, out, **more):
    """Losses of the steps and the pooled Dice of the validations."""
    flow = workflow(data, out, learning_rate=2e-3, val_interval=2, **more)
    assert flow.check_properties() == []
    losses, dices = [], []
    trainer, evaluator = get(flow, "train#trainer"), get(flow, "validate#evaluator")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output[0]["loss"]))
    evaluator.add_event_handler(Events.COMPLETED, lambda e: dices.append(dict(e.state.metrics)))
    flow.run()
    flow.finalize()
    return losses, dices


@pytest.fixture(scope="module")
def trained(volumes, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    return out, *train(volumes, out, max_steps=30)


def check_learning(losses, dices):
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])
    best = max(d["val_dice"] for d in dices)
    assert best > 0.5 and best > dices[0]["val_dice"] + 0.05  # the first one is after some steps
    assert max(d["val_mean_dice"] for d in dices) > dices[0]["val_mean_dice"] + 0.05


def test_training_on_volumes_lowers_the_loss_and_raises_dice(trained):
    out, losses, dices = trained
    assert len(losses) == 30
    check_learning(losses, dices)
    assert sorted(p.name for p in (out / "models").iterdir()) == [
        "last.pt",
        "last.pt.json",
        "model.pt",
        "model.pt.json",
    ]
    network = load_network(out / "models" / "model.pt")
    assert isinstance(network, SegmentationUNet)
    assert network.arguments["encoder"] == "resnet18" and network.arguments["classes"] == CLASSES
    assert list((out / "eval").glob("events*"))


def test_training_on_pictures_lowers_the_loss_and_raises_dice(pictures, tmp_path):
    flow = workflow(pictures, tmp_path)
    parts = {p: {Path(i["image"]).name[:7] for i in items} for p, items in get(flow, "files").items()}
    assert len(parts["training"]) == 3 and not parts["training"] & parts["validation"]
    # turned and mirrored too: each is the same item at every reading of a pass, and another in the next pass
    dataset = get(flow, "train#dataset")
    assert len(dataset) == 15
    assert torch.equal(dataset[3]["image"], dataset[3]["image"])
    assert not torch.equal(dataset[3]["image"], dataset[3 + 15]["image"])
    losses, dices = train(pictures, tmp_path, max_steps=24, flips=True)
    check_learning(losses, dices)


def test_evaluation_is_that_of_the_saved_weights(trained, volumes, tmp_path):
    out, _, dices = trained
    flow = workflow(volumes, tmp_path, ("train", "evaluate"), ckpt_dir=str(out / "models"))
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()
    table = {row["class"]: row for row in rows(tmp_path / "eval" / "dice.csv")}
    assert list(table) == ["1", "2", "all"]
    assert float(table["all"]["pooled"]) == pytest.approx(max(d["val_dice"] for d in dices), abs=1e-9)
    markdown = (tmp_path / "eval" / "dice.md").read_text()
    assert f"| all | 5 | {float(table['all']['pooled']):.4f} |" in markdown
    # by hand from the network and the files
    network = load_network(out / "models" / "model.pt")
    dataset = get(flow, "validate#dataset")
    slices = rows(tmp_path / "eval" / "slices.csv")
    assert len(slices) == len(dataset) == 5 and {r["plane"] for r in slices} == {"axial"}
    preds, labels = [], []
    for index, row in enumerate(slices):
        with torch.no_grad():
            preds.append(network(dataset[index]["image"][None]).argmax(1)[0].numpy())
        path = volumes / "labels" / f"{row['case'].split('/')[-1]}.nii.gz"
        labels.append(np.asarray(nib.load(path).dataobj)[:, :, int(row["slice"])])
    pred, label = np.stack(preds), np.stack(labels)
    for c in (1, 2):
        both = np.logical_and(pred == c, label == c).sum((1, 2))
        sizes = (pred == c).sum((1, 2)) + (label == c).sum((1, 2))
        each = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1)
        np.testing.assert_allclose([float(r[f"dice_{c}"]) for r in slices], each, atol=1e-6)
        row, present = table[str(c)], (label == c).any((1, 2))
        assert float(row["pooled"]) == pytest.approx(2 * both.sum() / sizes.sum())
        assert float(row["mean"]) == pytest.approx(each.mean(), abs=1e-6)
        assert float(row["std"]) == pytest.approx(each.std(), abs=1e-6)
        assert int(row["slices_present"]) == present.sum()
        assert float(row["mean_present"]) == pytest.approx(each[present].mean(), abs=1e-6)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_resume_is_exact_and_the_rate_halves_twice(volumes, tmp_path):
    """3 steps an epoch; halved at a half and three quarters of the steps, as at 50k and 75k of 100k."""
    flow = workflow(volumes, tmp_path / "whole", max_steps=12)
    rates = []
    trainer, optimizer = get(flow, "train#trainer"), get(flow, "optimizer")
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda _: rates.append(optimizer.param_groups[0]["lr"]))
    flow.run()
    assert rates == [1e-4] * 6 + [5e-5] * 3 + [2.5e-5] * 3
    whole = last(tmp_path / "whole")
    # one validation and saving at the end: 500 steps are more than the training has
    assert get(flow, "val_interval") == 4 and whole["trainer"]["iteration"] == 12

    parts = {"milestones": [6, 9], "val_interval": 4}
    workflow(volumes, tmp_path / "parts", max_steps=6, **parts).run()
    # the last epoch is saved, validated or not
    assert last(tmp_path / "parts")["trainer"]["iteration"] == 6
    assert not (tmp_path / "parts" / "models" / "model.pt").exists()
    workflow(volumes, tmp_path / "parts", max_steps=12, resume=True, **parts).run()
    resumed = last(tmp_path / "parts")
    assert resumed["trainer"] == whole["trainer"] and resumed["best"] == whole["best"] > -1
    assert resumed["state"]["lr_scheduler"] == whole["state"]["lr_scheduler"]
    assert_same(resumed["state"]["model"], whole["state"]["model"])
    for number, moments in whole["state"]["optimizer"]["state"].items():
        assert_same(resumed["state"]["optimizer"]["state"][number], moments)


def test_full_length_is_that_of_the_paper(volumes, tmp_path):
    content = json.loads((CONFIGS / "train.json").read_text())
    assert (content["max_steps"], content["learning_rate"], content["encoder"]) == (100000, 1e-4, "resnet34")
    flow = workflow(volumes, tmp_path, max_steps=100000)
    assert sorted(get(flow, "lr_scheduler").milestones.elements()) == [50000, 75000]
    assert isinstance(get(flow, "optimizer"), torch.optim.Adam)
    logits = torch.randn(2, CLASSES, 8, 9, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(2, 1, 8, 9, dtype=torch.int64)
    label[0, 0, :3] = 1  # no pixel of class 2
    p, y = logits.softmax(1), torch.nn.functional.one_hot(label[:, 0], CLASSES).movedim(-1, 1)
    dice = [2 * (p * y)[:, c].sum() / (p + y)[:, c].sum() for c in (0, 1)]
    torch.testing.assert_close(get(flow, "loss")(logits, label), (2 - sum(dice)) / 3)


def test_steps_by_epochs(volumes, tmp_path):
    flow = workflow(volumes, tmp_path, max_steps=None, epochs=8)
    assert get(flow, "train#trainer").state.max_epochs == 8
    assert get(flow, "milestones") == [12, 18] and get(flow, "val_interval") == 8


def test_inference_writes_a_label_map_in_the_inputs_grid(trained, volumes, tmp_path):
    out = trained[0]
    flow = ConfigWorkflow(
        str(CONFIGS / "inference.json"), workflow_type="infer", logging_file=False, bundle_root=str(out),
        dataset_dir=str(volumes / "images"), output_dir=str(tmp_path), classes=CLASSES, encoder="resnet18",
        device="$torch.device('cpu')",
    )  # fmt: skip
    flow.initialize()
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()
    network = load_network(out / "models" / "model.pt")
    scores = []
    for number in range(4):
        image = nib.load(volumes / "images" / f"case{number}.nii.gz")
        pred = nib.load(tmp_path / f"case{number}_seg.nii.gz")
        assert pred.shape == image.shape and pred.get_data_dtype() == np.uint8
        np.testing.assert_allclose(pred.affine, image.affine, atol=1e-5)
        assert (pred.header["scl_slope"], pred.header["scl_inter"]) in (
            (1, 0),
            pytest.approx((np.nan,) * 2, nan_ok=True),
        )
        volume = image.get_fdata(dtype=np.float32)
        low, high = np.percentile(volume, (0.1, 99.9), method="nearest")
        with torch.no_grad():
            logits = network(torch.from_numpy((volume.transpose(2, 0, 1)[:, None] - low) / (high - low)))
        by_hand = logits.argmax(1).numpy().transpose(1, 2, 0)
        # neighbouring ranks of the percentiles may be taken
        assert (np.asarray(pred.dataobj) != by_hand).mean() < 0.005
        label = np.asarray(nib.load(volumes / "labels" / f"case{number}.nii.gz").dataobj)
        pred = np.asarray(pred.dataobj)
        scores.append(2 * ((pred == label) & (label > 0)).sum() / ((pred > 0).sum() + (label > 0).sum()))
    assert np.mean(scores) > 0.5  # 0.59; by chance far less


def test_monai_label_leaves_the_label_map_alone(volumes):
    """MONAI Label appends Restored: resize pred to the image's spatial_shape, take its original_affine."""
    parser = ConfigParser(json.loads((CONFIGS / "inference.json").read_text()))
    parser.update({"encoder": "resnet18", "classes": CLASSES, "output_dir": None})
    path = volumes / "images" / "case0.nii.gz"
    item = parser.get_parsed_content("preprocessing")({"image": str(path)})
    network = parser.get_parsed_content("network_def").eval()
    with torch.no_grad():
        item["pred"] = parser.get_parsed_content("inferer")(item["image"][None], network)[0]
    assert item["pred"].shape == (CLASSES, 40, 44, 5)
    item = parser.get_parsed_content("postprocessing")(item)
    meta = item["image"].meta
    assert tuple(meta["spatial_shape"]) == tuple(item["pred"].shape[1:]) == (40, 44, 5)
    restored = Resize(meta["spatial_shape"].tolist(), mode="nearest")(item["pred"])
    assert torch.equal(restored.as_tensor().long(), item["pred"].as_tensor().long())
    before = nib.load(path)
    corners = outer_corners(before.affine, before.shape)
    np.testing.assert_allclose(outer_corners(meta["original_affine"], (40, 44, 5)), corners, atol=1e-3)


def test_its_weights_are_the_prior_of_fine_tuning(trained, volumes, tmp_path):
    overlay = BUNDLES / "rdst_e" / "configs"
    tiny = {"embed_dim": 12, "growth_rate": 6, "num_heads": 2, "num_blocks": 1, "num_dense_blocks": 1}
    stage1 = ConfigParser(json.loads((overlay / "train.json").read_text()))
    stage1.update({f"network_def#{name}": value for name, value in tiny.items()})
    network = stage1.get_parsed_content("network_def")
    save_weights(network, tmp_path / "stage1.pt")
    unet = trained[0] / "models" / "model.pt"
    flow = ConfigWorkflow(
        [str(overlay / "train.json"), str(overlay / "finetune_e1.json")], workflow_type="train", logging_file=False,
        bundle_root=str(tmp_path), dataset_dir=str(volumes / "images"), weights=str(tmp_path / "stage1.pt"),
        unet_path=str(unet), plane="axial", patch_size=32, batch_size=4, max_steps=2, milestones=[1], val_slices=1,
        device="$torch.device('cpu')", **{f"network_def#{name}": value for name, value in tiny.items()},
    )  # fmt: skip
    flow.initialize()
    flow.run()
    assert_same(get(flow, "prior").state_dict(), torch.load(unet, weights_only=True)["model"])
    assert (tmp_path / "models" / "finetune_e1" / "model.pt").is_file()


def test_encoder_weights_come_from_a_file(volumes, tmp_path):
    import segmentation_models_pytorch as smp

    torch.manual_seed(3)
    encoder = smp.encoders.get_encoder("resnet18")
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    flow = workflow(volumes, tmp_path, encoder_weights=str(tmp_path / "encoder.pth"))
    ours = get(flow, "network_def").encoder.state_dict()
    assert torch.equal(ours["layer1.0.conv1.weight"], encoder.state_dict()["layer1.0.conv1.weight"])
    flow.run()
    # the trained network needs the file no more
    (tmp_path / "encoder.pth").unlink()
    load_weights(SegmentationUNet(1, CLASSES, encoder="resnet18"), tmp_path / "models" / "model.pt")
    missing = cause(lambda: workflow(volumes, tmp_path, encoder_weights=str(tmp_path / "encoder.pth")))
    assert isinstance(missing, FileNotFoundError) and "nothing is downloaded" in str(missing)


def test_four_modalities_from_a_datalist(volumes, tmp_path):
    """A datalist as `medsr prepare` writes it: modalities, slices, crops and a label map."""
    items = []
    for number in range(3):
        item = {"image": [f"images/case{number}.nii.gz"] * 4, "label": f"labels/case{number}.nii.gz"}
        item |= {"subject": f"s{number}", "slices": {"axial": [1, 3]}, "crop": {"axial": [36, 36]}}
        items.append(item | {"label_map": {"2": 1}})
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": items[:2], "validation": items[2:]}))
    flow = workflow(volumes, tmp_path, datalist=str(path), in_channels=4, classes=2, batch_size=2, max_steps=2)
    assert get(flow, "train#dataset")[0]["image"].shape == (4, 32, 32)
    assert get(flow, "validate#dataset")[0]["label"].shape == (1, 36, 36)
    flow.run()
    assert last(tmp_path)["network"]["in_channels"] == 4
    del items[0]["label"]
    path.write_text(json.dumps({"training": items[:2], "validation": items[2:]}))
    error = cause(lambda: workflow(volumes, tmp_path, datalist=str(path)))
    assert "names no label" in str(error)


def test_labels_beyond_the_classes_are_refused(volumes, pictures, tmp_path):
    error = cause(lambda: workflow(volumes, tmp_path, classes=2))
    assert isinstance(error, ValueError) and "labels 2, expected 0 to 1" in str(error)
    error = cause(lambda: workflow(pictures, tmp_path, label_map=None))
    assert 'labels 255, expected 0 to 1: give another number of classes, or a label_map such as {"255": 1}' in str(
        error
    )
    assert not (tmp_path / "models").exists()


def test_the_documented_command(warm_python, pictures, tmp_path):
    """As the card has it, with a length by passes."""
    arguments = [warm_python, "-m", "monai.bundle", "run", "training", "--config_file", str(CONFIGS / "train.json")]
    settings = options(pictures, tmp_path, max_steps="$None", epochs=1, label_map="{'255': 1}")
    for name, value in (settings | {"subject_pattern": r"SC-[A-Z-]+\d+"}).items():
        arguments += [f"--{name}", str(value)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert last(tmp_path)["trainer"] == {"iteration": 3, "epoch_length": 3, "max_epochs": 1}


@pytest.mark.slow
def test_several_processes_validate_what_is_saved(warm_python, volumes, tmp_path):
    """Batch statistics differ between processes: the first one's are scored and written."""
    files = str([str(CONFIGS / f"{name}.json") for name in ("train", "multi_gpu_train")])
    arguments = [warm_python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    arguments += ["monai.bundle", "run", "training", "--config_file", files]
    for name, value in options(volumes, tmp_path, batch_size=4, max_steps=4, learning_rate=2e-3).items():
        arguments += [f"--{name}", str(value)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    workflow(volumes, tmp_path, ("train", "evaluate")).run()
    pooled = {row["class"]: float(row["pooled"]) for row in rows(tmp_path / "eval" / "dice.csv")}
    assert last(tmp_path)["best"] == pytest.approx(pooled["all"], abs=1e-9)
