"""Precision, compiling, slices at a time and seconds of `medsr upscale`, beside `monai.bundle run`."""

import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from torch import nn

from medsr_monai.upscaling import upscaler
from medsr_monai.upscaling.bundles import BundleRunner, bundle_folder
from medsr_monai.upscaling.memory import Memory
from medsr_monai.upscaling.plan import activation_bytes, slices_that_fit
from medsr_monai.upscaling.upscaler import Options


@pytest.fixture
def medsr(medsr):
    """Beside a small volume."""
    rows = np.linspace(0, 1000, 12, dtype=np.float32)
    Path("in").mkdir()
    nib.save(nib.Nifti1Image(np.sin(rows)[:, None, None] * 90 + rows[:, None] + 9 * rows[:6], np.eye(4)), "in/a.nii.gz")
    return medsr


def sidecar(path):
    return json.loads(Path(path).read_text())


def test_precision_is_the_same_as_in_monai_bundle_run_and_is_recorded(medsr):
    for precision in ("float32", "bfloat16"):
        done = medsr(
            "upscale", "in/a.nii.gz", f"{precision}.nii.gz", "--precision", precision, "--bundle", "rdst_e",
            "--plane", "axial", "--nopicture",
        )  # fmt: skip
        assert done[0] == 0, done[2]
        folder = bundle_folder("rdst_e")
        workflow = ConfigWorkflow(
            config_file=str(folder / "configs" / "inference.json"),
            workflow_type="inference",
            logging_file=False,
            bundle_root=str(folder),
            dataset_dir="in",
            output_dir=precision,
            precision=precision,
            plane="axial",
            device=torch.device("cpu"),
        )
        workflow.initialize()
        workflow.run()
        one, other = (nib.load(p).get_fdata() for p in (f"{precision}.nii.gz", f"{precision}/a_sr.nii.gz"))
        # some processors' kernels for bfloat16 do not give the same bits twice
        assert np.abs(one - other).max() <= (0 if precision == "float32" else 1e-3 * np.ptp(one))
    assert sidecar("bfloat16.json")["Options"]["precision"] == "bfloat16"
    assert "precision" not in sidecar("float32.json")["Options"]
    whole, half = (nib.load(f"{name}.nii.gz").get_fdata() for name in ("float32", "bfloat16"))
    assert 0 < np.abs(half - whole).max() < 0.012 * np.ptp(whole)


def test_a_cohort_is_made_anew_for_another_precision_only(medsr):
    for precision, said in (("auto", "1 done"), ("float32", "1 kept"), ("bfloat16", "1 done"), ("bfloat16", "1 kept")):
        code, out, _ = medsr("upscale", "in", "out", "--precision", precision, "--picture=false")
        assert code == 0 and said in out, (precision, out)


def test_compiling_is_recorded_and_asked_of_the_inferer(medsr, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    assert medsr("upscale", "in/a.nii.gz", "a.nii.gz", "--compile", "--nopicture")[0] == 0
    assert medsr("upscale", "in/a.nii.gz", "b.nii.gz", "--nopicture")[0] == 0
    assert sidecar("a.json")["Options"]["compile"] is True and "compile" not in sidecar("b.json")["Options"]
    runner = BundleRunner("rdst_e", compile=True, precision="bfloat16")
    assert runner["inferer"].compile and runner["inferer"].precision == "bfloat16"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--precision", "half"], "precision is 'half', expected auto, float32, bfloat16, float16"),
        (["--slice-batch", "0"], "slice_batch is 0, expected auto or at least 1"),
        (["--slice-batch", "many"], "slice_batch is many, expected auto or at least 1"),
        (
            ["--bundle", "rdst_e", "--weights", "net.ts", "--compile", "--trust-code"],
            "a network exported as torchscript is run as it is: leave --compile",
        ),
    ],
    ids=str,
)
def test_a_wrong_option_is_one_line_and_no_output(medsr, options, reason):
    torch.jit.script(nn.Upsample(scale_factor=4, mode="bicubic")).save("net.ts")
    code, _, err = medsr("upscale", "in/a.nii.gz", "a.nii.gz", *options)
    assert code == 1 and err.count("\n") == 1 and reason in err
    assert not list(Path().glob("a.*"))


def test_options_by_device():
    assert Options().overrides("cpu") == Options(precision="float32").overrides("cpu") == {"frame": None}
    assert Options(compile=True).overrides("cuda:0") == {"frame": None, "precision": "float16", "compile": True}
    assert Options(precision="float32").overrides("cuda:0") == {"frame": None, "precision": "float32"}
    assert Options("rdst_e", weights="model.onnx").overrides("cuda:0") == {"frame": None, "precision": "float32"}
    assert Options(precision="float32").recorded("cuda:0") == {"frame": None}
    assert Options(precision="float16").recorded("cpu") == {"frame": None, "precision": "float16"}
    bound = Options(enforce_consistency=True, noise=2.0).recorded("cpu")
    assert bound == {"frame": None, "consistency_bound": 0.001, "noise": 2.0}
    assert Options(noise=2.0).recorded("cpu") == {"frame": None}


def test_seconds_by_part(medsr, monkeypatch):
    """A slow disk is seen as writing, a slow network as network."""
    write, run = upscaler.write_voxels, BundleRunner.run
    monkeypatch.setattr(upscaler, "write_voxels", lambda *args: (time.sleep(0.7), write(*args)))
    monkeypatch.setattr(BundleRunner, "run", lambda *args: (time.sleep(0.4), run(*args))[1])
    assert medsr("upscale", "in/a.nii.gz", "a.nii.gz")[0] == 0
    record = sidecar("a.json")
    parts = record["SecondsBy"]
    assert list(parts) == ["Reading", "Network", "Quality", "Writing"]
    assert parts["Writing"] >= 0.7 and parts["Network"] >= 0.4 and min(parts.values()) >= 0
    assert sum(parts.values()) == pytest.approx(record["Seconds"], abs=0.01)


@pytest.fixture(scope="module")
def runner():
    return BundleRunner("rdst_e")


def test_slices_that_fit_a_gpu(runner):
    """By the estimate of memory, whose numbers are those of a CPU's test."""
    plan = runner.plan(torch.eye(4), (64, 48, 30))
    assert [(one.count, one.rows, one.columns) for one in plan.passes] == [(30, 64, 48)]
    one = activation_bytes(runner.network, (1, 1, 64, 48), "cuda")
    output = 3.3 * 4 * 256 * 192 * 30

    def fit(free):
        return slices_that_fit(runner.network, plan, int(free))

    assert fit(0) == fit(one) == 1
    assert fit((output + 7.5 * one) / 0.8) == 7
    assert fit(2**45) == 30  # all there are
    # without room for the output, it is gathered elsewhere
    assert fit(output * 0.99) == max(1, int(0.8 * output * 0.99 // one))


def test_a_gpu_takes_no_more_slices_than_it_could(runner, monkeypatch):
    monkeypatch.setattr("medsr_monai.upscaling.memory.free_gpu_bytes", lambda device: 2**45)
    memory = Memory(runner, automatic=True)
    plan, slices = runner.plan(torch.eye(4), (12, 12, 20)), runner["inferer"]
    assert memory.of(plan).slice_batch == slices.sw_batch_size == 20
    slices.sw_batch_size = 5  # memory ran out, the inferer has halved
    assert memory.of(plan).slice_batch == slices.sw_batch_size == 5


def test_a_compiled_network_keeps_to_one_number_of_slices(monkeypatch):
    """Each further one would take minutes; what does not fit any more is compiled for all the same."""
    monkeypatch.setattr("medsr_monai.upscaling.memory.free_gpu_bytes", lambda device: free)
    runner = BundleRunner("rdst_e", compile=True)
    memory, chosen = Memory(runner, automatic=True), []
    one = activation_bytes(runner.network, (1, 1, 12, 12))
    for slices, free in ((9, 2**45), (5, 2**45), (30, 2**45), (5, 3.8 * one)):  # noqa: B007
        chosen.append(memory.of(runner.plan(torch.eye(4), (12, 12, slices))).slice_batch)
    assert chosen[:3] == [9, 9, 9] and 1 <= chosen[3] < 9


def test_help_has_the_options(medsr):
    out = "".join(medsr("upscale", "--help")[1:])
    assert all(option in out for option in ("--precision", "--compile", "--slice_batch"))
