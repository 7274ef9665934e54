"""Corners and content stay where they are, in millimetres, whatever the orientation."""

import itertools

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from medsr_monai.data import LoadVolumed, SaveVolumed
from medsr_monai.inferers import PlaneInferer
from medsr_monai.networks import Bicubic
from medsr_monai.transforms import (
    AXES,
    METHODS,
    PLANES,
    MatchCornersd,
    SyncRefMetad,
    axis_factors,
    degrade,
    outer_corners,
    plane_axis,
    resized_affine,
    sharp_plane,
    spacing,
    target_size,
    thick_axis,
    with_corners_of,
)

EDGES = (0.7, 1.3, 2.9)
ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
OBLIQUE = (17.0, -11.0, 8.0)
ID = [f"{''.join(map(str, p))}{''.join('+-'[s < 0] for s in signs)}" for p, signs in ORIENTATIONS]


def rotation(degrees):
    """Product of the rotations about x, y and z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def make_affine(orientation, degrees=(0, 0, 0), edges=EDGES):
    """Array axis i runs along the world axis permutation[i], with a sign, then all is turned."""
    permutation, signs = orientation
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis in range(3):
        affine[permutation[axis], axis] = signs[axis] * edges[axis]
    affine[:3, :3] = rotation(degrees) @ affine[:3, :3]
    affine[:3, 3] = (-31.7, 12.3, 84.1)
    return affine


def corners_by_hand(affine, shape):
    """The 8 outer corners, independent of the package."""
    corners = []
    for index in itertools.product(*((-0.5, n - 0.5) for n in shape)):
        corners.append([sum(affine[r, a] * index[a] for a in range(3)) + affine[r, 3] for r in range(3)])
    return np.array(corners)


def in_voxels(distance, affine):
    return np.abs(distance).max() / spacing(affine).min()


def centres(affine, shape):
    """World coordinates [3, *shape] of the voxel centres."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), 0).reshape(3, -1)
    return (np.asarray(affine)[:3, :3] @ index + np.asarray(affine)[:3, 3:]).reshape(3, *shape)


GRADIENT = np.array([0.31, -0.47, 0.59])


def ramp(affine, shape):
    """Intensities that grow linearly in the world; a shift by a millimetre changes them by up to |GRADIENT|."""
    values = np.tensordot(GRADIENT, centres(affine, shape), 1) + 7
    return MetaTensor(torch.tensor(values[None], dtype=torch.float64), meta={"affine": torch.tensor(affine)})


def ramp_error(volume, margin):
    """Largest distance in voxels between a volume and the ramp at its own millimetres, away from the borders."""
    expected = np.tensordot(GRADIENT, centres(volume.affine, volume.shape[1:]), 1) + 7
    inner = tuple(slice(m, n - m) for m, n in zip(margin, volume.shape[1:], strict=True))
    difference = np.abs(volume.as_tensor()[0].numpy() - expected)[inner]
    assert difference.size
    return difference.max() / np.linalg.norm(GRADIENT) / spacing(volume.affine).min()


def check_upscaled_ramp(high, factors):
    """torch's cubic (A = -0.75) bends a ramp between samples, alike to both sides: block means stay exactly."""
    assert ramp_error(high, [2 * f if f > 1 else 0 for f in factors]) < 0.04 * max(factors) * EDGES[2] / EDGES[0]
    bent = high.as_tensor() - ramp(high.affine.numpy(), high.shape[1:]).as_tensor()
    blocks = F.avg_pool3d(bent, tuple(factors))[0]
    inner = blocks[tuple(slice(2, -2) if f > 1 else slice(None) for f in factors)]
    assert float(inner.abs().max()) < 1e-6


def reload(volume, folder):
    volume = volume.clone()
    volume.meta["filename_or_obj"] = "case.nii.gz"
    SaveVolumed("image", str(folder), overwrite=True)({"image": volume.to(torch.float32)})
    return LoadVolumed("image").load(folder / "case_sr.nii.gz")


def test_outer_corners_by_hand():
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    corners = outer_corners(affine, (5, 1, 2))
    assert corners.shape == (8, 3)
    assert corners.min(axis=0).tolist() == [-1, -1.5, -2]
    assert corners.max(axis=0).tolist() == [9, 1.5, 6]


def test_spacing_is_along_array_axes():
    np.testing.assert_allclose(spacing(make_affine(((2, 0, 1), (1, -1, 1)), OBLIQUE)), EDGES, rtol=1e-12)


@pytest.mark.parametrize("degrees", [(0, 0, 0), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=ID)
def test_planes_by_anatomy(orientation, degrees):
    affine = make_affine(orientation, degrees)
    for world, plane in enumerate(PLANES):
        assert plane_axis(affine, plane) == orientation[0].index(world)
        assert plane_axis(torch.tensor(affine), plane) == orientation[0].index(world)
    # the longest edge is that of array axis 2
    assert sharp_plane(affine) == PLANES[orientation[0][2]]
    assert sharp_plane(make_affine(orientation, degrees, (3.1, 0.5, 0.5))) == PLANES[orientation[0][0]]
    assert sharp_plane(make_affine(orientation, degrees, (0.9, 1.0, 1.1))) == "axial"


def test_sharp_plane_threshold():
    assert sharp_plane(np.diag([1.24, 1, 1, 1])) == "axial"
    assert sharp_plane(np.diag([1.26, 1, 1, 1])) == "sagittal"


def test_plane_of_thin_slices_with_coarse_pixels():
    # what an in-plane degradation leaves behind: the long edges are the pixels
    assert sharp_plane(np.diag([4, 4, 1, 1])) == "axial"
    assert sharp_plane(np.diag([1, 4.1, 4, 1])) == "sagittal"
    assert sharp_plane(np.diag([4, 1, 3, 1])) == "sagittal"
    assert sharp_plane(np.diag([4.4, 3.6, 5.2, 1])) == "axial"


def test_unknown_plane():
    with pytest.raises(ValueError, match=r"'transversal', expected one of sagittal, coronal, axial$"):
        plane_axis(np.eye(4), "transversal")


@pytest.mark.parametrize("degrees", [(0, 0, 0), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=ID)
def test_thick_axis_by_anatomy(orientation, degrees):
    for axis in range(3):
        affine = make_affine(orientation, degrees, np.roll((3.3, 0.9, 1.1), axis))
        assert thick_axis(affine) == thick_axis(torch.tensor(affine)) == AXES[orientation[0][axis]]


def test_thick_axis_thresholds():
    for edges in ((1, 1, 1.51), (1, 1.2, 1.51), (0.6, 0.9, 3.3), (1, 1.7, 3), (0.5, 0.5, 7.5)):
        assert thick_axis(np.diag([*edges, 1])) == "inferior-superior"
    for edges in ((1, 1, 1), (1, 1, 1.49), (1.1, 1.2, 1.5)):
        with pytest.raises(ValueError, match=r"mm have no thick axis, the longest edge is below 1.5 times"):
            thick_axis(np.diag([*edges, 1]))
    # the middle edge is nearer to the longest one: 1 x 1.8 x 3
    for edges in ((1, 3, 3), (1, 1.8, 3), (1, 1.3, 1.6)):
        with pytest.raises(ValueError, match="mm are thick along two axes"):
            thick_axis(np.diag([*edges, 1]))
    assert thick_axis(np.diag([1, 1, 1.2, 1]), least_ratio=1.1) == "inferior-superior"
    with pytest.raises(ValueError, match=r"1x1x1.2 mm have no thick axis, the longest edge is below 1.3 times"):
        thick_axis(np.diag([1, 1, 1.2, 1]), least_ratio=1.3)


def test_target_size_by_hand():
    assert target_size(44, 3.3, 0.6) == 242  # 145.2 mm
    assert target_size(10, 4, 1) == 40
    assert target_size(7, 3.3, 0.9) == 26  # 23.1 mm / 0.9 = 25.67
    assert target_size(3, 1, 100) == 1
    # half-way: 28.5, and what rounding errors make of it
    assert {target_size(5, 5.7 * (1 + error), 1) for error in (-1e-7, 0, 1e-7)} == {29}


def test_with_corners_of_a_part():
    ref = MetaTensor(torch.zeros(1, 5, 4, 4), meta={"affine": torch.diag(torch.tensor([1.0, 2, 3, 1])), "name": "x"})
    out = with_corners_of(ref, torch.ones(1, 2, 4, 8), (4, 4, 4))
    np.testing.assert_allclose(spacing(out.affine), (2, 2, 1.5))
    np.testing.assert_allclose(
        corners_by_hand(out.affine.numpy(), (2, 4, 8)), corners_by_hand(ref.affine.numpy(), (4, 4, 4)), atol=1e-12
    )
    assert out.meta["name"] == "x" and ref.shape == (1, 5, 4, 4)


def test_axis_factors():
    assert axis_factors(0, 4) == (1, 4, 4)
    assert axis_factors(1, (1, 4)) == (1, 1, 4)
    assert axis_factors(2, [2, 3]) == (2, 3, 1)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=ID)
def test_resized_affine_keeps_corners(orientation):
    affine = make_affine(orientation, OBLIQUE)
    for shape, new in (((13, 10, 11), (52, 40, 11)), ((13, 10, 11), (13, 10, 44)), ((12, 8, 4), (3, 4, 4))):
        changed = resized_affine(affine, shape, new)
        assert in_voxels(corners_by_hand(changed, new) - corners_by_hand(affine, shape), affine) < 1e-9
        np.testing.assert_allclose(spacing(changed), np.array(EDGES) * shape / new, rtol=1e-12)


def test_resized_affine_of_an_image():
    changed = resized_affine(np.eye(4), (8, 6), (4, 2))
    np.testing.assert_allclose(changed, [[2, 0, 0, 0.5], [0, 3, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("degrees", [(0, 0, 0), OBLIQUE], ids=["straight", "oblique"])
def test_degrade_keeps_corners(method, degrees):
    shape = (13, 18, 11)
    for orientation in ORIENTATIONS:
        affine = make_affine(orientation, degrees)
        volume = ramp(affine, shape)
        for factors in ((1, 4, 4), (3, 3, 1), (2, 1, 2), (4, 1, 1), (1, 1, 5)):
            low = degrade(volume, factors, method)
            assert tuple(low.shape[1:]) == tuple(n // f for n, f in zip(shape, factors, strict=True))
            cropped = [n // f * f for n, f in zip(shape, factors, strict=True)]
            distance = corners_by_hand(low.affine.numpy(), low.shape[1:]) - corners_by_hand(affine, cropped)
            assert in_voxels(distance, affine) < 1e-9
            np.testing.assert_allclose(spacing(low.affine), np.array(EDGES) * factors, rtol=1e-12)
            assert torch.equal(low.meta["original_affine"], low.affine)
            assert tuple(low.meta["spatial_shape"]) == tuple(low.shape[1:])
    np.testing.assert_array_equal(volume.affine, affine)  # the source is left alone


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=ID)
def test_corners_through_degrade_upscale_save_and_reload(orientation, tmp_path):
    affine = make_affine(orientation, OBLIQUE)
    number = ORIENTATIONS.index(orientation)
    plane, method = PLANES[number % 3], METHODS[number % len(METHODS)]
    factors = axis_factors(plane_axis(affine, plane), 3)
    volume = ramp(affine, (13, 10, 11))
    kept = [n // f * f for n, f in zip((13, 10, 11), factors, strict=True)]
    expected = corners_by_hand(affine, kept)

    low = reload(degrade(volume, factors, method), tmp_path)
    assert in_voxels(corners_by_hand(low.affine.numpy(), low.shape[1:]) - expected, affine) < 1e-3
    np.testing.assert_allclose(spacing(low.affine), np.array(EDGES) * factors, rtol=1e-6)

    pred = PlaneInferer(plane)(low[None], Bicubic(scale=3))[0]
    high = MatchCornersd("pred", "image")({"image": low, "pred": pred})["pred"]
    back = reload(high, tmp_path)
    assert tuple(back.shape[1:]) == tuple(kept)
    assert in_voxels(corners_by_hand(back.affine.numpy(), kept) - expected, affine) < 1e-3
    np.testing.assert_allclose(spacing(back.affine), EDGES, rtol=1e-6)
    torch.testing.assert_close(back.as_tensor(), high.as_tensor(), rtol=0, atol=0)
    header = nibabel.load(tmp_path / "case_sr.nii.gz").header
    # a qform stores three of a quaternion's four numbers as float32: 5e-4 radians in the worst orientations
    diagonal = np.linalg.norm(expected[-1] - expected[0])
    assert np.abs(corners_by_hand(header.get_qform(), kept) - expected).max() < 5e-4 * diagonal


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5], ids=ID[::5])
@pytest.mark.parametrize("method", METHODS)
def test_degrade_leaves_a_ramp_in_place(method, orientation):
    volume = ramp(make_affine(orientation, OBLIQUE), (41, 66, 34))
    for factors in ((1, 4, 4), (4, 1, 1), (1, 3, 1), (2, 2, 1)):
        low = degrade(volume, factors, method)
        if not method.startswith("kspace"):
            # a Gaussian reaches 4 standard deviations, 1.7 low-resolution voxels, beyond its block
            margin = [3 if factor > 1 else 0 for factor in factors]
            assert ramp_error(low, margin) < 1e-6
        else:
            # a ramp is no periodic signal: it rings, evenly to both sides, so that its mean stays
            error = low.as_tensor() - ramp(low.affine.numpy(), low.shape[1:]).as_tensor()
            shift = abs(float(error.mean())) / np.linalg.norm(GRADIENT) / spacing(low.affine).min()
            assert shift < 1e-6


@pytest.mark.parametrize("plane", PLANES)
def test_upscaling_leaves_a_ramp_in_place(plane):
    for orientation in ORIENTATIONS:
        affine = make_affine(orientation, OBLIQUE)
        low = ramp(affine, (9, 8, 7))
        pred = PlaneInferer(plane)(low[None], Bicubic(scale=4))[0]
        high = MatchCornersd()({"image": low, "pred": pred})["pred"]
        factors = axis_factors(plane_axis(affine, plane), 4)
        assert tuple(high.shape[1:]) == tuple(np.multiply((9, 8, 7), factors))
        check_upscaled_ramp(high, factors)


@pytest.mark.parametrize(("plane", "through"), list(itertools.permutations(PLANES, 2)) + [("auto", p) for p in PLANES])
def test_upscaling_through_the_plane_leaves_a_ramp_in_place(plane, through):
    for orientation in ORIENTATIONS[::3]:
        affine = make_affine(orientation, OBLIQUE)
        low = ramp(affine, (9, 8, 7))
        pred = PlaneInferer(plane, through=through)(low[None], Bicubic(scale=[1, 4]))[0]
        high = MatchCornersd()({"image": low, "pred": pred})["pred"]
        factors = [4 if axis == plane_axis(affine, through) else 1 for axis in range(3)]
        assert tuple(high.shape[1:]) == tuple(np.multiply((9, 8, 7), factors))
        check_upscaled_ramp(high, factors)


def test_degrading_the_upscaled_is_close():
    """Down and up keep each other's place: a half-voxel shift of this wave would cost 0.05."""
    x = torch.linspace(0, 6.28, 24, dtype=torch.float64)
    low = MetaTensor(torch.sin(x)[None, :, None, None] * torch.cos(x)[None, None, :, None] * torch.ones(1, 1, 1, 3))
    pred = PlaneInferer("axial")(low[None], Bicubic(scale=4))[0]
    high = MatchCornersd()({"image": low, "pred": pred})["pred"]
    for method in METHODS:
        again = degrade(high, (4, 4, 1), method, **({"fwhm": 2.0} if method == "gaussian" else {}))
        torch.testing.assert_close(again.affine, low.affine, rtol=0, atol=1e-9)
        error = (again - low).as_tensor()[:, 3:-3, 3:-3].abs().max()
        assert error < 0.03, method


def test_match_corners_takes_plain_tensors_and_leaves_the_reference():
    ref = MetaTensor(torch.zeros(1, 2, 3, 4), meta={"affine": torch.diag(torch.tensor([1.0, 2, 3, 1])), "name": "x"})
    out = MatchCornersd()({"image": ref, "pred": torch.ones(1, 4, 3, 4)})
    pred = out["pred"]
    torch.testing.assert_close(pred.affine[0], torch.tensor([0.5, 0, 0, -0.25], dtype=torch.float64))
    assert pred.meta["name"] == "x" and tuple(pred.meta["spatial_shape"]) == (4, 3, 4)
    assert torch.equal(pred.meta["original_affine"], pred.affine)
    assert pred.applied_operations == []
    assert out["image"] is ref and float(ref.affine[0, 0]) == 1


def test_sync_ref_meta_defuses_restored():
    """What MONAI Label's Restored reads from the image is the grid of the output."""
    ref = MetaTensor(torch.zeros(1, 2, 3, 4))
    ref.meta.update(spatial_shape=np.array([2, 3, 4]), original_affine=torch.eye(4))
    data = SyncRefMetad()(MatchCornersd()({"image": ref, "pred": torch.ones(1, 8, 12, 4)}))
    assert tuple(data["image"].meta["spatial_shape"]) == (8, 12, 4)
    torch.testing.assert_close(data["image"].meta["original_affine"], data["pred"].affine)
