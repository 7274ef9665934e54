"""Bundle lgsr: training on mixed modalities and formats, balanced draws, figures by modality, images in and out."""

import csv
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from bundle_copies import save_weights
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from medsr_monai.data import SliceDataset, SliceSampler, load_picture
from medsr_monai.metrics import psnr
from medsr_monai.networks import build_network
from medsr_monai.networks.blocks.deformable import DeformableConv2d
from medsr_monai.recipes import load_volume, training_patches
from medsr_monai.transforms import outer_corners

BUNDLE = Path(__file__).parents[2] / "bundles" / "lgsr"
SMALL = dict(embed_dim=8, num_groups=1, blocks_per_group=1, hidden_size=8, num_layers=1, num_heads=2)
TINY = {f"network_def#{name}": value for name, value in SMALL.items()}


def smooth(rng, *shape):
    """Shapes of a few pixels, such as interpolation blurs, with a little noise: of one value each, they were labels."""
    shapes = np.kron(rng.random([-(-n // 4) for n in shape]), np.ones([4] * len(shape)))[tuple(map(slice, shape))]
    return 0.95 * shapes + 0.05 * rng.random(shape)


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


def options(mixed, out, **more):
    return {
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


def training(mixed, out, names=("train",), **more):
    files = [str(BUNDLE / "configs" / f"{name}.json") for name in names]
    run_id = "evaluating" if "evaluate" in names else "training"
    flow = ConfigWorkflow(
        files, workflow_type="train", logging_file=False, run_id=run_id, **options(mixed, out, **more)
    )
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


def test_two_processes_validate_as_one(warm_python, mixed, tmp_path):
    training(mixed, tmp_path / "one", epochs=1, learning_rate=0.0).run()
    files = [str(BUNDLE / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    command = [warm_python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["monai.bundle", "run", "training", "--config_file", str(files)]
    choices = options(mixed, tmp_path / "two", epochs=1, learning_rate=0.0, batch_size=2)
    command += [text for name, value in choices.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / n / "models" / "last.pt", weights_only=True) for n in ("one", "two"))
    assert two["best"] == pytest.approx(one["best"], abs=1e-6) and two["trainer"] == one["trainer"]
    assert "val_psnr_cine_MR" in done.stdout


def test_fine_tuning_from_weights(mixed, tmp_path):
    """The smallest overlay on top of train.json; the optimizer's groups halve their steps together."""
    (tmp_path / "start").mkdir()
    start = weights(tmp_path / "start")
    flow = training(
        mixed, tmp_path, ("train", "finetune_l1"), weights=str(tmp_path / "start" / "model.pt"), max_steps=6
    )
    flow.run()
    optimizer = flow.parser.get_parsed_content("optimizer")
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[1] == pytest.approx(10 * rates[0]) and rates[1] < 1e-4 / 2
    moved = flow.parser.get_parsed_content("network_def").state_dict()
    assert any(not torch.equal(moved[name], value) for name, value in start.state_dict().items())


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
    with pytest.raises(ValueError, match=r"balance is 'case', expected 'modality', 'contrast'"):
        sampler(mixed, balance="case")
    with pytest.raises(ValueError, match=r"balance needs shuffle"):
        sampler(mixed, balance="modality", shuffle=False)


def test_evaluation_by_modality_by_hand(mixed, tmp_path):
    """The figures of slices.csv, averaged by hand, are those of the table by modality."""
    bicubic = {"_target_": "medsr_monai.networks.Bicubic", "scale": 4}
    flow = training(mixed, tmp_path, ("train", "evaluate"), network_def=bicubic, weights=None, batch_size=1)
    flow.run()
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    with (tmp_path / "eval" / "slices.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(row["modality"], row["method"]): row for row in summary["modalities"]}
    slices = {"MR": 5, "CT": 2, "cine MR": 1}
    assert found.keys() == {(modality, method) for modality in slices for method in ("bicubic", "spline", "network")}
    for (modality, method), row in found.items():
        own = [r for r in rows if (r["modality"], r["method"]) == (modality, method)]
        assert row["slices"] == len(own) == slices[modality]
        for name in ("psnr", "ssim", "psnr_monai"):
            assert row[name] == pytest.approx(np.mean([float(r[name]) for r in own]), rel=1e-9)
    assert "By modality" in (tmp_path / "eval" / "summary.md").read_text()


# images in and out


def weights(folder):
    """A tiny network with random weights, so that a mistake in its input shows."""
    torch.manual_seed(0)
    network = build_network({"_target_": "medsr_monai.networks.LGSR", **SMALL})
    torch.nn.init.normal_(network.last.weight, std=0.02)
    save_weights(network, folder / "model.pt")
    return network.eval()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Copy of the bundle with a tiny network and its weights."""
    folder = tmp_path_factory.mktemp("bundle") / "lgsr"
    shutil.copytree(BUNDLE / "configs", folder / "configs")
    (folder / "models").mkdir()
    file = folder / "configs" / "inference.json"
    content = json.loads(file.read_text())
    content["network_def"].update(SMALL)
    file.write_text(json.dumps(content))
    weights(folder / "models")
    return folder


def corner(depth=255, channels=1):
    """A bright block with a dark notch in the left upper corner, no symmetry at all: [24, 36], with a little noise."""
    image = np.full((24, 36), 0.2) + 0.02 * np.random.default_rng(0).random((24, 36))
    image[:8, :12] += 0.7
    image[:4, :4] -= 0.8
    image[20:, 4:8] += 0.4
    if channels == 3:
        image = np.stack([image, 0.5 * image, 0.8 - 0.5 * image], axis=-1)
    return (depth * image).astype(np.uint8 if depth == 255 else np.uint16)


def block_means(pixels):
    rows, columns = (n // 4 for n in pixels.shape[:2])
    return pixels.reshape(rows, 4, columns, 4, *pixels.shape[2:]).mean(axis=(1, 3))


def save(path, pixels, dpi=None):
    if path.suffix == ".tif":
        photometric = "rgb" if pixels.ndim == 3 else "minisblack"
        options = {} if dpi is None else {"resolution": dpi, "resolutionunit": "INCH"}
        tifffile.imwrite(path, pixels, photometric=photometric, **options)
    else:
        Image.fromarray(pixels).save(path, **({} if dpi is None else {"dpi": dpi}))
    return path


def read(path):
    volume = load_picture(path)
    return volume.as_tensor()[..., 0].permute(2, 1, 0).squeeze(-1).numpy()


ROUND_TRIPS = [
    ("in.png", "out.png", 255, 1),
    ("in.png", "out.tif", 65535, 1),
    ("in.tif", "out.png", 65535, 3),
    ("in.tif", "out.tif", 255, 3),
    ("in.png", "out.jpg", 255, 3),
    ("in.jpg", "out.png", 255, 3),
]


@pytest.mark.parametrize(("source", "target", "depth", "channels"), ROUND_TRIPS)
def test_a_picture_keeps_its_depth_colour_place_and_size(
    medsr, bundle, tmp_path, source, target, depth, channels, capfd
):
    pixels = corner(depth, channels)
    save(tmp_path / source, pixels, dpi=(254, 127))
    code, out, err = medsr("upscale", source, target, "--bundle", bundle, "--nopicture")
    assert (code, err) == (0, "")
    assert "36x24 pixels of 0.1x0.2 mm" in out and "144x96 pixels of 0.025x0.05 mm" in out
    given, result = load_picture(tmp_path / source), load_picture(tmp_path / target)
    assert result.meta["picture"] == ("uint8" if depth == 255 else "uint16")
    assert result.shape == (channels, 144, 96, 1)
    corners = [outer_corners(v.affine, v.shape[1:]) for v in (given, result)]
    np.testing.assert_allclose(*corners, atol=2e-3)
    # nothing is turned or mirrored: blocks of the result look like the pixels of the input
    blocks = block_means(read(tmp_path / target))
    assert np.abs(blocks - pixels).mean() < 0.02 * depth
    for other in (blocks[::-1], blocks[:, ::-1], blocks[::-1, ::-1]):
        assert np.abs(other - pixels).mean() > 0.07 * depth


def test_without_a_stated_size_none_is_written(medsr, bundle, tmp_path):
    save(tmp_path / "in.png", corner())
    assert medsr("upscale", "in.png", "out.png", "--bundle", bundle, "--nopicture")[0] == 0
    with Image.open(tmp_path / "out.png") as picture:
        assert "dpi" not in picture.info


def test_pixels_by_hand(medsr, bundle, tmp_path):
    """Scaled, through the network, scaled back, rounded and clipped; a grey picture in colour is the same one."""
    rng = np.random.default_rng(0)
    pixels = (255 * smooth(rng, 24, 20)).astype(np.uint8)
    pixels[:4], pixels[4:8] = 0, 255
    save(tmp_path / "in.png", pixels)
    assert medsr("upscale", "in.png", "out.png", "--bundle", bundle, "--nopicture")[0] == 0
    image = torch.from_numpy(pixels.T.copy())[None, None].float() / 255
    network = weights(tmp_path)
    with torch.no_grad():
        expected = 255 * network(image)[0, 0].T.numpy()
    assert expected.min() < -1 and expected.max() > 256, "nothing to clip"
    result = read(tmp_path / "out.png")
    assert np.abs(result - expected.clip(0, 255)).max() < 0.51
    save(tmp_path / "grey.png", np.repeat(pixels[..., None], 3, axis=-1))
    assert medsr("upscale", "grey.png", "out_grey.png", "--bundle", bundle, "--nopicture")[0] == 0
    coloured = read(tmp_path / "out_grey.png")
    assert coloured.shape == (96, 80, 3) and np.abs(coloured - result[..., None]).max() <= 1
    # the network changes the luma; each channel gets the same addition to its bicubic enlargement
    colour = np.stack([pixels // 2 + 40, 80 + pixels // 4, 120 - pixels // 8], axis=-1)
    save(tmp_path / "colour.png", colour)
    assert medsr("upscale", "colour.png", "out_colour.tif", "--bundle", bundle, "--nopicture")[0] == 0
    cubic = torch.nn.functional.interpolate(
        torch.from_numpy(colour.transpose(2, 0, 1)[None].astype(np.float32)), scale_factor=4, mode="bicubic"
    )
    added = read(tmp_path / "out_colour.tif") - cubic[0].permute(1, 2, 0).numpy()
    assert np.abs(added - added[..., :1]).max() < 1.01 and np.abs(added).max() > 1.5


def test_bundle_run_on_a_folder_equals_medsr_upscale(medsr, bundle, tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    save(folder / "grey.png", corner(65535))
    save(folder / "photo.jpg", corner(255, 3))
    save(folder / "sub" / "deep.tif", corner(65535, 3), dpi=(100, 100))
    code, _, err = medsr("upscale", folder, "by_medsr", "--bundle", bundle, "--nopicture")
    assert (code, err) == (0, "")
    choices = {"bundle_root": str(bundle), "dataset_dir": str(folder), "output_dir": str(tmp_path / "by_run")}
    config = [str(bundle / "configs" / "inference.json")]
    for attempt in range(2):
        flow = ConfigWorkflow(config, workflow_type="infer", logging_file=False, **choices)
        flow.initialize()
        if attempt:  # nothing is overwritten
            with pytest.raises(RuntimeError):
                flow.run()
        else:
            flow.run()
    names = ["grey_sr.png", "photo_sr.png", "sub/deep_sr.tif"]
    for root in ("by_medsr", "by_run"):
        files = (p.relative_to(tmp_path / root).as_posix() for p in (tmp_path / root).rglob("*.[pt]*"))
        assert sorted(files) == names
    for name in names:
        assert (tmp_path / "by_medsr" / name).read_bytes() == (tmp_path / "by_run" / name).read_bytes()


def dicom(path, pixels, **tags):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.StudyInstanceUID, header.SeriesInstanceUID, header.Modality = generate_uid(), generate_uid(), "US"
    (header.Rows, header.Columns), header.SamplesPerPixel = pixels.shape[:2], 3 if pixels.ndim == 3 else 1
    header.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    header.PlanarConfiguration, header.PixelRepresentation = 0, int(pixels.dtype.kind == "i")
    header.BitsAllocated = header.BitsStored = 8 * pixels.dtype.itemsize
    header.HighBit, header.PixelData = header.BitsStored - 1, pixels.tobytes()
    for tag, value in tags.items():
        setattr(header, tag, value)
    header.save_as(path, enforce_file_format=True)
    return path


PLACE = {
    "ImagePositionPatient": [5, 6, 7],
    "ImageOrientationPatient": [1, 0, 0, 0, 0, -1],  # coronal
    "PixelSpacing": [0.5, 0.4],
    "SliceThickness": 3,
    "RescaleSlope": 1,
    "RescaleIntercept": -1024,
}


def test_a_dicom_image_becomes_a_picture_or_a_volume(medsr, bundle, tmp_path):
    pixels = corner(65535)
    dicom(tmp_path / "in.dcm", pixels, **PLACE)
    assert medsr("upscale", "in.dcm", "out.png", "--bundle", bundle, "--nopicture")[::2] == (0, "")
    result = load_picture(tmp_path / "out.png")
    assert result.meta["picture"] == "uint16" and np.abs(block_means(read(tmp_path / "out.png")) - pixels).mean() < 1300
    np.testing.assert_allclose(result.affine.diagonal()[:2], [-0.1, -0.125], rtol=1e-4)
    code, out, err = medsr("upscale", "in.dcm", "volume.nii.gz", "--bundle", bundle, "--nopicture")
    assert (code, err) == (0, "") and "plane coronal (auto)" in out
    volume = nib.load(tmp_path / "volume.nii.gz")
    assert volume.shape == (144, 96, 1)
    np.testing.assert_allclose(np.linalg.norm(volume.affine[:3, :3], axis=0)[:2], [0.1, 0.125], rtol=1e-5)
    values = volume.get_fdata()[..., 0].T  # in rescaled units
    assert np.abs(block_means(values) - (pixels - 1024.0)).mean() < 1300
    # the outer corner of the first pixel, in RAS
    np.testing.assert_allclose(volume.affine @ [-0.5, -0.5, 0, 1], [-4.8, -6, 7.25, 1], atol=1e-4)
    folder = tmp_path / "ultrasound"
    folder.mkdir()
    for number in range(2):
        dicom(folder / f"IM{number}", corner(255, 3))
    assert medsr("upscale", folder, "out", "--bundle", bundle)[::2] == (0, "")
    assert sorted(p.name for p in (tmp_path / "out").glob("*_sr.png")) == ["IM0_sr.png", "IM1_sr.png"]
    assert read(tmp_path / "out" / "IM0_sr.png").shape == (96, 144, 3)


REFUSED = {
    "cmyk.jpg": (lambda p: Image.fromarray(corner(255, 3)).convert("CMYK").save(p), r"format CMYK, expected"),
    "alpha.png": (lambda p: Image.fromarray(np.dstack([corner(255, 3), corner()])).save(p), r"transparent pixels"),
    "pages.tif": (lambda p: tifffile.imwrite(p, np.stack([corner()] * 3), photometric="minisblack"), r"3 pages"),
    "float.tif": (lambda p: tifffile.imwrite(p, corner() / np.float32(3)), r"32 bits or floating"),
    "text.png": (lambda p: p.write_text("no picture"), r"cannot be read as a picture"),
    "constant.png": (lambda p: save(p, np.full((9, 9), 7, np.uint8)), r"every voxel is 7"),
    "cine.dcm": (lambda p: dicom(p, np.stack([corner()] * 2, -1).transpose(2, 0, 1)[0], NumberOfFrames=2), r"2 frames"),
    "negative.dcm": (lambda p: dicom(p, corner().astype(np.int16) - 50), r"negative values.*name an output .nii.gz"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_inputs(medsr, bundle, tmp_path, name):
    make, reason = REFUSED[name]
    make(tmp_path / name)
    code, _, err = medsr("upscale", name, "out.png", "--bundle", bundle)
    assert code == 1 and err.count("\n") == 1 and err.startswith("medsr: error: ") and re.search(reason, err), err
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("source", "arguments", "reason"),
    [
        ("in.png", ("out.nii.gz",), r"out.nii.gz: of a picture a picture is written, give a name that ends in .png"),
        ("in.png", ("out.gif",), r"of a picture a picture is written"),
        ("in.png", ("in.png",), r"is the input, which is never overwritten"),
        ("in.png", ("there.png",), r"there.png: exists, choose another name or add --overwrite"),
        ("in.png", ("out.jpg",), r"the input has 16 bits, JPEG holds 8"),
        ("in.png", ("out.png", "--plane", "coronal"), r"plane is 'coronal', but a picture has one slice"),
        ("in.png", ("out.png", "--frame", "1"), r"frame 1 asked for, a picture has frame 0 only"),
        ("in.dcm", ("out.dcm",), r"or .nii.gz; DICOM is not written"),
        ("in.dcm", ("out.nii.gz",), r"in.dcm: DICOM without ImagePositionPatient"),
        ("volume.nii.gz", ("out.png",), r"the output is written as NIfTI"),
    ],
)
def test_refused_outputs_and_options(medsr, bundle, tmp_path, source, arguments, reason):
    save(tmp_path / "in.png", corner(65535))
    save(tmp_path / "there.png", corner())
    dicom(tmp_path / "in.dcm", corner())
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((8, 8, 2)), np.eye(4)), tmp_path / "volume.nii.gz")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    code, _, err = medsr("upscale", source, *arguments, "--bundle", bundle)
    assert code == 1 and err.count("\n") == 1 and err.startswith("medsr: error: ") and re.search(reason, err), err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_bad_picture_does_not_stop_a_folder(medsr, bundle, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    save(folder / "a.png", corner())
    (folder / "b.png").write_text("no picture")
    save(folder / "c.png", corner())
    code, _, err = medsr("upscale", folder, "out", "--bundle", bundle)
    assert code == 1 and re.search(r"b.png: cannot be read", err) and "1 of 3" in err
    assert sorted(p.name for p in (tmp_path / "out").glob("*_sr.png")) == ["a_sr.png", "c_sr.png"]


def test_pictures_are_evaluated(medsr, bundle, tmp_path):
    """Sizes of pixels, which one file states and the other does not, do not matter."""
    save(tmp_path / "ref.png", corner(255, 3))
    save(tmp_path / "pred.png", corner(255, 3) // 2 + 20, dpi=(72, 72))
    code, out, err = medsr("evaluate", "pred.png", "ref.png", "--border", "1")
    assert (code, err) == (0, "") and "axial, 1 slices: PSNR" in out


def test_without_weights_the_error_says_so(medsr, tmp_path):
    save(tmp_path / "in.png", corner())
    copy = tmp_path / "lgsr"
    shutil.copytree(BUNDLE / "configs", copy / "configs")
    code, _, err = medsr("upscale", "in.png", "out.png", "--bundle", copy)
    assert code == 1 and "bundle lgsr has no trained weights" in err and err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()
