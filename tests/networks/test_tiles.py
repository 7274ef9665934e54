from itertools import pairwise

import pytest
import torch

from medsr_monai.networks.blocks.padding import pad_to_size
from medsr_monai.networks.blocks.tiles import cut_into_tiles, join_tiles, tile_starts, tile_weights


def test_starts_by_hand():
    assert tile_starts(16, 16, 4) == [0]
    assert tile_starts(17, 16, 4) == [0, 1]
    assert tile_starts(28, 16, 4) == [0, 12]
    assert tile_starts(29, 16, 4) == [0, 6, 13]


@pytest.mark.parametrize("length", range(8, 60, 3))
@pytest.mark.parametrize("overlap", [0, 2, 7])
def test_tiles_cover_and_overlap(length, overlap):
    starts = tile_starts(length, 8, overlap)
    assert starts[0] == 0 and starts[-1] == length - 8
    steps = [b - a for a, b in pairwise(starts)]
    assert all(0 < step <= 8 - overlap for step in steps)


@pytest.mark.parametrize("size", [4, 5])
def test_weights_fall_to_the_border(size):
    weights = tile_weights(size)
    assert weights.shape == (size, size) and (weights > 0).all()
    assert torch.equal(weights, weights.flip(0)) and torch.equal(weights, weights.T)
    assert weights[0, 0] == weights.min() and weights[size // 2, size // 2] == weights.max()


@pytest.mark.parametrize("size", [(8, 8), (5, 8), (1, 30), (21, 12)])
def test_cut_tiles_are_those_of_the_padded_image_and_join_to_it(size):
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    tiles, row_shares, column_shares = cut_into_tiles(x, 8, 2)
    padded = pad_to_size(x, 8)
    starts = [tile_starts(length, 8, 2) for length in padded.shape[2:]]
    expected = [padded[:, :, i : i + 8, j : j + 8] for i in starts[0] for j in starts[1]]
    assert torch.equal(tiles, torch.stack(expected, dim=1).flatten(0, 1))
    torch.testing.assert_close(join_tiles(tiles, row_shares, column_shares), x, atol=1e-6, rtol=0)
