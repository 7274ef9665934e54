import pytest
import torch

from medsr_monai.networks.blocks.style import (
    AdaptiveInstanceNorm,
    MappingNetwork,
    PixelNorm,
    StyleSwinDecoder,
    heads_per_width,
    sinusoidal_position_encoding,
    truncate,
    widths,
)

SMALL = dict(channels=[16, 8, 8], num_heads=[4, 2, 2], style_dim=12)


def decoder(**arguments):
    torch.manual_seed(0)
    network = StyleSwinDecoder(**{**SMALL, **arguments})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def test_width_tables():
    assert widths(16) == [512, 512, 512]
    assert widths(256) == [512, 512, 512, 512, 256, 128, 64]
    assert widths(1024) == [512, 512, 512, 512, 256, 128, 64, 32, 16]
    assert widths(128, 2) == [512, 512, 512, 512, 512, 256]
    assert widths(16, 2, (8, 16, 24)) == [8, 16, 24]
    assert heads_per_width(widths(1024)) == [16, 16, 16, 16, 8, 4, 4, 4, 4]
    assert heads_per_width([32, 16], [8, 2]) == [8, 2]


@pytest.mark.parametrize("size", [8, 24, 2048, 0, 100])
def test_sizes_are_powers_of_two(size):
    with pytest.raises(ValueError, match=f"size is {size}: expected a power of two out of .*16.*1024"):
        widths(size)


def test_lists_of_another_length_are_named():
    with pytest.raises(ValueError, match=r"channels has 2 numbers for size 16: expected 3.*\[4, 8, 16\]"):
        widths(16, 1, [8, 8])
    with pytest.raises(ValueError, match="num_heads has 1 numbers: expected 2"):
        heads_per_width([8, 8], [2])


def test_position_encoding_by_hand():
    encoding = sinusoidal_position_encoding(3, 5, 8)
    assert encoding.shape == (3, 5, 8) and encoding.dtype == torch.float32
    row, column = torch.tensor(2.0), torch.tensor(4.0)  # of pixel (1, 3), counted from 1
    fast, slow = 1.0, 1e-4
    expected = [f(place * rate) for place in (column, row) for f in (torch.sin, torch.cos) for rate in (fast, slow)]
    torch.testing.assert_close(encoding[1, 3], torch.stack(expected))


def test_pixel_norm_and_mapping():
    z = torch.randn(4, 12)
    torch.testing.assert_close(PixelNorm()(z).square().mean(1), torch.ones(4))
    mapping = MappingNetwork(12, 3)
    torch.testing.assert_close(mapping(z), mapping(5 * z), atol=1e-5, rtol=0)


def test_truncation_by_hand():
    w, centre = torch.tensor([[3.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    assert truncate(w, centre, 0.5).tolist() == [[2.0, 0.0]]
    assert torch.equal(truncate(w, centre, 0.0), centre) and torch.equal(truncate(w, centre, 1.0), w)


def test_instance_normalisation_is_over_all_windows():
    norm = AdaptiveInstanceNorm(3, 5)
    torch.nn.init.normal_(norm.style.bias)
    x, latent = torch.randn(2, 4, 6, 3) * 7 + 2, torch.randn(2, 5)
    scale, shift = norm.style(latent)[:, :3], norm.style(latent)[:, 3:]
    out = norm(x, latent).flatten(1, 2)
    torch.testing.assert_close(out.mean(1), shift, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(1, correction=0), scale.abs(), atol=1e-4, rtol=0)


def test_decoder_initialisation():
    torch.manual_seed(0)
    network = StyleSwinDecoder([64, 32], [4, 4], 16)
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert 0.017 < module.weight.std() < 0.023, name
            assert module.bias is None or not module.bias.any(), name
        if isinstance(module, AdaptiveInstanceNorm):
            assert 0.9 < module.style.weight.std() < 1.1 and not module.style.bias.any(), name
    assert network.layers[0].upsample.alpha.tolist() == [0]


def test_each_layer_takes_its_two_latents():
    network, latents = decoder(), torch.randn(2, 6, 12)
    assert network.num_latents == 6
    with torch.no_grad():
        before = network(latents, [])
        assert [tuple(f.shape) for f in before] == [(2, 8, 8, 8), (2, 16, 16, 8), (2, 16, 16, 8)]
        for i in range(6):
            changed = latents.clone()
            changed[:, i] += 1
            differs = [(a - b).abs().max() > 1e-4 for a, b in zip(before, network(changed, []), strict=True)]
            assert differs == [layer >= i // 2 for layer in range(3)]


@pytest.mark.parametrize("half", ["first", "second"])
def test_conditions_change_half_of_the_channels_that_enter(half):
    network, latents = decoder(modulated_half=half), torch.randn(2, 6, 12)
    shapes = [(2, 8, 4, 4), (2, 4, 8, 8)]
    conditions = [(torch.randn(shape), torch.randn(shape)) for shape in shapes]
    entering = []
    for layer in network.layers:
        layer.register_forward_pre_hook(lambda _, args: entering.append(args[0].permute(0, 3, 1, 2)))
    with torch.no_grad():
        features = network(latents, conditions)
    before = [network.constant.expand(2, -1, -1, -1), *(f.permute(0, 3, 1, 2) for f in features)]
    for x, y, (scale, shift) in zip(before, entering, conditions, strict=False):
        (a, b), (c, d) = x.chunk(2, dim=1), y.chunk(2, dim=1)
        expected = (a * scale + shift, b) if half == "first" else (a, b * scale + shift)
        torch.testing.assert_close(c, expected[0])
        torch.testing.assert_close(d, expected[1])
    assert torch.equal(before[2], entering[2])  # no condition for the last


def test_shifted_windows_only_over_more_than_one_window():
    shifts = [layer.shift_size for layer in decoder(window_size=8).layers]
    windows = [layer.window_size for layer in decoder(window_size=8).layers]
    assert shifts == [0, 0, 4] and windows == [4, 8, 8]
    assert [layer.shift_size for layer in decoder(window_size=4).layers] == [0, 2, 2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(channels=[16, 6, 8]), r"channels are \[16, 6, 8\]: expected multiples of 4, at least 8"),
        (dict(channels=[16, 4, 8]), "expected multiples of 4, at least 8"),
        (dict(num_heads=[4, 3, 2]), "num_heads is 3 for 8 channels: expected an even divisor of 8"),
        (dict(modulated_half="last"), "modulated_half is 'last': expected 'first' or 'second'"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        decoder(**arguments)
