"""The bundle transmrsr_prior: GAN training as real processes, clustering, sampling, and what TransMRSR takes over."""

import json
import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from killed_training import KILLED, killed
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export
from scipy.ndimage import gaussian_filter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medsr_monai.data import load_picture
from medsr_monai.metrics import fid
from medsr_monai.networks import TransMRSR
from medsr_monai.networks.arguments import NetworkArguments
from medsr_monai.weights.load import load_network

CONFIGS = Path(__file__).parents[2] / "bundles" / "transmrsr_prior" / "configs"
CHANNELS = [16, 16, 8]
TINY = {"size": 16, "style_dim": 8, "mapping_layers": 2, "channels": CHANNELS}
EPOCHS, LENGTH = 4, 3
FLAT = {"inception": {"_target_": "torch.nn.Flatten"}, "inception_path": "given"}
"""Pixels in place of Inception's features."""


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Five volumes of 6 slices, four of them for training; half of the slices are narrower than a patch."""
    folder = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    for number in range(5):
        shape = (24, 24, 6) if number % 2 else (24, 14, 6)
        image = gaussian_filter(rng.random(shape), (1, 1, 0)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.diag([1, 1, 4, 1])), folder / f"case{number}.nii.gz")
    return folder


def options(volumes, out, **more):
    return {
        "bundle_root": str(out),
        "dataset_dir": str(volumes),
        "plane": "axial",
        "min_size": 8,
        "batch_size": 8,
        "epochs": EPOCHS,
        "discriminator_channels": [8, 8, 8],
        "discriminator_learning_rate": 4e-3,
        "bcr_weight": 10,
        "r1_interval": 4,
        "device": "$torch.device('cpu')",
        **TINY,
        **more,
    }


def workflow(volumes, out, overlays=(), run_id="training", **more):
    files = [str(CONFIGS / f"{name}.json") for name in ("train", *overlays)]
    settings = options(volumes, out, **more)
    flow = ConfigWorkflow(files, workflow_type="train", logging_file=False, run_id=run_id, **settings)
    flow.initialize()
    return flow


def get(flow, name):
    return flow.parser.get_parsed_content(name)


def command(python, volumes, out, overlays=(), launcher=("-m",), **more):
    files = [str(CONFIGS / f"{name}.json") for name in ("train", *overlays)]
    arguments = [python, *launcher, "monai.bundle", "run", "training", "--config_file", str(files)]
    for name, value in options(volumes, out, **more).items():
        arguments += [f"--{name}", str(value)]
    return arguments


def state(out):
    return torch.load(out / "models" / "last.pt", weights_only=True)


def scalars(out, tag):
    """What TensorBoard shows under a tag."""
    values = []
    for file in (out / "eval").glob("events*"):
        events = EventAccumulator(str(file)).Reload()
        values += [s.value for s in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []
    return values


def assert_same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes below have it: sums by several threads differ in the last digit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(volumes, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    flow = workflow(volumes, out)
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()
    return out


def test_resume_after_kill_equals_an_uninterrupted_run(warm_python, volumes, trained, tmp_path):
    killed(command(warm_python, volumes, tmp_path, launcher=("-c", KILLED.format(steps=3 * LENGTH))))
    assert state(tmp_path)["trainer"]["iteration"] == LENGTH, "after the first epoch, in the second; of two optimizers"
    workflow(volumes, tmp_path, resume=True).run()
    resumed, reference = state(tmp_path), state(trained)
    assert resumed["trainer"] == reference["trainer"]
    for part in ("model", "ema", "discriminator"):
        assert_same(resumed["state"][part], reference["state"][part], rtol=0, atol=0)
    for part in ("optimizer", "discriminator_optimizer"):
        for number, moments in reference["state"][part]["state"].items():
            assert_same(resumed["state"][part]["state"][number], moments, rtol=0, atol=0)


def test_two_processes_equal_one(warm_python, volumes, trained, tmp_path):
    """Each of two processes takes every second image of the batch that one process would take, and latent, and number.

    The discriminator compares images in groups of 4, which are the even and the odd ones of 8.
    """
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    done = subprocess.run(
        command(warm_python, volumes, tmp_path, ("multi_gpu_train",), launcher, batch_size=4, **FLAT),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    pair, reference = state(tmp_path), state(trained)
    assert pair["trainer"] == reference["trainer"]
    for part in ("model", "ema", "discriminator"):
        assert_same(pair["state"][part], reference["state"][part], rtol=1e-3, atol=1e-4)
    # the FID is of the slices of both
    shared = scalars(tmp_path, "val_fid")
    weights = str(tmp_path / "models" / "model.pt")
    flow = workflow(volumes, tmp_path / "alone", ("evaluate",), "evaluating", weights=weights, **FLAT)
    flow.run()
    alone = get(flow, "validate#evaluator").state.metrics["val_fid"]
    assert len(shared) == EPOCHS and shared[-1] == pytest.approx(alone, rel=1e-3)
    # the second process writes no events: of its five writers there would be five more files
    assert len(list((tmp_path / "eval").glob("events*"))) == 4


def test_what_a_training_leaves(volumes, trained, tmp_path):
    content = torch.load(trained / "models" / "model.pt", weights_only=True)
    final = state(trained)
    assert content.keys() == {"network", "model"}
    assert_same(content["model"], final["state"]["ema"], rtol=0, atol=0)
    assert any(not torch.equal(content["model"][k], final["state"]["model"][k]) for k in content["model"])
    assert final["trainer"] == {"iteration": EPOCHS * LENGTH, "epoch_length": LENGTH, "max_epochs": EPOCHS}
    # 3 of the 12 discriminator steps were followed by one on the penalty
    steps = {s["step"].item() for s in final["state"]["discriminator_optimizer"]["state"].values()}
    assert steps == {12 + 3}
    fresh = workflow(volumes, tmp_path)
    for part, name in (("model", "network_def"), ("discriminator", "discriminator_def")):
        start = get(fresh, name).state_dict()
        moved = {k: (start[k] - v).abs().max().item() for k, v in final["state"][part].items()}
        assert all(m > 0 for k, m in moved.items() if k.endswith("weight")), moved
    assert all(len(scalars(trained, tag)) == EPOCHS * LENGTH for tag in ("loss", "d_loss", "penalty", "consistency"))
    grids = 0
    for file in (trained / "eval").glob("events*"):
        events = EventAccumulator(str(file), size_guidance={"images": 0}).Reload()
        grids += len(events.Images("samples")) if "samples" in events.Tags()["images"] else 0
    assert grids == EPOCHS


def test_rates_and_betas(volumes, tmp_path):
    """By default the authors': 2e-4 for the discriminator, a quarter for the generator, 16/17 for the lazy penalty."""
    flow = workflow(volumes, tmp_path, discriminator_learning_rate=2e-4, r1_interval=16)
    assert json.loads((CONFIGS / "train.json").read_text())["discriminator_learning_rate"] == 2e-4
    assert get(flow, "optimizer").defaults["lr"] == pytest.approx(5e-5)
    assert get(flow, "optimizer").defaults["betas"] == (0.0, 0.99)
    assert get(flow, "discriminator_optimizer").defaults["lr"] == pytest.approx(2e-4 * 16 / 17)
    assert get(flow, "discriminator_optimizer").defaults["betas"] == (0.0, pytest.approx(0.99 ** (16 / 17)))
    assert get(flow, "ema").momentum == pytest.approx(1 - 0.99778, abs=5e-6)
    trainer = get(flow, "train#trainer")
    assert (trainer.penalty_interval, trainer.penalty.gamma, trainer.clip_norm) == (16, 10, 5.0)
    assert trainer.consistency.weight == 10
    assert get(workflow(volumes, tmp_path, bcr_weight=0), "train#trainer").consistency is None


def test_linear_decay_ends_at_0(volumes, tmp_path):
    flow = workflow(volumes, tmp_path, max_steps=6, decay_start=2, bcr_weight=0)
    trainer, seen = get(flow, "train#trainer"), []
    both = [get(flow, name) for name in ("optimizer", "discriminator_optimizer")]
    full = [o.param_groups[0]["lr"] for o in both]
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda _: seen.append([o.param_groups[0]["lr"] for o in both])
    )
    flow.run()
    factors = [1.0] * 3 + [3 / 4, 2 / 4, 1 / 4]
    assert seen == [[pytest.approx(f * rate) for rate in full] for f in factors]


def test_training_starts_from_given_weights(volumes, trained, tmp_path):
    weights = trained / "models" / "model.pt"
    workflow(volumes, tmp_path, epochs=1, discriminator_learning_rate=0.0, weights=str(weights)).run()
    expected = torch.load(weights, weights_only=True)["model"]
    assert_same(state(tmp_path)["state"]["model"], expected, rtol=0, atol=0)
    assert_same(state(tmp_path)["state"]["ema"], expected, rtol=1e-5, atol=1e-6)


def test_spectral_normalisation_trains(volumes, tmp_path):
    more = {"discriminator_def#spectral_normalization": True, "epochs": 1}
    workflow(volumes, tmp_path, **more).run()
    assert state(tmp_path)["trainer"]["iteration"] == LENGTH


def test_too_few_slices_are_named(volumes, tmp_path):
    with pytest.raises(Exception) as error:
        workflow(volumes, tmp_path, batch_size=64).run()
    causes = [error.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert "fewer training images than one batch" in str(causes[-1]) and not (tmp_path / "models").exists()


@pytest.fixture(scope="module")
def clustered(volumes, trained, tmp_path_factory):
    """The trained generator with centroids."""
    out = tmp_path_factory.mktemp("clustered")
    (out / "models").mkdir()
    (out / "models" / "model.pt").write_bytes((trained / "models" / "model.pt").read_bytes())
    workflow(volumes, out, run_id="clustering", latents=2000).run()
    return out / "models" / "model.pt"


def test_clustering_adds_centroids(volumes, trained, clustered):
    before = torch.load(trained / "models" / "model.pt", weights_only=True)
    after = torch.load(clustered, weights_only=True)
    assert after.keys() == {"network", "model", "centroids"} and after["network"] == before["network"]
    assert_same(after["model"], before["model"], rtol=0, atol=0)
    assert after["centroids"].shape == (8, 8) and after["centroids"].dtype == torch.float32
    assert len(after["centroids"].unique(dim=0)) == 8
    defaults = json.loads((CONFIGS / "train.json").read_text())
    assert (defaults["latents"], defaults["clusters"]) == (60000, 8)


def test_the_prior_becomes_transmrsrs_decoder(clustered):
    content = torch.load(clustered, weights_only=True)
    network = TransMRSR(size=16, style_dim=8, channels=CHANNELS).eval()
    network.load_prior(content["model"], content["centroids"])
    assert torch.equal(network.decoder.constant, content["model"]["decoder.constant"])
    assert torch.equal(network.centroids, content["centroids"])
    with torch.no_grad():
        assert network(torch.rand(1, 1, 16, 16)).isfinite().all()


def sample(weights, out, **more):
    settings = {
        "ckpt_dir": str(weights.parent),
        "output_dir": str(out),
        "device": "$torch.device('cpu')",
        **TINY,
        **more,
    }
    flow = ConfigWorkflow(str(CONFIGS / "inference.json"), workflow_type="infer", logging_file=False, **settings)
    flow.initialize()
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()
    return {p.name.split(".")[0]: p for p in sorted(out.iterdir())}


def pixels(path):
    return torch.from_numpy(nib.load(path).get_fdata(dtype=np.float32))[..., 0]


def test_sampling_follows_the_seed(clustered, tmp_path):
    first = sample(clustered, tmp_path / "a", count=3, seed=5)
    assert list(first) == ["seed5_0000", "seed5_0001", "seed5_0002"]
    more = sample(clustered, tmp_path / "b", count=5, batch_size=2, seed=5)
    other = sample(clustered, tmp_path / "c", count=1, seed=6)
    assert len(more) == 5
    for name in first:
        torch.testing.assert_close(pixels(first[name]), pixels(more[name]))
    assert not torch.allclose(pixels(first["seed5_0000"]), pixels(first["seed5_0001"]))
    assert not torch.allclose(pixels(first["seed5_0000"]), pixels(other["seed6_0000"]))
    generator = load_network(clustered)
    z = torch.randn(8, generator=torch.Generator().manual_seed(5 * 1_000_003 + 1))
    with torch.no_grad():
        torch.testing.assert_close(pixels(first["seed5_0001"]), generator(z[None])[0, 0])


def test_truncation_of_sampling(clustered, tmp_path):
    generator = load_network(clustered)
    with torch.no_grad():
        centre = generator.mean_latent(4096, torch.Generator().manual_seed(0))
        middle = generator.synthesis(centre)[0, 0]
    none, half, full = (sample(clustered, tmp_path / str(p), count=2, psi=p) for p in (1.0, 0.5, 0.0))
    for name in full:
        torch.testing.assert_close(pixels(full[name]), middle)
        away = [(pixels(images[name]) - middle).norm() for images in (none, half)]
        assert 0 < away[1] < away[0]


def test_png_and_nothing_overwritten(clustered, tmp_path):
    nifti = sample(clustered, tmp_path / "a", count=2)
    png = sample(clustered, tmp_path / "b", count=2, output_format="png")
    for name, path in png.items():
        grey = load_picture(path)[0, ..., 0] / 255
        torch.testing.assert_close(grey.as_tensor(), pixels(nifti[name]).clamp(0, 1), rtol=0, atol=0.5001 / 255)
    with pytest.raises(RuntimeError) as error:
        sample(clustered, tmp_path / "b", count=2, output_format="png")
    causes = [error.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert isinstance(causes[-1], FileExistsError)
    sample(clustered, tmp_path / "b", count=2, output_format="png", overwrite=True)


def test_metadata_fits_the_network():
    metadata = json.loads((CONFIGS / "metadata.json").read_text())["network_data_format"]
    latent, pred = metadata["inputs"]["latent"], metadata["outputs"]["pred"]
    network = ConfigParser(json.loads((CONFIGS / "inference.json").read_text())).get_parsed_content("network_def")
    with torch.no_grad():
        images = network(torch.randn(1, latent["num_channels"], *latent["spatial_shape"]))
    assert images.shape[1:] == (pred["num_channels"], *pred["spatial_shape"])


def test_export_to_torchscript(clustered, tmp_path):
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(clustered),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.json"),
        key_in_ckpt="model",
        **TINY,
    )
    z = torch.randn(3, 8)
    with torch.no_grad():
        images = torch.jit.load(str(tmp_path / "model.ts"))(z)
        torch.testing.assert_close(images, load_network(clustered)(z), rtol=0, atol=1e-6)


def test_fid_of_the_validation_part(volumes, clustered, tmp_path):
    flow = workflow(volumes, tmp_path, ("evaluate",), "evaluating", weights=str(clustered), **FLAT)
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()
    name, value = (tmp_path / "eval" / "metrics.csv").read_text().split(",")
    slices = get(flow, "validate#dataset")
    items = [slices[i] for i in range(len(slices))]
    assert len(items) == 6
    real = torch.stack([item["label"] for item in items])
    with torch.no_grad():
        fakes = load_network(clustered)(torch.stack([item["image"] for item in items]))
    # three equal channels
    by_hand = fid(*(x.clamp(0, 1).flatten(1).repeat(1, 3) for x in (fakes, real)))
    assert name == "val_fid" and by_hand > 1 and float(value) == pytest.approx(by_hand, rel=1e-3)


def test_fid_in_training(volumes, tmp_path):
    flow = workflow(volumes, tmp_path, max_steps=6, bcr_weight=0, **FLAT)
    flow.run()
    values = scalars(tmp_path, "val_fid")
    assert len(values) == 2 and all(v > 0 for v in values)


def test_fid_without_inception_is_refused(volumes, clustered, tmp_path):
    with pytest.raises(Exception) as error:
        workflow(volumes, tmp_path, ("evaluate",), "evaluating", weights=str(clustered)).run()
    causes = [error.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert str(causes[-1]).startswith("inception_path is None: expected a file with torchvision's Inception-v3")


def test_the_papers_size():
    """The overlay fits train.json and inference.json; the networks are the authors'."""
    for name, ids in (("train", ("network_def", "discriminator_def")), ("inference", ("network_def",))):
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / f"{name}.json"), str(CONFIGS / "paper_size.json")])
        with torch.device("meta"):
            sizes = [sum(p.numel() for p in parser.get_parsed_content(i).parameters()) for i in ids]
        # 1 channel in place of 3: 4,124 fewer of 40,628,048, and 8 bands fewer of 128 + 512 + ... features
        assert sizes[0] == 40_623_924
        assert sizes[1:] in ([], [26_189_569])


def test_compact_prior_fits_a_bundle():
    parser = ConfigParser(json.loads((CONFIGS / "inference.json").read_text()))
    network = parser.get_parsed_content("network_def")
    assert sum(p.numel() for p in network.parameters()) == 1_165_366  # 4.7 MB
    assert NetworkArguments(network).state_dict()["num_heads"] == [4, 4, 4, 4, 4]
