import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from medsr_monai.networks.blocks.deformable import DeformableConv2d, deform_conv2d_by_grid_sample, use_grid_sample

either_form = pytest.mark.parametrize("by_grid_sample", [False, True])


def layer(channels=4, out_channels=3, *, by_grid_sample=False, trained=False, **arguments):
    torch.manual_seed(0)
    convolution = DeformableConv2d(channels, out_channels, **arguments).eval()
    if trained:
        torch.nn.init.normal_(convolution.offset.weight, std=0.3)
        torch.nn.init.normal_(convolution.offset.bias, std=0.5)
    return use_grid_sample(convolution, by_grid_sample)


@either_form
@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("kernel_size, groups", [(3, 1), (3, 4), (1, 2), (5, 1)])
def test_starts_as_a_plain_convolution(by_grid_sample, modulated, kernel_size, groups):
    convolution = layer(
        kernel_size=kernel_size, offset_groups=groups, modulated=modulated, by_grid_sample=by_grid_sample
    )
    x = torch.randn(2, 4, 7, 6)
    expected = F.conv2d(x, convolution.weight, convolution.bias, padding=kernel_size // 2)
    torch.testing.assert_close(convolution(x), expected, atol=1e-5, rtol=0)
    assert convolution.offset.out_channels == (3 if modulated else 2) * groups * kernel_size**2


@either_form
def test_shifts_by_hand(by_grid_sample):
    """Group 0 reads one pixel further down, group 1 half a pixel further right; outside there is zero."""
    convolution = layer(2, 1, offset_groups=2, modulated=False, by_grid_sample=by_grid_sample)
    shifts = torch.zeros(2, 9, 2)  # group, tap, (down, right)
    shifts[0, :, 0], shifts[1, :, 1] = 1, 0.5
    convolution.offset.bias.data = shifts.flatten()
    x = torch.rand(1, 2, 5, 6)
    padded = F.pad(x, (2, 2, 2, 2))  # what the convolution reads outside moves too
    down = padded[:, :1].roll(-1, 2)
    right = (padded[:, 1:] + padded[:, 1:].roll(-1, 3)) / 2
    expected = F.conv2d(torch.cat([down, right], 1), convolution.weight, convolution.bias)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(convolution(x), expected, atol=1e-6, rtol=0)


@either_form
def test_one_tap_moves_alone(by_grid_sample):
    convolution = layer(1, 1, modulated=False, by_grid_sample=by_grid_sample)
    convolution.weight.data.zero_()[0, 0, 0, 2] = 1  # the tap up and to the right ...
    convolution.bias.data.zero_()
    convolution.offset.bias.data[2 * 2] = 1  # ... one pixel further down
    x = torch.rand(1, 1, 4, 4)
    torch.testing.assert_close(convolution(x), F.pad(x, (0, 1))[..., 1:], atol=1e-6, rtol=0)


@either_form
def test_factors_by_hand(by_grid_sample):
    convolution = layer(by_grid_sample=by_grid_sample)
    x = torch.rand(1, 4, 5, 5)
    unbiased = convolution(x) - convolution.bias.view(1, -1, 1, 1)
    convolution.offset.bias.data[18:] = torch.tensor(3.0).log()  # 2 * sigmoid(log 3) = 2 * 3 / 4
    torch.testing.assert_close(convolution(x), 1.5 * unbiased + convolution.bias.view(1, -1, 1, 1))
    convolution.offset.bias.data[18:] = -100
    torch.testing.assert_close(convolution(x), convolution.bias.view(1, -1, 1, 1).expand(1, 3, 5, 5))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (13, 6)])
@pytest.mark.parametrize("groups, kernel, masked", [(1, (3, 3), True), (2, (1, 5), False), (4, (3, 3), True)])
def test_grid_sample_form_agrees_with_torchvision(size, groups, kernel, masked):
    """Values and all gradients, with shifts that go far outside."""
    torch.manual_seed(0)
    taps = kernel[0] * kernel[1]
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    offset = 4 * torch.randn(2, 2 * groups * taps, *size, dtype=torch.float64)
    weight, bias = torch.randn(3, 4, *kernel, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    mask = torch.rand(2, groups * taps, *size, dtype=torch.float64) if masked else None
    inputs = [t.requires_grad_() for t in (x, offset, weight, bias, mask) if t is not None]

    ours = deform_conv2d_by_grid_sample(x, offset, weight, bias, mask)
    theirs = deform_conv2d(x, offset, weight, bias, padding=(kernel[0] // 2, kernel[1] // 2), mask=mask)
    torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)
    probe = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * probe).sum(), inputs),
        torch.autograd.grad((theirs * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_grid_sample_form_in_float32_on_a_wide_image():
    convolution, x = layer(8, 8, offset_groups=4, trained=True), torch.rand(1, 8, 24, 512)
    with torch.no_grad():
        expected = convolution(x)
        found = use_grid_sample(convolution)(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@either_form
@pytest.mark.parametrize("trained", [True, False])
def test_gradients_reach_every_parameter(by_grid_sample, trained):
    """Also at the start: a zero shift can be learnt away from."""
    convolution = layer(offset_groups=2, by_grid_sample=by_grid_sample, trained=trained)
    convolution(torch.rand(1, 4, 6, 5)).square().sum().backward()
    for name, parameter in convolution.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@either_form
def test_half_precision(by_grid_sample):
    convolution, x = layer(trained=True, by_grid_sample=by_grid_sample), torch.rand(1, 4, 9, 9)
    with torch.no_grad():
        expected = convolution(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (convolution(x).float() - expected).abs().max() <= 0.03 * expected.abs().max()
        lowered = convolution.bfloat16()(x.bfloat16())
    assert lowered.dtype == torch.bfloat16
    assert (lowered.float() - expected).abs().max() <= 0.03 * expected.abs().max()


def test_scripted_layer_runs_without_torchvision_only_by_grid_sample(tmp_path):
    convolution, x = layer(offset_groups=2, trained=True), torch.rand(1, 4, 5, 6)
    with torch.no_grad():
        torch.save([x, convolution(x)], tmp_path / "case.pt")
    torch.jit.script(convolution).save(tmp_path / "torchvision.ts")
    torch.jit.script(use_grid_sample(convolution)).save(tmp_path / "grid_sample.ts")
    code = """
import sys, torch
x, expected = torch.load("case.pt")
torch.testing.assert_close(torch.jit.load("grid_sample.ts")(x), expected, atol=1e-5, rtol=0)
assert "torchvision" not in sys.modules
try:
    torch.jit.load("torchvision.ts")
except RuntimeError as error:
    assert "torchvision::deform_conv2d" in str(error)
else:
    raise AssertionError("the operator was there without torchvision")
import torchvision
torch.testing.assert_close(torch.jit.load("torchvision.ts")(x), expected, atol=1e-5, rtol=0)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="kernel_size is 2: expected an odd number"):
        DeformableConv2d(4, 4, 2)
    with pytest.raises(ValueError, match="offset_groups is 3, which does not divide the 4 channels"):
        DeformableConv2d(4, 4, offset_groups=3)
    with pytest.raises(ValueError, match="Conv2d has no DeformableConv2d"):
        use_grid_sample(torch.nn.Conv2d(1, 1, 1))
