"""`medsr export`, and bundles run on the files that it writes, without the Python class of the network."""

import hashlib
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import amend, copy_bundle, save_weights
from monai.bundle import ConfigParser, ConfigWorkflow

from medsr_monai import Upscaler, cli
from medsr_monai.exchange.run import ONNX_PREFIX, TORCHSCRIPT_RECORD, ExportedNetwork
from medsr_monai.exchange.write import export_network
from medsr_monai.networks import EDSR
from medsr_monai.records.training_data import TrainingData
from medsr_monai.transforms import outer_corners

ROOT = Path(__file__).parents[2]
SR_BUNDLES = [p.parents[1] for p in sorted(ROOT.glob("bundles/*/configs/inference_exported.json"))]
SMALL = {"_target_": "medsr_monai.networks.EDSR", "in_channels": 1, "out_channels": 1, "channels": 8, "num_blocks": 1}
onnx_tools = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are not installed",
)
OVERLAID = ("inference", "inference_exported")
TRUST = ("--trust-code",)
FORMATS = [pytest.param("onnx", marks=onnx_tools), "ts"]


def medsr(*arguments):
    """Run in this process: exit code."""
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Copy of the bundle rdst_e with a small trained network, its exported forms, and an oblique volume."""
    here = tmp_path_factory.mktemp("export")
    bundle = copy_bundle(here / "tiny")
    amend(bundle / "configs" / "inference.json", network_def=SMALL | {"scale": "@scale"})
    torch.manual_seed(0)
    save_weights(EDSR(1, 1, 4, channels=8, num_blocks=1), bundle / "models" / "model.pt")
    (here / "volumes").mkdir()
    angle = np.radians(12)
    affine = np.eye(4)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = rotation @ np.diag([-1.0, 1.0, 4.0])
    values = (300 + 900 * np.random.default_rng(0).random((13, 18, 3))).astype(np.int16)
    nib.save(nib.Nifti1Image(values, affine), here / "volumes" / "a.nii.gz")
    assert medsr("export", bundle, bundle / "models" / "model.ts") == 0
    if onnx_tools.args[0] is False:
        assert medsr("export", bundle, bundle / "models" / "model.onnx", "--format", "onnx") == 0
    assert (
        medsr("upscale", here / "volumes" / "a.nii.gz", here / "eager.nii.gz", "--nopicture", "--bundle", bundle) == 0
    )
    return here


def assert_same_volume(path, place):
    found, expected = nib.load(path), nib.load(place / "eager.nii.gz")
    assert found.shape == expected.shape == (52, 72, 3)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    source = nib.load(place / "volumes" / "a.nii.gz")
    moved = outer_corners(found.affine, found.shape) - outer_corners(source.affine, source.shape)
    assert np.abs(moved).max() < 1e-3
    difference = np.abs(found.get_fdata() - expected.get_fdata()).max()
    assert difference <= 1e-4 * np.ptp(source.get_fdata()) and np.ptp(expected.get_fdata()) > 50


PROGRAM = """
import json, runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert not name.startswith("medsr_monai.networks"), f"{name} is imported"

sys.meta_path.insert(0, Refuse())
commands = json.loads(sys.argv[1])
for sys.argv in commands:
    code = 0
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    print("ended with", code)
"""


@pytest.fixture(scope="module")
def without_networks(place):
    """Both commands run on both formats in a process that cannot import medsr_monai.networks, then one on weights."""
    folder, volumes = place / "tiny", place / "volumes"
    upscale = ["medsr_monai", "upscale", volumes / "a.nii.gz", "--bundle", folder]
    configs = [str(folder / "configs" / f"{name}.json") for name in OVERLAID]
    run = ["monai.bundle", "run", "--config_file", configs, "--bundle_root", folder, "--dataset_dir", volumes]
    commands = []
    for file in sorted(folder.glob("models/model.*")):
        if file.suffix == ".pt":
            continue
        trust = [] if file.suffix == ".onnx" else ["--trust-code"]
        commands.append([*upscale, "--weights", file, "--output", place / f"upscale{file.suffix}.nii.gz", *trust])
        exported = ["--exported", file, "--trust_code", "true"] if trust else []
        commands.append([*run, *exported, "--output_dir", place / f"run{file.suffix}"])
    commands.append([*upscale, "--output", place / "never.nii.gz"])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, line], env=environment, capture_output=True, text=True, timeout=300
    )
    codes = list(map(int, re.findall("ended with (.*)", done.stdout)))
    assert codes == [0] * (len(commands) - 1) + [1], done.stdout[-2000:] + done.stderr[-2000:]
    # the guard works: the bundle's own weights need the network's class
    assert done.returncode == 0 and "medsr_monai.networks is imported" in done.stderr


@pytest.mark.parametrize("suffix", FORMATS)
def test_upscale_from_the_exported_file(place, without_networks, suffix):
    assert_same_volume(place / f"upscale.{suffix}.nii.gz", place)


@pytest.mark.parametrize("suffix", FORMATS)
def test_bundle_run_from_the_exported_file(place, without_networks, suffix):
    assert_same_volume(place / f"run.{suffix}" / "a_sr.nii.gz", place)


def test_torchscript_by_monai_alone(place):
    """MONAI's users know for .ts files: the network from the file, and no weights for it."""
    folder = place / "tiny"
    flow = ConfigWorkflow(
        str(folder / "configs" / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(folder),
        dataset_dir=str(place / "volumes"),
        output_dir=str(place / "run_jit"),
        network_def=f"$torch.jit.load({str(folder / 'models' / 'model.ts')!r})",
        weights="$None",
    )
    flow.initialize()
    flow.run()
    assert_same_volume(place / "run_jit" / "a_sr.nii.gz", place)


def test_the_command_says_what_it_wrote(place, capfd):
    assert medsr("export", place / "tiny", place / "again.ts", "--precision", "float16") == 0
    line = capfd.readouterr().out
    assert re.fullmatch(
        r"\S+/again\.ts: torchscript float16, 0\.\d MB, differs from the network by \d\.\de-0[45] at most "
        r"\(outputs up to 0\.\d+, images of 1x32x32, 2x37x29, 3x5x7, 1x2x33\)\n",
        line,
    ), line
    information = ExportedNetwork(place / "again.ts", trust_code=True).information
    assert information["bundle"] == "tiny" and information["precision"] == "float16"
    metadata = json.loads((place / "tiny" / "configs" / "metadata.json").read_text())
    assert information["bundle_version"] == metadata["version"]
    weights = (place / "tiny" / "models" / "model.pt").read_bytes()
    assert information["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert "research use only" in information["notice"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_says_what_its_weights_were_trained_on(place, tmp_path, suffix):
    """Also far from the bundle's description and from the one that lay beside the weights."""
    description = json.loads((ROOT / "bundles" / "rdst_e" / "docs" / "training_data.json").read_text())
    weights, volume = tmp_path / "w.pt", place / "volumes" / "a.nii.gz"
    shutil.copy(place / "tiny" / "models" / "model.pt", weights)
    description["weights_sha256"] = None
    beside, exported, out = tmp_path / "w.training_data.json", tmp_path / f"x.{suffix}", tmp_path / "out.nii.gz"
    beside.write_text(json.dumps(description))
    assert medsr("export", place / "tiny", exported, "--weights", weights) == 0
    beside.unlink()
    assert ExportedNetwork(exported, trust_code=True).information["training_data"] == description
    assert medsr("upscale", volume, out, "--nopicture", "--bundle", place / "tiny", "--weights", exported, *TRUST) == 0
    found = json.loads((tmp_path / "out.json").read_text())["TrainedOn"]
    known = TrainingData.from_content(description, "", "").sentence
    assert found["Description"] == f"tiny: {exported.name} claims: {known}"
    assert found["Claimed"] and found["Data"][0]["Modality"] == "MR"


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_a_file_says_of_itself_is_a_claim(place, tmp_path, caplog, suffix):
    """Only its own sum, where the bundle states it, makes a file published weights."""
    bundle = shutil.copytree(place / "tiny", tmp_path / "tiny")
    exported = bundle / "models" / f"model.{suffix}"
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    published = hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()
    files = [{"path": "models/model.pt", "sha256": published}]
    own = {"path": f"models/model.{suffix}", "sha256": hashlib.sha256(exported.read_bytes()).hexdigest()}
    for stated, known in ((files, False), ([*files, own], True)):
        caplog.clear()
        (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata | {"weights": stated}))
        arguments = ("--bundle", bundle, "--weights", exported, "--overwrite", *TRUST)
        assert medsr("upscale", place / "volumes" / "a.nii.gz", tmp_path / "out.nii.gz", *arguments) == 0
        found = json.loads((tmp_path / "out.json").read_text())["Bundle"]
        assert found["Degradation"] == (metadata["degradation"] if known else None)
        claimed = f"model.{suffix} claims to be made of weights of bundle tiny (sha256 {published})"
        assert (claimed in caplog.text) != known
        assert found["Weights"].get("Claims", {}).get("weights_sha256") == (None if known else published)


@pytest.mark.parametrize("command", ["upscale", "compare", "python"])
def test_torchscript_runs_only_where_it_is_trusted(place, tmp_path, capfd, monkeypatch, command):
    """It can write files: of the shared case, or made here, the file is as it was."""
    monkeypatch.chdir(tmp_path)

    class Writes(torch.nn.Module):
        def forward(self, x):
            written = torch.from_file("victim.txt", True, 8, dtype=torch.uint8).fill_(65)
            return 0.0 * written.float().sum() + torch.repeat_interleave(torch.repeat_interleave(x, 4, 2), 4, 3)

    Path("victim.txt").write_text("kept kept")
    evil, volume = tmp_path / "evil.ts", place / "volumes" / "a.nii.gz"
    torch.jit.script(Writes()).save(evil)
    if command == "python":
        with pytest.raises(ValueError, match=r"TorchScript is code.*--trust-code"):
            Upscaler(str(place / "tiny"), weights=str(evil))
        Upscaler(str(place / "tiny"), weights=str(evil), trust_code=True)
        return
    words = {
        "upscale": ("upscale", volume, tmp_path / "x.nii.gz", "--bundle", place / "tiny", "--weights", evil),
        "compare": ("compare", volume, tmp_path / "c", "--bundles", f"{place / 'tiny'}={evil}", "--border", "0"),
    }[command]
    assert medsr(*words) == 1
    error = capfd.readouterr().err
    assert "evil.ts: TorchScript is code" in error and "--trust-code" in error and error.count("\n") == 1, error
    assert Path("victim.txt").read_text() == "kept kept"
    medsr(*words, "--trust-code")
    assert Path("victim.txt").read_text() == "A" * 8 + "t"


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_damaged_record_is_one_line(place, tmp_path, suffix):
    """No JSON, lists for dictionaries, numbers of a size that no network has, and nesting without end."""
    for name, text in (("network", "[1]"), ("scale", "7"), ("scale", '[0, "a"]'), ("network", '{"psf_channels": 1e9}'),
                       ("scale", "[" * 100_000), ("network", "{")):  # fmt: skip
        path = tmp_path / f"w.{suffix}"
        if suffix == "ts":
            network = torch.jit.load(place / "tiny" / "models" / "model.ts")
            network.save(path, _extra_files={TORCHSCRIPT_RECORD: f'{{"{name}": {text}}}'})
        else:
            import onnx

            model = onnx.load(place / "tiny" / "models" / "model.onnx")
            del model.metadata_props[:]
            onnx.helper.set_model_props(model, {f"{ONNX_PREFIX}{name}": text})
            onnx.save(model, path)
        with pytest.raises(ValueError, match=r"w\.\w+: its record is damaged .*: export the network again"):
            ExportedNetwork(path, trust_code=True)


def test_a_record_that_is_no_description_is_refused(place, capfd, tmp_path):
    network, out = EDSR(1, 1, 4, channels=8, num_blocks=1), tmp_path / "out.nii.gz"
    export_network(network, tmp_path / "w.ts", "torchscript", information={"training_data": {"groups": [{}]}})
    options = ("--bundle", place / "tiny", "--weights", tmp_path / "w.ts", *TRUST)
    code = medsr("upscale", place / "volumes" / "a.nii.gz", out, *options)
    assert code == 1 and not out.exists()
    assert re.fullmatch(
        r"medsr: error: \S*w\.ts: no description of training data, export the network again\n", capfd.readouterr().err
    )


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["tiny", "new.pt"], "give a name that ends in .onnx or .ts"),
        (["tiny", "new.ts", "--format", "onnx"], "give a name that ends in .onnx"),
        (["tiny", "new.ts", "--format", "trt"], "format is 'trt'"),
        (["tiny", "new.ts", "--precision", "int8"], "precision is 'int8'"),
        (["tiny", "volumes/a.nii.gz"], "exists, choose another name or add --overwrite"),
        (["tiny", "new.ts", "--weights", "tiny/models/model.ts"], "is an exported network"),
        (["tiny", "new.ts", "--weights", "missing.pt"], "missing.pt: no such weights file"),
        (["seg_unet", "new.ts"], "bundle seg_unet does not super-resolve"),
        (["nope", "new.ts"], "no bundle 'nope'"),
    ],
)
def test_what_cannot_be_exported_is_one_line(place, capfd, monkeypatch, arguments, reason):
    monkeypatch.chdir(place)
    assert medsr("export", *arguments) == 1
    error = capfd.readouterr().err
    assert error.startswith("medsr: error: ") and error.count("\n") == 1 and reason in error, error
    assert not list(place.glob("*new*"))


def test_a_missing_library_is_named(place, capfd, monkeypatch):
    for name in ("onnxruntime", "onnxscript"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            assert medsr("export", place / "tiny", place / "new.onnx") == 1
            error = capfd.readouterr().err
            assert f"needs {name}: pip install 'medsr_monai[export]'" in error and error.count("\n") == 1, error
    assert not list(place.glob("*new*"))
    (place / "some.onnx").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    volume = place / "volumes" / "a.nii.gz"
    assert medsr("upscale", volume, place / "x.nii.gz", "--bundle", place / "tiny", "--weights", place / "some.onnx")
    assert "needs onnxruntime: pip install 'medsr_monai[export]'" in capfd.readouterr().err


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_does_not_fit_is_refused(place, capfd, tmp_path, suffix):
    volume, good = place / "volumes" / "a.nii.gz", place / "tiny" / "models" / f"model.{suffix}"
    damaged = tmp_path / f"damaged.{suffix}"
    damaged.write_bytes(good.read_bytes()[:2000])
    wrong = {
        damaged: "damaged one",
        tmp_path / f"missing.{suffix}": "no such weights file",
    }
    for path, reason in wrong.items():
        out = tmp_path / "out.nii.gz"
        assert medsr("upscale", volume, out, "--bundle", place / "tiny", "--weights", path, *TRUST) == 1
        error = capfd.readouterr().err
        assert reason in error and path.name in error and error.count("\n") == 1, error
        assert not out.exists()
    with pytest.raises(ValueError, match=r"a network of scale \[4, 4\], expected \[1, 4\]"):
        ExportedNetwork(good, [1, 4], trust_code=True)
    with pytest.raises(ValueError, match="takes images of 1 channels, got 3"):
        ExportedNetwork(good, trust_code=True)(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="expected an exported network"):
        ExportedNetwork(place / "tiny" / "models" / "model.pt")
    with pytest.raises(FileNotFoundError, match="no such exported network"):
        ExportedNetwork(tmp_path / f"missing.{suffix}")


def test_torchscript_that_others_wrote_is_checked_by_its_output(place, tmp_path):
    network = EDSR(1, 1, 2, channels=8, num_blocks=1).eval()
    torch.jit.script(network).save(tmp_path / "other.ts")
    x = torch.rand(1, 1, 5, 7)
    assert ExportedNetwork(tmp_path / "other.ts", trust_code=True).information == {}
    with torch.no_grad():
        torch.testing.assert_close(ExportedNetwork(tmp_path / "other.ts", 2, trust_code=True)(x), network(x))
        with pytest.raises(ValueError, match=r"made \[10, 14\] pixels of \[5, 7\], expected \[20, 28\]"):
            ExportedNetwork(tmp_path / "other.ts", 4, trust_code=True)(x)


def test_every_super_resolution_bundle_has_the_overlays():
    with_scale = [
        p.parents[1] for p in ROOT.glob("bundles/*/configs/inference.json") if "scale" in json.loads(p.read_text())
    ]
    assert sorted(with_scale) == SR_BUNDLES
    for name in ("inference_exported", "inference_trt"):
        assert len({(b / "configs" / f"{name}.json").read_bytes() for b in SR_BUNDLES}) == 1, name


@pytest.mark.parametrize("bundle", SR_BUNDLES, ids=lambda p: p.name)
def test_overlay_for_exported_networks(bundle, place):
    parser = ConfigParser(ConfigParser.load_config_files([bundle / "configs" / f"{n}.json" for n in OVERLAID]))
    parser.update({"bundle_root": str(bundle)})
    assert parser.get_parsed_content("exported") == str(bundle / "models" / "model.onnx")
    parser["scale"] = 4
    parser["exported"] = str(place / "tiny" / "models" / "model.ts")
    parser.parse(reset=True)
    with pytest.raises(RuntimeError) as raised:
        parser.get_parsed_content("network")
    assert "TorchScript is code" in str(raised.value.__cause__)
    parser["trust_code"] = "true"  # as MONAI's command line gives it
    parser.parse(reset=True)
    assert isinstance(parser.get_parsed_content("network"), ExportedNetwork)
    assert [type(h).__name__ for h in parser.get_parsed_content("handlers")] == ["StatsHandler"]


@pytest.mark.parametrize("bundle", SR_BUNDLES, ids=lambda p: p.name)
def test_overlay_for_tensorrt(bundle, monkeypatch, capfd):
    """Its ids exist; trt_compile gets the network, its weights, and profiles with every axis free but the channels."""
    calls = []
    monkeypatch.setattr("monai.networks.trt_compile", lambda network, *a, **k: calls.append((network, a, k)) or network)
    overlay = json.loads((bundle / "configs" / "inference_trt.json").read_text())
    base = json.loads((bundle / "configs" / "inference.json").read_text())
    assert set(overlay) - set(base) == {"trt_args"}
    assert set(base["imports"]) <= set(overlay["imports"])
    files = [bundle / "configs" / f"{n}.json" for n in ("inference", "inference_trt")]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.update({"bundle_root": str(bundle), "device": "$torch.device('cpu')"})
    network = parser.get_parsed_content("network")
    ((compiled, (weights,), options),) = calls
    assert compiled is network and not network.training
    assert weights == f"{bundle}/models/model.pt"
    (profile,) = options["args"]["input_profiles"]
    assert list(profile) == [next(iter(inspect.signature(network.forward).parameters))]
    smallest, usual, largest = profile["x"]
    assert usual[0] == largest[0] == base["sw_batch_size"] and smallest[0] == 1
    assert smallest[1] == usual[1] == largest[1] == base["network_def"]["in_channels"]
    assert smallest < usual < largest
    # without TensorRT, MONAI leaves the network as it is and says so
    monkeypatch.undo()
    from monai.networks import trt_compile

    if not torch.cuda.is_available():
        assert trt_compile(network, weights, args=options["args"]) is network
