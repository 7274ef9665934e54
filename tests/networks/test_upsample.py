import pytest
import torch

from medsr_monai.networks.blocks.upsample import PixelShuffle, Upsample, pixel_shuffle, scale_per_axis


def test_pixel_shuffle_by_hand():
    x = torch.arange(4).view(1, 4, 1, 1)
    assert pixel_shuffle(x, 1, 4).tolist() == [[[[0, 1, 2, 3]]]]
    assert pixel_shuffle(x, 4, 1).tolist() == [[[[0], [1], [2], [3]]]]
    assert pixel_shuffle(x, 1, 2).tolist() == [[[[0, 1]], [[2, 3]]]]


@pytest.mark.parametrize("factor", [2, 3])
def test_square_pixel_shuffle_is_torchs(factor):
    x = torch.rand(2, 2 * factor**2, 3, 5)
    expected = torch.nn.PixelShuffle(factor)(x)
    assert torch.equal(PixelShuffle(factor, factor)(x), expected)
    assert torch.equal(pixel_shuffle(pixel_shuffle(x, 1, factor), factor, 1), expected)  # one axis after the other


@pytest.mark.parametrize(
    "scale, convolutions",
    [(1, []), (2, [4]), (3, [9]), (4, [4, 4]), (8, [4, 4, 4]), ([1, 4], [2, 2]), ([4, 2], [4, 2])],
)
def test_steps(scale, convolutions):
    upsample = Upsample(5, scale)
    assert [m.out_channels // 5 for m in upsample if isinstance(m, torch.nn.Conv2d)] == convolutions
    rows, columns = scale_per_axis(scale)
    assert upsample(torch.rand(1, 5, 3, 4)).shape == (1, 5, 3 * rows, 4 * columns)
