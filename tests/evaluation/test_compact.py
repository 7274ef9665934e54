"""`medsr compact`: weights in half the bytes, which load as float32, or none where a volume is worse."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import save_weights, tiny_network
from scipy.ndimage import gaussian_filter

from medsr_monai import Upscaler
from medsr_monai.weights.load import load_weights, transfer_weights


@pytest.fixture
def volumes(tmp_path):
    for number in range(4):
        path = tmp_path / "data" / f"case{number}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        voxels = gaussian_filter(np.random.default_rng(number).random((48, 48, 4)), (2, 2, 0)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 5.0, 1.0])), path)
    return tmp_path / "data"


def test_half_the_bytes_and_the_same_volumes(medsr, bundle, volumes):
    code, out, err = medsr("compact", bundle, "half.pt", "--dataset-dir", volumes, "--val-slices", 2)
    assert code == 0, err
    assert "dB, as float16" in out and "half.pt: " in out and "sha256" in out
    half, full = (torch.load(f, weights_only=True) for f in ("half.pt", bundle / "models" / "model.pt"))
    assert half["network"] == full["network"] and half["model"].keys() == full["model"].keys()
    assert all(t.dtype == torch.float16 for t in half["model"].values() if t.is_floating_point())
    network, other = tiny_network(1), tiny_network(2)
    load_weights(network, "half.pt")
    transfer_weights(other, "half.pt")
    for made in (network, other):
        assert all(p.dtype == torch.float32 for p in made.parameters())
        assert all(torch.equal(p, half["model"][name].float()) for name, p in made.named_parameters())
    volume = str(volumes / "case0.nii.gz")
    first, second = (Upscaler(str(bundle), weights=w)(volume).get_fdata() for w in (None, "half.pt"))
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(first, second, atol=2e-3 * np.ptp(first))


def test_what_changes_is_refused(medsr, bundle, volumes, monkeypatch, tmp_path):
    network = tiny_network()
    network.state_dict()["last.bias"].fill_(1e6)
    save_weights(network, tmp_path / "large.pt")
    arguments = ("compact", bundle, "half.pt", "--dataset-dir", volumes, "--val-slices", 2)
    code, _, err = medsr(*arguments, "--weights", "large.pt")
    assert code == 1 and "last.bias are too large for float16" in err and not Path("half.pt").exists()
    monkeypatch.setattr("medsr_monai.evaluation.compact.LIMIT", 0.0)
    code, _, err = medsr(*arguments)
    assert code == 1 and "keep float32" in err and not Path("half.pt").exists()
