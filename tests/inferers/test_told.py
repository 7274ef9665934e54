"""Inferers tell the network the point spread of the volume."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsr_monai.inferers import PlaneInferer, ThroughPlaneInferer
from medsr_monai.transforms import PointSpread, encode_point_spread


class Listener(torch.nn.Module):
    """Writes down what it is told, and enlarges by repetition."""

    psf_channels = 11

    def __init__(self, rows, columns):
        super().__init__()
        self.factors, self.heard = (rows, columns), []

    def forward(self, x, psf=None):
        self.heard.append(psf)
        return x.repeat_interleave(self.factors[0], 2).repeat_interleave(self.factors[1], 3)


def volume(edges):
    return MetaTensor(torch.rand(1, 1, 6, 5, 4), affine=torch.diag(torch.tensor([*edges, 1.0])))


@pytest.mark.parametrize(
    ("psf", "expected"),
    [
        ("unknown", None),
        ("box", PointSpread("box")),
        ("gaussian:4.8", PointSpread("gaussian", 1.2)),
        (PointSpread("box", 0.7, gap=0.1), PointSpread("box", 0.7, gap=0.1)),
    ],
)
def test_thick_slices_are_told_in_parts_of_their_spacing(psf, expected):
    network = Listener(1, 4)
    inferer = ThroughPlaneInferer(scale=[1, 4], psf=psf)
    image = volume((1.0, 1.0, 4.0))
    inferer(image, network)
    assert inferer.plan(image.affine, image.shape[2:]).point_spread == expected
    assert len(network.heard) == 4
    assert all(torch.equal(told, encode_point_spread(expected)[None]) for told in network.heard)


def test_pixels_are_told_in_parts_of_the_mean_of_their_edges():
    network = Listener(2, 2)
    inferer = PlaneInferer("axial", psf="kspace:3")
    image = volume((1.0, 2.25, 5.0))
    inferer(image, network)
    assert inferer.plan(image.affine, image.shape[2:], (2, 2)).point_spread == PointSpread("kspace", 2.0)
    np.testing.assert_array_equal(network.heard[0][0], encode_point_spread(PointSpread("kspace", 2.0)))


def test_what_a_batch_says_goes_before_the_default():
    network, told = Listener(2, 2), encode_point_spread(PointSpread("box", 0.8))[None]
    PlaneInferer("axial", psf="kspace")(volume((1, 1, 1)), network, told)
    assert all(torch.equal(heard, told) for heard in network.heard)


def test_a_network_that_is_not_told_is_not_given_anything():
    network = Listener(2, 2)
    network.psf_channels = 0
    PlaneInferer("axial")(volume((1, 1, 1)), network)
    assert network.heard == [None]
    with pytest.raises(ValueError, match="psf is box, but this network was not made to be told: leave it out"):
        PlaneInferer("axial", psf="box")(volume((1, 1, 1)), network)


@pytest.mark.parametrize("psf", ["boxes", "box:-1", "box:x", ""])
def test_a_wrong_point_spread_is_refused_at_once(psf):
    for inferer in (PlaneInferer, ThroughPlaneInferer):
        with pytest.raises(ValueError):
            inferer(psf=psf)
