import pytest
import torch
import torch.nn.functional as F

from medsr_monai.networks.blocks.non_local import NonLocal


def block(channels=6, **arguments):
    """A block whose output convolution has left zero, as in a trained network."""
    torch.manual_seed(0)
    module = NonLocal(channels, **arguments)
    torch.nn.init.normal_(module.out.weight)
    torch.nn.init.normal_(module.out.bias)
    return module


def test_identity_at_the_start():
    x = torch.rand(2, 6, 5, 4)
    assert torch.equal(NonLocal(6)(x), x)


@pytest.mark.parametrize("size, subsample", [((5, 4), 1), ((1, 1), 1), ((4, 6), 2), ((5, 3), 2), ((1, 1), 3)])
def test_equations_by_hand(size, subsample):
    """The whole matrix of the softmax, pixel by pixel; no scaling of the scores."""
    module = block(subsample=subsample).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    theta, phi, g = module.theta(x), module.phi(x), module.g(x)
    if subsample > 1:
        phi, g = (F.max_pool2d(t, subsample, ceil_mode=True) for t in (phi, g))
    theta, phi, g = (t.flatten(2) for t in (theta, phi, g))
    attention = (theta.transpose(1, 2) @ phi).softmax(dim=-1)
    gathered = (g @ attention.transpose(1, 2)).view(2, 3, *size)
    torch.testing.assert_close(module(x), x + module.out(gathered), atol=1e-12, rtol=0)


def test_rows_of_the_attention_sum_to_one():
    module = block()
    torch.nn.init.zeros_(module.g.weight)
    module.g.bias.data = torch.tensor([1.0, -2.0, 0.0])  # what every pixel gives is what every pixel gets
    gathered = module.gather(10 * torch.randn(1, 6, 7, 9))
    torch.testing.assert_close(gathered, torch.tensor([1.0, -2.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 7, 9))


def test_gathers_from_the_whole_image_alike_wherever_it_lies():
    module, x = block(), torch.rand(1, 6, 9, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x)[0, :, 0, 0].sum(), x)
    assert (gradient[0].abs().sum(0) > 0).all()
    order = torch.randperm(72)
    moved = x.flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(module(moved), module(x).flatten(2)[:, :, order].view_as(x), atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter():
    module = block()
    module(torch.rand(1, 6, 5, 4)).square().sum().backward()
    for name, parameter in module.named_parameters():
        # Adding one number to all scores of a row does not change its softmax.
        assert name == "phi.bias" or parameter.grad.abs().sum() > 0, name


def test_no_subsample_below_one():
    with pytest.raises(ValueError, match="subsample is 0: expected 1"):
        NonLocal(4, subsample=0)
