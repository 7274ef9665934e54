"""Thick slices made thin: the spline, the network and the mean by hand; corners in every orientation."""

import itertools
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from torch import nn

from medsr_monai.data import LoadVolumed, SaveVolumed
from medsr_monai.inferers import ThroughPlaneInferer
from medsr_monai.networks import RDST, Bicubic
from medsr_monai.transforms import (
    AXES,
    PLANES,
    MatchCornersd,
    degrade,
    outer_corners,
    plane_axis,
    resample,
    spacing,
    spline_matrix,
)

ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
OBLIQUE = np.array([[0.9, -0.3, 0.2], [0.28, 0.95, 0.1], [-0.22, -0.03, 0.97]])
OBLIQUE = np.linalg.qr(OBLIQUE)[0] * np.sign(np.diag(np.linalg.qr(OBLIQUE)[1]))
THICK = 2  # the array axis that is thick in these volumes


def affine_of(orientation=((0, 1, 2), (1, 1, 1)), edges=(0.9, 1.1, 3.3), turn=OBLIQUE):
    """Array axis i runs along the world axis permutation[i], with a sign, then all is turned."""
    permutation, signs = orientation
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis in range(3):
        affine[permutation[axis], axis] = signs[axis] * edges[axis]
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (-31.7, 12.3, 84.1)
    return affine


def volume(affine=None, shape=(1, 1, 9, 8, 7), seed=0):
    data = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return MetaTensor(data, affine=torch.as_tensor(affine_of() if affine is None else affine))


class ConvNet(nn.Module):
    """A zero-padded convolution that is not equivariant to flips or transpositions, and columns repeated."""

    def __init__(self, factor=1):
        super().__init__()
        torch.manual_seed(0)
        self.factor = factor
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape))
        return torch.relu(self.conv(x)).repeat_interleave(self.factor, dim=3)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.inference_mode():
        yield


def by_hand(image, network, across, thick):
    """The network on every slice across an array axis, with the thick axis last."""
    slices = image.movedim((across, thick), (0, -1))
    return torch.stack([network(s[None, None])[0, 0] for s in slices]).movedim((0, -1), (across, thick))


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_spline_then_network_on_each_slice(orientation):
    network, image = ConvNet(), volume(affine_of(orientation))
    fine = image.as_tensor()[0, 0] @ spline_matrix(7, 26).float().T  # 7 * 3.3 / 0.9 = 25.7
    world = orientation[0][THICK]
    for axis in (0, 1):
        plane = PLANES[orientation[0][axis]]
        out = ThroughPlaneInferer(refine=plane, sw_batch_size=3)(image, network)
        assert isinstance(out, MetaTensor) and out.shape == (1, 1, 9, 8, 26)
        torch.testing.assert_close(out.affine, image.affine)
        expected = by_hand(fine, network, axis, THICK)
        torch.testing.assert_close(out.as_tensor()[0, 0], expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=f"{PLANES[world]} slices do not contain the thick axis {AXES[world]}: refine"):
        ThroughPlaneInferer(refine=PLANES[world])(image, network)


def test_both_planes_are_averaged():
    network, image = ConvNet(), volume()
    one, other = (ThroughPlaneInferer(refine=plane)(image, network).as_tensor() for plane in ("sagittal", "coronal"))
    assert float((one - other).abs().max()) > 0.01
    both = ThroughPlaneInferer()(image, network).as_tensor()
    torch.testing.assert_close(both, (one + other) / 2, rtol=0, atol=1e-7)


@pytest.mark.parametrize("thick", range(3))
def test_a_network_that_changes_nothing_leaves_the_spline(thick):
    edges, sizes = np.roll((3.3, 1.0, 1.0), thick), [9, 8, 7]
    image = volume(affine_of(edges=edges))
    sizes[thick] = round(sizes[thick] * 3.3)
    expected = resample(image.as_tensor(), sizes)
    for network in (Bicubic(scale=1), lambda x: x):
        assert torch.equal(ThroughPlaneInferer()(image, network).as_tensor(), expected)
    # the spline is no matter of mixed precision
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ThroughPlaneInferer()(image, lambda x: x).as_tensor(), expected)


def test_the_network_itself_enlarges_the_thick_axis():
    network, image = ConvNet(factor=4), volume(affine_of(edges=(1.0, 1.0, 3.3)))
    means = [by_hand(image.as_tensor()[0, 0], network, axis, THICK) for axis in (0, 1)]
    enlarged = (means[0] + means[1]) / 2
    assert enlarged.shape == (9, 8, 28)
    out = ThroughPlaneInferer(scale=[1, 4])(image, network)
    expected = enlarged @ spline_matrix(28, 23).float().T
    torch.testing.assert_close(out.as_tensor()[0, 0], expected, rtol=0, atol=1e-6)
    # 7 slices of 4 mm become 28 of 1 mm: nothing is left to interpolate
    image = volume(affine_of(edges=(1.0, 1.0, 4.0)))
    out = ThroughPlaneInferer(scale=[1, 4])(image, network)
    torch.testing.assert_close(out.as_tensor()[0, 0], enlarged, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1, [1, 1], [1, 4]])
@pytest.mark.parametrize("thick", range(3))
def test_corners_in_every_orientation(thick, scale):
    shape = (9, 7, 5)
    network, inferer = Bicubic(scale=scale), ThroughPlaneInferer(scale=scale)
    for edges in ((3.3, 0.9, 1.1), (5.7, 1.0, 1.0), (2.0, 0.61, 0.6)):
        rolled = np.roll(edges, thick)
        for orientation in ORIENTATIONS[thick::3]:
            affine = affine_of(orientation, rolled)
            image = volume(affine, (1, 1, *shape))
            pred = MatchCornersd()({"image": image[0], "pred": inferer(image, network)[0]})["pred"]
            target = min(edges)
            expected = list(shape)
            expected[thick] = math.floor(shape[thick] * edges[0] / target + 0.501)  # one of them is 28.5
            assert list(pred.shape[1:]) == expected
            moved = outer_corners(pred.affine, expected) - outer_corners(affine, shape)
            assert np.abs(moved).max() / target < 1e-9
            np.testing.assert_allclose(spacing(pred.affine) * expected, rolled * shape, rtol=1e-12)
            assert abs(spacing(pred.affine)[thick] / target - 1) < 0.5 / expected[thick]


@pytest.mark.parametrize("orientation", ORIENTATIONS[::7])
def test_corners_through_save_and_reload(orientation, tmp_path):
    affine = affine_of(orientation)
    image = volume(affine, (1, 1, 9, 8, 7))
    pred = MatchCornersd()({"image": image[0], "pred": ThroughPlaneInferer()(image, Bicubic(scale=1))[0]})["pred"]
    pred.meta["filename_or_obj"] = "case.nii.gz"
    SaveVolumed("pred", str(tmp_path))({"pred": pred.clone()})
    back = LoadVolumed("image").load(tmp_path / "case_sr.nii.gz")
    assert tuple(back.shape) == (1, 9, 8, 26)
    moved = outer_corners(back.affine, back.shape[1:]) - outer_corners(affine, (9, 8, 7))
    assert np.abs(moved).max() < 1e-3 * 0.9
    assert torch.equal(back.as_tensor(), pred.as_tensor())


@pytest.mark.parametrize("scale", [1, [1, 4]])
def test_content_stays_in_place(scale):
    """A wave along the world, seen in thick slices and made thin again, is where it was."""
    for orientation in ORIENTATIONS[::3]:
        affine = affine_of(orientation, (1.0, 1.0, 1.0))
        index = np.stack(np.meshgrid(np.arange(6), np.arange(7), np.arange(80), indexing="ij")).reshape(3, -1)
        place = (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, 6, 7, 80)
        wave = torch.tensor(np.sin(place[orientation[0][THICK]] * 2 * np.pi / 40)[None])
        low = degrade(MetaTensor(wave, affine=torch.tensor(affine)), (1, 1, 4), "box")
        out = ThroughPlaneInferer(scale=scale)(low[None], Bicubic(scale=scale))[0]
        pred = MatchCornersd()({"image": low, "pred": out})["pred"]
        torch.testing.assert_close(pred.affine, torch.tensor(affine), rtol=0, atol=1e-9)
        # a block of 4 keeps 0.985 of the wave; half a voxel's shift would cost 0.08
        assert float((pred - 0.985 * wave).as_tensor()[..., 12:-12].abs().max()) < 0.03


@pytest.mark.parametrize("scale", [1, [1, 4]])
def test_rdst_serves_both_ways(scale):
    torch.manual_seed(0)
    sizes = {"embed_dim": 12, "growth_rate": 6, "num_heads": 2, "num_blocks": 1, "num_dense_blocks": 1}
    network = RDST(1, 1, scale, bicubic_residual=True, **sizes).eval()
    nn.init.normal_(network.last.weight, std=0.02)
    image = volume()
    out = ThroughPlaneInferer(scale=scale, refine="sagittal")(image, network)
    start = ThroughPlaneInferer(scale=scale, refine="sagittal")(image, Bicubic(scale=scale))
    assert out.shape == (1, 1, 9, 8, 26)
    # the network adds something to what interpolation gives, and not anything
    assert 1e-4 < float((out - start).as_tensor().abs().mean()) < 0.5


def test_a_named_axis_and_a_target():
    image = volume(affine_of(edges=(1.0, 3.0, 3.0)))
    out = ThroughPlaneInferer("posterior-anterior")(image, lambda x: x)
    assert out.shape == (1, 1, 9, 24, 7)
    assert ThroughPlaneInferer("posterior-anterior", 1.5)(image, lambda x: x).shape == (1, 1, 9, 16, 7)
    # forced, a volume of cubes goes through the network as it is
    cubes, network = volume(affine_of(edges=(1.0, 1.0, 1.0))), ConvNet()
    out = ThroughPlaneInferer("left-right", refine="axial", force=True)(cubes, network)
    torch.testing.assert_close(
        out.as_tensor()[0, 0], by_hand(cubes.as_tensor()[0, 0], network, 2, 0), rtol=0, atol=1e-6
    )
    # forced without a name, the longest edge counts if there is one
    assert ThroughPlaneInferer(force=True).plan(affine_of(edges=(1.2, 1.0, 1.0)), (9, 8, 7)).thick_axis == AXES[0]


def test_what_it_says():
    image = volume(affine_of(turn=np.eye(3)))[0]
    assert ThroughPlaneInferer().plan(image.affine, image.shape[1:]).sentence == (
        "thick axis inferior-superior (auto): 7 slices of 3.3 mm become 26 of 0.8885 mm, "
        "refined in sagittal and coronal slices"
    )
    assert ThroughPlaneInferer("inferior-superior", 1.1, "coronal").plan(image.affine, image.shape[1:]).sentence == (
        "thick axis inferior-superior: 7 slices of 3.3 mm become 21 of 1.1 mm, refined in coronal slices"
    )
    assert (
        ThroughPlaneInferer(refine="coronal", scale=[1, 4])
        .plan(image.affine, image.shape[1:])
        .sentence.endswith("7 slices of 3.3 mm become 26 of 0.8885 mm, made x4 by the network in coronal slices")
    )


def test_slice_batches_tiles_and_progress(capsys):
    network, image = ConvNet(), volume(shape=(1, 1, 40, 9, 12))
    whole = ThroughPlaneInferer(sw_batch_size=5)(image, network).as_tensor()
    assert max(size[0] for size in network.sizes) == 5
    network.sizes.clear()
    tiled = ThroughPlaneInferer(roi_size=(8, 16), progress=True)(image, network).as_tensor()
    assert {size[2:] for size in network.sizes} == {(8, 16)}
    assert whole.shape == tiled.shape
    assert float((whole - tiled).abs().median()) < 1e-6
    assert capsys.readouterr().err.count("100%") == 2  # one bar a plane


def test_out_of_memory_is_learnt_once(caplog):
    network, image = ConvNet(), volume()
    expected = ThroughPlaneInferer(sw_batch_size=2)(image, network)

    def limited(x):
        if x.shape[0] > 2:
            raise torch.OutOfMemoryError("simulated")
        return network(x)

    inferer = ThroughPlaneInferer(sw_batch_size=8)
    assert torch.equal(inferer(image, limited).as_tensor(), expected.as_tensor())
    assert torch.equal(inferer(image, limited).as_tensor(), expected.as_tensor())
    said = [r.getMessage() for r in caplog.records if r.name.startswith("medsr")]
    assert said == [f"out of memory: going on with {n} slices at a time" for n in (4, 2)]


def test_batches():
    network = ConvNet()
    items = [{"image": volume(seed=seed)[0]} for seed in range(2)]
    out = ThroughPlaneInferer()(list_data_collate(items)["image"], network)
    for number, item in enumerate(items):
        alone = ThroughPlaneInferer()(item["image"][None], network)
        torch.testing.assert_close(out.as_tensor()[number], alone.as_tensor()[0], rtol=0, atol=1e-6)
    items[1] = {"image": volume(affine_of(edges=(0.9, 1.1, 3.6)))[0]}
    with pytest.raises(ValueError, match="differ in their voxels: use batches of one volume"):
        ThroughPlaneInferer()(list_data_collate(items)["image"], network)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thick_axis": "axial"}, "thick axis is 'axial', expected auto, left-right"),
        ({"refine": "one"}, "refine is 'one', expected both, sagittal"),
        ({"thick_axis": "left-right", "refine": "sagittal"}, "refine coronal or axial slices, or both"),
        ({"target_spacing": 0.0}, "target spacing is 0.0, expected millimetres"),
        ({"target_spacing": float("nan")}, "target spacing is nan"),
        ({"scale": 4}, r"scale is 4: expected 1, or \[1, k\]"),
        ({"scale": [4, 1]}, r"scale is \[4, 1\]: expected 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        ThroughPlaneInferer(**options)


@pytest.mark.parametrize(
    ("edges", "options", "message"),
    [
        ((1.0, 1.0, 1.4), {}, "1x1x1.4 mm have no thick axis, .* nothing to do, unless you give --force and"),
        ((1.0, 3.0, 3.0), {}, "1x3x3 mm are thick along two axes: choose --thick-axis left-right, posterior"),
        ((1.0, 1.0, 1.0), {"force": True}, "no thick axis"),
        ((1.0, 1.0, 1.4), {"thick_axis": "inferior-superior"}, "1.4 mm long in the inferior-superior .* below 1.5"),
        ((1.0, 1.0, 3.0), {"target_spacing": 2.5}, "below 1.5 times the target spacing of 2.5 mm: nothing to do"),
        ((1.0, 1.0, 3.0), {"target_spacing": 5.0, "force": True}, "shorter than the target spacing of 5 mm: choose a"),
        ((1.0, 1.0, 3.0), {"thick_axis": "left-right"}, "1 mm long in the left-right direction, below 1.5 times"),
    ],
)
def test_volumes_without_thick_slices(edges, options, message):
    def never(x):
        raise AssertionError("the network must not run")

    image = volume(affine_of(edges=edges))
    with pytest.raises(ValueError, match=message):
        ThroughPlaneInferer(**options)(image, never)
    with pytest.raises(ValueError, match=message):
        ThroughPlaneInferer(**options).plan(image.affine, image.shape[2:])


def test_networks_of_another_scale_and_plain_tensors():
    image = volume()
    with pytest.raises(ValueError, match="the inferer's scale and the network's differ"):
        ThroughPlaneInferer()(image, Bicubic(scale=[1, 4]))
    with pytest.raises(ValueError, match="the inferer's scale and the network's differ"):
        ThroughPlaneInferer(scale=[1, 4])(image, Bicubic(scale=4))
    with pytest.raises(ValueError, match=r"has no affine, .* give a MetaTensor"):
        ThroughPlaneInferer()(image.as_tensor(), ConvNet())


def test_axis_names_and_planes_belong_together():
    for axis, plane in zip(AXES, PLANES, strict=True):
        edges = [1.0, 1.0, 1.0]
        edges[PLANES.index(plane)] = 4.0
        plan = ThroughPlaneInferer().plan(affine_of(edges=edges), (5, 6, 7))
        assert plan.thick_axis == axis and plan.array_axis == plane_axis(affine_of(edges=edges), plane)
        assert set(plan.planes) == set(PLANES) - {plane}


# ru_maxrss would start at the peak of the process that started this one
MEMORY = r"""
import re, torch
from monai.data import MetaTensor
from medsr_monai.inferers import ThroughPlaneInferer
run = lambda *shape: ThroughPlaneInferer(sw_batch_size=8)(
    MetaTensor(torch.rand(1, 1, *shape), affine=torch.diag(torch.tensor([1.0, 1, 4, 1]))), lambda x: x)
peak = lambda: int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) * 1024
with torch.inference_mode():
    run(8, 8, 4)
    before = peak()
    out = run(176, 176, 44)
print(peak() - before, out.numel() * 4)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_peak_memory():
    """The interpolated volume, one plane's result, the other's, and an interpolation's; one more would be seen."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=300, env=dict(os.environ)
    )
    rise, output = map(int, re.findall(r"\d+", done.stdout))
    assert output == 176**3 * 4
    assert 3 * output < rise < 4.2 * output, f"{rise / output:.2f} outputs"
