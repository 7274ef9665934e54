"""Consistency of results with their inputs: the operator, the residual, and the projection's promises."""

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsr_monai.inferers import DataConsistency
from medsr_monai.transforms import PointSpread, degrade, outer_corners, sampling_matrix

IN_PLANE = ((1, 32, 40, 5), (1, 8, 10, 5))
THICK = ((1, 12, 10, 33), (1, 12, 10, 6))  # 5.5 new slices a thick one
# method, shapes of the output and the input
MODELS = {
    "in-plane": ("bicubic", *IN_PLANE),
    "in-plane, x2": ("bicubic", (1, 16, 20, 5), (1, 8, 10, 5)),
    "in-plane, flipped axes": ("bicubic", (1, 5, 32, 40), (1, 5, 8, 10)),
    "through-plane": ("gaussian", (1, 12, 40, 10), (1, 12, 10, 10)),
    "through-plane, any ratio": ("gaussian", *THICK),
    "box": ("box", *THICK),
    "gap": (PointSpread("rounded", 1.0, 0.2), *THICK),
    "overlap": (PointSpread("gaussian", 1.0, -0.5), *THICK),
    "kspace": ("kspace", (1, 12, 10, 35), (1, 12, 10, 7)),
    "two channels": ("bicubic", (2, 32, 40, 1), (2, 8, 10, 1)),
}
each_model = pytest.mark.parametrize("name", MODELS)


def truth(shape: tuple[int, ...]) -> torch.Tensor:
    """Tissues with edges, in other units than 0 to 1."""
    grid = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape[1:]), indexing="ij")
    radius = torch.stack(grid).square().sum(0).sqrt()
    image = 900.0 * (radius < 0.9) - 500.0 * (radius < 0.4) + 80 * torch.sin(9 * grid[0] + 7 * grid[1] - 5 * grid[2])
    return image.expand(shape).clone()


def degraded(volume: torch.Tensor, method: str, shape: tuple[int, ...]) -> torch.Tensor:
    """By the definition, an axis after the other."""
    out = volume.double()
    for axis, (size, small) in enumerate(zip(volume.shape, shape, strict=True)):
        if size != small:
            out = torch.tensordot(out, sampling_matrix(size, small, method), dims=([axis], [1])).movedim(-1, axis)
    return out


def case(name: str, noise: float = 0.0) -> tuple[DataConsistency, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Consistency, the true volume, a result that is off by random errors, and the input."""
    method, shape, small = MODELS[name]
    generator = torch.Generator().manual_seed(0)
    label = truth(shape)
    image = degraded(label, method, small)
    image = image + noise * torch.randn(small, generator=generator, dtype=torch.float64)
    pred = label + 40 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return DataConsistency(method, slab_voxels=600), label.float(), pred.float(), image.float()


def rms(difference: torch.Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


def corners(volume: MetaTensor) -> np.ndarray:
    return outer_corners(volume.affine, volume.shape[1:])


def test_whole_factors_are_those_of_training():
    for method, (shape, small) in {"bicubic": IN_PLANE, "gaussian": ((1, 12, 10, 24), (1, 12, 10, 6))}.items():
        volume = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        factors = [a // b for a, b in zip(shape[1:], small[1:], strict=True)]
        assert DataConsistency(method).residual(volume, degrade(volume, factors, method)).max < 1e-6


@each_model
def test_the_residual_is_that_of_the_definition(name):
    consistency, _, pred, image = case(name, noise=3.0)
    expected = degraded(pred, consistency.method, image.shape) - image
    found = consistency.residual(pred, image)
    assert found.rms == pytest.approx(rms(expected)) and found.max == pytest.approx(float(expected.abs().max()))
    for axis in (1, 2, 3):
        for number in {0, image.shape[axis] // 2, image.shape[axis] - 1}:
            part = consistency.residual_slice(pred, image, axis, number)
            torch.testing.assert_close(part, expected.narrow(axis, number, 1), rtol=0, atol=1e-9)


@each_model
@pytest.mark.parametrize("bound", [0.0, 0.01, 2.0])
def test_the_residual_falls_below_the_bound_and_the_error_never_rises(name, bound):
    consistency, label, pred, image = case(name)
    before = pred.clone()
    result = consistency.project(pred, image, bound)
    residual = consistency.residual(result, image)
    assert consistency.residual(pred, image).rms > 5  # there is something to do
    assert residual.rms < max(bound, 1e-3)  # float32 in units of 1000
    assert rms(result - label) < rms(pred - label)
    assert torch.equal(pred, before) and result.dtype == pred.dtype
    # no more than asked for: what is left is the bound
    assert residual.rms > 0.999 * bound


@each_model
def test_it_is_the_limit_of_iterative_back_projection(name):
    """x + D'(y - D(x)), again and again, with a step that converges, goes to the same volume."""
    consistency, _, pred, image = case(name)
    axes = consistency.grown(pred, image)
    matrices = {a: sampling_matrix(pred.shape[a], image.shape[a], consistency.method) for a in axes}
    step = 1 / np.prod([float(torch.linalg.matrix_norm(m, 2)) ** 2 for m in matrices.values()])
    x, rest = pred.double(), []
    for _ in range(400):
        back = image.double() - degraded(x, consistency.method, image.shape)
        rest.append(rms(back))
        for axis, matrix in matrices.items():
            back = torch.tensordot(back, matrix, dims=([axis], [0])).movedim(-1, axis)
        x = x + step * back
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(rest)) and rest[-1] < 1e-3
    torch.testing.assert_close(consistency.project(pred, image, 0).double(), x, rtol=0, atol=0.01)


@each_model
def test_with_a_bound_it_is_the_nearest_volume(name):
    """Any other volume within the bound, such as the true one or one a little nearer by, lies on the other side."""
    consistency, label, pred, image = case(name)
    result = consistency.project(pred, image, 2.0)
    # a projection onto a convex set: the angle at the result towards every point of the set is at least a right one
    for other in (label, consistency.project(pred, image, 0), consistency.project(pred + 5, image, 1.9)):
        assert float(((pred - result).double() * (other - result).double()).sum()) < 1e-3 * pred.numel()


@each_model
@pytest.mark.parametrize("noise", [2.0, 12.0])
def test_noise_is_not_copied_into_the_output(name, noise):
    consistency, label, pred, image = case(name, noise)
    level = consistency.residual(label, image).rms  # of the noise drawn
    result = consistency.project(pred, image, level)
    before, after = consistency.residual(pred, image).rms, consistency.residual(result, image).rms
    assert after == pytest.approx(min(before, level), rel=1e-3)
    assert rms(result - label) <= rms(pred - label)


def test_what_is_consistent_stays_as_it_is():
    consistency, label, _, image = case("in-plane")
    assert torch.equal(consistency.project(label, image, 0.1), label)


def test_slabs_do_not_show():
    consistency, _, pred, image = case("through-plane, any ratio", noise=1.0)
    whole = DataConsistency("gaussian")
    assert whole.residual(pred, image).rms == pytest.approx(consistency.residual(pred, image).rms, rel=1e-12)
    torch.testing.assert_close(whole.project(pred, image, 1), consistency.project(pred, image, 1), rtol=0, atol=1e-3)


def test_memory_is_that_of_a_slab():
    pred, image = map(torch.zeros, IN_PLANE)
    slabs = DataConsistency("bicubic", slab_voxels=2 * 32 * 40)._slabs(pred, image)
    assert [tuple(slab.shape) for _, _, slab in slabs] == [(1, 32, 40, 2), (1, 32, 40, 2), (1, 32, 40, 1)]


def test_geometry_and_metadata_stay():
    consistency, _, pred, image = case("in-plane")
    turn = np.deg2rad(15)
    affine = np.eye(4)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, -1]])
    affine[:3, :3] = rotation @ np.diag([-0.7, 1.1, 5])
    affine[:3, 3] = 11, -7, 5
    volume = MetaTensor(pred, affine=torch.tensor(affine), meta={"filename_or_obj": "a.nii.gz"})
    result = consistency.project(volume, MetaTensor(image), 0)
    np.testing.assert_array_equal(corners(result), corners(volume))
    assert result.meta["filename_or_obj"] == "a.nii.gz" and not torch.equal(result.as_tensor(), pred)


def test_what_no_volume_can_show_stays_in_the_residual():
    """An even matrix's highest frequency: kspace drops it."""
    consistency = DataConsistency("kspace")
    image = torch.zeros(1, 4, 5, 8)
    image[..., ::2] = 1
    result = consistency.project(torch.zeros(1, 4, 5, 32), image, 0.01)
    assert result.isfinite().all() and consistency.residual(result, image).rms == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("pred", "image", "bound", "reason"),
    [
        ((1, 8, 8, 2), (2, 4, 4, 2), 0, "as many channels"),
        ((1, 8, 4, 2), (1, 4, 8, 2), 0, "at least as many samples"),
        ((1, 8, 8, 4), (1, 4, 4, 2), 0, "an axis that has not grown"),
        ((1, 8, 8, 2), (1, 4, 4, 2), -1, "bound is -1"),
        ((1, 8, 8, 2), (1, 4, 4, 2), np.nan, "bound is nan"),
    ],
)
def test_what_is_refused(pred, image, bound, reason):
    with pytest.raises(ValueError, match=reason):
        DataConsistency("bicubic").project(torch.zeros(pred), torch.zeros(image), bound)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="degradation method is 'cubic', expected one of bicubic"):
        DataConsistency("cubic")
