"""NaN is refused, unless the caller says what takes its place."""

import nibabel as nib
import numpy as np
import pytest
from bundle_copies import interpolating_bundle

from medsr_monai import MedsrError, Upscaler, degrade


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(interpolating_bundle(tmp_path_factory.mktemp("bundles") / "bicubic"))


def volume():
    image = np.random.default_rng(0).random((12, 10, 4), dtype=np.float32)
    image[:3] = np.nan
    return image


def test_the_command(medsr, bundle, caplog):
    nib.save(nib.Nifti1Image(volume(), np.eye(4)), "a.nii.gz")
    nib.save(nib.Nifti1Image(np.nan_to_num(volume(), nan=0.25), np.eye(4)), "b.nii.gz")
    options = ("--bundle", bundle, "--plane", "axial", "--picture=false")
    code, _, err = medsr("upscale", "a.nii.gz", "a_sr.nii.gz", *options)
    assert code == 1 and "120 of 480 voxels are NaN or infinite" in err and "--nan-value" in err
    code = medsr("upscale", "a.nii.gz", "a_sr.nii.gz", *options, "--nan-value", 0.25)[0]
    assert code == 0 and "120 of 480 voxels were NaN and became 0.25" in caplog.text
    assert medsr("upscale", "b.nii.gz", "b_sr.nii.gz", *options)[0] == 0
    assert np.array_equal(nib.load("a_sr.nii.gz").get_fdata(), nib.load("b_sr.nii.gz").get_fdata())
    assert medsr("degrade", "a.nii.gz", "lr.nii.gz", "--scale", 2)[0] == 1
    assert medsr("degrade", "a.nii.gz", "lr.nii.gz", "--scale", 2, "--nan-value", 0)[0] == 0


def test_python(bundle):
    pair, full = (volume(), np.eye(4)), (np.nan_to_num(volume()), np.eye(4))
    with pytest.raises(MedsrError, match="--nan-value"):
        Upscaler(bundle, plane="axial")(pair)
    made = Upscaler(bundle, plane="axial", nan_value=0)(pair)
    assert np.array_equal(made[0], Upscaler(bundle, plane="axial")(full)[0]) and made.record["Options"]
    assert np.isnan(pair[0]).any(), "the caller's volume stays as it is"
    assert np.array_equal(degrade(pair, 2, nan_value=0)[0], degrade(full, 2)[0])
    with pytest.raises(MedsrError, match="nan_value is inf, expected a number such as 0"):
        Upscaler(bundle, plane="axial", nan_value=np.inf)(pair)
