"""Intensity scaling and its inverse."""

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch

from medsr_monai.transforms import RestoreIntensityd, ScaleVolumed, intensity_range


def volume(seed=0, low=-1024.0, high=3071.0, name="case.nii.gz"):
    values = torch.rand(1, 12, 11, 10, generator=torch.Generator().manual_seed(seed)) * (high - low) + low
    return MetaTensor(values, meta={"filename_or_obj": name, "affine": torch.eye(4)})


def test_minmax_by_hand():
    assert intensity_range(torch.tensor([3.0, -2.0, 7.0]), "minmax") == (-2, 7)


def test_percentiles_by_hand(monkeypatch):
    values = torch.randperm(1001).float()
    assert intensity_range(values) == (1, 999)
    monkeypatch.setattr("medsr_monai.transforms.intensity.PERCENTILES", (10, 90))
    assert intensity_range(values) == (100, 900)
    monkeypatch.setattr("medsr_monai.transforms.intensity.PERCENTILES", (0, 100))
    assert intensity_range(values) == intensity_range(values, "minmax") == (0, 1000)
    monkeypatch.undo()
    data = np.random.default_rng(0).random(10007)
    expected = np.percentile(data, [0.1, 99.9], method="nearest")
    assert intensity_range(torch.tensor(data)) == pytest.approx(tuple(expected), abs=1e-12)


def test_one_hot_voxel_moves_only_minmax():
    clean = volume()
    hot = clean.clone()
    hot[0, 3, 4, 5] = 1e6
    low, high = intensity_range(clean)
    hot_low, hot_high = intensity_range(hot)
    assert hot_low == pytest.approx(low, abs=0.01 * (high - low))
    assert hot_high == pytest.approx(high, abs=0.01 * (high - low))
    assert intensity_range(hot, "minmax")[1] == 1e6
    scaled = ScaleVolumed("image")({"image": hot})["image"]
    assert float(scaled.flatten().sort().values[-2]) < 1.1  # all others fill [0, 1] as before
    assert float(scaled.max()) > 100  # and it is not clipped


def test_nearly_constant_volume_falls_back_to_minmax():
    flat = torch.zeros(1, 20, 20, 20)
    flat[0, 1, 2, 3] = 5
    assert intensity_range(flat) == (0, 5)


@pytest.mark.parametrize("mode", ["percentile", "minmax"])
@pytest.mark.parametrize(("low", "high"), [(-1024.0, 3071.0), (0.0, 1e-6), (0.0, 1e9), (1000.0, 1001.0)])
def test_inverse(mode, low, high):
    source = volume(low=low, high=high)
    scaled = ScaleVolumed("image", mode)({"image": source})
    assert -0.2 < float(scaled["image"].min()) < 0.01 and 0.99 < float(scaled["image"].max()) < 1.2
    back = RestoreIntensityd("pred", "image")({"image": scaled["image"], "pred": scaled["image"].clone()})["pred"]
    # float32 rounding of the largest value
    torch.testing.assert_close(back.as_tensor(), source.as_tensor(), rtol=0, atol=4e-7 * max(abs(low), abs(high)))
    assert "intensity_low" not in source.meta


def test_inverse_in_float64_is_exact():
    source = volume().double()
    scaled = ScaleVolumed("image")({"image": source})["image"]
    back = RestoreIntensityd("image", "image")({"image": scaled})["image"]
    torch.testing.assert_close(back.as_tensor(), source.as_tensor(), rtol=0, atol=1e-11)


def test_survives_batches_of_the_data_loader():
    sources = [volume(i, -i * 100.0, i * 50.0 + 7, f"{i}.nii.gz") for i in range(1, 6)]
    loader = DataLoader(Dataset([{"image": s} for s in sources], ScaleVolumed("image")), batch_size=2, num_workers=0)
    restored = []
    for batch in loader:
        batch["pred"] = batch["image"] * 1.0
        for item in decollate_batch(batch):
            restored.append(RestoreIntensityd()(item)["pred"])
    assert len(restored) == 5
    for source, back in zip(sources, restored, strict=True):
        assert back.meta["filename_or_obj"] == source.meta["filename_or_obj"]
        torch.testing.assert_close(back.as_tensor(), source.as_tensor(), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "1 of 1320 voxels are NaN or infinite"), (float("inf"), "1 of 1320 voxels are NaN or infinite")],
)
def test_nan_and_infinite_are_refused_with_the_file(value, message):
    bad = volume()
    bad[0, 0, 0, 0] = value
    for mode in ("percentile", "minmax"):
        with pytest.raises(ValueError, match=rf"^case\.nii\.gz: {message}.*replace") as caught:
            ScaleVolumed("image", mode)({"image": bad})
        assert "\n" not in str(caught.value)


def test_constant_is_refused():
    with pytest.raises(ValueError, match=r"^case\.nii\.gz: every voxel is 4: a constant volume"):
        ScaleVolumed("image")({"image": volume() * 0 + 4})


def test_unknown_mode():
    with pytest.raises(ValueError, match="'zscore', expected one of percentile, minmax"):
        intensity_range(torch.rand(5), "zscore")


def test_restore_without_scale():
    with pytest.raises(ValueError, match=r"'image' carries no intensity_low: put ScaleVolumed"):
        RestoreIntensityd()({"image": volume(), "pred": volume()})


def test_large_volumes_have_no_size_limit():
    """torch.quantile refuses more than 16 million values."""
    low, high = intensity_range(torch.arange(17_000_000, dtype=torch.int32))
    assert (low, high) == (17_000, 16_982_999)
