"""`medsr evaluate` of volumes and pictures as a user types it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import save_weights
from PIL import Image
from typed_commands import GOOD, THICK, make_volume, oblique_affine, one_voxel, refused

from medsr_monai.metrics import psnr
from medsr_monai.networks import InceptionFeatures, SegmentationUNet
from medsr_monai.weights.load import load_network


def test_degrade_upscale_evaluate(medsr, bundle, tmp_path):
    make_volume(tmp_path / "hr.nii.gz", shape=(66, 64, 5), affine=oblique_affine())
    assert medsr("degrade", "hr.nii.gz", "lr.nii.gz")[0] == 0
    assert medsr("upscale", "lr.nii.gz", "sr.nii.gz", "--bundle", bundle, "--nopicture")[0] == 0
    code, out, err = medsr("evaluate", "sr.nii.gz", "hr.nii.gz")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"axial, 5 slices: PSNR \d+\.\d\d dB \(whole volume \d+\.\d\d dB\), SSIM [01]\.\d{4}\n", out)
    code, out, _ = medsr("evaluate", "sr.nii.gz", "hr.nii.gz", "--json", "--csv", "new/table.csv")
    figures = json.loads(out)
    lines = Path("new/table.csv").read_text().splitlines()
    assert figures["slices"] == 5 and lines[0] == "plane,slice,psnr,ssim" and len(lines) == 6
    mean = np.mean([float(line.split(",")[2]) for line in lines[1:]])
    assert figures["psnr"] == pytest.approx(mean)
    refused(medsr("evaluate", "sr.nii.gz", "hr.nii.gz", "--csv", "new/table.csv"), "table.csv: exists.*--overwrite")
    assert medsr("evaluate", "sr.nii.gz", "hr.nii.gz", "--csv", "new/table.csv", "--overwrite")[0] == 0


def test_equal_volumes_have_an_infinite_psnr_and_valid_json(medsr, tmp_path):
    make_volume(tmp_path / "a.nii.gz", shape=(24, 24, 3))
    code, out, err = medsr("evaluate", "a.nii.gz", "a.nii.gz")
    assert (code, err) == (0, "") and "PSNR inf dB (whole volume inf dB), SSIM 1.0000" in out
    code, out, _ = medsr("evaluate", "a.nii.gz", "a.nii.gz", "--json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    figures = json.loads(out, parse_constant=refuse)
    assert figures["psnr"] is None and figures["psnr_volume"] is None and figures["ssim"] == pytest.approx(1)


def test_evaluate_refuses_other_grids(medsr, tmp_path):
    make_volume(tmp_path / "ref.nii.gz", shape=(24, 24, 3))
    shifted = THICK.copy()
    shifted[0, 3] = 0.5
    make_volume(tmp_path / "shifted.nii.gz", shape=(24, 24, 3), affine=shifted)
    make_volume(tmp_path / "larger.nii.gz", shape=(25, 24, 3))
    make_volume(tmp_path / "finer.nii.gz", shape=(24, 24, 3), affine=np.diag([0.5, 0.5, 4, 1]))
    for name in ("shifted", "larger", "finer"):
        refused(medsr("evaluate", f"{name}.nii.gz", "ref.nii.gz"), "24x24x3 voxels.*only volumes in the same grid")


def test_evaluate_refuses_what_has_no_figure(medsr, tmp_path):
    make_volume(tmp_path / "small.nii.gz", shape=(12, 12, 3))
    refused(medsr("evaluate", "small.nii.gz", "small.nii.gz"), "12x12 pixels is too small.*smaller border")
    assert medsr("evaluate", "small.nii.gz", "small.nii.gz", "--border", 2)[0] == 0
    refused(medsr("evaluate", "small.nii.gz", "small.nii.gz", "--border=-1"), "border is -1")
    flat = np.ones((24, 24, 3), np.float32) * np.linspace(0.1, 2.3, 3, dtype=np.float32)
    nib.save(nib.Nifti1Image(flat, THICK), "flat.nii.gz")
    refused(medsr("evaluate", "flat.nii.gz", "flat.nii.gz"), "no axial slice with any contrast")
    nib.save(nib.Nifti1Image(one_voxel(np.nan), THICK), "nan.nii.gz")
    nib.save(nib.Nifti1Image(GOOD, THICK), "good.nii.gz")
    refused(medsr("evaluate", "nan.nii.gz", "good.nii.gz"), "NaN or infinite")


@pytest.fixture
def pictures(tmp_path):
    """Folders hr/, sr/ and masks/ with PNG pictures of two slices, and a U-Net of random weights."""
    rng = np.random.default_rng(0)
    for folder in ("hr", "sr", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        image = rng.integers(0, 200, (24, 20))
        image[0, :2] = (0, 255)  # the range of every reference
        mask = np.zeros((24, 20), np.uint8)
        mask[6:14, 4:12] = 255
        noisy = (image + rng.integers(0, 30, image.shape)).clip(0, 255)
        for file, pixels in ((f"hr/{name}", image), (f"sr/{name}_sr", noisy), (f"masks/{name}", mask)):
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{file}.png")
    torch.manual_seed(1)
    unet = SegmentationUNet(1, 2, encoder="resnet18").eval()
    with torch.no_grad():  # each class in half of the pixels
        background, inside = unet(scaled(tmp_path / "hr/a.png")[None])[0]
        unet.segmentation_head[0].bias[1] -= (inside - background).median()
    save_weights(unet, tmp_path / "unet.pt")
    return tmp_path


def scaled(path: Path) -> torch.Tensor:
    """A picture as the array [1, columns, rows] that a slice is."""
    return torch.from_numpy(np.array(Image.open(path)).T.astype(np.float32) / 255)[None]


def test_evaluate_folders(medsr, pictures):
    code, out, err = medsr("evaluate", "sr", "hr", "--json", "--output", "new/tables", "--csv", "all.csv")
    assert (code, err) == (0, "")
    (pooled,) = json.loads(out)
    values = [psnr(scaled(f"sr/{name}_sr.png"), scaled(f"hr/{name}.png")) for name in "ab"]
    assert (pooled["method"], pooled["slices"]) == ("pred", 2)
    assert (pooled["psnr"], pooled["psnr_std"]) == pytest.approx((np.mean(values), np.std(values)), abs=1e-4)
    assert {p.name for p in Path("new/tables").iterdir()} == {"slices.csv", "summary.csv", "summary.md", "summary.json"}
    summary = json.loads(Path("new/tables/summary.json").read_text())
    assert summary["pooled"] == [pooled] and [row["case"] for row in summary["groups"]] == ["a", "b"]
    assert Path("all.csv").read_text() == Path("new/tables/slices.csv").read_text()
    refused(medsr("evaluate", "sr", "hr", "--output", "new/tables"), "slices.csv: exists.*--overwrite")
    code, out, _ = medsr("evaluate", "sr", "hr", "--output", "new/tables", "--overwrite")
    assert code == 0 and out.startswith("| method | slices | psnr |") and f"| {np.mean(values):.2f} (" in out


def test_evaluate_with_a_u_net_and_inception(medsr, pictures):
    torch.manual_seed(0)
    torch.save(InceptionFeatures().inception.state_dict(), "inception.pth")
    code, out, err = medsr(
        "evaluate", "sr", "hr", "--unet", "unet.pt", "--labels", "masks", "--label_map", '{"255": 1}',
        "--inception", "inception.pth", "--json", "--device", "cpu", "--regions", '{"Dice-T": [1]}',
    )  # fmt: skip
    assert (code, err) == (0, "")
    hr, pred = json.loads(out)
    assert (hr["method"], pred["method"], pred["dice_against"]) == ("HR", "pred", "label map") and pred["fid"] > 0
    unet, counts = load_network("unet.pt"), np.zeros((2, 2))
    for name in "ab":
        mask = scaled(f"masks/{name}.png") > 0
        for row, file in enumerate((f"hr/{name}.png", f"sr/{name}_sr.png")):
            with torch.no_grad():
                found = unet(scaled(file)[None]).argmax(1) == 1
            counts[row] += 2 * int((found & mask).sum()), int(found.sum() + mask.sum())
    # the classes of a few pixels hang by a rounding error
    assert [row["dice_1_pooled"] for row in (hr, pred)] == pytest.approx(list(counts[:, 0] / counts[:, 1]), abs=0.01)
    assert pred["Dice-T_pooled"] == pred["dice_1_pooled"] and pred["Dice-T_patients"] > 0
    assert 0 < pred["dice_1_pooled"] != hr["dice_1_pooled"] < 1
    code, out, _ = medsr("evaluate", "sr/a_sr.png", "hr/a.png", "--unet", "unet.pt", "--device", "cpu")
    assert code == 0 and "| prediction on HR |" in out and "| HR | 1 | - | - | - | - | 1.0000 (0.0000) |" in out
    refused(medsr("evaluate", "sr/a_sr.png", "hr/a.png", "--inception", "inception.pth"), "FID needs at least 2 slices")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--unet", "absent.pt"], "absent.pt: no such file"),
        (["--inception", "absent.pth"], "absent.pth: no such file"),
        (["--labels", "masks"], "give --unet too"),
        (["--unet", "unet.pt", "--labels", "absent"], "absent: no such file or folder"),
        (["--unet", "unet.pt", "--labels", "masks"], 'labels 255, the U-Net has 0 to 1.*"255": 1'),
        (["--unet", "unet.pt", "--regions", "{"], "regions is '{', expected JSON such as"),
        (["--unet", "unet.pt", "--regions", "ixi"], "regions are 'ixi', expected one of oasis, brats"),
        (["--unet", "unet.pt", "--label_map", "255:1"], "label_map is '255:1', expected JSON"),
        (["--unet", "hr/a.png"], "hr/a.png: not a PyTorch weights file"),
        (["--inception", "unet.pt"], "unet.pt: not the weights of torchvision's Inception-v3"),
        (["--intensity", "zscore"], "intensity mode is 'zscore', expected one of"),
    ],
)
def test_evaluate_refuses_wrong_options(medsr, pictures, options, reason):
    refused(medsr("evaluate", "sr", "hr", "--device", "cpu", *options), reason)


def test_evaluate_takes_another_range(medsr, tmp_path):
    """A hot voxel moves the minimum and maximum, not the percentiles."""
    make_volume(tmp_path / "a.nii.gz", shape=(24, 24, 4))
    image = nib.load("a.nii.gz")
    voxels = image.get_fdata().copy()
    voxels[0, 0, 0] = 50 * voxels.max()
    for name, array in (("ref", voxels), ("pred", 1.01 * voxels)):
        nib.save(nib.Nifti1Image(array.astype(np.float32), image.affine), f"{name}.nii.gz")
    hot, sound = (
        json.loads(medsr("evaluate", "pred.nii.gz", "ref.nii.gz", "--json", f"--intensity={mode}", "--plane=axial")[1])
        for mode in ("minmax", "percentile")
    )
    assert hot["psnr"] > sound["psnr"] + 20 and hot["psnr_monai"] is not None
