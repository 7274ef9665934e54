import pytest
import torch

from medsr_monai.networks.blocks.padding import pad_to_multiple


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
