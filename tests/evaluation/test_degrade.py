"""`degrade` from Python."""

import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch

import medsr_monai
from medsr_monai import degrade
from medsr_monai.data import LoadVolumed, sample_volume
from medsr_monai.errors import MedsrError

OPTIONS = {"direction": "through-plane", "plane": "sagittal", "noise": 0.02, "seed": 3, "fwhm": 2.5}


def test_every_kind_gives_what_the_command_writes(medsr, tmp_path):
    words = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
    assert medsr("degrade", sample_volume(), "out.nii", "--scale", 3, *words)[0] == 0
    written = nibabel.load("out.nii")
    path = sample_volume()
    image = nibabel.load(path)
    volume = LoadVolumed("image").load(path)
    before = volume.clone()
    pair = np.asarray(image.dataobj), image.affine
    for given in (path, str(path), image, volume, pair):
        made = degrade(given, 3, **OPTIONS)
        if isinstance(made, nibabel.Nifti1Image):
            assert made.to_bytes() == (tmp_path / "out.nii").read_bytes()
            continue
        assert isinstance(made, type(given))
        voxels, affine = made if isinstance(made, tuple) else (made[0].numpy(), made.affine.numpy())
        np.testing.assert_array_equal(voxels, written.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(affine, written.affine, rtol=1e-6)
    assert torch.equal(volume.as_tensor(), before.as_tensor()) and torch.equal(volume.affine, before.affine)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scale": 1}, "^scale is 1"),
        ({"noise": float("nan")}, "^noise is nan"),
        ({"direction": "up"}, "^direction is 'up'"),
        ({"plane": "x"}, "^the volume: plane is 'x'"),
        ({"method": "cubic"}, "method is 'cubic'"),
        ({"scale": 99}, "smaller than the factors"),
        ({"frame": 1}, "frame 1 asked for"),
    ],
)
def test_errors_are_of_one_class(options, reason):
    array = np.random.default_rng(0).random((8, 8, 8))
    with pytest.raises(MedsrError, match=reason):
        degrade((array, np.eye(4)), **options)
    with pytest.raises(MedsrError, match="constant"):
        degrade((np.ones((8, 8, 8)), np.eye(4)))


def test_the_door_is_typed_and_light():
    assert {"degrade", "evaluate"} <= set(medsr_monai.__all__) & set(dir(medsr_monai))
    assert not hasattr(medsr_monai, "nothing")
    program = """
import sys, medsr_monai
dir(medsr_monai), medsr_monai.__version__
assert not {"torch", "monai", "nibabel", "numpy", "fire"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    from medsr_monai import degrade, evaluate

    assert callable(degrade) and callable(evaluate)
