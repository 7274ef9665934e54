"""`medsr` as a user types it: most in this process through `main`, some as real processes."""

from __future__ import annotations

import errno
import functools
import importlib.util
import inspect
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from bundle_copies import TINY, copy_bundle, save_weights, tiny_network
from fire import docstrings
from monai.utils import ComponentStore
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medsr_monai import cli
from medsr_monai.data import sample_volume
from medsr_monai.metrics import psnr
from medsr_monai.networks import EDSR, InceptionFeatures, SegmentationUNet
from medsr_monai.upscaling.bundles import DEFAULT_BUNDLE, BundleRunner
from medsr_monai.weights.load import load_network

ROOT = Path(__file__).parent.parent
PLANES = ("sagittal", "coronal", "axial")
THICK = np.diag([1.0, 1.0, 4.0, 1.0])


# ground


COHORT = ("index.html", "status.csv", "status.json")


def start(*args: object, python: Path | str = sys.executable, **options: object) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"} | {"PYTHONPATH": str(ROOT)}
    command = [python, "-m", "medsr_monai", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, text=True, **pipes, **options)


def process(*args: object, **options: object) -> tuple[int, str, str]:
    running = start(*args, **options)
    out, err = running.communicate(timeout=120)
    return running.returncode, out, err


def refused(result: tuple[int, str, str], reason: str) -> None:
    code, out, err = result
    assert code == 1, (out, err)
    assert err.count("\n") == 1 and err.startswith("medsr: error: "), err
    assert re.search(reason, err), err


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).random(shape)
    return (1000 * gaussian_filter(noise, 2)).astype(np.float32)


def make_volume(path: Path, shape: tuple[int, ...] = (20, 18, 5), affine: np.ndarray = THICK, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(smooth(shape, seed), affine), path)
    return path


def oblique_affine() -> np.ndarray:
    """Array axes run near posterior, left and superior in steps of 1.1, 0.9 and 5.2 mm."""
    turn = np.deg2rad(12)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.array([[0, -1, 0], [-1, 0, 0], [0, 0, 1]]) @ np.diag([1.1, 0.9, 5.2])
    affine[:3, 3] = [-31, 17.5, 40]
    return affine


def corners(image: nib.Nifti1Image) -> np.ndarray:
    index = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in image.shape))))
    return index @ image.affine[:3, :3].T + image.affine[:3, 3]


def assert_same_corners(a: Path, b: Path) -> None:
    first, second = nib.load(a), nib.load(b)
    voxel = np.linalg.norm(second.affine[:3, :3], axis=0).min()
    np.testing.assert_allclose(corners(first), corners(second), atol=1e-3 * voxel)


def make_dicom(folder: Path, positions: tuple[float, ...] = (0, 5, 10, 15, 20, 25)) -> Path:
    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    rng = np.random.default_rng(0)
    for number, position in enumerate(positions):
        d = Dataset()
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = MRImageStorage
        d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, series, frame
        d.Modality, d.PatientName, d.PatientID, d.InstanceNumber = "MR", "Nobody", "0", number + 1
        d.ImagePositionPatient = [-8.0, -9.0, float(position)]
        d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        d.PixelSpacing, d.SliceThickness = [1.0, 1.0], 5.0
        d.Rows = d.Columns = 16
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
        d.PixelData = rng.integers(0, 1000, (16, 16), dtype=np.uint16).tobytes()
        pydicom.dcmwrite(folder / f"{number}.dcm", d, enforce_file_format=True)
    return folder


# upscale


@pytest.mark.parametrize("plane", [*PLANES, "auto"])
def test_every_plane_keeps_the_corners_and_enlarges_the_two_axes_of_its_slices(medsr, bundle, tmp_path, plane):
    source = make_volume(tmp_path / "in.nii.gz", affine=oblique_affine())
    code, out, err = medsr("upscale", source, "new/out.nii.gz", "--bundle", bundle, "--plane", plane)
    assert (code, err) == (0, "")
    assert ("plane axial (auto)" if plane == "auto" else f"plane {plane}; about ") in out
    result = nib.load("new/out.nii.gz")
    across = {"sagittal": 1, "coronal": 0, "axial": 2, "auto": 2}[plane]
    assert result.shape == tuple(n * (1 if axis == across else 4) for axis, n in enumerate((20, 18, 5)))
    assert result.get_data_dtype() == np.float32
    assert_same_corners(source, tmp_path / "new/out.nii.gz")
    assert sorted(os.listdir("new")) == ["out.json", "out.nii.gz", "out.quality.png"]


def test_a_process_gives_what_the_bundle_gives_and_says_nothing_on_stderr(warm_python, bundle, tmp_path):
    source = make_volume(tmp_path / "in" / "a.nii.gz", affine=oblique_affine())
    code, out, err = process("upscale", source, tmp_path / "out.nii.gz", "--bundle", bundle, "--device", "cpu")
    assert (code, err) == (0, "") and "nvImageCodec" not in out
    options = ["--config_file", f"{bundle}/configs/inference.json", "--bundle_root", bundle]
    options += ["--dataset_dir", source.parent, "--output_dir", tmp_path / "eval", "--device", "$torch.device('cpu')"]
    command = [warm_python, "-m", "monai.bundle", "run", *map(str, options)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = nib.load(tmp_path / "out.nii.gz"), nib.load(tmp_path / "eval" / "a_sr.nii.gz")
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    np.testing.assert_allclose(ours.get_fdata(), theirs.get_fdata(), atol=1e-6 * ours.get_fdata().max())


def test_a_folder_keeps_its_subfolders_and_goes_on_after_a_bad_case(medsr, bundle, tmp_path):
    for name in ("a.nii.gz", "sub-1/anat/b.nii", "sub-2/d.nii.gz"):
        make_volume(tmp_path / "in" / name)
    make_volume(tmp_path / "in" / "sub-1/c.nii.gz", shape=(8, 8))
    code, out, err = medsr("upscale", "in", "out", "--bundle", bundle)
    assert code == 1
    first, last = err.splitlines()
    assert first.startswith("medsr: error: in/sub-1/c.nii.gz: ") and "3D volume" in first
    assert last == "medsr: error: 1 of 4 volumes failed"
    written = sorted(str(p.relative_to("out")) for p in Path("out").rglob("*") if p.is_file())
    assert written == [
        "a_sr.json", "a_sr.nii.gz", "a_sr.quality.png", "index.html", "status.csv", "status.json",
        "sub-1/anat/b_sr.json", "sub-1/anat/b_sr.nii.gz", "sub-1/anat/b_sr.quality.png",
        "sub-2/d_sr.json", "sub-2/d_sr.nii.gz", "sub-2/d_sr.quality.png",
    ]  # fmt: skip
    assert out.count("plane axial (auto)") == 3
    Path("out/a_sr.json").unlink()
    refused(medsr("upscale", "in", "out", "--bundle", bundle), r"out/a_sr\.nii\.gz: exists.*--overwrite")


def test_a_file_goes_into_an_existing_folder(medsr, bundle, tmp_path):
    make_volume(tmp_path / "a.nii.gz")
    Path("out").mkdir()
    assert medsr("upscale", "a.nii.gz", "out", "--bundle", bundle)[0] == 0
    assert sorted(os.listdir("out")) == ["a_sr.json", "a_sr.nii.gz", "a_sr.quality.png"]
    refused(medsr("upscale", "a.nii.gz", "out", "--bundle", bundle), r"out/a_sr\.nii\.gz: exists.*--overwrite")


def test_two_inputs_never_share_an_output(medsr, bundle, tmp_path):
    for name in ("a.nii", "a.nii.gz"):
        make_volume(tmp_path / "in" / name)
    refused(medsr("upscale", "in", "out", "--bundle", bundle), r"a_sr\.nii\.gz: would be written for .* rename")
    assert not Path("out").exists()


def test_results_beside_their_inputs_are_not_taken_for_inputs(medsr, bundle, tmp_path):
    make_volume(tmp_path / "in" / "a.nii.gz")
    names = ["a.nii.gz", "a_sr.json", "a_sr.nii.gz", "a_sr.quality.png", "index.html", "status.csv", "status.json"]
    for switch in ((), (), ("--overwrite",)):
        assert medsr("upscale", "in", "in", "--bundle", bundle, *switch)[0] == 0
        assert sorted(os.listdir("in")) == names
    # without a sidecar it is any volume
    Path("in/a_sr.json").unlink()
    before = Path("in/a_sr.nii.gz").read_bytes()
    refused(medsr("upscale", "in", "in", "--bundle", bundle, "--overwrite"), "in/a_sr.nii.gz: is an input too")
    assert Path("in/a_sr.nii.gz").read_bytes() == before


def test_a_freesurfer_volume_is_read(medsr, bundle, tmp_path):
    nib.save(nib.MGHImage(smooth((12, 10, 4)), oblique_affine().astype(np.float32)), "in.mgz")
    assert medsr("upscale", "in.mgz", "out.nii.gz", "--bundle", bundle, "--nopicture")[0] == 0
    assert nib.load("out.nii.gz").shape == (48, 40, 4)
    assert_same_corners(tmp_path / "in.mgz", tmp_path / "out.nii.gz")


def test_a_dicom_folder_becomes_a_volume_in_the_same_place(medsr, bundle, tmp_path):
    make_dicom(tmp_path / "series")
    code, out, err = medsr("upscale", "series", "out.nii.gz", "--bundle", bundle, "--nopicture")
    assert (code, err) == (0, "")
    assert "16x16x6 voxels of 1x1x5 mm, plane axial (auto)" in out
    result = nib.load("out.nii.gz")
    assert result.shape == (64, 64, 6)
    # DICOM counts towards left and posterior
    expected = list(itertools.product((-7.5, 8.5), (-6.5, 9.5), (-2.5, 27.5)))
    np.testing.assert_allclose(sorted(map(tuple, corners(result).round(3))), sorted(expected), atol=1e-3)


def test_a_dicom_folder_with_a_missing_slice_is_refused(medsr, bundle, tmp_path):
    make_dicom(tmp_path / "series", positions=(0, 5, 15, 20))
    refused(medsr("upscale", "series", "out.nii.gz", "--bundle", bundle), "series: .*unevenly")
    assert not Path("out.nii.gz").exists()


def test_a_frame_of_a_series_is_taken_on_request(medsr, bundle, tmp_path):
    make_volume(tmp_path / "4d.nii.gz", shape=(12, 12, 4, 3))
    nib.save(nib.load("4d.nii.gz").slicer[..., 1], "3d.nii.gz")
    refused(medsr("upscale", "4d.nii.gz", "out.nii.gz", "--bundle", bundle), "4d.nii.gz: .*--frame 0 to 2")
    refused(medsr("upscale", "4d.nii.gz", "out.nii.gz", "--bundle", bundle, "--frame", 3), "frame 3")
    assert medsr("upscale", "4d.nii.gz", "out.nii.gz", "--bundle", bundle, "--nopicture", "--frame", 1)[0] == 0
    assert medsr("upscale", "3d.nii.gz", "expected.nii.gz", "--bundle", bundle, "--nopicture")[0] == 0
    np.testing.assert_array_equal(nib.load("out.nii.gz").get_fdata(), nib.load("expected.nii.gz").get_fdata())


def test_tiles_and_slice_batches_give_nearly_the_same(medsr, bundle, tmp_path):
    make_volume(tmp_path / "in.nii.gz", shape=(40, 44, 3))
    results = {}
    for name, options in {"whole": (), "tile": ("--tile", 32), "batch": ("--slice_batch=1",)}.items():
        assert medsr("upscale", "in.nii.gz", f"{name}.nii.gz", "--bundle", bundle, "--nopicture", *options)[0] == 0
        results[name] = nib.load(f"{name}.nii.gz").get_fdata()
    extent = np.ptp(results["whole"])
    np.testing.assert_allclose(results["batch"], results["whole"], atol=1e-5 * extent)
    # a network of random weights leaves seams that a trained one does not
    difference = np.abs(results["tile"] - results["whole"]) / extent
    assert 0 < difference.max() < 0.2 and difference.mean() < 0.01


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--plane", "oblique"], "plane is 'oblique', expected auto, sagittal, coronal, axial"),
        (["--device", "nonsense"], "device 'nonsense' is not available here"),
        (["--tile", "8"], "tile is 8, expected at least 32 pixels"),
        (["--slice_batch", "0"], "slice_batch is 0, expected auto or at least 1"),
        (["--bundle", "seg_unet"], "bundle seg_unet does not super-resolve: run it as its docs/README.md says"),
        (["--bundle", "nope"], "no bundle 'nope': choose .*rdst_e.*, or give a bundle's folder"),
        (["--weights", "missing.pt"], "missing.pt: no such weights file"),
        (["--weights", "text.pt"], "text.pt: not a PyTorch weights file"),
        (["--weights", "list.pt"], "list.pt: no .*medsr convert"),
        (["--weights", "odd.pt"], "odd.pt: "),
        (["--weights", "x2.pt"], "x2.pt: .*scale is 2 in the weights and 4 in network_def"),
        (["--weights", "class.pt"], "class.pt: .*_target_ is 'medsr_monai.networks.EDSR' in the weights"),
    ],
)
def test_a_wrong_option_is_one_line(medsr, bundle, tmp_path, options, reason):
    make_volume(tmp_path / "in.nii.gz")
    Path("text.pt").write_text("no weights")
    torch.save([1, 2], "list.pt")
    torch.save({"network": 3, "model": 4}, "odd.pt")
    save_weights(tiny_network(scale=2), tmp_path / "x2.pt")
    save_weights(EDSR(num_blocks=1, channels=4), tmp_path / "class.pt")
    refused(medsr("upscale", "in.nii.gz", "new/out.nii.gz", "--bundle", bundle, *options), reason)
    assert not Path("new").exists()


def test_weights_of_another_form_of_the_network_bring_its_arguments(medsr, bundle, tmp_path):
    """Of the authors, say, whose network has no bicubic residual, or with other widths."""
    make_volume(tmp_path / "in.nii.gz")
    network = tiny_network(bicubic_residual=False, growth_rate=12, num_blocks=2)
    save_weights(network, tmp_path / "own.pt")
    assert medsr("upscale", "in.nii.gz", "a.nii.gz", "--bundle", bundle, "--nopicture", "--weights", "own.pt")[0] == 0
    runner = BundleRunner(bundle)
    runner.network = network.eval()
    expected = runner.run(runner.read(tmp_path / "in.nii.gz"))
    np.testing.assert_allclose(nib.load("a.nii.gz").get_fdata(), expected[0], rtol=0, atol=1e-5 * np.ptp(expected))


def test_other_weights_are_used(medsr, bundle, tmp_path):
    make_volume(tmp_path / "in.nii.gz")
    network = tiny_network()
    torch.nn.init.zeros_(network.last.weight)
    save_weights(network, tmp_path / "1e3")
    assert medsr("upscale", "in.nii.gz", "a.nii.gz", "--bundle", bundle, "--nopicture")[0] == 0
    assert medsr("upscale", "in.nii.gz", "b.nii.gz", "--bundle", bundle, "--nopicture", "--weights", "1e3")[0] == 0
    assert not np.allclose(nib.load("a.nii.gz").get_fdata(), nib.load("b.nii.gz").get_fdata())


def test_a_bundle_without_weights_exits_1_and_writes_nothing(medsr, tmp_path):
    make_volume(tmp_path / "in.nii.gz")
    copy_bundle(tmp_path / "bare", **TINY)
    for arguments in (("upscale", "in.nii.gz", "new/out.nii.gz"), ("demo", "new")):
        refused(medsr(*arguments, "--bundle", "bare"), "bundle bare has no trained weights")
        assert not Path("new").exists()


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("out.img", r"out\.img: .*ends in \.nii\.gz"),
        ("out", r"out: .*ends in \.nii\.gz"),
        ("in.nii.gz", "in.nii.gz: is the input"),
        ("./x/../in.nii.gz", "is the input"),
        ("link.nii.gz", "is the input"),
        ("in.nii.gz/out.nii.gz", "in.nii.gz/out.nii.gz: nothing can be written to"),
        pytest.param(
            "locked/out.nii.gz",
            "locked/out.nii.gz: nothing can be written to",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere"),
        ),
    ],
)
def test_an_output_that_cannot_be_is_refused_even_with_overwrite(medsr, bundle, tmp_path, output, reason):
    source = make_volume(tmp_path / "in.nii.gz")
    before = source.read_bytes()
    Path("x").mkdir()
    Path("link.nii.gz").symlink_to("in.nii.gz")
    Path("locked").mkdir(mode=0o500)
    refused(medsr("upscale", "in.nii.gz", output, "--bundle", bundle, "--overwrite"), reason)
    assert source.read_bytes() == before


def test_a_folder_needs_an_output_folder(medsr, bundle, tmp_path):
    make_volume(tmp_path / "in" / "a.nii.gz")
    Path("file").touch()
    for output in ("file", "out.nii.gz"):
        refused(medsr("upscale", "in", output, "--bundle", bundle, "--overwrite"), f"in: .*output folder, {output} is")
    assert not Path("out.nii.gz").exists()


@pytest.mark.parametrize("switch", [(), ("--nooverwrite",), ("--overwrite=false",), ("--overwrite", "False")])
def test_nothing_is_overwritten_unasked(medsr, bundle, tmp_path, switch):
    make_volume(tmp_path / "in.nii.gz")
    Path("out.nii.gz").write_text("mine")
    refused(medsr("upscale", "in.nii.gz", "out.nii.gz", "--bundle", bundle, *switch), "out.nii.gz: exists.*--overwrite")
    assert Path("out.nii.gz").read_text() == "mine"


@pytest.mark.parametrize("switch", [("--overwrite",), ("--overwrite=true",), ("--overwrite", "True")])
def test_overwrite_replaces_the_output(medsr, bundle, tmp_path, switch):
    make_volume(tmp_path / "in.nii.gz")
    Path("out.nii.gz").write_text("mine")
    assert medsr("upscale", "in.nii.gz", "out.nii.gz", "--bundle", bundle, "--nopicture", *switch)[0] == 0
    assert nib.load("out.nii.gz").shape == (80, 72, 5)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "disk full"), 1)])
def test_a_write_that_ends_early_leaves_the_old_file_and_no_part(medsr, bundle, tmp_path, monkeypatch, error, code):
    make_volume(tmp_path / "in.nii.gz")
    Path("out").mkdir()
    Path("out/out.nii.gz").write_text("mine")

    def half(image: nib.Nifti1Image, stream: io.RawIOBase) -> None:
        stream.write(b"half")
        raise error

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", half)
    result = medsr("upscale", "in.nii.gz", "out/out.nii.gz", "--bundle", bundle, "--overwrite")
    assert result[0] == code and result[2].count("\n") == 1
    assert os.listdir("out") == ["out.nii.gz"]
    assert Path("out/out.nii.gz").read_text() == "mine"


def test_an_interrupted_process_leaves_nothing(warm_python, bundle, tmp_path):
    source = make_volume(tmp_path / "in.nii.gz", shape=(128, 128, 200))
    # a shell's background jobs ignore SIGINT, and their children with them: a terminal's do not
    listening = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    out = tmp_path / "out" / "out.nii.gz"
    running = start("upscale", source, out, "--bundle", bundle, python=warm_python, preexec_fn=listening)
    assert "trained on" in running.stdout.readline() and "plane axial" in running.stdout.readline()
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, "medsr: interrupted\n")
    assert not any((tmp_path / "out").rglob("*"))


GOOD = smooth((16, 14, 5))


def _one_voxel(value: float) -> np.ndarray:
    values = GOOD.copy()
    values[2, 3, 1] = value
    return values


# the command line itself


@pytest.fixture
def recorded(monkeypatch):
    """Every command notes its arguments instead of working."""
    calls: list[tuple[str, tuple, dict]] = []

    def recorder(function):
        @functools.wraps(function)
        def note(*args, **kwargs):
            calls.append((function.__name__, args, kwargs))

        return note

    monkeypatch.setattr(cli, "COMMANDS", {name: recorder(f) for name, f in cli.COMMANDS.items()})
    return calls


@pytest.mark.parametrize(
    "name", ["2024", "1e3", "True", "None", "[1,2]", "0x10", "a b", "{'a': 1}", "~x", "ä.nii", "1,2"]
)
def test_paths_and_ids_stay_strings(medsr, recorded, name):
    assert medsr("upscale", name, name, "--bundle", name, f"--weights={name}")[0] == 0
    _, args, kwargs = recorded[0]
    assert args[:2] == (name, name) and name in args[2:] and args.count(name) == 4, (args, kwargs)
    assert medsr("models", "--json=false")[0] == 0
    assert medsr("convert", name, name, name)[0] == 0
    assert recorded[-1][1][:3] == (name, name, name)


def test_a_folder_named_2024_is_upscaled_into_1e3(medsr, bundle, tmp_path):
    make_volume(tmp_path / "2024" / "7.nii.gz")
    assert medsr("upscale", "2024", "1e3", "--bundle", bundle)[0] == 0
    assert sorted(os.listdir("1e3")) == ["7_sr.json", "7_sr.nii.gz", "7_sr.quality.png", *COHORT]


@pytest.mark.parametrize(
    "line",
    [
        "upscale",
        "upscale in",
        "upscale in out --ovrwrite",
        "upscale in out --foo 3",
        "upscale in out --foo=3",
        "upscale in out b auto cpu None None 4 None True surplus",
        "upscale in out surplus b auto cpu None None None 4 None True",
        "upscale in out --overwrite surplus",
        "upscale in out --overwrite=yes",
        "upscale in --overwrite out --verbose no",
        "upscale in out --frame first",
        "upscale in out --frame 1.5",
        "upscale in out - run",
        "upscale in out - function",
        "upscale __doc__",
        "upscale __wrapped__",
        "degrade in out --scale four",
        "degrade in out --noise much",
        "models surplus",
        "models --jsn",
        "models - json",
        "clear",
        "keys",
        "get upscale",
        "nonsense",
    ],
)
def test_a_wrong_command_line_exits_2_before_any_work(medsr, recorded, line):
    code, out, err = medsr(*line.split())
    assert (code, out) == (2, "")
    assert "ERROR: " in err and "Usage: medsr" in err
    assert not recorded


def test_an_empty_argument_is_refused(medsr, recorded):
    code, _, err = medsr("upscale", "", "out")
    assert code == 2 and "empty" in err
    assert not recorded


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("models --json", True),
        ("models --json=true", True),
        ("models --json True", True),
        ("models --nojson", False),
        ("models --json=False", False),
        ("models", False),
    ],
)
def test_switches(medsr, recorded, line, expected):
    assert medsr(*line.split())[0] == 0
    assert recorded[0][1] == (expected,)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("inspect --json in", {"path": "in", "json": True}),
        ("inspect -j --verbose in --no_timing", {"path": "in", "json": True, "no_timing": True}),
        ("inspect --nojson in", {"path": "in"}),
        ("inspect --json True in", {"path": "in", "json": True}),
        ("inspect --json=False in --frame 1", {"path": "in", "frame": 1}),
        ("inspect --json --path in", {"path": "in", "json": True}),
        ("upscale --overwrite in --tile 32 out", {"input": "in", "output": "out", "overwrite": True, "tile": 32}),
        ("upscale --tile 32 --force in --nopicture out", {"input": "in", "output": "out", "tile": 32, "force": True,
                                                          "picture": False}),
        ("upscale in -v out", {"input": "in", "output": "out"}),
    ],
)  # fmt: skip
def test_switches_before_the_path(medsr, recorded, line, expected):
    assert medsr(*line.split())[0] == 0
    name, args, kwargs = recorded[0]
    signature = inspect.signature(cli.COMMANDS[name])
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    defaults = {n: p.default for n, p in signature.parameters.items()}
    assert bound.arguments == defaults | expected


def test_numbers_and_none(medsr, recorded):
    assert medsr("degrade", "a", "b", "--fwhm", "1e1", "--scale=2", "--noise", "0.5", "--frame", "None")[0] == 0
    _, args, _ = recorded[0]
    assert args[2] == 2 and 10.0 in args and 0.5 in args


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_help_is_readable_and_complete(medsr, command):
    code, out, err = medsr(*([command] if command else []), "--help")
    text = out + err
    assert code == 0
    assert not re.search("FIRE_METADATA|GROUP|object at 0x", text)
    for word in cli.COMMANDS if command is None else cli.COMMANDS[command].__annotations__:
        if word != "return":
            assert re.search(rf"(?i)\b{word}\b", text), word
    if command:
        assert cli.COMMANDS[command].__doc__.splitlines()[0] in text
        assert "--verbose" in text and "traceback" in text
        kinds = re.findall("Type: (.*)", text)
        assert kinds and set(kinds) <= {"str", "int", "float", "bool"}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_shows_whole_sentences(command):
    """Fire takes a line of a docstring that goes on with a word and a colon for another argument."""
    shown = {one.name: one.description for one in docstrings.parse(cli.COMMANDS[command].__doc__).args or ()}
    assert shown.keys() == inspect.signature(cli.COMMANDS[command]).parameters.keys()
    assert all(text.endswith(".") for text in shown.values()), shown


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("x"), "KeyError: 'x': please report it with what --verbose shows"),
        (ValueError("give another one"), "give another one"),
    ],
)
def test_an_error_is_one_line_and_with_verbose_a_traceback(medsr, monkeypatch, error, line):
    def models(json: bool = False):
        """List.

        Args:
            json: print JSON.
        """
        raise RuntimeError("applying transform") from error

    monkeypatch.setitem(cli.COMMANDS, "models", models)
    assert medsr("models") == (1, "", f"medsr: error: {line}\n")
    code, out, err = medsr("models", "--verbose")
    assert (code, out) == (1, "") and "Traceback" in err and "applying transform" in err
    assert err.endswith(f"medsr: error: {line}\n")


def test_libraries_speak_only_with_verbose(tmp_path):
    code, out, err = process("degrade", sample_volume(), "lr.nii.gz", cwd=tmp_path)
    assert code == 0 and err == "" and "nvImageCodec" not in out
    code, _, err = process("degrade", "--verbose", sample_volume(), "again.nii.gz", cwd=tmp_path)
    assert code == 0 and "nvImageCodec" in err


@pytest.mark.skipif(os.name != "posix", reason="needs a pipe of POSIX")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_quietly(unbuffered):
    """As `medsr models | head` does it, whether the output is larger than a pipe's buffer or not."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    for arguments in (["models"], ["models", "--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "medsr_monai", *arguments]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment)
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, b"")


def test_without_a_command_there_is_help(medsr):
    code, out, err = medsr()
    assert code == 0 and "upscale" in out + err


def test_light_commands_load_no_heavy_library(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "b.nii.gz").touch()
    program = """
import sys
from medsr_monai.cli import main
for line, code in {
    "models": 0, "models --json": 0, "--help": 0, "upscale --help": 0, "--version": 0, "nonsense": 2,
    "upscale missing.nii.gz out.nii.gz": 1, "upscale a.nii.gz out": 1, "upscale a.nii.gz b.nii.gz": 1,
    "upscale a.nii.gz out.nii.gz --bundle nope": 1, "upscale a.nii.gz out.nii.gz --foo": 2,
    "degrade missing.nii.gz out.nii.gz": 1, "evaluate a.nii.gz missing.nii.gz": 1, "convert missing.pt out.pt": 1,
    "benchmark --size 3": 1,
    "compare missing.nii.gz": 1, "compare a.nii.gz --networks b=missing.pt": 1, "compare a.nii.gz --crop 3": 1,
}.items():
    try:
        main(line.split())
        end = 0
    except SystemExit as error:
        end = error.code or 0
    heavy = {"torch", "monai", "nibabel", "numpy", "matplotlib"} & set(sys.modules)
    assert end == code and not heavy, (line, end, heavy)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=tmp_path, capture_output=True)


def test_version_as_a_process(tmp_path):
    from medsr_monai import __version__

    assert process("--version", cwd=tmp_path) == (0, f"{__version__}\n", "")


# degrade and evaluate


@pytest.mark.parametrize("method", [None, "bicubic", "gaussian", "box", "kspace"])
@pytest.mark.parametrize("direction", ["in-plane", "through-plane"])
def test_degrade_keeps_the_corners(medsr, tmp_path, direction, method):
    source = make_volume(tmp_path / "in.nii.gz", shape=(24, 16, 12), affine=oblique_affine())
    options = [] if method is None else ["--method", method]
    code, out, err = medsr(
        "degrade", "in.nii.gz", "out.nii.gz", "--scale", 4, "--direction", direction, "--plane", "coronal", *options
    )
    assert (code, err) == (0, "") and f"{direction}, plane coronal" in out and "cropped" not in out
    # the array's first axis runs from front to back
    assert nib.load("out.nii.gz").shape == ((24, 4, 3) if direction == "in-plane" else (6, 16, 12))
    assert_same_corners(source, tmp_path / "out.nii.gz")


@pytest.mark.parametrize("direction", ["in-plane", "through-plane"])
def test_degrade_takes_the_point_spread_of_a_scanner(medsr, tmp_path, direction):
    """Its width is in mm: other parts of the spacing where the pixels' edges differ."""
    from medsr_monai.transforms import PointSpread, degrade

    source = make_volume(tmp_path / "in.nii.gz", shape=(24, 16, 12), affine=np.diag([1.0, 1.25, 2.5, 1]))
    medsr("degrade", "in.nii.gz", "out.nii.gz", "--direction", direction, "--plane", "axial", "--psf", "box:5")
    volume = torch.from_numpy(nib.load(source).get_fdata(dtype=np.float32))[None]
    widths = [5 / (4 * edge) for edge in (1.0, 1.25, 2.5)]
    factors = (4, 4, 1) if direction == "in-plane" else (1, 1, 4)
    expected = degrade(volume, factors, [PointSpread("box", width) for width in widths])[0]
    np.testing.assert_allclose(nib.load("out.nii.gz").get_fdata(), expected, rtol=1e-5, atol=1e-4)


def test_a_point_spread_without_a_width_has_that_of_the_spacing(medsr, tmp_path):
    make_volume(tmp_path / "in.nii.gz", shape=(16, 16, 8))
    for name, options in (("psf", ("--psf", "kspace_hamming")), ("method", ("--method", "kspace_hamming"))):
        assert medsr("degrade", "in.nii.gz", f"{name}.nii.gz", "--plane", "axial", *options)[0] == 0
    np.testing.assert_array_equal(nib.load("psf.nii.gz").get_fdata(), nib.load("method.nii.gz").get_fdata())


def test_degrade_says_what_it_crops(medsr, tmp_path):
    make_volume(tmp_path / "in.nii.gz", shape=(18, 17, 5))
    code, out, _ = medsr("degrade", "in.nii.gz", "out.nii.gz")
    assert code == 0 and "in.nii.gz: cropped by 2x1x0 voxels at the far end, to a multiple of 4" in out
    nib.save(nib.load("in.nii.gz").slicer[:16, :16], "cropped.nii.gz")
    assert_same_corners(tmp_path / "cropped.nii.gz", tmp_path / "out.nii.gz")


def test_noise_is_drawn_from_the_seed(medsr, tmp_path):
    make_volume(tmp_path / "in.nii.gz", shape=(16, 16, 4))
    results = []
    for number, options in enumerate([(), ("--noise=0.1",), ("--noise=0.1",), ("--noise=0.1", "--seed=1")]):
        assert medsr("degrade", "in.nii.gz", f"{number}.nii.gz", *options)[0] == 0
        results.append(nib.load(f"{number}.nii.gz").get_fdata())
    clean, first, again, other = results
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other) and not np.array_equal(first, clean)


def test_degrade_takes_a_frame(medsr, tmp_path):
    make_volume(tmp_path / "in.nii.gz", shape=(16, 16, 4, 2))
    refused(medsr("degrade", "in.nii.gz", "out.nii.gz"), "--frame 0 to 1")
    assert medsr("degrade", "in.nii.gz", "out.nii.gz", "--frame", 1)[0] == 0
    assert nib.load("out.nii.gz").shape == (4, 4, 4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--direction", "sideways"], "direction is 'sideways', expected in-plane or through-plane"),
        (["--scale", "1"], "scale is 1, expected at least 2"),
        (["--scale", "32"], "smaller than the factors"),
        (["--method", "cubic"], "method is 'cubic', expected one of"),
        (["--fwhm", "2"], "fwhm is 2.0 for 'bicubic'"),
        (["--psf", "spline"], "point spread is 'spline', expected one of bicubic, gaussian"),
        (["--psf", "box:wide"], "point spread is 'box:wide': expected KIND, KIND:FWHM_MM"),
        (["--psf", "box:-2"], "point spread is 'box:-2': expected a positive width in mm"),
        (["--psf", "box", "--method", "box"], "psf takes the place of method and fwhm: leave those out"),
        (["--psf", "gaussian", "--fwhm", "3"], "psf takes the place of method and fwhm: leave those out"),
        (["--noise=-1"], "noise is -1"),
        (["--noise=nan"], "noise is nan"),
        (["--plane", "x"], "plane is 'x', expected"),
    ],
)
def test_degrade_refuses_wrong_options(medsr, tmp_path, options, reason):
    make_volume(tmp_path / "in.nii.gz")
    refused(medsr("degrade", "in.nii.gz", "out.nii.gz", *options), reason)
    assert not Path("out.nii.gz").exists()


def test_degrade_never_replaces_unasked_nor_its_input(medsr, tmp_path):
    make_volume(tmp_path / "in.nii.gz")
    Path("out.nii.gz").write_text("mine")
    refused(medsr("degrade", "in.nii.gz", "out.nii.gz"), "exists.*--overwrite")
    assert Path("out.nii.gz").read_text() == "mine"
    refused(medsr("degrade", "in.nii.gz", "in.nii.gz", "--overwrite"), "is the input")
    assert medsr("degrade", "in.nii.gz", "out.nii.gz", "--overwrite")[0] == 0


def test_degrade_upscale_evaluate(medsr, bundle, tmp_path):
    make_volume(tmp_path / "hr.nii.gz", shape=(66, 64, 5), affine=oblique_affine())
    assert medsr("degrade", "hr.nii.gz", "lr.nii.gz")[0] == 0
    assert medsr("upscale", "lr.nii.gz", "sr.nii.gz", "--bundle", bundle, "--nopicture")[0] == 0
    code, out, err = medsr("evaluate", "sr.nii.gz", "hr.nii.gz")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"axial, 5 slices: PSNR \d+\.\d\d dB \(whole volume \d+\.\d\d dB\), SSIM [01]\.\d{4}\n", out)
    code, out, _ = medsr("evaluate", "sr.nii.gz", "hr.nii.gz", "--json", "--csv", "new/table.csv")
    figures = json.loads(out)
    lines = Path("new/table.csv").read_text().splitlines()
    assert figures["slices"] == 5 and lines[0] == "plane,slice,psnr,ssim" and len(lines) == 6
    mean = np.mean([float(line.split(",")[2]) for line in lines[1:]])
    assert figures["psnr"] == pytest.approx(mean)
    refused(medsr("evaluate", "sr.nii.gz", "hr.nii.gz", "--csv", "new/table.csv"), "table.csv: exists.*--overwrite")
    assert medsr("evaluate", "sr.nii.gz", "hr.nii.gz", "--csv", "new/table.csv", "--overwrite")[0] == 0


def test_equal_volumes_have_an_infinite_psnr_and_valid_json(medsr, tmp_path):
    make_volume(tmp_path / "a.nii.gz", shape=(24, 24, 3))
    code, out, err = medsr("evaluate", "a.nii.gz", "a.nii.gz")
    assert (code, err) == (0, "") and "PSNR inf dB (whole volume inf dB), SSIM 1.0000" in out
    code, out, _ = medsr("evaluate", "a.nii.gz", "a.nii.gz", "--json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    figures = json.loads(out, parse_constant=refuse)
    assert figures["psnr"] is None and figures["psnr_volume"] is None and figures["ssim"] == pytest.approx(1)


def test_evaluate_refuses_other_grids(medsr, tmp_path):
    make_volume(tmp_path / "ref.nii.gz", shape=(24, 24, 3))
    shifted = THICK.copy()
    shifted[0, 3] = 0.5
    make_volume(tmp_path / "shifted.nii.gz", shape=(24, 24, 3), affine=shifted)
    make_volume(tmp_path / "larger.nii.gz", shape=(25, 24, 3))
    make_volume(tmp_path / "finer.nii.gz", shape=(24, 24, 3), affine=np.diag([0.5, 0.5, 4, 1]))
    for name in ("shifted", "larger", "finer"):
        refused(medsr("evaluate", f"{name}.nii.gz", "ref.nii.gz"), "24x24x3 voxels.*only volumes in the same grid")


def test_evaluate_refuses_what_has_no_figure(medsr, tmp_path):
    make_volume(tmp_path / "small.nii.gz", shape=(12, 12, 3))
    refused(medsr("evaluate", "small.nii.gz", "small.nii.gz"), "12x12 pixels is too small.*smaller border")
    assert medsr("evaluate", "small.nii.gz", "small.nii.gz", "--border", 2)[0] == 0
    refused(medsr("evaluate", "small.nii.gz", "small.nii.gz", "--border=-1"), "border is -1")
    flat = np.ones((24, 24, 3), np.float32) * np.linspace(0.1, 2.3, 3, dtype=np.float32)
    nib.save(nib.Nifti1Image(flat, THICK), "flat.nii.gz")
    refused(medsr("evaluate", "flat.nii.gz", "flat.nii.gz"), "no axial slice with any contrast")
    nib.save(nib.Nifti1Image(_one_voxel(np.nan), THICK), "nan.nii.gz")
    nib.save(nib.Nifti1Image(GOOD, THICK), "good.nii.gz")
    refused(medsr("evaluate", "nan.nii.gz", "good.nii.gz"), "NaN or infinite")


@pytest.fixture
def pictures(tmp_path):
    """Folders hr/, sr/ and masks/ with PNG pictures of two slices, and a U-Net of random weights."""
    rng = np.random.default_rng(0)
    for folder in ("hr", "sr", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        image = rng.integers(0, 200, (24, 20))
        image[0, :2] = (0, 255)  # the range of every reference
        mask = np.zeros((24, 20), np.uint8)
        mask[6:14, 4:12] = 255
        noisy = (image + rng.integers(0, 30, image.shape)).clip(0, 255)
        for file, pixels in ((f"hr/{name}", image), (f"sr/{name}_sr", noisy), (f"masks/{name}", mask)):
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{file}.png")
    torch.manual_seed(1)
    unet = SegmentationUNet(1, 2, encoder="resnet18").eval()
    with torch.no_grad():  # each class in half of the pixels
        background, inside = unet(scaled(tmp_path / "hr/a.png")[None])[0]
        unet.segmentation_head[0].bias[1] -= (inside - background).median()
    save_weights(unet, tmp_path / "unet.pt")
    return tmp_path


def scaled(path: Path) -> torch.Tensor:
    """A picture as the array [1, columns, rows] that a slice is."""
    return torch.from_numpy(np.array(Image.open(path)).T.astype(np.float32) / 255)[None]


def test_evaluate_folders(medsr, pictures):
    code, out, err = medsr("evaluate", "sr", "hr", "--json", "--output", "new/tables", "--csv", "all.csv")
    assert (code, err) == (0, "")
    (pooled,) = json.loads(out)
    values = [psnr(scaled(f"sr/{name}_sr.png"), scaled(f"hr/{name}.png")) for name in "ab"]
    assert (pooled["method"], pooled["slices"]) == ("pred", 2)
    assert (pooled["psnr"], pooled["psnr_std"]) == pytest.approx((np.mean(values), np.std(values)), abs=1e-4)
    assert {p.name for p in Path("new/tables").iterdir()} == {"slices.csv", "summary.csv", "summary.md", "summary.json"}
    summary = json.loads(Path("new/tables/summary.json").read_text())
    assert summary["pooled"] == [pooled] and [row["case"] for row in summary["groups"]] == ["a", "b"]
    assert Path("all.csv").read_text() == Path("new/tables/slices.csv").read_text()
    refused(medsr("evaluate", "sr", "hr", "--output", "new/tables"), "slices.csv: exists.*--overwrite")
    code, out, _ = medsr("evaluate", "sr", "hr", "--output", "new/tables", "--overwrite")
    assert code == 0 and out.startswith("| method | slices | psnr |") and f"| {np.mean(values):.2f} (" in out


def test_evaluate_with_a_u_net_and_inception(medsr, pictures):
    torch.manual_seed(0)
    torch.save(InceptionFeatures().inception.state_dict(), "inception.pth")
    code, out, err = medsr(
        "evaluate", "sr", "hr", "--unet", "unet.pt", "--labels", "masks", "--label_map", '{"255": 1}',
        "--inception", "inception.pth", "--json", "--device", "cpu", "--regions", '{"Dice-T": [1]}',
    )  # fmt: skip
    assert (code, err) == (0, "")
    hr, pred = json.loads(out)
    assert (hr["method"], pred["method"], pred["dice_against"]) == ("HR", "pred", "label map") and pred["fid"] > 0
    unet, counts = load_network("unet.pt"), np.zeros((2, 2))
    for name in "ab":
        mask = scaled(f"masks/{name}.png") > 0
        for row, file in enumerate((f"hr/{name}.png", f"sr/{name}_sr.png")):
            with torch.no_grad():
                found = unet(scaled(file)[None]).argmax(1) == 1
            counts[row] += 2 * int((found & mask).sum()), int(found.sum() + mask.sum())
    # the classes of a few pixels hang by a rounding error
    assert [row["dice_1_pooled"] for row in (hr, pred)] == pytest.approx(list(counts[:, 0] / counts[:, 1]), abs=0.01)
    assert pred["Dice-T_pooled"] == pred["dice_1_pooled"] and pred["Dice-T_patients"] > 0
    assert 0 < pred["dice_1_pooled"] != hr["dice_1_pooled"] < 1
    code, out, _ = medsr("evaluate", "sr/a_sr.png", "hr/a.png", "--unet", "unet.pt", "--device", "cpu")
    assert code == 0 and "| prediction on HR |" in out and "| HR | 1 | - | - | - | - | 1.0000 (0.0000) |" in out
    refused(medsr("evaluate", "sr/a_sr.png", "hr/a.png", "--inception", "inception.pth"), "FID needs at least 2 slices")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--unet", "absent.pt"], "absent.pt: no such file"),
        (["--inception", "absent.pth"], "absent.pth: no such file"),
        (["--labels", "masks"], "give --unet too"),
        (["--unet", "unet.pt", "--labels", "absent"], "absent: no such file or folder"),
        (["--unet", "unet.pt", "--labels", "masks"], 'labels 255, the U-Net has 0 to 1.*"255": 1'),
        (["--unet", "unet.pt", "--regions", "{"], "regions is '{', expected JSON such as"),
        (["--unet", "unet.pt", "--regions", "ixi"], "regions are 'ixi', expected one of oasis, brats"),
        (["--unet", "unet.pt", "--label_map", "255:1"], "label_map is '255:1', expected JSON"),
        (["--unet", "hr/a.png"], "hr/a.png: not a PyTorch weights file"),
        (["--inception", "unet.pt"], "unet.pt: not the weights of torchvision's Inception-v3"),
        (["--intensity", "zscore"], "intensity mode is 'zscore', expected one of"),
    ],
)
def test_evaluate_refuses_wrong_options(medsr, pictures, options, reason):
    refused(medsr("evaluate", "sr", "hr", "--device", "cpu", *options), reason)


def test_evaluate_takes_another_range(medsr, tmp_path):
    """A hot voxel moves the minimum and maximum, not the percentiles."""
    make_volume(tmp_path / "a.nii.gz", shape=(24, 24, 4))
    image = nib.load("a.nii.gz")
    voxels = image.get_fdata().copy()
    voxels[0, 0, 0] = 50 * voxels.max()
    for name, array in (("ref", voxels), ("pred", 1.01 * voxels)):
        nib.save(nib.Nifti1Image(array.astype(np.float32), image.affine), f"{name}.nii.gz")
    hot, sound = (
        json.loads(medsr("evaluate", "pred.nii.gz", "ref.nii.gz", "--json", f"--intensity={mode}", "--plane=axial")[1])
        for mode in ("minmax", "percentile")
    )
    assert hot["psnr"] > sound["psnr"] + 20 and hot["psnr_monai"] is not None


# convert, models, demo, benchmark


def official_checkpoint(path: Path) -> Path:
    with np.load(ROOT / "tests" / "golden" / "rdst_x4.npz") as golden:
        state = {key[3:]: torch.from_numpy(golden[key]) for key in golden.files if key.startswith("sd/")}
    torch.save(state, path)
    return path


def test_converted_weights_load_in_a_bundle(medsr, tmp_path):
    official_checkpoint(tmp_path / "official.pt")
    code, out, err = medsr("convert", "official.pt", "bundle/models/model.pt", "--family", "rdst")
    assert (code, err) == (0, "") and "'embed_dim': " in out
    arguments = torch.load("bundle/models/model.pt", weights_only=True)["network"]
    shutil.move("bundle/models/model.pt", "model.pt")
    shutil.rmtree("bundle")
    copy_bundle(tmp_path / "bundle", **{k: v for k, v in arguments.items() if k != "scale"})
    make_volume(tmp_path / "in.nii.gz", shape=(8, 9, 2))
    options = ("--bundle", "bundle", "--nopicture", "--weights", "model.pt")
    assert medsr("upscale", "in.nii.gz", "out.nii.gz", *options)[0] == 0
    assert nib.load("out.nii.gz").shape == (32, 36, 2)


def test_convert_refuses_in_one_line(medsr, tmp_path):
    official_checkpoint(tmp_path / "official.pt")
    Path("text.pt").write_text("no weights")
    torch.save([1], "list.pt")
    Path("old.pt").write_text("mine")
    refused(
        medsr("convert", "official.pt", "out.pt", "--family", "rdts"), r"family is 'rdts': expected one of \[.*'rdst'"
    )
    refused(medsr("convert", "text.pt", "out.pt"), "text.pt: not a PyTorch weights file")
    refused(medsr("convert", "list.pt", "out.pt"), "list.pt: holds a list")
    refused(medsr("convert", "missing.pt", "out.pt"), "missing.pt: no such file")
    refused(medsr("convert", "official.pt", "old.pt"), "old.pt: exists.*--overwrite")
    refused(medsr("convert", "official.pt", "official.pt", "--overwrite"), "is the input")
    assert Path("old.pt").read_text() == "mine" and not Path("out.pt").exists()


def test_models_lists_every_bundle(medsr):
    bundles = sorted(p.parent.parent.name for p in (ROOT / "bundles").glob("*/configs/metadata.json"))
    code, out, err = medsr("models", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "") and [row["bundle"] for row in rows] == bundles
    assert all(row["trained"] == Path(row["weights"]).is_file() == bool(row["sha256"]) for row in rows)
    code, out, _ = medsr("models")
    assert all(f"{row['bundle']} {row['version']}: {row['task']}" in out and row["weights"] in out for row in rows)


def test_models_says_where_missing_weights_belong(medsr, monkeypatch, tmp_path):
    bare = copy_bundle(tmp_path / "bare")
    monkeypatch.setattr("medsr_monai.commands.models.bundle_folders", lambda: {"bare": bare})
    code, out, _ = medsr("models")
    assert (
        code == 0 and f"no trained weights: train the bundle, or put model.pt at {bare / 'models' / 'model.pt'}" in out
    )
    assert json.loads(medsr("models", "--json")[1])[0]["trained"] is False


def test_demo(medsr, bundle):
    from matplotlib.image import imread

    code, out, err = medsr("demo", "--bundle", bundle)
    assert (code, err) == (0, "")
    assert sorted(os.listdir("demo_out")) == [
        "bicubic.nii.gz", "demo.png", "input.nii.gz", "reference.nii.gz", "sr.nii.gz",
    ]  # fmt: skip
    for name in ("bicubic", "sr"):
        assert re.search(rf"{name}: sagittal, \d+ slices: PSNR \d\d\.\d\d dB", out)
        assert_same_corners(Path("demo_out/reference.nii.gz"), Path(f"demo_out/{name}.nii.gz"))
    picture = imread("demo_out/demo.png")
    assert min(picture.shape[:2]) > 300 and np.ptp(picture[..., :3]) > 0.9
    before = {p.name: p.stat().st_mtime_ns for p in Path("demo_out").iterdir()}
    refused(medsr("demo", "--bundle", bundle), "demo_out/.*: exists.*--overwrite")
    assert before == {p.name: p.stat().st_mtime_ns for p in Path("demo_out").iterdir()}


# million weights and GMACs that Tables 1 and 5 of the RDST paper (arXiv 2302.11184) print
PAPER = {
    "RDST": ("4.40", "6.17"),
    "RDSTE": ("2.35", "3.53"),
    "RDSTGFF": ("4.40", "6.17"),
    "SwinIR": ("11.47", "14.68"),
    "SwinIRLite": ("0.88", "1.15"),
    "EDSR": ("43.08", "64.22"),
    "EDSRLite": ("1.52", "2.51"),
    "RDN": ("5.76", "7.95"),
    "RCANAda": ("32.03", "41.34"),
    "HAN": ("64.19", "83.86"),
    "ConvNetLite": ("0.88", "1.69"),
    "ConvNetLarge": ("12.43", "21.00"),
}


LIGHT = ("RDSTE", "SwinIRLite", "EDSRLite", "RDN", "ConvNetLite")


@pytest.mark.parametrize("names", [LIGHT, pytest.param([*PAPER], marks=pytest.mark.slow)], ids=["light", "all"])
def test_benchmark_reproduces_the_counts_of_the_rdst_paper(medsr, names):
    names = [name for name in names if importlib.util.find_spec("spandrel") or not name.startswith("SwinIR")]
    code, out, err = medsr("benchmark", "--networks", ",".join(names), "--size", "40x32", "--runs", 0)
    header, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines())
    rows = {row["network"]: row for row in (dict(zip(header, line, strict=True)) for line in lines)}
    counts = {name: (row["M weights, as published"], row["GMACs, as published"]) for name, row in rows.items()}
    assert (code, err) == (0, "") and counts == {name: PAPER[name] for name in names}


def test_benchmark_takes_all_super_resolution_networks(medsr, monkeypatch):
    from medsr_monai import metrics

    monkeypatch.setattr(metrics, "benchmark_network", lambda build, *args: {"target": build.args[0]["_target_"]})
    code, out, err = medsr("benchmark", "--networks", "all", "--size", "40x32", "--json")
    names = {row["network"] for row in json.loads(out)}
    assert code == 0 and {"RDSTGFF", "TransMRSR", "Restormer", "MINet", "RCAN", "Bicubic"} <= names
    assert not {"StyleSwinGenerator", "StyleSwinDiscriminator"} & names
    without_spandrel = 0 if importlib.util.find_spec("spandrel") else 3
    assert err.count("is left out") == err.count("\n") == without_spandrel
    assert len(PAPER.keys() - names) == (2 if without_spandrel else 0)


@pytest.mark.usefixtures("warm_spawn")
def test_benchmark_measures_a_bundle(medsr, bundle):
    options = ("--size", "16x12", "--runs", 1, "--device", "cpu", "--json")
    code, out, err = medsr("benchmark", "--bundle", bundle, *options)
    [row] = json.loads(out)
    assert (code, err) == (0, "")
    assert (row["network"], row["input"], row["runs"], row["device"]) == (str(bundle), "1x1x16x12", 1, "cpu")
    assert row["seconds"] > 0 and row["matmul_share"] > 0 and row["peak_mib"] > 0
    assert row["parameters"] == sum(p.numel() for p in tiny_network().parameters())


PLAIN = ROOT / "tests" / "networks" / "plain_rdst.py"


@pytest.mark.usefixtures("warm_spawn")
@pytest.mark.parametrize(("option", "mode", "passes"), [((), "inference", 1), (("--training",), "training step", 3)])
def test_benchmark_beside_a_reference(medsr, bundle, option, mode, passes):
    options = ("--size", "16x12", "--batch", 2, "--runs", 3, "--device", "cpu", "--reference", f"{PLAIN}:PlainRDST")
    code, out, err = medsr("benchmark", "--bundle", bundle, *options, *option, "--json")
    assert (code, err) == (0, "")
    ours, reference = rows = json.loads(out)
    assert (ours["network"], reference["network"]) == (str(bundle), "PlainRDST")
    for row in rows:
        assert (row["input"], row["mode"], row["runs"]) == ("2x1x16x12", mode, 3)
        assert row["parameters"] == sum(p.numel() for p in tiny_network().parameters()) and row["peak_mib"] > 50
        assert 0 < row["seconds_q1"] <= row["seconds"] <= row["seconds_q3"]
        assert row["gflop_per_s"] == pytest.approx(2 * passes * row["macs"] / 1e9 / row["seconds"])
        assert row["slices_per_s"] == pytest.approx(2 / row["seconds"]) and row["matmul_share"] > 0
    assert reference["speed_up"] == 1 and ours["speed_up"] > 0 and ours["macs"] == reference["macs"]
    assert list(ours) == list(reference)


@pytest.mark.usefixtures("warm_spawn")
@pytest.mark.parametrize("mode", [(), ("--training",)], ids=["inference", "training"])
def test_benchmark_in_another_precision(medsr, bundle, mode):
    """The network alone; its reference stays in float32."""
    options = ("--size", "16x12", "--runs", 1, "--device", "cpu", "--reference", f"{PLAIN}:PlainRDST", "--json")
    code, out, err = medsr("benchmark", "--bundle", bundle, *options, "--precision", "bfloat16", *mode)
    assert (code, err) == (0, "")
    assert [row["precision"] for row in json.loads(out)] == ["bfloat16", "float32"]
    refused(medsr("benchmark", "--precision", "half"), "precision is 'half', expected float32, bfloat16, float16")


@pytest.mark.usefixtures("warm_spawn")
def test_benchmark_refuses_another_function_as_reference(medsr, bundle):
    source = PLAIN.read_text().replace(
        "torch.cat([x, self.bottleneck(y)], dim=-1)", "torch.cat([x, self.bottleneck(x)], dim=-1)"
    )
    Path("other.py").write_text(source)
    options = ("benchmark", "--bundle", bundle, "--size", "16x12", "--runs", 1, "--device", "cpu", "--reference")
    refused(medsr(*options, "other.py:PlainRDST"), "the reference computes something else")
    refused(medsr(*options, "missing.py:PlainRDST"), "missing.py:PlainRDST.*expected FILE.py:NAME")
    refused(medsr(*options, "other.py:Nothing"), "has no class or function 'Nothing'")
    Path("few.py").write_text("def build(): pass")
    refused(medsr(*options, "few.py:build"), "does not take the network's arguments")


def test_benchmark_puts_bundle_and_networks_in_one_table(medsr, bundle):
    options = ("--bundle", bundle, "--networks", "Bicubic", "--size", "16x12", "--runs", 0)
    code, out, err = medsr("benchmark", *options, "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "") and [row["network"] for row in rows] == [str(bundle), "Bicubic"]
    assert list(rows[0]) == list(rows[1]) and rows[0]["macs"] > rows[1]["macs"] == 0


def test_benchmark_runs_the_default_bundle(medsr):
    code, out, err = medsr("benchmark", "--runs", 0, "--json")
    assert (code, err) == (0, "")
    assert [(row["network"], row["input"], row["seconds"]) for row in json.loads(out)] == [
        (DEFAULT_BUNDLE, "1x1x160x160", None)
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--size", "16"], "size is '16', expected HxW"),
        (["--runs=-1"], "runs is -1"),
        (["--batch", "0"], "batch is 0, expected at least 1"),
        (["--bundle", "nope"], "no bundle 'nope'"),
        (["--bundle", "transmrsr_prior"], "bundle transmrsr_prior takes no images"),
        (["--networks", "EDSRLite,EDRS"], "no network 'EDRS': choose all, or some of RDST,RDSTE,"),
        (["--networks", "StyleSwinGenerator"], "no network 'StyleSwinGenerator'"),
        (["--networks", "Bicubic", "--device", "abacus"], "device 'abacus' is not available"),
    ],
)
def test_benchmark_refuses_wrong_options(medsr, options, reason):
    refused(medsr("benchmark", *options), reason)


@pytest.mark.parametrize(("names", "code"), [("all", 0), ("SwinIRLite,EDSRLite", 1)])
def test_benchmark_names_what_an_absent_library_leaves_out(medsr, monkeypatch, names, code):
    from medsr_monai import networks

    few = ComponentStore("networks", "those of this test")
    for name in ("EDSRLite", "SwinIRLite"):
        few.add(name, name, networks.NETWORKS[name])
    monkeypatch.setattr(networks, "NETWORKS", few)
    monkeypatch.setitem(sys.modules, "spandrel.architectures.SwinIR", None)
    monkeypatch.setitem(sys.modules, "spandrel", None)
    end, out, err = medsr("benchmark", "--networks", names, "--size", "8x8", "--runs", 0, "--json")
    assert end == code and [row["network"] for row in json.loads(out)] == ["EDSRLite"]
    assert err == (
        f"medsr: {'error: ' if code else ''}SwinIRLite is left out: SwinIR is made of spandrel's parts: "
        "pip install 'medsr_monai[compare]'\n"
    )


def test_benchmark_goes_on_after_a_network_that_fails(medsr, monkeypatch):
    from medsr_monai import metrics

    counted = metrics.benchmark_network

    def fail(build, *args):
        if "EDSR" in build.args[0]["_target_"]:
            raise RuntimeError("CUDA out of memory")
        return counted(build, *args)

    monkeypatch.setattr(metrics, "benchmark_network", fail)
    options = ("--networks", "EDSRLite,Bicubic", "--size", "8x8", "--runs", 0, "--device", "cpu")
    code, out, err = medsr("benchmark", *options)
    assert code == 1 and [line.split("|")[1].strip() for line in out.splitlines()[2:]] == ["Bicubic"]
    assert (
        err.startswith("medsr: error: EDSRLite on cpu: out of memory (CUDA out of memory): ") and err.count("\n") == 1
    )
