"""`medsr upscale` as a user types it."""

from __future__ import annotations

import errno
import functools
import io
import itertools
import os
import signal
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import TINY, copy_bundle, save_weights, tiny_network
from typed_commands import (
    assert_same_corners,
    corners,
    make_dicom,
    make_volume,
    oblique_affine,
    process,
    refused,
    smooth,
    start,
)

from medsr_monai.networks import EDSR
from medsr_monai.upscaling.bundles import BundleRunner

pytestmark = pytest.mark.usefixtures("undrawn")

PLANES = ("sagittal", "coronal", "axial")


COHORT = ("index.html", "status.csv", "status.json")


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
    refused(medsr("upscale", "in.nii.gz", "new/out.nii.gz", "--bundle", "bare"), "bundle bare has no trained weights")
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("out.img", r"out\.img: .*ends in \.nii\.gz"),
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


def test_a_folder_named_2024_is_upscaled_into_1e3(medsr, bundle, tmp_path):
    make_volume(tmp_path / "2024" / "7.nii.gz")
    assert medsr("upscale", "2024", "1e3", "--bundle", bundle)[0] == 0
    assert sorted(os.listdir("1e3")) == ["7_sr.json", "7_sr.nii.gz", "7_sr.quality.png", *COHORT]
