from math import sqrt

import pytest
import torch
import torch.nn.functional as F

from medsr_monai.networks.blocks.equalized import BiasedLeakyReLU, EqualConv2d, EqualLinear, scaled_leaky_relu


def test_leaky_relu_by_hand():
    out = scaled_leaky_relu(torch.tensor([[2.0, -1.0]]))
    torch.testing.assert_close(out, torch.tensor([[2 * sqrt(2), -0.2 * sqrt(2)]]))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5)])
def test_bias_belongs_to_the_channels(shape):
    layer, x = BiasedLeakyReLU(3), torch.randn(shape)
    torch.nn.init.normal_(layer.bias)
    expected = torch.stack([scaled_leaky_relu(x[:, i] + layer.bias[i]) for i in range(3)], dim=1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("lr_mul", [1.0, 0.01])
def test_linear_is_scaled_when_used(lr_mul):
    torch.manual_seed(0)
    layer, x = EqualLinear(64, 200, lr_mul=lr_mul), torch.randn(500, 64)
    assert 0.97 < layer.weight.std() * lr_mul < 1.03 and not layer.bias.any()
    assert 0.95 < layer(x).std() < 1.05  # variance is kept, whatever the learning rate
    torch.nn.init.ones_(layer.bias)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight) * lr_mul / 8 + lr_mul, atol=1e-5, rtol=0)


def test_linear_activates_after_the_bias():
    plain, active = EqualLinear(4, 5), EqualLinear(4, 5, activate=True)
    torch.nn.init.normal_(plain.bias)
    active.load_state_dict(plain.state_dict())
    x = torch.randn(3, 4)
    torch.testing.assert_close(active(x), scaled_leaky_relu(plain(x)))
    assert EqualLinear(4, 5, bias=False).bias is None


def test_convolution_is_scaled_when_used():
    torch.manual_seed(0)
    layer, x = EqualConv2d(8, 40, 3, stride=2, padding=1), torch.randn(2, 8, 9, 9)
    assert 0.95 < layer.weight.std() < 1.05
    torch.nn.init.normal_(layer.bias)
    expected = F.conv2d(x, layer.weight / sqrt(72), layer.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=0)
