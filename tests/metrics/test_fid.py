"""FID against Gaussians worked out by hand and MONAI's metric of the features as they are."""

import pytest
import torch
from monai.metrics import FIDMetric

from medsr_monai.metrics import fid, inception_features

# mean 0, covariance 2/3 of the identity
CROSS = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)
# |(3, 4)|^2 + 2 (2/3 + 8/3 - 2 sqrt(2/3 * 8/3)): the other has twice the deviations
BY_HAND = 25 + 4 / 3


def moved(points):
    return 2 * points + torch.tensor([3.0, 4.0])


def test_two_gaussians_by_hand():
    assert fid(moved(CROSS), CROSS) == pytest.approx(BY_HAND, abs=1e-9)
    assert fid(CROSS, moved(CROSS)) == pytest.approx(BY_HAND, abs=1e-9)


def test_covariances_of_other_directions():
    """Deviations along different axes do not cancel: trace(S) + trace(S'), the root of the product is 0."""
    first = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64)
    assert fid(first, first.flip(1)) == pytest.approx(2 + 2, abs=1e-6)


def test_fewer_images_than_features():
    """In 40 turned dimensions the same two Gaussians, and the figure of the unreduced features."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64)).Q[:2]
    pred, label = moved(CROSS) @ turn, CROSS @ turn + 0
    assert fid(pred, label) == pytest.approx(BY_HAND, abs=1e-6)
    pred, label = torch.rand(2, 12, 40, generator=generator)
    assert fid(pred, label) == pytest.approx(float(FIDMetric()(pred, label)), abs=1e-4)
    assert fid(pred, label[:7]) == pytest.approx(float(FIDMetric()(pred, label[:7])), abs=1e-4)


@pytest.mark.parametrize("features", [3, 500])
def test_equal_sets(features):
    label = torch.rand(20, features, generator=torch.Generator().manual_seed(0))
    assert fid(label.flip(0), label) == pytest.approx(0, abs=1e-6)
    assert fid(label + 0.1, label) == pytest.approx(0.01 * features, rel=1e-4)


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="FID of 1 and 4 images: a covariance needs at least 2"):
        fid(CROSS[:1], CROSS)


def test_every_channel_is_a_clipped_grey_image():
    slices = torch.tensor([[0.25, -3.0], [2.0, 0.5]]).reshape(2, 2, 1, 1).expand(2, 2, 5, 4)
    features = inception_features(lambda x: x.mean((2, 3)), slices)
    expected = torch.tensor([[0.25, 0.0], [1.0, 0.5]])
    torch.testing.assert_close(features, expected[:, :, None].expand(2, 2, 3))
