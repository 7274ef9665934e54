"""The Python door: the same numbers as the command, for every kind of volume, and one class of errors."""

import json
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import interpolating_bundle
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

import medsr_monai
from medsr_monai import MedsrError, Upscaler, upscale
from medsr_monai.transforms import outer_corners

AFFINE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag([-1, 1, 1.2]), (5, -3, 9))


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """A file with an oblique volume."""
    path = tmp_path_factory.mktemp("volumes") / "v.nii.gz"
    image = gaussian_filter(np.random.default_rng(0).random((14, 12, 9), dtype=np.float32), 1.5)
    nib.save(nib.Nifti1Image(1000 * image, AFFINE), path)
    return path


@pytest.fixture(scope="module")
def upscaler(bundle):
    return Upscaler(str(bundle), plane="axial", device="cpu")


@pytest.fixture(scope="module")
def made(upscaler, volume):
    return upscaler(volume)


def test_equal_to_the_command_bit_by_bit(medsr, bundle, volume, made):
    options = ("--bundle", bundle, "--plane", "axial", "--device", "cpu", "--picture=false")
    assert medsr("upscale", volume, "sr.nii.gz", *options)[0] == 0
    file, sidecar = nib.load("sr.nii.gz"), json.loads(Path("sr.json").read_text())
    assert np.array_equal(file.get_fdata(), made.get_fdata()) and np.array_equal(file.affine, made.affine)
    assert file.header == made.header
    for name in sidecar.keys() - {"Seconds", "SecondsBy", "Created", "Outputs", "Memory"}:
        assert made.record[name] == sidecar[name], name


def test_every_kind_gives_its_own(upscaler, volume, made):
    image, expected = nib.load(volume), made.get_fdata(dtype=np.float32)
    array = image.get_fdata(dtype=np.float32)
    of_image = upscaler(image)
    assert isinstance(of_image, nib.Nifti1Image) and np.array_equal(of_image.get_fdata(dtype=np.float32), expected)
    tensor = upscaler(MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(AFFINE)))
    assert isinstance(tensor, MetaTensor) and tensor.shape == (1, *expected.shape)
    assert np.array_equal(tensor[0].as_tensor(), expected)
    sr, affine = pair = upscaler((array, AFFINE))
    assert np.array_equal(sr, expected) and np.allclose(affine, made.affine, atol=1e-6)
    assert np.allclose(outer_corners(affine, sr.shape), outer_corners(AFFINE, array.shape), atol=1e-4)
    for result in (of_image, tensor, pair):
        assert result.record["Plan"] == "plane axial" and result.record["Bundle"] == made.record["Bundle"]
        assert result.record["Inputs"][0]["Name"] == "the volume" and len(result.record["Inputs"][0]["SHA256"]) == 64
    assert made.record["Inputs"][0]["Name"] == "v.nii.gz"


def test_thick_slices(tmp_path, volume):
    thick = nib.Nifti1Image(nib.load(volume).get_fdata(dtype=np.float32), np.diag([1, 1, 4, 1]))
    sr = upscale(thick, str(interpolating_bundle(tmp_path / "b", "transmrsr")), device="cpu")
    assert sr.shape == (14, 12, 36) and "inferior-superior" in sr.record["Plan"]


def test_progress_counts_the_slices(bundle, volume):
    calls = []
    Upscaler(str(bundle), plane="axial", slice_batch=4, progress=lambda done, all: calls.append((done, all)))(volume)
    assert calls == [(4, 9), (8, 9), (9, 9)]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda bundle, volume: Upscaler("nope"), "no bundle 'nope': choose "),
        (lambda bundle, volume: Upscaler(bundle, plane="x"), "plane is 'x', expected auto, "),
        (lambda bundle, volume: Upscaler(bundle, tile=8), "tile must be at least 32 pixels"),
        (lambda bundle, volume: Upscaler(bundle, slice_batch=0), "slice_batch must be at least 1, or auto, not 0"),
        (lambda bundle, volume: Upscaler(bundle, refine="axial"), "has no option --refine: it has --plane"),
        (lambda bundle, volume: Upscaler(bundle, weights="no.pt"), "no.pt: no such weights file"),
        (lambda bundle, volume: Upscaler(bundle, consistency_bound=0.1), "consistency_bound is of --enforce-consist"),
        (lambda bundle, volume: Upscaler(bundle, max_memory="4GiB")(volume), "max_memory is for files"),
        (lambda bundle, volume: Upscaler(bundle)("no.nii.gz"), "no.nii.gz"),
        (
            lambda bundle, volume: Upscaler(bundle)((np.ones((9, 9, 9)), np.eye(4))),
            "every voxel is 1: a constant volume",
        ),
        (lambda bundle, volume: Upscaler(bundle)(np.ones((9, 9, 9))), "the volume: it is of type ndarray, expected"),
        (lambda bundle, volume: Upscaler(bundle)(volume, frame=2), "v.nii.gz"),
    ],
)
def test_errors_are_of_one_class_and_one_line(bundle, volume, call, reason):
    with pytest.raises(MedsrError) as error:
        call(str(bundle), volume)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_threads_wait_for_one_another(upscaler, volume, made):
    results = []
    threads = [threading.Thread(target=lambda: results.append(upscaler(volume).get_fdata())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and all(np.array_equal(one, made.get_fdata()) for one in results)


def test_the_public_names_are_there():
    for name in medsr_monai.__all__:
        assert getattr(medsr_monai, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = medsr_monai.nothing
