"""`medsr compare` through its command line: figures against hand-made ones, the picture's content, what it refuses."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bundle_copies import save_weights
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy.ndimage import gaussian_filter

from medsr_monai.data import sample_volume
from medsr_monai.evaluation.tables import FILES
from medsr_monai.metrics import busiest_crop
from medsr_monai.networks import EDSR, SegmentationUNet

ROOT = Path(__file__).parents[2]
OBLIQUE = np.array([[-0.2, -0.9, 0, 30], [-1.1, 0.16363636, 0, 20], [0, 0, 5, -10], [0, 0, 0, 1.0]])


def tiny_edsr(**arguments: object) -> EDSR:
    torch.manual_seed(0)
    return EDSR(**(dict(scale=4, channels=4, num_blocks=1) | arguments))


def make_volume(path: Path | str, shape: tuple[int, ...] = (66, 65, 4), affine: np.ndarray = OBLIQUE) -> np.ndarray:
    values = (1000 * gaussian_filter(np.random.default_rng(0).random(shape), (2, 2, 0))).astype(np.float32)
    nib.save(nib.Nifti1Image(values, affine), path)
    return values


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, in order; their files are coarse, which saves most of the time."""
    saved, savefig = [], Figure.savefig

    def record(figure: Figure, *args: object, **kwargs: object) -> None:
        assert figure.dpi == 300
        saved.append(figure)
        savefig(figure, *args, dpi=50, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return saved


@pytest.fixture
def medsr(medsr, figures):
    return medsr


def refused(result: tuple[int, str, str], reason: str) -> None:
    code, out, err = result
    assert code == 1, (out, err)
    assert err.count("\n") == 1 and err.startswith("medsr: error: "), err
    assert re.search(reason, err), err


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def data(path: str) -> np.ndarray:
    return nib.load(path).get_fdata(dtype=np.float32)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def images(figure: Figure) -> list[np.ndarray | None]:
    """Of every panel, column after column: the slice, its crop, its errors or None; without the colour bar."""
    return [np.asarray(ax.images[0].get_array()) if ax.images else None for ax in figure.axes[:-1]]


def test_bicubic_is_measured_and_drawn_as_by_hand(medsr, figures):
    values = make_volume("hr.nii.gz")
    code, out, err = medsr("compare", "hr.nii.gz", "out", "--networks", "Bicubic", "--save-volumes", "--slice", 1)
    assert (code, err) == (0, "")
    assert sorted(os.listdir("out")) == sorted([*FILES, "input.nii.gz", "Bicubic_sr.nii.gz"])
    # the far end is cropped to a multiple of 4, bicubic down and up again, 4 pixels left out, range of all voxels
    label = torch.from_numpy(values[:64, :64]).permute(2, 0, 1)[:, None].double()
    low = F.interpolate(label, size=(16, 16), mode="bicubic", align_corners=False)
    pred = F.interpolate(low, size=(64, 64), mode="bicubic", align_corners=False)
    inner = (pred - label)[:, 0, 4:-4, 4:-4].numpy()
    expected = [-10 * np.log10(np.mean(slice_**2) / np.ptp(values.astype(float)) ** 2) for slice_ in inner]
    measured = [float(row["psnr"]) for row in rows("out/slices.csv")]
    np.testing.assert_allclose(measured, expected, atol=1e-3)
    (row,) = rows("out/compare.csv")
    assert row["system"] == "Bicubic" and row["slices"] == "4" and row["parameters"] == "0"
    assert float(row["psnr"]) == pytest.approx(np.mean(expected), abs=1e-3)
    assert float(row["psnr_std"]) == pytest.approx(np.std(expected), abs=1e-3)
    ssim = f"{float(row['ssim']):.4f} ({float(row['ssim_std']):.4f})"
    line = f"| Bicubic | {np.mean(expected):.2f} ({np.std(expected):.2f}) | {ssim} | 0.00 | "
    assert line in out and line in Path("out/compare.md").read_text()
    assert "hr.nii.gz, degraded (bicubic), x4 in the axial plane." in Path("out/compare.md").read_text()
    # the picture: the array runs to the back and to the left, as radiologists look at it after a transposition
    (figure,) = figures
    assert f"{measured[1]:.2f} dB / {float(rows('out/slices.csv')[1]['ssim']):.4f}" in texts(figure)
    lr, lr_crop, none, sr, sr_crop, error, ref, ref_crop, no_error = images(figure)
    assert none is None and no_error is None
    slices = {name: data(f"out/{name}.nii.gz")[:, :, 1] for name in ("input", "Bicubic_sr")}
    slices["ref"] = values[:64, :64, 1]
    drawn_as = ((lr, "input"), (lr_crop, "input"), (sr, "Bicubic_sr"), (sr_crop, "Bicubic_sr"), (ref, "ref"))
    for drawn, name in (*drawn_as, (ref_crop, "ref")):
        np.testing.assert_array_equal(drawn, slices[name], err_msg=name)
    expected = 100 * np.abs(slices["Bicubic_sr"] - slices["ref"]) / np.ptp(values)
    np.testing.assert_allclose(error, expected, atol=1e-4)
    limits = figure.axes[5].images[0].get_clim()
    assert limits[0] == 0 and np.percentile(expected, 99.5) <= limits[1] < 1.1 * np.percentile(expected, 99.5)


def test_a_table_of_several_systems_equals_the_single_commands(medsr, figures, bundle):
    make_volume("hr.nii.gz")
    save_weights(tiny_edsr(), "edsr.pt")
    systems = ("--bundles", bundle, "--networks", "mine=edsr.pt,edsr.pt", "--save-volumes")
    code, out, err = medsr("compare", "hr.nii.gz", "out", *systems)
    assert (code, err) == (0, "")
    names = ["Bicubic", "tiny", "mine", "EDSR"]
    table = rows("out/compare.csv")
    assert [row["system"] for row in table] == names
    assert [line.split("|")[1].strip() for line in out.splitlines()[2:-1]] == names
    assert out.splitlines()[-1] == f"out: {', '.join(FILES)}"
    content = json.loads(Path("out/compare.json").read_text())
    assert [s["system"] for s in content["systems"]] == names and content["slice"] == 2
    assert content["systems"][0]["weights_sha256"] is None
    assert content["systems"][2]["weights_sha256"] == content["systems"][3]["weights_sha256"]
    assert int(table[2]["parameters"]) == sum(p.numel() for p in tiny_edsr().parameters())
    assert table[2]["psnr"] == table[3]["psnr"] != table[1]["psnr"]
    # the same by hand
    assert medsr("degrade", "hr.nii.gz", "lr.nii.gz")[0] == 0
    assert medsr("upscale", "lr.nii.gz", "tiny.nii.gz", "--bundle", bundle, "--nopicture")[0] == 0
    np.testing.assert_array_equal(data("tiny.nii.gz"), data("out/tiny_sr.nii.gz"))
    evaluated = json.loads(medsr("evaluate", "tiny.nii.gz", "hr.nii.gz", "--json", "--csv", "tiny.csv")[1])
    evaluated = {name: value for name, value in evaluated.items() if not isinstance(value, str)}
    assert {"psnr", "ssim_std", "psnr_monai", "psnr_volume", "slices"} <= set(evaluated)
    assert {name: float(table[1][name]) for name in evaluated} == pytest.approx(evaluated)
    ours = [row for row in rows("out/slices.csv") if row["system"] == "tiny"]
    alone = rows("tiny.csv")
    assert len(alone) > 1 and [{k: row[k] for k in alone[0]} for row in ours] == alone
    # one scale of errors for all, figures of the slice that is drawn
    limits = {ax.images[0].get_clim() for ax in figures[0].axes[5:-1:3] if ax.images}
    assert len(limits) == 1
    for row in rows("out/slices.csv"):
        assert (f"{float(row['psnr']):.2f} dB / {float(row['ssim']):.4f}" in texts(figures[0])) == (row["slice"] == "2")
    # an input with its reference gives the same table
    code, out, err = medsr("compare", "lr.nii.gz", "again", "--reference", "hr.nii.gz", *systems)
    assert (code, err) == (0, "") and not Path("again/input.nii.gz").exists()
    again = rows("again/compare.csv")
    assert [r | {"seconds": 0} for r in again] == [r | {"seconds": 0} for r in table]
    assert "lr.nii.gz against hr.nii.gz, x4" in Path("again/compare.md").read_text()


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
def test_slices_are_drawn_as_radiologists_look_at_them(medsr, figures, plane):
    """A bright spot at the right front top of the patient comes to the left top of the picture, however voxels lie."""
    affine = np.diag([1, 1.2, 1.3, 1])  # axes run to the right, the front and the top
    values = make_volume("ras.nii.gz", (40, 44, 48), affine)
    values[26:38, 30:42, 34:46] = values.max() + 100
    nib.save(nib.Nifti1Image(values, affine), "ras.nii.gz")
    turned = nib.load("ras.nii.gz").as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple("SPL"))
        )
    )
    nib.save(turned, "spl.nii.gz")
    position = {"sagittal": (32, 40 - 1 - 32), "coronal": (36, 44 - 1 - 36), "axial": (40, 40)}[plane]
    for name, number in zip(("ras", "spl"), position, strict=True):
        options = ("--networks", "Bicubic", "--plane", plane, "--slice", number)
        code, _, err = medsr("compare", f"{name}.nii.gz", name, *options)
        assert (code, err) == (0, "")
    drawn = [images(figure)[6] for figure in figures]
    np.testing.assert_array_equal(*drawn)
    rows_, columns = (n // 2 for n in drawn[0].shape)
    bright = drawn[0] == values.max()
    assert bright.sum() == bright[:rows_, :columns].sum() == 12 * 12
    edges = {"sagittal": (1.3, 1.2), "coronal": (1.3, 1.0), "axial": (1.2, 1.0)}[plane]
    assert figures[0].axes[0].get_aspect() == pytest.approx(edges[0] / edges[1])
    letters = [text.get_text() for text in figures[0].axes[0].texts]
    assert letters == ["A" if plane == "sagittal" else "R"]


def test_slice_and_crop_are_taken_as_asked(medsr, figures):
    make_volume("hr.nii.gz")
    for options in (("--slice", 3, "--crop", "5,10,20,16"), ()):
        assert medsr("compare", "hr.nii.gz", "--networks", "Bicubic", "--overwrite", *options)[0] == 0
    content = json.loads(Path("compare_out/compare.json").read_text())
    asked, default = figures
    assert asked.axes[1].get_xlim() == (10, 26) and asked.axes[1].get_ylim() == (25, 5)
    top, left, height, width = content["crop"]
    assert (height, width) == (16, 16) and content["slice"] == 2
    assert default.axes[1].get_xlim() == (left, left + width) and default.axes[1].get_ylim() == (top + height, top)
    np.testing.assert_array_equal(images(asked)[6], data("hr.nii.gz")[:64, :64, 3])
    box = asked.axes[0].patches[0]
    assert (box.get_xy(), box.get_width(), box.get_height()) == ((10, 5), 16, 20)


def test_the_busiest_crop_lies_on_texture_not_on_the_edge_of_air():
    image = np.zeros((40, 60))
    image[:, 20:] = 100  # half of a window over this edge is air: the highest variance
    image[25:35, 45:55] += 60 * (np.arange(10)[:, None] // 2 % 2)
    top, left, *size = busiest_crop(image, (10, 10))
    assert abs(top - 25) <= 1 and abs(left - 45) <= 1 and size == [10, 10]


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (12, 9)])
def test_the_busiest_crop_reaches_every_corner(size):
    for corner in ((0, 0), (0, 11), (11, 0), (11, 11)):
        image = np.zeros((12, 12))
        image[corner] = 1
        expected = tuple(0 if at == 0 else 12 - side for at, side in zip(corner, size, strict=True))
        assert busiest_crop(image, size) == (*expected, *size)


def test_a_result_equal_to_its_reference_is_infinite_and_valid_json(medsr):
    make_volume("hr.nii.gz", (64, 64, 3))
    assert medsr("compare", "hr.nii.gz", "out", "--networks", "Bicubic", "--save-volumes")[0] == 0
    options = ("--reference", "out/Bicubic_sr.nii.gz", "--networks", "Bicubic", "--json")
    code, out, err = medsr("compare", "out/input.nii.gz", "equal", *options)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert (code, err) == (0, "")
    content = json.loads(out, parse_constant=refuse)
    assert content == json.loads(Path("equal/compare.json").read_text())
    assert content["systems"][0]["psnr"] is None and content["systems"][0]["ssim"] == pytest.approx(1)
    assert "| Bicubic | inf | 1.0000 (0.0000) |" in Path("equal/compare.md").read_text()


def test_a_system_that_fails_is_left_out_and_told(medsr):
    make_volume("hr.nii.gz", (64, 64, 3))
    broken = tiny_edsr()
    torch.nn.init.constant_(next(broken.parameters()), float("nan"))
    save_weights(broken, "broken.pt")
    save_weights(tiny_edsr(), "good.pt")
    code, _, err = medsr("compare", "hr.nii.gz", "out", "--networks", "broken=broken.pt,good=good.pt")
    assert code == 1
    assert re.fullmatch(r"medsr: error: broken: \d+ of \d+ voxels of the output are NaN or infinite: .*\n", err)
    assert [row["system"] for row in rows("out/compare.csv")] == ["Bicubic", "good"]


def test_existing_files_are_kept_unless_told(medsr):
    make_volume("hr.nii.gz")
    Path("out").mkdir()
    Path("out/compare.png").write_text("mine")
    Path("out/Bicubic_sr.nii.gz").write_text("mine")
    refused(medsr("compare", "hr.nii.gz", "out", "--networks", "Bicubic"), r"out/compare\.png: exists.*--overwrite")
    Path("out/compare.png").unlink()
    arguments = ("compare", "hr.nii.gz", "out", "--networks", "Bicubic", "--save-volumes")
    refused(medsr(*arguments), r"out/Bicubic_sr\.nii\.gz: exists.*--overwrite")
    assert os.listdir("out") == ["Bicubic_sr.nii.gz"] and Path("out/Bicubic_sr.nii.gz").read_text() == "mine"
    assert medsr(*arguments, "--overwrite")[0] == 0
    assert sorted(os.listdir("out")) == sorted([*FILES, "input.nii.gz", "Bicubic_sr.nii.gz"])
    os.rename("out/input.nii.gz", "hr.nii.gz")
    Path("out/input.nii.gz").symlink_to("../hr.nii.gz")
    refused(medsr(*arguments, "--overwrite"), r"out/input\.nii\.gz: is the input")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--networks", "nope"], "no bundle or weights file 'nope': choose from the bundles .*rdst_e"),
        (["--bundles", "rdst_e,nope"], "no bundle or weights file 'nope'"),
        (["--networks", "RDN"], "RDN is an untrained network: give its weights, RDN=path/to/model.pt"),
        (["--networks", "mine=nope.pt"], "nope.pt: no such weights file"),
        (["--networks", "RDN=edsr.pt"], "edsr.pt: the weights are of EDSR, not of RDN"),
        (["--networks", "a=edsr.pt,a=edsr.pt"], "a is another column's name"),
        (["--networks", "Bicubic=edsr.pt"], "the weights are of EDSR, not of Bicubic"),
        (["--networks", "reference=edsr.pt"], "reference is another column's name"),
        (["--networks", "a/b=edsr.pt"], "called 'a/b'"),
        (["--networks", "text.pt"], "text.pt: not a PyTorch weights file"),
        (["--networks", "unet.pt"], "unet.pt: SegmentationUNet does not super-resolve"),
        (["--networks", "colour.pt"], "colour.pt: EDSR takes 3 channels to 3"),
        (["--networks", "edsr.pt,x2.pt"], "EDSR is another column's name"),
        (["--networks", "x2=x2.pt,x4=edsr.pt"], "x4 enlarges x4, not x2: compare systems of one scale"),
        (["--networks", "edsr.pt", "--scale", "2"], "EDSR enlarges x4, not x2"),
        (["--networks", "thick.pt"], "EDSR enlarges rows x1 and columns x4"),
        (["--networks", "Bicubic", "--scale", "1"], "scale is 1, expected at least 2"),
        (["--networks", "Bicubic", "--scale", "5"], "scale is 5: expected one of"),
        (["--bundles", "bare"], "bundle bare has no trained weights"),
        (["--bundles", "seg_unet"], "bundle seg_unet does not super-resolve"),
        (["--bundles", "transmrsr"], "bundle transmrsr makes thick slices thin, compare enlarges slices"),
        (["--networks", "Bicubic", "--plane", "x"], "plane is 'x', expected auto"),
        (["--networks", "Bicubic", "--slice", "9"], "slice 9 is not among those compared: 0, 1, 2, 3"),
        (["--networks", "Bicubic", "--crop", "1,2,3"], "crop is '1,2,3', expected top,left,height,width"),
        (["--networks", "Bicubic", "--crop", "60,0,5,5"], "crop is 60,0,5,5, expected .* inside the slice of 64x64"),
        (["--networks", "Bicubic", "--border", "30"], "64x64 pixels is too small"),
        (["--networks", "Bicubic", "--border=-1"], "border is -1"),
        (["--networks", "Bicubic", "--frame", "1"], "frame 1 asked for"),
        (["--networks", "Bicubic", "--reference", "missing.nii.gz"], "missing.nii.gz: no such file"),
        (["--networks", "Bicubic", "--reference", "hr.nii.gz"], "only volumes in the same grid"),
        (["--networks", "Bicubic", "--reference", "nan.nii.gz"], "nan.nii.gz: .*NaN"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(medsr, bundle, options, reason):
    values = make_volume("hr.nii.gz")
    values[3, 3, 1] = np.nan
    nib.save(nib.Nifti1Image(values, OBLIQUE), "nan.nii.gz")
    if "edsr.pt" in str(options):
        save_weights(tiny_edsr(), "edsr.pt")
    save_weights(tiny_edsr(scale=2), "x2.pt")
    save_weights(tiny_edsr(in_channels=3, out_channels=3), "colour.pt")
    save_weights(tiny_edsr(scale=[1, 4]), "thick.pt")
    if "unet.pt" in options:
        save_weights(SegmentationUNet(encoder="mobilenet_v2"), "unet.pt")
    Path("text.pt").write_text("no weights")
    shutil.copytree(bundle / "configs", "bare/configs")
    refused(medsr("compare", "hr.nii.gz", "new/out", "--save-volumes", *options), reason)
    assert not Path("new").exists()


def test_volumes_of_different_spaces_are_refused(medsr):
    make_volume("lr.nii.gz", (16, 16, 4))
    fine = OBLIQUE @ np.diag([0.25, 0.25, 1, 1])
    fine[:3, 3] += OBLIQUE[:3, :3] @ [-0.375, -0.375, 0]
    shifted = fine.copy()
    shifted[2, 3] += 1
    for name, shape, affine, reason in (
        ("good", (64, 64, 4), fine, None),
        ("longer", (67, 65, 4), fine, None),
        ("shifted", (64, 64, 4), shifted, "lr.nii.gz: .*corners up to 1.00 mm apart: only volumes in the same grid"),
        ("larger", (68, 64, 4), fine, "has 64x64x4 voxels .*the reference 68x64x4.*only volumes of the same space"),
        ("deeper", (64, 64, 5), fine, "the reference 64x64x5.*only volumes of the same space"),
        ("smaller", (63, 64, 4), fine, "has 64x64x4 voxels of .*, the reference 63x64x4.*only volumes in the same"),
    ):
        make_volume(f"{name}.nii.gz", shape, affine)
        result = medsr("compare", "lr.nii.gz", name, "--reference", f"{name}.nii.gz", "--networks", "Bicubic")
        if reason:
            refused(result, reason)
            assert not Path(name).exists()
        else:
            assert result[0] == 0, result[2]


def test_the_sample_volume_with_the_shipped_bundle(medsr, figures):
    """What README and the bundle's card say of bicubic and rdst_e."""
    code, out, err = medsr("compare", sample_volume(), "out", "--plane", "sagittal", "--json")
    assert (code, err) == (0, "")
    bicubic, ours = json.loads(out)["systems"]
    assert (bicubic["system"], ours["system"]) == ("Bicubic", "rdst_e")
    assert bicubic["psnr"] == pytest.approx(27.26, abs=0.01) and ours["psnr"] - bicubic["psnr"] > 1
    assert ours["ssim"] > bicubic["ssim"] + 0.03 and ours["parameters"] == 2379241 and ours["seconds"] > 0
    assert not list(Path("out").glob("*.nii.gz"))
    weights = ROOT / "bundles" / "rdst_e" / "models" / "model.pt"
    assert ours["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    (figure,) = figures
    assert [t for t in texts(figure) if t and " dB" not in t] == ["input", "Bicubic", "rdst_e", "reference"]
    assert len(figure.axes) == 3 * 4 + 1
    picture = imread("out/compare.png")[..., :3]
    np.testing.assert_allclose(picture.shape[1::-1], figure.get_size_inches() * 50, atol=1)
    assert np.ptp(picture, axis=2).max() > 0.9 > 0.1 > picture.min() and picture.max() == 1  # colours, black and white
