import torch
import torch.nn.functional as F

from medsr_monai.networks.blocks.filters import BinomialFilter, BinomialUpsample, binomial_kernel, haar


def test_haar_by_hand():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 5.0]], [[0.0, 4.0], [0.0, 0.0]]]])
    # mean; rows 3 - 8; columns 4 - 7; diagonal 6 - 5, each over 2, two channels a band
    assert haar(x).flatten().tolist() == [5.5, 2.0, -2.5, 2.0, -1.5, -2.0, 0.5, -2.0]


def test_haar_keeps_energy_and_loses_nothing():
    x = torch.rand(2, 3, 6, 8)
    bands = haar(x)
    assert bands.shape == (2, 12, 3, 4)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())
    mean, rows, columns, both = bands.chunk(4, dim=1)
    torch.testing.assert_close((mean + rows + columns + both) / 2, x[..., ::2, ::2])
    torch.testing.assert_close((mean - rows + columns - both) / 2, x[..., 1::2, ::2])


def test_binomial_kernel():
    kernel = binomial_kernel() * 64
    assert kernel[0].tolist() == [1, 3, 3, 1] and kernel[1].tolist() == [3, 9, 9, 3] and kernel.sum() == 64


def test_down_sampling_by_hand():
    x = torch.zeros(1, 2, 4, 4)
    x[0, 1, 1, 2] = 64
    out = BinomialFilter(stride=2, padding=1)(x)
    # the pixel is the third row and fourth column of the first window, the first row of the second ...
    assert out[0, 1].tolist() == [[3 * 1, 3 * 3], [1 * 1, 1 * 3]]
    assert not out[0, 0].any()
    constant = BinomialFilter(padding=2)(torch.ones(1, 1, 8, 8))
    assert constant.shape == (1, 1, 9, 9) and (constant[..., 2:-2, 2:-2] == 1).all()


def test_up_sampling_is_zero_insertion_and_a_filter():
    x = torch.rand(2, 3, 4, 5)
    spread = torch.zeros(2, 3, 8, 10)
    spread[..., ::2, ::2] = x
    kernel = 4 * binomial_kernel().expand(3, 1, 4, 4)
    expected = F.conv2d(F.pad(spread, (2, 1, 2, 1)), kernel, groups=3)
    torch.testing.assert_close(BinomialUpsample()(x), expected)
    inner = BinomialUpsample()(torch.ones(1, 1, 4, 4))[..., 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.ones(1, 1, 6, 6))


def test_kernels_are_not_in_the_state_dict():
    assert not BinomialFilter(padding=1).state_dict() and not BinomialUpsample().state_dict()
