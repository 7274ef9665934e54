"""The bundle transmrsr and its like on thick slices: by the command line, by MONAI's workflow, in MONAI Label."""

import itertools
import json
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import amend, copy_bundle, interpolating_bundle, save_weights
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.transforms import Resize
from scipy.ndimage import gaussian_filter, zoom

from medsr_monai.networks import build_network
from medsr_monai.transforms import AXES, PLANES, outer_corners, resample, spacing

ROOT = Path(__file__).parents[2]
ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
# the numbers that a miniature has in place of the bundle's
TINY = {"size": 16, "style_dim": 8, "channels": [8, 8, 8], "num_centroids": 2}
RDST = {"_target_": "medsr_monai.networks.RDST", "in_channels": 1, "out_channels": 1, "scale": "@scale"} | {
    "bicubic_residual": True, "embed_dim": 12, "growth_rate": 6, "num_heads": 2, "num_blocks": 1, "num_dense_blocks": 1
}  # fmt: skip


def make_bundle(folder, network_def=None, weighted=True, **ids):
    """The bundle with a miniature of its network, or with another one, and random weights."""
    copy_bundle(folder, "transmrsr", **TINY)
    file = folder / "configs" / "inference.json"
    amend(file, **ids | ({} if network_def is None else {"network_def": network_def}))
    if weighted:
        save_weights(random_network(json.loads(file.read_text())), folder / "models" / "model.pt")
    return folder


def random_network(content):
    torch.manual_seed(0)
    network = ConfigParser(content).get_parsed_content("network_def")
    torch.nn.init.normal_(network.last.weight, std=0.01)
    if hasattr(network, "centroids"):
        network.load_centroids(torch.randn(network.centroids.shape))
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="module")
def tiny(folder):
    return make_bundle(folder / "tiny")


@pytest.fixture(scope="module")
def spline(folder):
    """A bundle whose network changes nothing: what is left is the interpolation."""
    return interpolating_bundle(folder / "spline", "transmrsr")


def affine_of(edges, orientation=((0, 1, 2), (1, 1, 1)), degrees=12):
    permutation, signs = orientation
    turn = np.radians(degrees)
    affine = np.zeros((4, 4))
    for axis in range(3):
        affine[permutation[axis], axis] = signs[axis] * edges[axis]
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine[:3, :3] = rotation @ affine[:3, :3]
    affine[:, 3] = (-31.7, 12.3, 84.1, 1)
    return affine


def make_volume(path, edges=(1.0, 1.0, 3.3), shape=(13, 12, 7), affine=None, smooth=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = 300 + 900 * gaussian_filter(np.random.default_rng(0).random(shape), smooth)
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine_of(edges) if affine is None else affine), path)
    return path


def assert_same_corners(path, ref):
    ours, theirs = nib.load(path), nib.load(ref)
    moved = outer_corners(ours.affine, ours.shape) - outer_corners(theirs.affine, theirs.shape)
    assert np.abs(moved).max() < 1e-3 * min(ours.header.get_zooms())


def refused(result, reason, tmp_path):
    code, out, err = result
    assert code == 1, (out, err)
    assert err.count("\n") == 1 and err.startswith("medsr: error: "), err
    assert re.search(reason, err), err
    assert not list(tmp_path.rglob("out*")) and "Traceback" not in out


def test_thick_slices_become_thin(medsr, tiny, tmp_path):
    source = make_volume(tmp_path / "in.nii.gz")
    code, out, err = medsr("upscale", "in.nii.gz", "out.nii.gz", "--nopicture", "--bundle", tiny)
    assert (code, err) == (0, "")
    assert re.match(
        "tiny: not known what the weights were trained on\n"
        r"in\.nii\.gz: 13x12x7 voxels of 1x1x3\.3 mm, thick axis inferior-superior \(auto\): 7 slices of 3\.3 mm "
        r"become 23 of 1\.004 mm, refined in sagittal and coronal slices; about \d+ MiB of memory, 4 slices at a time\n"
        r"out\.nii\.gz: 13x12x23 voxels of 1x1x1 mm, residual RMS ",
        out,
    )
    result = nib.load("out.nii.gz")
    assert result.shape == (13, 12, 23) and result.get_data_dtype() == np.float32
    assert_same_corners("out.nii.gz", source)
    # in the input's units, near the spline, and not equal to it
    image = nib.load(source).get_fdata()
    interpolated = zoom(np.pad(image, ((0, 0), (0, 0), (7, 7)), "symmetric"), (1, 1, 23 / 7), mode="reflect",
                        grid_mode=True)[..., 23:-23]  # fmt: skip
    difference = np.abs(result.get_fdata() - interpolated)
    assert 0.1 < difference.mean() < 0.5 * np.ptp(image)


def test_a_network_that_changes_nothing_gives_the_spline(medsr, spline, tmp_path):
    source = make_volume(tmp_path / "in.nii.gz", affine=affine_of((3.3, 1.0, 1.2), ((1, 2, 0), (-1, 1, -1))))
    code, out, _ = medsr("upscale", "in.nii.gz", "out.nii.gz", "--nopicture", "--bundle", spline)
    assert code == 0 and "thick axis posterior-anterior (auto): 13 slices of 3.3 mm become 43 of 0.9977 mm" in out
    expected = resample(torch.from_numpy(nib.load(source).get_fdata()), (43, 12, 7))
    np.testing.assert_allclose(nib.load("out.nii.gz").get_fdata(), expected, atol=2e-3)
    assert_same_corners("out.nii.gz", source)


def test_options_of_the_command_line(medsr, tiny, tmp_path):
    make_volume(tmp_path / "in.nii.gz", (1.0, 3.0, 3.0))
    options = ["--bundle", tiny, "--thick-axis", "posterior-anterior", "--target-spacing", 1.5]
    results = {}
    for refine in ("both", "sagittal", "axial"):
        code, out, err = medsr("upscale", "in.nii.gz", f"{refine}.nii.gz", *options, "--nopicture", "--refine", refine)
        assert (code, err) == (0, "")
        assert f"posterior-anterior: 12 slices of 3 mm become 24 of 1.5 mm, refined in {refine}" in out.replace(
            "sagittal and axial", "both"
        )
        results[refine] = nib.load(f"{refine}.nii.gz").get_fdata()
        assert results[refine].shape == (13, 24, 7)
    assert np.abs(results["sagittal"] - results["axial"]).max() > 0.1
    np.testing.assert_allclose(results["both"], (results["sagittal"] + results["axial"]) / 2, atol=1e-3)
    # volumes that are nearly isotropic are refined on request
    make_volume(tmp_path / "cubes.nii.gz", (1.0, 1.0, 1.2))
    assert medsr("upscale", "cubes.nii.gz", "forced.nii.gz", "--nopicture", "--bundle", tiny, "--force")[0] == 0
    assert nib.load("forced.nii.gz").shape == (13, 12, 8)
    assert_same_corners("forced.nii.gz", "cubes.nii.gz")


@pytest.mark.parametrize("kept", range(0, 48, 8))
def test_degrade_and_upscale_give_the_first_grid(medsr, spline, tmp_path, kept):
    """Every orientation, odd sizes, isotropic voxels or not, every thick axis; degrade crops to a multiple."""
    for number in range(kept, kept + 8):
        orientation = ORIENTATIONS[number]
        thick, factor = number % 3, (3, 4)[number // 3 % 2]
        edges = (0.9, 0.9, 0.9) if number % 2 else (0.7, 0.9, 1.1)
        shape = (13, 15, 17)
        world = orientation[0][thick]
        make_volume(tmp_path / "in.nii.gz", shape=shape, affine=affine_of(edges, orientation), smooth=2)
        medsr("degrade", "in.nii.gz", "low.nii.gz", "--direction", "through-plane", "--plane", PLANES[world],
              "--scale", factor, "--overwrite")  # fmt: skip
        options = [] if number % 2 else ["--thick-axis", AXES[world], "--target-spacing", edges[thick]]
        code, out, err = medsr(
            "upscale", "low.nii.gz", "back.nii.gz", "--nopicture", "--bundle", spline, "--overwrite", *options
        )
        assert (code, err) == (0, "") and f"thick axis {AXES[world]}" in out
        source, back = nib.load("in.nii.gz"), nib.load("back.nii.gz")
        size = list(shape)
        size[thick] = shape[thick] // factor * factor
        assert list(back.shape) == size
        np.testing.assert_allclose(back.affine, source.affine, atol=1e-4)
        np.testing.assert_allclose(spacing(back.affine), edges, rtol=1e-5)
        assert_same_corners("back.nii.gz", "low.nii.gz")
        # what was there is there: anything out of place costs most of the likeness
        part = source.get_fdata()[tuple(slice(n) for n in size)]
        assert np.corrcoef(part.ravel(), back.get_fdata().ravel())[0, 1] > 0.9


def test_degrade_names_the_thick_axis(medsr, tmp_path):
    make_volume(tmp_path / "in.nii.gz", (1, 1, 1))
    code, out, _ = medsr("degrade", "in.nii.gz", "low.nii.gz", "--direction", "through-plane", "--plane", "coronal")
    assert code == 0 and out.endswith("through-plane, plane coronal, thick axis posterior-anterior\n")


@pytest.mark.parametrize("scale", [1, [1, 4]])
def test_rdst_gives_the_same_grid_both_ways(medsr, tiny, folder, tmp_path, scale):
    bundle = make_bundle(folder / f"rdst_{scale}", RDST, scale=scale)
    source = make_volume(tmp_path / "in.nii.gz")
    for name, path in (("tiny", tiny), ("rdst", bundle)):
        assert medsr("upscale", "in.nii.gz", f"{name}.nii.gz", "--nopicture", "--bundle", path)[0] == 0
    one, other = nib.load("tiny.nii.gz"), nib.load("rdst.nii.gz")
    assert one.shape == other.shape == (13, 12, 23)
    np.testing.assert_array_equal(one.affine, other.affine)
    image = nib.load(source).get_fdata()
    assert np.corrcoef(resample(torch.from_numpy(image), (13, 12, 23)).ravel(), other.get_fdata().ravel())[0, 1] > 0.9


def test_rdst_e_takes_the_same_path(medsr, tmp_path):
    configs = ROOT / "bundles" / "rdst_e_thick" / "configs"
    source = make_volume(tmp_path / "in" / "a.nii.gz", (1.0, 1.0, 4.0))
    content = {name: value for name, value in RDST.items() if name not in ("_target_", "scale")}
    network = build_network(RDST | {"scale": [1, 4]})
    torch.nn.init.normal_(network.last.weight, std=0.01)
    save_weights(network, tmp_path / "model.pt")
    flow = ConfigWorkflow(
        str(configs / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(tmp_path),
        ckpt_dir=str(tmp_path),
        dataset_dir=str(tmp_path / "in"),
        output_dir=str(tmp_path / "out"),
        **{f"network_def#{name}": value for name, value in content.items()},
    )
    flow.initialize()
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()
    made = nib.load(next((tmp_path / "out").rglob("*_sr.nii.gz")))
    image = nib.load(source)
    shape = (*image.shape[:2], 4 * image.shape[2])
    assert made.shape == shape
    np.testing.assert_allclose(outer_corners(made.affine, shape), outer_corners(image.affine, image.shape), atol=1e-4)
    # the network enlarges through the plane: what it adds makes this other than the interpolation of its input
    spline = resample(torch.from_numpy(image.get_fdata()), shape).numpy()
    assert np.corrcoef(made.get_fdata().ravel(), spline.ravel())[0, 1] > 0.9
    assert not np.allclose(made.get_fdata(), spline, atol=1e-3 * np.ptp(spline))


def test_the_bundle_gives_what_the_command_gives(medsr, tiny, tmp_path):
    for name, edges in (("a", (1.0, 1.0, 3.3)), ("b", (4.0, 1.0, 1.0))):
        make_volume(tmp_path / "in" / f"{name}.nii.gz", edges)
    options = {"refine": "axial", "thick_axis": "left-right", "force": True, "target_spacing": 0.9}
    for number, given in enumerate(({}, options)):
        eval_dir = tmp_path / f"eval{number}"
        flow = ConfigWorkflow(
            str(tiny / "configs" / "inference.json"),
            workflow_type="infer",
            logging_file=False,
            bundle_root=str(tiny),
            dataset_dir=str(tmp_path / "in"),
            output_dir=str(eval_dir),
            **given,
        )
        flow.initialize()
        assert flow.check_properties() == []
        flow.run()
        flow.finalize()
        switches = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        assert medsr("upscale", "in", f"out{number}", "--bundle", tiny, "--nopicture", *switches)[0] == 0
        for name in ("a", "b"):
            ours, theirs = (nib.load(p / f"{name}_sr.nii.gz") for p in (tmp_path / f"out{number}", eval_dir))
            assert ours.shape == theirs.shape
            np.testing.assert_array_equal(ours.affine, theirs.affine)
            np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())


def test_monai_label_leaves_the_result_alone(tiny, tmp_path):
    """MONAI Label appends Restored: resize pred to the image's spatial_shape, take its original_affine."""
    source = make_volume(tmp_path / "in.nii.gz")
    parser = ConfigParser(ConfigParser.load_config_file(tiny / "configs" / "inference.json"))
    parser.update({"bundle_root": str(tiny), "output_dir": None})
    item = parser.get_parsed_content("preprocessing")({"image": str(source)})
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(tiny / "models" / "model.pt")["model"])
    with torch.inference_mode():
        item["pred"] = parser.get_parsed_content("inferer")(item["image"][None], network)[0]
    item = parser.get_parsed_content("postprocessing")(item)
    meta = item["image"].meta
    assert tuple(meta["spatial_shape"]) == tuple(item["pred"].shape[1:]) == (13, 12, 23)
    restored = Resize(meta["spatial_shape"].tolist(), mode="nearest")(item["pred"])
    assert torch.equal(restored.as_tensor(), item["pred"].as_tensor())
    thick = nib.load(source)
    before = outer_corners(thick.affine, thick.shape)
    np.testing.assert_allclose(outer_corners(meta["original_affine"], restored.shape[1:]), before, atol=1e-4)


@pytest.mark.parametrize(
    ("edges", "options", "reason"),
    [
        ((1, 1, 1), [], r"in.nii.gz: voxels of 1x1x1 mm have no thick axis, .* nothing to do, unless you give --force"),
        ((1, 1, 1.45), [], "in.nii.gz: voxels of 1x1x1.45 mm have no thick axis"),
        ((1, 3, 3), [], "in.nii.gz: voxels of 1x3x3 mm are thick along two axes: choose --thick-axis left-right, "),
        ((1, 1, 1), ["--force"], "no thick axis"),
        ((1, 1, 3), ["--thick-axis", "left-right"], "in.nii.gz: .* 1 mm long in the left-right .* --force"),
        ((1, 1, 3), ["--target-spacing", 2.1], "in.nii.gz: .* below 1.5 times the target spacing of 2.1 mm: nothing"),
        ((1, 1, 3), ["--target-spacing", 4], "in.nii.gz: .* shorter than the target spacing of 4 mm: choose a smaller"),
        ((1, 1, 3), ["--refine", "axial"], "in.nii.gz: axial slices do not contain the thick axis inferior-superior: "),
        ((1, 1, 3), ["--refine", "one"], "refine is 'one', expected both, sagittal, coronal, axial"),
        ((1, 1, 3), ["--thick-axis", "axial"], "thick axis is 'axial', expected auto, left-right"),
        ((1, 1, 3), ["--thick-axis", "left-right", "--refine", "sagittal"], "refine coronal or axial slices"),
        ((1, 1, 3), ["--target-spacing", "-1"], "target spacing is -1.0, expected millimetres"),
        (
            (1, 1, 3),
            ["--plane", "axial"],
            "bundle .*tiny has no option --plane: it has --thick-axis, --target-spacing, ",
        ),
    ],
)
def test_bad_input_is_one_line_and_no_output(medsr, tiny, tmp_path, edges, options, reason):
    make_volume(tmp_path / "in.nii.gz", edges)
    refused(medsr("upscale", "in.nii.gz", "out.nii.gz", "--bundle", tiny, *options), reason, tmp_path)


@pytest.mark.parametrize("option", [["--thick-axis", "left-right"], ["--refine", "axial"], ["--target-spacing", 1]])
def test_options_for_thick_slices_with_another_bundle(medsr, tmp_path, option):
    make_volume(tmp_path / "in.nii.gz")
    reason = f"bundle rdst_e has no option {option[0]}: it has --plane, --psf, --frame"
    refused(medsr("upscale", "in.nii.gz", "out.nii.gz", "--bundle", "rdst_e", *option), reason, tmp_path)


def test_a_cohort_goes_on_after_a_volume_without_thick_slices(medsr, spline, tmp_path):
    make_volume(tmp_path / "in" / "a.nii.gz", (1, 1, 1))
    make_volume(tmp_path / "in" / "b.nii.gz")
    code, _, err = medsr("upscale", "in", "new", "--bundle", spline)
    assert code == 1 and [n for n in os.listdir("new") if n.endswith(".gz")] == ["b_sr.nii.gz"]
    assert err.startswith("medsr: error: in/a.nii.gz: voxels of 1x1x1 mm") and err.endswith("1 of 2 volumes failed\n")


def test_weights_that_do_not_fit(medsr, tiny, folder, tmp_path):
    make_volume(tmp_path / "in.nii.gz")

    def upscale(weights):
        return medsr("upscale", "in.nii.gz", "out.nii.gz", "--bundle", tiny, "--weights", weights)

    content = torch.load(tiny / "models" / "model.pt")
    more = build_network(content["network"] | {"in_channels": 2, "out_channels": 2})
    save_weights(more, tmp_path / "more.pt")
    refused(upscale("more.pt"), "more.pt: .*in_channels is 2 in the weights and 1 in network_def", tmp_path)
    content["model"]["centroids"] = torch.zeros(3, 8)
    torch.save(content, "shape.pt")
    refused(upscale("shape.pt"), r"shape.pt: .*centroids: copying a param with shape torch.Size\(\[3, 8\]\)", tmp_path)
    content["model"]["centroids"] = torch.full((2, 8), torch.nan)
    torch.save(content, "none.pt")
    refused(upscale("none.pt"), "none.pt: numbers that are not finite in centroids", tmp_path)
    del content["model"]["centroids"]
    torch.save(content, "absent.pt")
    refused(upscale("absent.pt"), 'absent.pt: .*Missing key.*"centroids"', tmp_path)
    torch.save({"model": {}, "network": {"_target_": "medsr_monai.networks.RDST"}}, "other.pt")
    refused(upscale("other.pt"), "other.pt: The weights belong to another network", tmp_path)
    bare = make_bundle(folder / "bare", weighted=False)
    result = medsr("upscale", "in.nii.gz", "out.nii.gz", "--bundle", bare)
    refused(result, "bundle bare has no trained weights: train it, or put them at", tmp_path)


def test_benchmark_needs_no_centroids(medsr, tiny):
    code, out, err = medsr("benchmark", "--bundle", tiny, "--size", "16x16", "--runs", 0, "--json")
    assert (code, err) == (0, "") and json.loads(out)[0]["network"] == str(tiny)


def test_a_real_volume(medsr, spline, tmp_path):
    """Nothing is lost: what thick slices show of the result is the input."""
    source = ROOT.parent / "shared" / "data" / "test" / "brain_thick_ms12" / "t2w.nii.gz"
    if not source.is_file():
        pytest.skip("the real volume ../shared/data/test/brain_thick_ms12 is not here")
    image = nib.load(source).slicer[140:200, 150:210, :]
    nib.save(image, tmp_path / "in.nii.gz")
    code, out, _ = medsr("upscale", "in.nii.gz", "out.nii.gz", "--bundle", spline)
    assert code == 0 and "44 slices of 3.3 mm become 242 of 0.6 mm" in out
    assert_same_corners("out.nii.gz", "in.nii.gz")
    thick, thin = image.get_fdata(), nib.load("out.nii.gz").get_fdata()
    # 5.5 new slices a thick one: those nearest to its middle show the same
    nearest = np.floor((np.arange(44) + 0.5) * 5.5).astype(int)
    means = [np.corrcoef(thick[..., i].ravel(), thin[..., n].ravel())[0, 1] for i, n in enumerate(nearest)]
    assert min(means) > 0.97
