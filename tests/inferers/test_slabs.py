"""Slabs against the inferer called with the whole volume."""

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import nn

from medsr_monai.inferers import PlaneInferer, ThroughPlaneInferer, slab_passes
from medsr_monai.transforms import PLANES


class Enlarged(nn.Module):
    """A convolution that tells rows from columns, and an enlargement."""

    def __init__(self, rows=2, columns=3):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.factors, self.batches, self.full = (rows, columns), [], None

    def forward(self, x):
        if self.full is not None and len(x) > self.full:
            raise RuntimeError("CUDA out of memory")
        self.batches.append(tuple(x.shape))
        return F.interpolate(self.convolution(x), scale_factor=self.factors, mode="nearest")


def volume(shape=(9, 8, 7), edges=(1.0, 1.0, 1.0), order=(2, 0, 1)):
    affine = torch.zeros(4, 4, dtype=torch.float64)
    for axis, world in enumerate(order):
        affine[world, axis] = edges[axis] * (-1 if axis == 1 else 1)
    affine[3, 3] = 1
    return MetaTensor(torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)), affine=affine)


def assembled(inferer, image, network):
    """Mean of the planes, put together from slabs; each slab covers what no other does."""
    wholes = []
    for slabs in slab_passes(inferer, image, network):
        parts = list(slabs)
        axis = parts[0].axis + 1
        starts = [part.start for part in parts]
        assert starts == [sum(p.pred.shape[axis] for p in parts[:n]) for n in range(len(parts))]
        wholes.append(torch.cat([part.pred for part in parts], axis))
    return wholes[0] if len(wholes) == 1 else (wholes[0] + wholes[1]) / 2


@pytest.fixture(autouse=True)
def no_grad():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("plane", ["auto", *PLANES])
@pytest.mark.parametrize("tiles", [(-1, -1), (4, 4)], ids=["whole", "tiles"])
def test_slabs_are_the_inferers_output_bit_by_bit(plane, tiles):
    network, image = Enlarged(), volume(edges=(1.0, 2.0, 3.0))
    inferer = PlaneInferer(plane, sw_batch_size=4, roi_size=tiles)
    expected = inferer(image[None], network)[0].as_tensor()
    seen, network.batches = network.batches, []
    assert torch.equal(assembled(inferer, image, network), expected)
    assert network.batches == seen
    assert (inferer.plane, inferer.progress) == (plane, False)


def test_one_thin_slab_is_cut_in_the_volumes_plane():
    """Of a single slice alone the finest plane would be another one."""
    network, image = Enlarged(2, 2), volume((5, 8, 7), (1.0, 1.0, 1.0))
    inferer = PlaneInferer(sw_batch_size=1)
    assert torch.equal(assembled(inferer, image, network), inferer(image[None], network)[0].as_tensor())


@pytest.mark.parametrize("refine", ["both", "axial", "sagittal"])
@pytest.mark.parametrize(("factor", "target"), [(1, None), (1, 0.7), (3, None), (3, 1.25)])
def test_thick_slices_plane_by_plane(refine, factor, target):
    network, image = Enlarged(1, factor), volume((9, 5, 7), (1.0, 3.0, 1.0), (0, 1, 2))
    inferer = ThroughPlaneInferer("auto", target, refine, 2, scale=1 if factor == 1 else [1, factor])
    expected = inferer(image[None], network)[0].as_tensor()
    got = assembled(inferer, image, network)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_learnt():
    network, image = Enlarged(), volume((9, 8, 10))
    inferer = PlaneInferer(PLANES[1], sw_batch_size=4)
    expected = PlaneInferer(PLANES[1], sw_batch_size=2)(image[None], network)[0].as_tensor()
    network.full, network.batches = 2, []
    assert torch.equal(assembled(inferer, image, network), expected)
    assert inferer.sw_batch_size == 2 and max(shape[0] for shape in network.batches) == 2


def test_only_a_slab_at_a_time():
    network, image = Enlarged(), volume()
    (slabs,) = slab_passes(PlaneInferer(PLANES[0], sw_batch_size=3), image, network)
    assert not network.batches
    next(slabs)
    assert len(network.batches) == 1
