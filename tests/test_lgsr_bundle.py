"""Bundle lgsr: training on mixed modalities and formats, balanced draws, figures by modality, images in and out."""

import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from PIL import Image

from medsr_monai.data import SliceDataset, SliceSampler
from medsr_monai.metrics import psnr
from medsr_monai.networks.blocks.deformable import DeformableConv2d
from medsr_monai.transforms.recipes import load_volume, training_patches

BUNDLE = Path(__file__).parents[1] / "bundles" / "lgsr"
SMALL = dict(embed_dim=8, num_groups=1, blocks_per_group=1, hidden_size=8, num_layers=1, num_heads=2)
TINY = {f"network_def#{name}": value for name, value in SMALL.items()}


def smooth(rng, *shape):
    """Shapes of a few pixels, such as interpolation blurs."""
    return np.kron(rng.random([-(-n // 4) for n in shape]), np.ones([4] * len(shape)))[tuple(map(slice, shape))]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A datalist of NIfTI (MR, CT) and pictures (grey, colour, 16 bits), 14 slices of MR, 4 of CT, 1 and 1 pictures."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    for name, slices in (("mr0", 14), ("mr1", 5), ("ct0", 4), ("ct1", 2)):
        volume = smooth(rng, 48, 40, 4 * slices)[..., ::4] * 1000 - 500
        nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([1, 1, 4, 1])), folder / f"{name}.nii.gz")
    Image.fromarray((255 * smooth(rng, 36, 44)).astype(np.uint8)).save(folder / "cine0.png")
    Image.fromarray((65535 * smooth(rng, 40, 40)).astype(np.uint16)).save(folder / "cine1.png")
    colour = np.stack([255 * smooth(rng, 40, 52) for _ in range(3)], axis=-1)
    Image.fromarray(colour.astype(np.uint8)).save(folder / "scope0.png")
    kinds = {"mr": "MR", "ct": "CT", "cine": "cine MR", "scope": "endoscopy"}
    files = sorted(p.name for p in folder.iterdir())
    parts = {"training": [f for f in files if "0." in f], "validation": [f for f in files if "1." in f]}
    modality = {f: kinds[f.split(".")[0].rstrip("01")] for f in files}
    datalist = {part: [{"image": f, "modality": modality[f]} for f in chosen] for part, chosen in parts.items()}
    (folder / "datalist.json").write_text(json.dumps(datalist))
    return folder


def training(mixed, out, names=("train",), **more):
    options = {
        "bundle_root": str(out),
        "dataset_dir": str(mixed),
        "datalist": str(mixed / "datalist.json"),
        "patch_size": 32,
        "batch_size": 4,
        "val_slices": None,
        "device": "$torch.device('cpu')",
        **TINY,
        **more,
    }
    files = [str(BUNDLE / "configs" / f"{name}.json") for name in names]
    run_id = "evaluating" if "evaluate" in names else "training"
    flow = ConfigWorkflow(files, workflow_type="train", logging_file=False, run_id=run_id, **options)
    flow.initialize()
    return flow


def test_training_on_a_mixed_datalist(mixed, tmp_path):
    flow = training(mixed, tmp_path, epochs=12, learning_rate=5e-3, ema_momentum=0.5)
    trainer = flow.parser.get_parsed_content("train#trainer")
    evaluator = flow.parser.get_parsed_content("validate#evaluator")
    quality, drawn = [], Counter()
    evaluator.add_event_handler(Events.COMPLETED, lambda e: quality.append(e.state.metrics["val_psnr"]))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: drawn.update(i["modality"] for i in e.state.batch))
    flow.run()
    # 14 + 4 + 1 + 1 slices, a quarter of each modality
    assert drawn == {name: 12 * 5 for name in ("MR", "CT", "cine MR", "endoscopy")}
    assert quality[-1] > quality[0] + 1
    shifts = [m.offset.weight for m in flow.parser.get_parsed_content("network_def").modules() if hasattr(m, "offset")]
    assert shifts and all(weight.abs().max() > 0 for weight in shifts), "the shifts have not learnt"


def test_shifts_learn_slowly_and_cpus_use_grid_sample(mixed, tmp_path):
    parser = training(mixed, tmp_path, learning_rate=1e-3).parser
    network = parser.get_parsed_content("network_def")
    names = {id(p): name for name, p in network.named_parameters()}
    slow, others = parser.get_parsed_content("optimizer").param_groups
    assert {names[id(p)] for p in slow["params"]} == {n for n in names.values() if ".offset." in n} != set()
    assert len(slow["params"]) + len(others["params"]) == len(names)
    assert (slow["lr"], others["lr"]) == (pytest.approx(1e-4), 1e-3)
    layers = [m for m in network.modules() if isinstance(m, DeformableConv2d)]
    assert layers and all(m.by_grid_sample for m in layers)
    averaged = [m for m in parser.get_parsed_content("ema").ema_model.modules() if isinstance(m, DeformableConv2d)]
    assert len(averaged) == len(layers) and all(m.by_grid_sample for m in averaged)
    assert "grid_sample" not in network.arguments


def test_validation_figures_by_modality_by_hand(mixed, tmp_path):
    """An untrained network is bicubic, so every figure can be worked out beside it."""
    flow = training(mixed, tmp_path, epochs=1, learning_rate=0.0)
    flow.run()
    metrics = flow.parser.get_parsed_content("validate#evaluator").state.metrics
    expected = {}
    for name, modality in (("mr1.nii.gz", "MR"), ("ct1.nii.gz", "CT"), ("cine1.png", "cine_MR")):
        volume = load_volume()({"image": str(mixed / name)})["image"].as_tensor()
        figures = []
        for image in volume.unbind(-1):
            small = torch.nn.functional.interpolate(image[None], scale_factor=0.25, mode="bicubic")
            large = torch.nn.functional.interpolate(small, scale_factor=4, mode="bicubic")
            figures.append(psnr(large[0], image))
        expected[f"val_psnr_{modality}"] = np.mean(figures)
    assert {k for k in metrics if k.startswith("val_psnr_")} == set(expected)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-4)
    assert metrics["val_psnr"] == pytest.approx(np.mean(list(expected.values())), abs=1e-4)
    assert {k for k in metrics if k.startswith("val_ssim_")} == {k.replace("psnr", "ssim") for k in expected}


def sampler(mixed, **kwargs):
    items = json.loads((mixed / "datalist.json").read_text())["training"]
    items = [item | {"image": str(mixed / item["image"]), "slices": {"axial": [0]}} for item in items]
    for item, count in zip(items, (1, 4, 14, 1), strict=True):
        item["slices"] = {"axial": list(range(count))}
    dataset = SliceDataset(items, load_volume(), training_patches(4, 32))
    return dataset, SliceSampler(dataset, **kwargs)


def epoch(draws, number):
    draws.set_epoch(number)
    return list(draws)


def test_balanced_draws(mixed):
    dataset, draws = sampler(mixed, seed=3, balance="modality")
    assert len(dataset) == 20 and len(draws) == 20
    seen = [key for number in range(14) for key in epoch(draws, number)]
    assert len(set(seen)) == len(seen) == 14 * 20, "no patch comes twice"
    slices = Counter(key % 20 for key in seen)
    by_modality = {}
    for index, count in slices.items():
        by_modality.setdefault(dataset[index]["modality"], []).append(count)
    # 70 draws of each modality: every slice of it equally often, give or take one pass begun
    assert by_modality["MR"] == [5] * 14 and by_modality["cine MR"] == by_modality["endoscopy"] == [70]
    assert sorted(by_modality["CT"]) == [17, 17, 18, 18]
    # an epoch does not depend on those before it, and is shuffled
    fresh = sampler(mixed, seed=3, balance="modality")[1]
    assert epoch(fresh, 7) == seen[140:160] != sorted(seen[140:160])
    assert epoch(sampler(mixed, seed=4, balance="modality")[1], 7) != seen[140:160]
    repeated = [dataset[key]["label"] for key in seen[:20] if key % 20 == next(iter(slices))]
    assert all(not torch.equal(a, b) for i, a in enumerate(repeated) for b in repeated[:i])


def test_balanced_draws_are_shared_out(mixed):
    draws = sampler(mixed, balance="modality")[1]
    whole = epoch(draws, 1)
    draws.num_replicas, draws.num_samples, draws.total_size = 3, 7, 21
    parts = []
    for rank in range(3):
        draws.rank = rank
        parts.append(list(draws))
    assert [len(part) for part in parts] == [7, 7, 7]
    assert Counter(key for part in parts for key in part) == Counter(whole) + Counter(whole[:1])


def test_without_balance_every_slice_comes_once(mixed):
    draws = sampler(mixed, balance=None)[1]
    assert sorted(key % 20 for key in epoch(draws, 5)) == list(range(20))
    with pytest.raises(ValueError, match=r"balance is 'case', expected 'modality'"):
        sampler(mixed, balance="case")
    with pytest.raises(ValueError, match=r"balance needs shuffle"):
        sampler(mixed, balance="modality", shuffle=False)
