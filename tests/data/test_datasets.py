"""Slices for training: reproducible, in any order, by any number of processes."""

import logging
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, Orientationd

from medsr_monai.data import PrefetchLoader, SliceDataset, SliceSampler
from medsr_monai.data.datasets import fits_on_device
from medsr_monai.metrics import PSNRSlices, SSIMSlices
from medsr_monai.networks import Bicubic
from medsr_monai.recipes import load_volume, slice_pairs, training_patches
from medsr_monai.transforms import PLANES

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes of ../shared/data are not here")


def save(path, data, edges=(1.0, 1.0, 1.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data.astype(np.float32), np.diag([*edges, 1.0])), path)
    return {"image": str(path)}


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    return [save(tmp_path / f"p{i}" / "t1.nii.gz", rng.random((20 + i, 18, 16))) for i in range(2)]


def patches(data, **kwargs):
    return SliceDataset(data, load_volume(), training_patches(2, 8, noise_std=(0.01, 0.02)), **kwargs)


def keep(item):
    return item


def same(a, b):
    assert (a["case"], a["plane"], a["slice"]) == (b["case"], b["plane"], b["slice"])
    return torch.equal(a["image"], b["image"]) and torch.equal(a["label"], b["label"])


def test_every_slice_comes_with_every_degradation(data):
    """Slices, then degradations; noise is the same where only its strength or the method is another."""
    conditions = [{}, {"noise_std": 0.01}, {"noise_std": 0.03}]
    dataset = SliceDataset(data, load_volume(), slice_pairs(2, conditions=conditions), "axial", min_std=0)
    plain = SliceDataset(data, load_volume(), slice_pairs(2), "axial", min_std=0)
    assert len(dataset) == 3 * len(plain) == 3 * 32
    names = ["bicubic", "bicubic, noise 0.01", "bicubic, noise 0.03"]
    assert [dataset[i]["degradation"] for i in (0, 31, 32, 63, 64, 95)] == [n for n in names for _ in range(2)]
    for index in (0, 31):
        first, weak, strong = (dataset[index + 32 * number] for number in range(3))
        assert same(first, plain[index]) and "degradation" not in plain[index]
        assert (weak["case"], weak["slice"]) == (first["case"], first["slice"])
        noise = weak["image"] - first["image"]
        assert float(noise.std()) == pytest.approx(0.01, rel=0.3)
        assert torch.allclose(3 * noise, strong["image"] - first["image"], atol=1e-6)
    assert not torch.equal(dataset[32]["image"] - dataset[0]["image"], dataset[33]["image"] - dataset[1]["image"])


def test_items_by_hand(data):
    dataset = SliceDataset(data, load_volume("image", "minmax"), keep, ["axial", "coronal"], min_std=0)
    assert len(dataset) == 2 * (16 + 18)
    described = [(dataset[i]["case"], dataset[i]["plane"], dataset[i]["slice"]) for i in (0, 15, 16, 33, 34, 67)]
    assert described == [
        ("p0/t1", "axial", 0), ("p0/t1", "axial", 15), ("p0/t1", "coronal", 0), ("p0/t1", "coronal", 17),
        ("p1/t1", "axial", 0), ("p1/t1", "coronal", 17),
    ]  # fmt: skip
    volume = load_volume("image", "minmax")(data[1])["image"].as_tensor()
    assert torch.equal(dataset[34 + 5]["label"], volume[..., 5])
    assert torch.equal(dataset[34 + 16 + 7]["label"], volume[:, :, 7])


def test_an_item_does_not_depend_on_what_was_drawn_before(data):
    one, other = patches(data), patches(data)
    order = np.random.default_rng(0).permutation(2 * len(one)).tolist()[:40]
    forward = {key: one[key] for key in sorted(order)}
    for key in order:
        assert same(other[key], forward[key])
        assert same(other[key], forward[key])  # and not on how often


@pytest.mark.parametrize("loader", [DataLoader, PrefetchLoader])
@pytest.mark.parametrize("crop", [None, [12, 14]])
def test_batches_hold_the_items(data, loader, crop):
    """Made together, whatever the loader, and plain tensors: each within float32's rounding of the item alone."""
    if crop:
        data = [item | {"crop": {plane: crop for plane in PLANES}} for item in data]
    dataset = patches(data, seed=5)
    sampler = SliceSampler(dataset, seed=3)
    sampler.set_epoch(2)
    keys, asked = list(sampler)[:40], []
    make = dataset.transform.batch
    dataset.transform.batch = lambda items, seeds, device: asked.append(len(items)) or make(items, seeds, device)
    batches = list(loader(dataset, batch_size=16, sampler=keys, num_workers=0))
    assert sum(asked) == 40 and max(asked) == 16, "not made together"
    items = [patches(data, seed=5)[key] for key in keys]
    for key in ("image", "label"):
        batch = torch.cat([b[key] for b in batches])
        assert type(batch) is torch.Tensor
        torch.testing.assert_close(batch, torch.stack([i[key] for i in items]), rtol=0, atol=2e-6)
    for key in ("case", "plane", "modality"):
        assert [value for b in batches for value in b[key]] == [i[key] for i in items]
    assert torch.cat([b["slice"] for b in batches]).tolist() == [i["slice"] for i in items]


def test_batches_of_other_transforms(data):
    """Any transform will do: where it knows nothing of batches, its items are made one by one."""
    whole = Compose([patches(data).transform])
    one, other = patches(data), SliceDataset(data, load_volume(), whole)
    assert not hasattr(whole, "batch")
    assert all(same(a, other[k]) for a, k in zip(other.__getitems__([3, 80, 7]), [3, 80, 7], strict=True))
    assert one.__getitems__([3])[0].keys() == other[3].keys()


def test_volumes_take_a_quarter_of_a_device_at_most():
    assert fits_on_device(10, 40) and not fits_on_device(11, 40)


def test_errors_of_the_thread_reach_the_training(data):
    """MONAI's ThreadDataLoader only ends its epoch earlier."""
    dataset = patches(data)
    make = dataset.transform.batch
    calls = []

    def broken(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError("no such disk")
        return make(*args)

    dataset.transform.batch = broken
    batches = iter(PrefetchLoader(dataset, batch_size=4, num_workers=0))
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(OSError, match="no such disk"):
        next(batches)


def test_batches_are_made_while_the_last_one_is_used(data):
    dataset = patches(data)
    made, make = threading.Semaphore(0), dataset.transform.batch
    dataset.transform.batch = lambda *args: (make(*args), made.release())[0]
    batches = iter(PrefetchLoader(dataset, batch_size=4, num_workers=0))
    next(batches)
    assert made.acquire(timeout=20) and made.acquire(timeout=20), "the second was not made before it was asked for"
    batches.close()
    assert not [thread for thread in threading.enumerate() if "enqueue_values" in thread.name], "the thread goes on"


def test_passes_and_seeds_differ(data):
    dataset, length = patches(data), len(patches(data))
    differ = sum(not same(dataset[i], dataset[i + length]) for i in range(20))
    assert differ == 20
    seeded = patches(data, seed=1)
    assert sum(not same(dataset[i], seeded[i]) for i in range(20)) == 20
    assert len({float(dataset[k]["image"].sum()) for k in (0, length, 2 * length, 3 * length)}) == 4


def test_workers_do_not_matter(data):
    batches = []
    for workers in (0, 2):
        dataset = patches(data)
        sampler = SliceSampler(dataset, seed=3)
        sampler.set_epoch(2)
        batches.append(list(DataLoader(dataset, batch_size=16, sampler=sampler, num_workers=workers)))
    assert len(batches[0]) == len(batches[1]) == -(-len(patches(data)) // 16)
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["label"], b["label"]) and a["case"] == b["case"]


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: t.transforms[0], lambda t: Compose([t]), lambda t: Compose([Compose([t])])]
)
def test_volumes_are_read_once(data, wrap):
    """Also where the transforms are nested, which MONAI's CacheDataset would not cache."""
    dataset = SliceDataset(data, wrap(load_volume()), keep)
    for item in data:
        Path(item["image"]).unlink()
    assert dataset[0]["label"].shape == (1, 18, 16)
    assert dataset.volumes[1]["image"] is dataset.volumes[1]["image"]


def test_items_are_copies(data):
    dataset = SliceDataset(data, load_volume(), keep)
    dataset[3]["label"].zero_()
    assert float(dataset[3]["label"].std()) > 0


def test_planes_left_out_with_one_warning(tmp_path, caplog):
    rng = np.random.default_rng(0)
    data = [
        save(tmp_path / "a" / "thick.nii", rng.random((40, 40, 6)), (1, 1, 5)),
        save(tmp_path / "b" / "iso.nii", rng.random((40, 40, 20))),
        save(tmp_path / "c" / "iso.nii", rng.random((40, 36, 40))),
    ]
    with caplog.at_level(logging.WARNING, logger="medsr_monai"):
        dataset = SliceDataset(data, load_volume(), keep, min_size=32)
    kept = {(dataset[i]["case"], dataset[i]["plane"]) for i in range(len(dataset))}
    assert kept == {("a/thick", "axial"), ("b/iso", "axial")} | {
        ("c/iso", plane) for plane in ("sagittal", "coronal", "axial")
    }
    said = [r.getMessage() for r in caplog.records if r.name.startswith("medsr")]
    assert len(said) == 1
    for name in ("a/thick sagittal (40x6)", "a/thick coronal (40x6)", "b/iso sagittal (40x20)", "32 pixels"):
        assert name in said[0]


def test_thick_slices_are_no_truth_from_the_side(tmp_path):
    item = save(tmp_path / "a.nii", np.random.default_rng(0).random((40, 40, 40)), (1, 1, 2.5))
    dataset = SliceDataset([item], load_volume(), keep)
    assert {dataset[i]["plane"] for i in range(len(dataset))} == {"axial"}
    assert len(SliceDataset([item], load_volume(), keep, max_anisotropy=3.0)) == 120


def test_error_if_no_plane_remains(tmp_path):
    item = save(tmp_path / "a.nii", np.random.default_rng(0).random((20, 20, 20)))
    with pytest.raises(ValueError, match=r"no slice of 1 volumes .*96.*: use a smaller patch_size"):
        SliceDataset([item], load_volume(), keep, min_size=96)
    with pytest.raises(ValueError, match="'oblique', expected one of"):
        SliceDataset([item], load_volume(), keep, "oblique")


def test_slices_of_air_are_left_out(tmp_path):
    """Those whose standard deviation is above a quarter of the volume's remain, as in the protocol."""
    rng = np.random.default_rng(0)
    volume = rng.random((20, 20, 12)) * 100
    volume[..., :4] *= 0.01
    dataset = SliceDataset([save(tmp_path / "a.nii", volume)], load_volume(), keep, "axial")
    threshold = 0.25 * volume.std()
    expected = [i for i in range(12) if volume[..., i].std() > threshold]
    assert expected == list(range(4, 12))
    assert [dataset[i]["slice"] for i in range(len(dataset))] == expected
    everything = SliceDataset([save(tmp_path / "a.nii", volume)], load_volume(), keep, "axial", min_std=0)
    assert len(everything) == 12


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [8]), (2, [4, 11]), (4, [2, 6, 9, 13]), (16, list(range(16))), (99, list(range(16)))]
)
def test_slices_per_volume(data, count, expected):
    dataset = SliceDataset(data[:1], load_volume(), keep, "axial", slices_per_volume=count)
    picked = [dataset[i]["slice"] for i in range(len(dataset))]
    assert len(picked) == len(expected) and max(abs(a - b) for a, b in zip(picked, expected, strict=True)) <= 1
    assert picked == sorted(set(picked))


class Length:
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length


def replicas(monkeypatch, dataset, count, epoch=0, **kwargs):
    """The keys that each of several processes draws."""
    drawn = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *a: count)
    for rank in range(count):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda *a, rank=rank: rank)
        sampler = SliceSampler(dataset, **kwargs)
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
        assert len(drawn[-1]) == len(sampler)
    monkeypatch.undo()
    return drawn


def test_sampler_of_one_process():
    dataset = Length(11)
    sampler = SliceSampler(dataset, seed=2)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert sorted(keys) == list(range(11 * epoch, 11 * epoch + 11))
        assert keys == list(sampler)
        orders.append([k % 11 for k in keys])
    assert orders[0] != orders[1] != orders[2] and orders[0] != sorted(orders[0])
    again = SliceSampler(dataset, seed=2)
    again.set_epoch(1)
    assert [k % 11 for k in again] == orders[1]
    other = SliceSampler(dataset, seed=3)
    other.set_epoch(1)
    assert [k % 11 for k in other] != orders[1]


def test_sampler_for_validation():
    sampler = SliceSampler(Length(7), shuffle=False)
    for epoch in (0, 5):
        sampler.set_epoch(epoch)
        assert list(sampler) == list(range(7))


@pytest.mark.parametrize("count", [2, 3])
def test_sampler_of_several_processes(monkeypatch, count):
    drawn = replicas(monkeypatch, Length(11), count, epoch=2)
    assert len({len(keys) for keys in drawn}) == 1  # equally many steps in each process
    assert {key for keys in drawn for key in keys} == set(range(22, 33))
    assert len(drawn[0]) == -(-11 // count)
    validation = replicas(monkeypatch, Length(11), count, epoch=2, shuffle=False)
    assert sorted(key for keys in validation for key in keys) == list(range(11))  # nothing twice


FLAIR, T1 = "val/brain_flair_ms26/flair_mni1mm.nii.gz", "val/brain_t1_d/t1w_conformed1mm.nii.gz"
PROTOCOL = [
    pytest.param(FLAIR, "axial", 26.22, 0.841, id="flair-a"),
    pytest.param(FLAIR, "sagittal", 26.26, 0.842, id="flair-s", marks=pytest.mark.slow),
    pytest.param(FLAIR, "coronal", 26.08, 0.847, id="flair-c", marks=pytest.mark.slow),
    pytest.param(T1, "sagittal", 28.44, 0.871, id="t1-s", marks=pytest.mark.slow),
]


@needs_data
@pytest.mark.parametrize(("name", "plane", "expected_psnr", "expected_ssim"), PROTOCOL)
def test_bicubic_by_the_protocol(name, plane, expected_psnr, expected_ssim):
    """The table of ../shared/data/README.md, through everything that validation uses."""
    # the table was made in RAS; in the file's LAS the other end is cropped to a multiple of 4, which is worth 0.02 dB
    load = Compose([load_volume("image", "minmax"), Orientationd("image", axcodes="RAS", labels=None)])
    dataset = SliceDataset([{"image": str(DATA / name)}], load, slice_pairs(4), plane)
    psnr, ssim = PSNRSlices(), SSIMSlices()
    with torch.inference_mode():
        for batch in DataLoader(dataset, batch_size=32, sampler=SliceSampler(dataset, shuffle=False)):
            pred = Bicubic(scale=4)(batch["image"])
            psnr(pred, batch["label"])
            ssim(pred, batch["label"])
    assert len(psnr.get_buffer()) == len(dataset)
    assert float(psnr.aggregate()) == pytest.approx(expected_psnr, abs=0.006)
    assert float(ssim.aggregate()) == pytest.approx(expected_ssim, abs=0.0006)
