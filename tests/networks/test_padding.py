import pytest
import torch

from medsr_monai.networks.blocks.padding import margins, pad_to_multiple, pad_to_size


def test_reflects_long_axes_and_repeats_short_ones():
    x = torch.tensor([[[[1.0, 2, 3, 4, 5], [6, 7, 8, 9, 10]]]])
    assert pad_to_multiple(x, 4)[0, 0].tolist() == [
        [1, 2, 3, 4, 5, 4, 3, 2],
        [6, 7, 8, 9, 10, 9, 8, 7],
        [6, 7, 8, 9, 10, 9, 8, 7],
        [6, 7, 8, 9, 10, 9, 8, 7],
    ]


@pytest.mark.parametrize("size", [(1, 1), (4, 8), (7, 9), (5, 4)])
def test_cropping_undoes_it(size):
    x = torch.rand(2, 3, *size)
    padded = pad_to_multiple(x, 4)
    assert padded.shape[2] % 4 == padded.shape[3] % 4 == 0 and padded.shape[2] < size[0] + 4
    assert torch.equal(padded[:, :, : size[0], : size[1]], x)


def test_margins_by_hand():
    assert margins(181, 256) == (38, 37)
    assert margins(255, 256) == (1, 0)
    assert margins(256, 256) == margins(300, 256) == (0, 0)


def test_padding_to_a_size_repeats_the_border():
    x = torch.tensor([[[[1.0, 2], [3, 4]]]])
    assert pad_to_size(x, 3)[0, 0].tolist() == [[1, 1, 2], [1, 1, 2], [3, 3, 4]]
    assert torch.equal(pad_to_size(x, 2), x)
    x = torch.rand(1, 2, 3, 9)
    assert pad_to_size(x, 6).shape == (1, 2, 6, 9) and torch.equal(pad_to_size(x, 6)[:, :, 2:5], x)
