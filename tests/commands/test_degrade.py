"""`medsr degrade` as a user types it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typed_commands import assert_same_corners, make_volume, oblique_affine, refused


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
