"""Quality of outputs: figures and the picture, on phantoms, on the sample volume, and by the command line."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import interpolating_bundle
from monai.data import MetaTensor
from PIL import Image

from medsr_monai.data import LoadVolumed, list_volumes, load_picture, sample_volume
from medsr_monai.metrics import psnr
from medsr_monai.networks import Bicubic
from medsr_monai.transforms import axis_factors, degrade, outer_corners, plane_axis, resample, with_corners_of
from medsr_monai.upscaling.bundles import BundleRunner
from medsr_monai.upscaling.quality import RESEARCH_USE, QualityCheck, sentence

ROOT = Path(__file__).parents[2]
NAME = "<b>sub-1</b> $a_{b$"


def head(shape=(160, 160, 6), affine=None) -> MetaTensor:
    """Tissues in air, in other units than 0 to 1."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape), indexing="ij")
    radius = np.sqrt(sum(g**2 for g in grid[:2]))
    image = 900.0 * (radius < 0.8) - 300 * (radius < 0.5) + 120 * np.sin(17 * grid[0]) * (radius < 0.8)
    affine = np.diag([1, 1, 4, 1]) if affine is None else affine
    return MetaTensor(torch.tensor(image[None], dtype=torch.float32), affine=torch.tensor(affine, dtype=torch.float64))


def pair(noise: float = 0.0) -> tuple[MetaTensor, MetaTensor, MetaTensor]:
    """True volume, input, and a result that is off."""
    label = head()
    image = degrade(label, (4, 4, 1), noise_std=noise)
    pred = with_corners_of(image, label + 30 * torch.randn(label.shape, generator=torch.Generator().manual_seed(1)))
    return label, image, pred


def error(pred: torch.Tensor, label: torch.Tensor) -> float:
    return float((pred - label).as_tensor().square().mean().sqrt())


def test_figures():
    _, image, pred = pair(noise=8.0)
    same, figures = QualityCheck(image, "bicubic").check(pred)
    assert same is pred and figures["enforced"] is None
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    difference = degrade(pred, (4, 4, 1)) - image
    residual = figures["residual"]
    assert residual["rms"] == pytest.approx(float(difference.square().mean().sqrt()), rel=1e-4)
    assert residual["max"] == pytest.approx(float(difference.abs().max()), rel=1e-4)
    assert figures["noise_sigma"] == pytest.approx(8, rel=0.25) and figures["noise_source"] == "estimated"
    assert residual["rms_per_noise"] == residual["rms"] / figures["noise_sigma"]
    assert residual["max_per_noise"] == residual["max"] / figures["noise_sigma"]
    low, high = np.percentile(image, (0.1, 99.9))
    assert figures["intensity_range"] == pytest.approx(high - low, rel=0.01) and figures["degradation"] == "bicubic"


def test_enforced_without_noise():
    """Volumes that were degraded without noise come nearer to the truth, and to the bound."""
    label, image, pred = pair()
    result, figures = QualityCheck(image, "bicubic", noise=0.0).check(pred, 0.001)
    enforced = figures["enforced"]
    assert enforced["limited_by"] == "bound" and enforced["reached"] is True
    assert enforced["bound"] == 0.001 * figures["intensity_range"]
    assert figures["residual"]["rms"] < enforced["bound"] < enforced["before"]["rms"] / 10
    assert figures["residual"]["max"] < enforced["before"]["max"]
    assert error(result, label) < error(pred, label)
    np.testing.assert_array_equal(result.affine, pred.affine)
    assert figures["noise_source"] == "given" and figures["residual"]["rms_per_noise"] is None
    text = sentence(figures)
    assert f"before RMS {enforced['before']['rms']:.3g}" in text and "; enforced: the bound of" in text


@pytest.mark.parametrize("given", [False, True])
def test_enforced_with_noise(given):
    """Noise stops it: both residuals are told, and the smaller one is the noise."""
    label, image, pred = pair(noise=8.0)
    result, figures = QualityCheck(image, "bicubic", noise=8.0 if given else None).check(pred, 0.0001)
    enforced, sigma = figures["enforced"], figures["noise_sigma"]
    assert enforced["limited_by"] == "noise" and enforced["bound"] == sigma and enforced["reached"] is True
    assert enforced["before"]["rms"] > 1.2 * sigma
    assert 0.999 * sigma < figures["residual"]["rms"] <= sigma
    assert error(result, label) < error(pred, label)
    assert "the noise of" in sentence(figures)


def test_what_is_below_the_noise_is_left_alone():
    label, image, _ = pair(noise=8.0)
    pred = with_corners_of(image, label + 0.5)
    result, figures = QualityCheck(image, "bicubic", noise=12.0).check(pred, 0.0)
    assert result is pred and figures["enforced"]["before"] == figures["residual"]


def test_an_unknown_degradation():
    _, image, pred = pair()
    check = QualityCheck(image, None)
    assert check.check(pred) == (pred, None) and "not known" in sentence(None)
    with pytest.raises(ValueError, match='add "degradation" to its inference'):
        check.check(pred, 0.001)
    figure = check.draw(pred, NAME, None)
    assert sum(text.get_text() == "not known" for axes in figure.axes for text in axes.texts) == 3


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_refused_numbers(value):
    _, image, pred = pair()
    with pytest.raises(ValueError, match="noise is"):
        QualityCheck(image, "bicubic", noise=value)
    with pytest.raises(ValueError, match="consistency bound is"):
        QualityCheck(image, "bicubic").check(pred, value)


# the picture


def panels(figure):
    """Images of input, output and difference, row by row."""
    return [axes for axes in figure.axes if axes.images and not axes.get_ylabel()]


def affine_of(order, signs, edges):
    affine = np.zeros((4, 4))
    for axis, (world, sign, edge) in enumerate(zip(order, signs, edges, strict=True)):
        affine[world, axis] = sign * edge
    affine[3, 3] = 1
    return affine


@pytest.mark.parametrize(
    ("order", "signs"), [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (-1, -1, 1)), ((2, 0, 1), (-1, 1, -1))]
)
def test_planes_lie_as_radiologists_see_them_in_true_proportions(order, signs):
    """A bright spot at the patient's left, front and head, in voxels that are longest across axial slices."""
    edges = np.array([1.0, 1.5, 4.0])[list(order)]
    shape = np.array([40, 24, 10])[list(order)]
    position = [int((0.75 if sign > 0 else 0.25) * n) for n, sign in zip(shape, signs, strict=True)]
    axis = order.index(0)
    position[axis] = shape[axis] - 1 - position[axis]  # left is where x is negative
    volume = torch.rand((1, *shape), generator=torch.Generator().manual_seed(0))
    volume[(0, *(slice(max(0, p - 2), p + 2) for p in position))] = 50
    image = MetaTensor(volume, affine=torch.tensor(affine_of(order, signs, edges)))
    factors = axis_factors(plane_axis(image.affine, "axial"), 2)
    pred = resample(image, [n * f for n, f in zip(shape, factors, strict=True)])
    check = QualityCheck(image, "bicubic")
    figure = check.draw(pred, NAME, check.check(pred)[1], "bundle x")
    found = panels(figure)
    assert len(found) == 9
    # width and height in mm; where the spot is, to the right and up
    expected = {"axial": (40, 36, 1, 1), "coronal": (40, 40, 1, 1), "sagittal": (36, 40, 0, 1)}
    for row, (width, height, right, up) in enumerate(expected.values()):
        for axes in found[3 * row : 3 * row + 2]:
            box = axes.get_window_extent()
            assert box.width / box.height == pytest.approx(width / height, rel=1e-3)
            pixels = np.asarray(axes.images[0].get_array())
            rows, columns = np.nonzero(pixels > 0.9)
            assert (columns.mean() > pixels.shape[1] / 2) == right and (rows.mean() < pixels.shape[0] / 2) == up
        letters = {text.get_text() for text in found[3 * row].texts}
        assert letters == [set("RLAP"), set("RLSI"), set("APSI")][row]
    # all in one scale
    scales = [axes.get_window_extent().width / mm for axes, mm in zip(found[::3], (40, 40, 36), strict=True)]
    np.testing.assert_allclose(scales, scales[0], rtol=1e-3)
    number = next(int(text.get_text()[6:]) for text in figure.texts if text.get_text().startswith("axial "))
    difference = check.consistency.residual_slice(pred, image, plane_axis(image.affine, "axial") + 1, number)
    shown = np.asarray(found[2].images[0].get_array())
    np.testing.assert_allclose(np.sort(shown.ravel()), np.sort(difference.numpy().ravel()), rtol=0, atol=1e-5)


def test_the_picture_says_what_it_shows(tmp_path):
    _, image, pred = pair()
    check = QualityCheck(image, "bicubic")
    figures = check.check(pred)[1]
    figure = check.draw(pred, NAME, figures, "bundle x")
    texts = [text.get_text() for text in figure.texts]
    assert texts[0] == NAME and RESEARCH_USE in texts
    assert any("bundle x: 40x40x6 voxels of 4x4x4 mm to 160x160x6 voxels of 1x1x4 mm" in text for text in texts)
    assert any(sentence(figures) in text for text in texts) and any(text.startswith("window ") for text in texts)
    assert {"input, cubic", "output", "output degraded again - input"} <= set(texts)
    assert "50 mm" in [text.get_text() for axes in figure.axes for text in axes.texts]
    assert any("% of the window" in axes.get_ylabel() for axes in figure.axes)
    # the difference is that of all planes' slices of the residual, on the input's grid
    shapes = [np.asarray(axes.images[0].get_array()).shape for axes in panels(figure)[2::3]]
    assert shapes == [(40, 40), (6, 40), (6, 40)]
    check.write(tmp_path / "a.quality.png", pred, NAME, figures)
    with Image.open(tmp_path / "a.quality.png") as picture:
        picture.load()
        assert min(picture.size) > 500 and np.ptp(np.asarray(picture.convert("L"))) > 250
    assert [p.name for p in tmp_path.iterdir()] == ["a.quality.png"]


@pytest.mark.parametrize(
    ("shape", "factors", "rows"),
    [((20, 24, 1), (4, 4, 1), 1), ((2, 2, 2), (4, 4, 1), 3), ((1, 30, 4), (1, 2, 2), 1), ((300, 3, 3), (1, 4, 4), 3)],
)
def test_small_and_flat_volumes_have_a_picture(tmp_path, shape, factors, rows):
    volume = torch.rand((1, *shape), generator=torch.Generator().manual_seed(0))
    image = MetaTensor(volume, affine=torch.eye(4, dtype=torch.float64))
    pred = resample(image, [n * f for n, f in zip(shape, factors, strict=True)])
    check = QualityCheck(image, "bicubic")
    _, figures = check.check(pred)
    check.write(tmp_path / "a.png", pred, "a" * 300, figures)
    with Image.open(tmp_path / "a.png") as picture:
        picture.load()
        assert max(picture.size) < 3000
    assert len(panels(check.draw(pred, "a", figures))) == 3 * rows


@pytest.mark.parametrize("channels", [1, 3])
def test_a_2d_picture_has_one_row_and_no_letters(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze()).save(tmp_path / "a.png")
    image = load_picture(tmp_path / "a.png")
    pred = resample(image, (80, 60, 1))
    check = QualityCheck(image, "bicubic")
    figures = check.check(pred)[1]
    figure = check.draw(pred, "a.png", figures)
    assert len(panels(figure)) == 3 and not panels(figure)[0].texts
    assert np.asarray(panels(figure)[1].images[0].get_array()).shape == (60, 80, 3)[: 2 + (channels == 3)]
    assert "10 px of the input" in [text.get_text() for text in panels(figure)[1].texts]


def test_the_sample_volume_with_the_shipped_weights(tmp_path):
    """x4 of a real brain: the residual falls to the bound, and no decibel is lost."""
    whole = LoadVolumed("image").load(sample_volume())
    axis = plane_axis(whole.affine, "sagittal") + 1
    label = whole.narrow(axis, whole.shape[axis] // 2, 2)
    label = label[tuple(slice(0, n // 4 * 4) if a not in (0, axis) else slice(None) for a, n in enumerate(label.shape))]
    image = degrade(label, axis_factors(axis - 1, 4))
    nib.save(nib.Nifti1Image(image[0].numpy(), image.affine.numpy()), tmp_path / "in.nii.gz")
    runner = BundleRunner("rdst_e", plane="sagittal")
    item = runner.read(tmp_path / "in.nii.gz")
    check = QualityCheck(image, runner.degradation, noise=0.0)
    for network in (None, Bicubic(scale=4)):
        pred = runner.run(item, network)
        result, figures = check.check(pred, 0.0002)
        before, after = figures["enforced"]["before"]["rms"], figures["residual"]["rms"]
        assert after < 0.0002 * figures["intensity_range"] < before / 2
        gains = [psnr(v[0].movedim(axis - 1, 0), label[0].movedim(axis - 1, 0), 4) for v in (pred, result)]
        assert float(np.mean(gains[1])) >= float(np.mean(gains[0]))
        corners = [outer_corners(volume.affine, volume.shape[1:]) for volume in (pred, result)]
        np.testing.assert_array_equal(*corners)


# the command line


@pytest.fixture(scope="module")
def bicubic(tmp_path_factory) -> str:
    """A bundle without weights, whose results are bicubic."""
    return str(interpolating_bundle(tmp_path_factory.mktemp("bundles") / "bicubic"))


def save(path: Path, volume: MetaTensor) -> None:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(volume[0].numpy(), volume.affine.numpy()), path)


def files(folder: str) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def test_a_folder_of_volumes(medsr, bicubic):
    for number in range(2):
        save(Path("in") / f"sub-{number}.nii.gz", degrade(head((64, 64, 3 + number)), (4, 4, 1)))
    Path("in/bad.nii.gz").write_text("no volume")
    code, out, _ = medsr("upscale", "in", "out", "--bundle", bicubic)
    assert code == 1 and out.count("residual RMS") == 2 and "out/index.html" in out
    names = [f"sub-{number}_sr{suffix}" for number in range(2) for suffix in (".nii.gz", ".quality.png")]
    sidecars = [f"sub-{number}_sr.json" for number in range(2)]
    assert files("out") == sorted(["index.html", "status.csv", "status.json", *names, *sidecars])
    page = Path("out/index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 and "bad.nii.gz: cannot be read" in page
    assert "3 cases: 2 done, 1 failed, by bundle bicubic" in page and str(Path.cwd()) not in page
    # pictures are neither inputs nor results
    assert [Path(item["image"]).name for item in list_volumes("out")] == names[::2]
    assert medsr("upscale", "out", "again", "--bundle", bicubic, "--nopicture")[0] == 0
    assert [name for name in files("again") if "sr_sr" in name and not name.endswith("json")] == [
        "sub-0_sr_sr.nii.gz", "sub-1_sr_sr.nii.gz",
    ]  # fmt: skip
    Path("refs").mkdir()
    for number in range(2):
        save(Path("refs") / f"sub-{number}.nii.gz", head((64, 64, 3 + number)))
    assert medsr("evaluate", "out", "refs")[0] == 0


def test_a_folder_of_pictures(medsr, bicubic):
    Path("in").mkdir()
    for name, channels in (("a.png", 1), ("b.png", 3)):
        pixels = np.random.default_rng(0).integers(0, 255, (20, 24, channels), dtype=np.uint8)
        Image.fromarray(pixels.squeeze()).save(Path("in") / name)
    code, out, err = medsr("upscale", "in", "out", "--bundle", bicubic)
    assert (code, err) == (0, "")
    names = [f"{name}_sr{suffix}" for name in "ab" for suffix in (".json", ".png", ".quality.png")]
    assert files("out") == [*names, "index.html", "status.csv", "status.json"]
    # the figures are those of the file, whose values are whole numbers
    image, pred = load_picture("in/b.png"), load_picture("out/b_sr.png")
    rms = float((degrade(pred, (4, 4, 1)) - image).square().mean().sqrt())
    assert f"b_sr.png: 96x80 pixels, residual RMS {rms:.3g} " in out
    assert medsr("upscale", "out", "again", "--bundle", bicubic)[0] == 0
    assert [n for n in files("again") if n.endswith("_sr.png")] == ["a_sr_sr.png", "b_sr_sr.png"]


def test_enforced_by_the_command_line(medsr, bicubic):
    label = head((64, 64, 3))
    save(Path("in.nii.gz"), degrade(label, (4, 4, 1)))
    load = LoadVolumed("image").load
    assert medsr("upscale", "in.nii.gz", "free.nii.gz", "--bundle", bicubic)[0] == 0
    options = ["--enforce-consistency", "--noise", 0, "--consistency-bound", 1e-4]
    code, out, _ = medsr("upscale", "in.nii.gz", "bound.nii.gz", "--bundle", bicubic, *options)
    found = re.search(r"residual RMS (\S+) .*; enforced: the bound of (\S+), before RMS (\S+),", out)
    after, bound, before = map(float, found.groups())
    assert code == 0 and after <= bound < before / 10
    free, bound = load("free.nii.gz"), load("bound.nii.gz")
    assert error(bound, label) < error(free, label)
    np.testing.assert_array_equal(free.affine, bound.affine)
    # the file is what was measured
    measured = float((degrade(bound, (4, 4, 1)) - load("in.nii.gz")).square().mean().sqrt())
    assert measured == pytest.approx(after, rel=0.02)
    made = sorted(name + suffix for name in ("free", "bound") for suffix in (".json", ".nii.gz", ".quality.png"))
    assert files(".") == [*made, "in.nii.gz"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--consistency-bound", 0.01], "consistency_bound is for --enforce-consistency"),
        (["--enforce-consistency", "--consistency-bound", 2], "consistency_bound is 2.0, expected a part"),
        (["--enforce-consistency", "--consistency-bound", "nan"], "consistency_bound is nan"),
        (["--noise", -3], "noise is -3.0, expected a standard deviation"),
    ],
)
def test_wrong_options(medsr, bicubic, options, reason):
    save(Path("in.nii.gz"), degrade(head((32, 32, 2)), (4, 4, 1)))
    code, _, err = medsr("upscale", "in.nii.gz", "out.nii.gz", "--bundle", bicubic, *options)
    assert code == 1 and err.count("\n") == 1 and reason in err and files(".") == ["in.nii.gz"]


def test_a_bundle_that_does_not_name_its_degradation(medsr, bicubic, tmp_path):
    shutil.copytree(bicubic, tmp_path / "other")
    config = tmp_path / "other" / "configs" / "inference.json"
    content = json.loads(config.read_text())
    del content["degradation"]
    config.write_text(json.dumps(content))
    save(Path("in.nii.gz"), degrade(head((32, 32, 2)), (4, 4, 1)))
    code, _, err = medsr("upscale", "in.nii.gz", "out.nii.gz", "--bundle", "other", "--enforce-consistency")
    assert code == 1 and 'add "degradation" to its inference.json' in err and not Path("out.nii.gz").exists()
    code, out, _ = medsr("upscale", "in.nii.gz", "out.nii.gz", "--bundle", "other")
    assert code == 0 and "not known, the bundle does not name its degradation" in out
    assert Path("out.quality.png").is_file()


def test_files_of_others_are_not_replaced(medsr, bicubic):
    save(Path("in/a.nii.gz"), degrade(head((32, 32, 2)), (4, 4, 1)))
    for name in ("a_sr.quality.png", "index.html"):
        Path("out").mkdir()
        (Path("out") / name).write_text("mine")
        code, _, err = medsr("upscale", "in", "out", "--bundle", bicubic)
        assert code == 1 and name in err and "--overwrite" in err
        assert files("out") == [name] and (Path("out") / name).read_text() == "mine"
        assert medsr("upscale", "in", "out", "--bundle", bicubic, "--overwrite")[0] == 0
        assert set(files("out")) >= {"a_sr.nii.gz", "a_sr.quality.png", "index.html"}
        shutil.rmtree("out")
