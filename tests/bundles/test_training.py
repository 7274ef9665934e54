"""Training as real processes: kill and resume, several processes; and the parts of its state."""

import copy
import hashlib
import json
import math
import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from killed_training import KILLED, killed
from monai.bundle import ConfigWorkflow

from medsr_monai.handlers import moving_average
from medsr_monai.transforms import ENCODING, encode_point_spread
from medsr_monai.weights.load import load_weights

CONFIGS = Path(__file__).parents[2] / "bundles" / "rdst_e" / "configs"
COSINE = CONFIGS / "cosine.json"
TINY = {
    "network_def#embed_dim": 12,
    "network_def#growth_rate": 6,
    "network_def#num_heads": 2,
    "network_def#num_blocks": 1,
    "network_def#num_dense_blocks": 1,
    "network_def#bicubic_residual": False,
}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    for number in range(4):
        image = rng.random((48, 48, 6)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.diag([1, 1, 4, 1])), folder / f"case{number}.nii.gz")
    return folder


def options(volumes, out, **more):
    return {
        "bundle_root": str(out),
        "dataset_dir": str(volumes),
        "plane": "axial",
        "patch_size": 32,
        "batch_size": 4,
        "epochs": 4,
        "val_slices": 3,
        "device": "$torch.device('cpu')",
        **TINY,
        **more,
    }


def command(python, volumes, out, overlays=(), launcher=("-m",), **more):
    files = [str(CONFIGS / f"{name}.json") for name in ("train", *overlays)]
    arguments = [python, *launcher, "monai.bundle", "run", "training", "--config_file", str(files)]
    for name, value in options(volumes, out, **more).items():
        arguments += [f"--{name}", str(value)]
    return arguments


def run(arguments, **kwargs):
    done = subprocess.run(
        arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def state(out):
    return torch.load(out / "models" / "last.pt", weights_only=True)


def sidecar(path):
    """The JSON beside a checkpoint, which has to be that of this very file."""
    content = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert content["Outputs"] == [{"Name": path.name, "SHA256": sha256(path)}]
    return content


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def workflow(volumes, out, overlays=(), **more):
    files = [str(CONFIGS / f"{name}.json") for name in ("train", *overlays)]
    flow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **options(volumes, out, **more))
    flow.initialize()
    return flow


@pytest.fixture(scope="module")
def uninterrupted(warm_python, volumes, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    run(command(warm_python, volumes, out))
    return out


def test_resume_after_kill_equals_an_uninterrupted_run(warm_python, volumes, uninterrupted, tmp_path):
    killed(command(warm_python, volumes, tmp_path, launcher=("-c", KILLED.format(steps=7))))
    assert state(tmp_path)["trainer"]["iteration"] == 5, "after the first epoch, in the second"
    run(command(warm_python, volumes, tmp_path, resume=True))
    resumed, reference = state(tmp_path), state(uninterrupted)
    assert resumed["trainer"] == reference["trainer"] and resumed["best"] == reference["best"]
    for part in ("model", "ema"):
        assert_same(resumed["state"][part], reference["state"][part], rtol=0, atol=0)
    for number, moments in reference["state"]["optimizer"]["state"].items():
        assert_same(resumed["state"]["optimizer"]["state"][number], moments, rtol=0, atol=0)


def test_two_processes_equal_one(warm_python, volumes, uninterrupted, tmp_path):
    """Each of two processes takes every second item of the batch that one process would take."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    run(command(warm_python, volumes, tmp_path, ("multi_gpu_train",), launcher, batch_size=2))
    pair, reference = state(tmp_path), state(uninterrupted)
    assert pair["trainer"]["iteration"] == reference["trainer"]["iteration"]
    assert_same(pair["state"]["model"], reference["state"]["model"], rtol=1e-3, atol=2e-5)
    assert pair["best"] == pytest.approx(reference["best"], abs=1e-3)
    moved = {k: v for k, v in pair["state"]["model"].items()}
    fresh = workflow(volumes, tmp_path / "fresh").parser.get_parsed_content("network_def").state_dict()
    assert any((moved[k] - fresh[k]).abs().max() > 1e-3 for k in fresh), "nothing was trained"
    assert sidecar(tmp_path / "models" / "last.pt")["Training"]["Runs"][0]["Processes"] == 2
    # the second process writes neither checkpoints nor events
    assert len(list((tmp_path / "eval").glob("events*"))) == len(list((uninterrupted / "eval").glob("events*")))


def test_training_lowers_the_loss_and_writes_the_average(volumes, tmp_path):
    flow = workflow(volumes, tmp_path, epochs=6, learning_rate=2e-3, ema_momentum=0.5)
    losses, averages = [], []
    trainer, ema = (flow.parser.get_parsed_content(name) for name in ("train#trainer", "ema"))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output[0]["loss"]))
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda e: averages.append(copy.deepcopy(ema.ema_model.state_dict()))
    )
    flow.run()
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    content = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    final = state(tmp_path)
    assert_same(averages[-1], final["state"]["ema"], rtol=0, atol=0)
    # that of the best epoch, in which it is another than the network itself
    assert sum(all(torch.equal(content["model"][k], one[k]) for k in one) for one in averages) == 1
    assert any(not torch.equal(averages[-1][k], final["state"]["model"][k]) for k in content["model"])


def gain(volumes, out):
    """By how many dB one epoch of five steps improves the validation of what is saved."""
    flow = workflow(volumes, out, epochs=1, learning_rate=2e-3)
    evaluator = flow.parser.get_parsed_content("validate#evaluator")
    flow.parser.get_parsed_content("train#trainer")
    evaluator.run()
    before = evaluator.state.metrics["val_psnr"]
    flow.run()
    return state(out)["best"] - before


def test_one_epoch_of_a_few_steps_improves_what_is_saved(volumes, tmp_path, monkeypatch):
    """Which an average of constant momentum 0.001 keeps where it was."""
    assert gain(volumes, tmp_path / "warm") > 3
    monkeypatch.setattr(moving_average, "warm_momentum", lambda momentum, step: momentum)
    assert abs(gain(volumes, tmp_path / "constant")) < 0.1


def test_beside_the_weights_stands_what_they_were_trained_with(volumes, uninterrupted):
    """Of a training that `monai.bundle run` made."""
    for name in ("model.pt", "last.pt"):
        path = uninterrupted / "models" / name
        content = sidecar(path)
        told = options(volumes, uninterrupted) | {"device": "cpu", "seed": 0, "learning_rate": 0.0002, "weights": None}
        for key in (
            "seed",
            "batch_size",
            "learning_rate",
            "epochs",
            "patch_size",
            "plane",
            "scale",
            "device",
            "weights",
        ):
            assert content["Settings"][key] == told.get(key, 4), key
        assert content["Settings"]["loss"] == "L1Loss"
        named = {(one["Name"], one["SHA256"], *one["Lists"]) for one in content["Inputs"]}
        files = sorted(volumes.iterdir())
        assert {(one, digest) for one, digest, _ in named} == {(path.name, sha256(path)) for path in files}
        assert sorted(part for *_, part in named) == ["training"] * 3 + ["validation"]
        training, final = content["Training"], torch.load(path, weights_only=True)
        assert training["Network"] == dict(final["network"])
        (group,) = training["Optimizers"]["optimizer"]["Groups"]
        assert (training["Optimizers"]["optimizer"]["Class"], group["lr"], group["betas"]) == (
            "Adam",
            2e-4,
            [0.9, 0.999],
        )
        (run,) = training["Runs"]
        assert run["AfterEpoch"] == 0 and run["Processes"] == 1 and run["Device"] == "cpu"
        assert 0 < training["Seconds"] == run["Seconds"] < 600
        assert (
            torch.__version__.startswith(run["Versions"]["torch"])
            and {"medsr_monai", "monai"} <= run["Versions"].keys()
        )
        text = path.with_name(f"{name}.json").read_text()
        assert str(volumes) not in text and str(uninterrupted) not in text and ': "/' not in text
    assert (training["Epoch"], training["Steps"]) == (4, 20)
    assert training["Best"]["val_psnr"] == pytest.approx(state(uninterrupted)["best"])


def test_a_resumed_training_tells_of_all_its_runs(volumes, uninterrupted, tmp_path):
    weights, datalist = uninterrupted / "models" / "model.pt", tmp_path / "list.json"
    names = sorted(path.name for path in volumes.iterdir())
    items = [{"image": name} for name in names]
    datalist.write_text(json.dumps({"training": items[:2], "validation": items[2:]}))
    more = {"weights": str(weights), "datalist": str(datalist), "seed": 3}
    workflow(volumes, tmp_path, epochs=1, **more).run()
    first = sidecar(tmp_path / "models" / "last.pt")
    assert first["Files"] == {
        "weights": {"Name": "model.pt", "SHA256": sha256(weights)},
        "datalist": {"Name": "list.json", "SHA256": sha256(datalist)},
    }
    assert first["Settings"]["weights"] == "model.pt" and first["Settings"]["seed"] == 3
    assert {one["Name"]: one["Lists"] for one in first["Inputs"]} == {
        name: ["training" if number < 2 else "validation"] for number, name in enumerate(names)
    }
    workflow(volumes, tmp_path, ["cosine"], epochs=1, **more).run()  # another one: the first is set aside with its JSON
    assert (tmp_path / "models" / "last.1.pt.json").read_text() == json.dumps(first, indent=2) + "\n"
    second = sidecar(tmp_path / "models" / "last.pt")
    assert len(second["Training"]["Runs"]) == 1
    workflow(volumes, tmp_path, ["cosine"], epochs=3, batch_size=2, resume=True, **more).run()
    third = sidecar(tmp_path / "models" / "last.pt")["Training"]
    assert [run["AfterEpoch"] for run in third["Runs"]] == [0, 1] and third["Epoch"] == 3
    assert third["Runs"][0] == second["Training"]["Runs"][0]
    assert third["Seconds"] == pytest.approx(sum(run["Seconds"] for run in third["Runs"]), abs=1e-3)
    last = tmp_path / "models" / "last.pt"
    last.with_name("last.pt.json").write_text(
        last.with_name("last.pt.json").read_text().replace(sha256(last), "0" * 64)
    )
    workflow(volumes, tmp_path, ["cosine"], epochs=4, batch_size=2, resume=True, **more).run()
    assert [run["AfterEpoch"] for run in sidecar(last)["Training"]["Runs"]] == [3], "the JSON was of another file"


def test_files_of_an_earlier_training_are_set_aside(volumes, uninterrupted, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("model.pt", "model.1.pt", "last.pt"):
        (folder / name).write_text(name)
    workflow(volumes, tmp_path, epochs=1).run()
    assert {p.name for p in folder.iterdir()} == {
        *("model.pt", "model.1.pt", "model.2.pt", "last.pt", "last.1.pt", "model.pt.json", "last.pt.json")
    }
    assert (folder / "model.1.pt").read_text() == "model.1.pt" and (folder / "model.2.pt").read_text() == "model.pt"


def test_earlier_weights_stay_until_there_are_new_ones(volumes, tmp_path):
    """MONAI Label's server takes random weights where it finds none, as during the first epoch."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "model.pt").write_text("earlier")
    for _ in range(2):
        flow = workflow(volumes, tmp_path, epochs=1)
        trainer = flow.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda e: e.terminate())
        flow.run()
        assert (folder / "model.pt").read_text() == (folder / "model.1.pt").read_text() == "earlier"
        (folder / "last.pt").unlink(missing_ok=True)
    assert {p.name for p in folder.iterdir()} == {"model.pt", "model.1.pt"}, "copied once"
    workflow(volumes, tmp_path, epochs=1).run()
    assert torch.load(folder / "model.pt", weights_only=True)["model"]


def test_the_state_is_a_weights_file_of_the_average(volumes, uninterrupted):
    """MONAI Label offers every .pt file of the folder, and loads what has no "model" as nothing at all."""
    content = state(uninterrupted)
    assert_same(content["model"], content["state"]["ema"], rtol=0, atol=0)
    network = workflow(volumes, uninterrupted).parser.get_parsed_content("network_def")
    load_weights(network, uninterrupted / "models" / "last.pt")
    assert_same(network.state_dict(), content["state"]["ema"], rtol=0, atol=0)


@pytest.mark.parametrize("loader", ["ours", "MONAI Label's"])
def test_the_average_starts_from_loaded_weights(volumes, uninterrupted, tmp_path, loader):
    weights = uninterrupted / "models" / "model.pt"
    more = {"weights": str(weights)}
    if loader != "ours":  # BundleTrainTask puts this in front
        theirs = {"_target_": "CheckpointLoader", "load_path": str(weights), "load_dict": {"model": "$@network"}}
        handlers = json.loads((CONFIGS / "train.json").read_text())["train"]["handlers"]
        more = {"train#handlers": [theirs | {"strict": False}, *handlers]}
    flow = workflow(volumes, tmp_path, epochs=1, learning_rate=1e-6, **more)
    flow.run()
    loaded, written = (torch.load(p, weights_only=True)["model"] for p in (weights, tmp_path / "models" / "model.pt"))
    assert_same(written, loaded, rtol=0, atol=1e-4)
    assert any(not torch.equal(written[k], loaded[k]) for k in loaded)


def test_a_device_may_be_a_string(volumes, tmp_path):
    """As MONAI Label gives it, and `--device cpu` of a command line."""
    workflow(volumes, tmp_path, epochs=1, device="cpu").run()
    assert (tmp_path / "models" / "model.pt").is_file()


def test_max_steps_are_rounded_up_to_whole_epochs(volumes, tmp_path):
    flow = workflow(volumes, tmp_path, max_steps=6)
    trainer = flow.parser.get_parsed_content("train#trainer")
    assert (trainer.state.epoch_length, trainer.state.max_epochs) == (5, 2)


@pytest.mark.parametrize("bundle", ["rdst_e", "rdst", "comparison", "lgsr", "transmrsr"])
def test_cosine_overlays_are_the_same_everywhere(bundle):
    assert (CONFIGS.parents[1] / bundle / "configs" / "cosine.json").read_bytes() == COSINE.read_bytes()


def test_cosine_schedule_ends_at_zero_and_resumes(volumes, tmp_path):
    """Half a cosine over all steps: after k of n the rate is (1 + cos(pi k / n)) / 2 of the first."""
    flow = workflow(volumes, tmp_path, ["cosine"], epochs=4, learning_rate=0.01)
    trainer = flow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=3), lambda engine: engine.terminate())
    flow.run()
    content = state(tmp_path)
    done = content["trainer"]["iteration"]
    rate = content["state"]["optimizer"]["param_groups"][0]["lr"]
    assert done == 15 and rate == pytest.approx(0.01 * (1 + math.cos(math.pi * 15 / 20)) / 2)
    workflow(volumes, tmp_path, ["cosine"], epochs=4, learning_rate=0.01, resume=True).run()
    content = state(tmp_path)
    assert content["trainer"]["iteration"] == 20
    assert content["state"]["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-9)


def test_degradation_varies_as_the_configuration_says(volumes, tmp_path):
    flow = workflow(volumes, tmp_path, degradation="gaussian", fwhm=[2, 6], noise_std=[0.01, 0.05], max_steps=1)
    degrade = flow.parser.get_parsed_content("train#dataset").transform.pairs
    assert degrade.methods == ("gaussian",)
    drawn = []
    for number in range(8):
        flow.parser.get_parsed_content("train#dataset")[number]
        drawn.append((degrade.params["fwhm"], degrade.params["noise_std"]))
    assert len(set(drawn)) == 8 and all(2 <= width <= 6 and 0.01 <= noise <= 0.05 for width, noise in drawn)


def test_point_spreads_vary_as_the_configuration_says_and_are_told(volumes, tmp_path):
    degradation = {"kinds": {"gaussian": 1, "kspace": 1}, "width": [0.7, 1.3], "unknown": 0.2}
    flow = workflow(volumes, tmp_path, degradation=degradation, max_steps=2)
    dataset = flow.parser.get_parsed_content("train#dataset")
    drawn, told = [], []
    for number in range(20):
        told.append(dataset[number]["psf"])
        drawn.append(dataset.transform.pairs.params["method"])
    assert {one.kind for one in drawn} == {"gaussian", "kspace"} and len(set(drawn)) == 20
    for vector, one in zip(told, drawn, strict=True):
        assert not vector.any() or torch.equal(vector, encode_point_spread(one))
    assert 0 < sum(not vector.any() for vector in told) < 12
    flow.run()
    batch = flow.parser.get_parsed_content("train#trainer").state.batch
    assert batch and all(item["psf"].shape == (len(ENCODING),) for item in batch)


@pytest.mark.parametrize(
    "bundle", sorted(p.parent.parent.name for p in CONFIGS.parents[1].glob("*/configs/train.json"))
)
def test_the_lists_may_be_given_in_place_of_a_folder(bundle):
    """As MONAI Label gives them: nothing else looks at the folder, which is not there then."""
    text = (CONFIGS.parents[1] / bundle / "configs" / "train.json").read_text()
    used = [line.split(":")[0].strip() for line in text.splitlines() if "@files" in line]
    assert used == ['"data"', '"data"']


def test_a_training_on_given_lists(volumes, tmp_path):
    files = [{"image": str(path), "label": str(path)} for path in sorted(volumes.iterdir())]
    lists = {"train#dataset#data": files[:3], "validate#dataset#data": files[3:]}
    workflow(volumes, tmp_path, epochs=1, **lists | {"dataset_dir": str(tmp_path / "nowhere")}).run()
    record = json.loads((tmp_path / "models" / "model.pt.json").read_text())
    told = {record["Name"]: record["Lists"] for record in record["Inputs"]}
    assert told == {Path(f["image"]).name: ["training"] for f in files[:3]} | {
        Path(files[3]["image"]).name: ["validation"]
    }


def test_contrasts_are_balanced_as_the_configuration_says(volumes, tmp_path):
    """Of two volumes one is T2, the other does not say; that of few slices is drawn as often as the other."""
    files = sorted(p.name for p in volumes.iterdir() if p.name.endswith(".nii.gz"))[:3]
    part = [{"image": files[0], "contrast": "T2", "slices": {"axial": [1]}}, {"image": files[1]}]
    (tmp_path / "list.json").write_text(json.dumps({"training": part, "validation": [{"image": files[2]}]}))
    flow = workflow(volumes, tmp_path, datalist=str(tmp_path / "list.json"), balance="contrast", batch_size=1)
    loader = flow.parser.get_parsed_content("train#dataloader")
    drawn = [batch["case"][0] for batch in loader]
    assert len(drawn) >= 4 and drawn.count(drawn[0]) == len(drawn) / 2


def test_early_stop(volumes, tmp_path):
    # nothing is learnt, so no validation is better than the first by more than the average's rounding
    flow = workflow(volumes, tmp_path, epochs=50, learning_rate=0.0, patience=2, **{"early_stop#min_gain": 1e-3})
    flow.run()
    assert flow.parser.get_parsed_content("train#trainer").state.epoch == 3


def test_resume_beyond_the_last_epoch_is_refused(volumes, uninterrupted):
    flow = workflow(volumes, uninterrupted, resume=True)
    with pytest.raises(RuntimeError) as error:
        flow.run()
    assert "epoch 4 of 4 is done" in str(error.value.__cause__)


def test_resume_of_another_network_is_refused(volumes, uninterrupted):
    flow = workflow(volumes, uninterrupted, resume=True, epochs=9, **{"network_def#growth_rate": 4})
    with pytest.raises(RuntimeError) as error:
        flow.run()
    assert "growth_rate" in str(error.value.__cause__)


def test_training_starts_from_given_weights(volumes, uninterrupted, tmp_path):
    weights = uninterrupted / "models" / "model.pt"
    workflow(volumes, tmp_path, epochs=1, learning_rate=0.0, weights=str(weights)).run()
    expected = torch.load(weights, weights_only=True)["model"]
    assert_same(state(tmp_path)["state"]["model"], expected, rtol=0, atol=0)
    assert_same(torch.load(tmp_path / "models" / "model.pt", weights_only=True)["model"], expected, rtol=0, atol=1e-6)


def test_evaluation_of_bicubic_is_bicubic(volumes, tmp_path):
    bicubic = {
        "network_def": {"_target_": "medsr_monai.networks.Bicubic", "scale": 4},
        "weights": None,
        "val_slices": None,
    }
    settings = {k: v for k, v in options(volumes, tmp_path, **bicubic).items() if k not in TINY}
    files = [str(CONFIGS / f"{name}.json") for name in ("train", "evaluate")]
    flow = ConfigWorkflow(files, workflow_type="train", logging_file=False, run_id="evaluating", **settings)
    flow.initialize()
    flow.run()
    header, *rows = (tmp_path / "eval" / "slices.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    assert len(rows) == 18
    for bicubic, network in zip(rows[::3], rows[2::3], strict=True):
        assert (bicubic["method"], network["method"]) == ("bicubic", "network")
        for name in ("psnr", "ssim", "psnr_monai", "ssim_monai"):
            assert float(network[name]) == pytest.approx(float(bicubic[name]), abs=1e-5), name
