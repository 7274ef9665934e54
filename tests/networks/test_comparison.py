"""The networks to compare with, beside what test_contract.py asks of every network and the goldens prove."""

import ast
import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medsr_monai.networks import COMPARISON, NETWORKS, Bicubic, comparison
from medsr_monai.networks.blocks.holistic_attention import ChannelSpatialAttention, LayerAttention
from medsr_monai.networks.comparison.rcan import AdaptiveConvolution


def needs(library):
    lacks = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(lacks, reason=f"{library} is not installed")


def small(name, in_and_out=1, scale=1, **arguments):
    torch.manual_seed(0)
    return NETWORKS[name](in_and_out, in_and_out, scale, **arguments).eval()


def image(*shape, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


# the factory


def test_every_network_is_built_by_name():
    for name, (_, network) in COMPARISON.items():
        assert NETWORKS[name] is network
    network = NETWORKS["EDSRLite"](2, 1, [1, 4], num_blocks=1)
    assert network.arguments == {
        "_target_": "medsr_monai.networks.EDSR",
        "in_channels": 2,
        "out_channels": 1,
        "scale": [1, 4],
        "channels": 64,
        "num_blocks": 1,
        "negative_slope": 0.2,
        "res_scale": 1.0,
    }
    assert isinstance(NETWORKS["Bicubic"](), Bicubic)


def test_optional_libraries_are_imported_late():
    for path in Path(comparison.__file__).parent.glob("*.py"):
        for statement in ast.parse(path.read_text()).body:
            names = [getattr(statement, "module", None), *(alias.name for alias in getattr(statement, "names", []))]
            assert not any(name and name.split(".")[0] in ("spandrel", "basicsr") for name in names), path


@pytest.mark.parametrize("name", ["SwinIR", "SwinIRLite", "GFPGAN"])
def test_absent_spandrel_is_named_in_one_line(name, monkeypatch):
    monkeypatch.setitem(sys.modules, f"spandrel.architectures.{name.removesuffix('Lite')}", None)
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ImportError, match=r"^\w+ is made of spandrel's parts: pip install 'medsr_monai\[compare\]'$"):
        NETWORKS[name]()


@pytest.mark.parametrize("name", ["SwinIR", "GFPGAN", "Restormer"])
def test_networks_that_keep_their_channels(name):
    with pytest.raises(ValueError, match="in_channels is 2 and out_channels 1, expected equal"):
        NETWORKS[name](2, 1)


@pytest.mark.parametrize(
    "name, arguments, count",
    [
        ("RCAN", dict(in_channels=1, out_channels=1), 15_590_053 - 4),  # 4 of MeanShift, which is not built here
        ("EDSR", dict(in_channels=3, out_channels=3, scale=1), 38_369_283),
        ("EDSR", dict(in_channels=3, out_channels=3, scale=1, channels=64, num_blocks=16), 1_222_147),
        ("EDSR", dict(scale=1, channels=64, num_blocks=16), 1_219_841),
        ("Restormer", dict(in_channels=3, out_channels=3), 26_126_644),
        ("Restormer", dict(), 26_124_052),
        pytest.param("SwinIR", dict(upsampler="pixelshuffle"), 11_895_805, marks=needs("spandrel")),
        pytest.param("SwinIRLite", dict(scale=1, in_channels=3, out_channels=3, mlp_ratio=4.0), 1_253_763,
                     marks=needs("spandrel")),
    ],
)  # fmt: skip
def test_parameter_counts(name, arguments, count):
    with torch.device("meta"):
        network = NETWORKS[name](**arguments)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


# blocks, by hand


def test_adaptive_convolution_reads_its_choice_transposed():
    conv = AdaptiveConvolution(1)
    for module, weight, bias in ((conv.choice, 1.0, 0.0), (conv.below, 0.0, 10.0), (conv.above, 0.0, 20.0)):
        nn.init.constant_(module.weight, weight)
        nn.init.constant_(module.bias, bias)
    x = torch.tensor([[[[-1.0, 2, 3], [4, -5, 6]]]])
    # columns first, the image is -1 4 2 -5 3 6
    assert conv(x).tolist() == [[[[10, 20, 20], [10, 20, 20]]]]
    x = torch.zeros(1, 1, 2, 2)  # the threshold itself
    assert conv(x).tolist() == [[[[20, 20], [20, 20]]]]


def test_layer_attention_prefers_what_is_unlike():
    attention = LayerAttention(2, 1)
    nn.init.ones_(attention.gamma)
    nn.init.zeros_(attention.conv.weight)
    nn.init.zeros_(attention.conv.bias)
    attention.conv.weight.data[0, 0, 1, 1] = 1  # hand out the first layer
    x = torch.tensor([[1.0, 0], [0, 2]]).view(1, 2, 1, 1, 2)
    # the scores are [1 0; 0 4]: the first layer's weights go as 1 to e
    first = 1 / (1 + math.e)
    torch.testing.assert_close(attention(x).flatten(), torch.tensor([1 + first, 2 * (1 - first)]))
    nn.init.zeros_(attention.gamma)
    assert attention(x).flatten().tolist() == [1, 0]


def test_channel_spatial_attention_looks_through_the_channels():
    attention = ChannelSpatialAttention()
    nn.init.constant_(attention.gamma, 0.5)
    nn.init.zeros_(attention.conv.weight)
    nn.init.zeros_(attention.conv.bias)
    attention.conv.weight.data[0, 0, 0, 1, 1] = 1  # the channel before
    x = torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1)
    gates = torch.sigmoid(torch.tensor([0.0, 1, 2]))
    torch.testing.assert_close(attention(x).flatten(), x.flatten() * (1 + 0.5 * gates))


# MINet

MINET = dict(channels=8, num_groups=2, num_blocks=1, reduction=2)


def test_minet_is_guided_by_its_reference():
    network = small("MINet", scale=[1, 2], **MINET)
    x, reference = image(1, 1, 5, 4), image(1, 1, 5, 8)
    with torch.no_grad():
        guided, unguided = network(x, reference), network(x)
        assert guided.shape == (1, 1, 5, 8)
        assert (guided - unguided).abs().max() > 1e-4
        assert torch.equal(unguided, network(x, Bicubic(scale=[1, 2])(x)))


def test_minet_gradients_reach_the_reference():
    network = small("MINet", scale=2, reference_channels=2, **MINET)
    reference = image(2, 2, 8, 6).requires_grad_()
    network(image(2, 1, 4, 3), reference).sum().backward()
    assert (reference.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    "arguments, reference, message",
    [
        (dict(), (1, 1, 4, 3), r"is \[1, 1, 4, 3\]: expected 1 channels on the grid of the output, \[8, 6\]"),
        (dict(), (1, 2, 8, 6), r"is \[1, 2, 8, 6\]: expected 1 channels"),
        (dict(reference_channels=2), None, r"is \[1, 1, 8, 6\]: expected 2 channels"),
    ],
)
def test_minet_refuses_other_references(arguments, reference, message):
    network = small("MINet", scale=2, **MINET, **arguments)
    with pytest.raises(ValueError, match=message):
        network(image(1, 1, 4, 3), reference and image(*reference))


# Restormer

RESTORMER = dict(channels=8, depths=[2, 1, 1], num_heads=[1, 2, 4], num_refinement_blocks=1)


def restormer_by_hand(x, state, depths, num_heads, num_refinement_blocks):
    """Figure 2 and equations 1 to 3 of the paper (arXiv 2111.09881), written out."""

    def conv(name, y):
        weight = state[f"{name}.weight"]
        return F.conv2d(y, weight, padding=weight.shape[-1] // 2, groups=y.shape[1] // weight.shape[1])

    def norm(name, y):
        mean, variance = y.mean(1, keepdim=True), y.var(1, keepdim=True, unbiased=False)
        weight, bias = (state[f"{name}.{part}"].view(-1, 1, 1) for part in ("weight", "bias"))
        return (y - mean) / (variance + 1e-5).sqrt() * weight + bias

    def blocks(name, y, count, heads):
        for block in (f"{name}.{i}" for i in range(count)):
            qkv = conv(f"{block}.attn.qkv_dwconv.conv", conv(f"{block}.attn.qkv.conv", norm(f"{block}.norm1", y)))
            q, k, v = qkv.unflatten(1, (3, heads, -1)).flatten(4).unbind(1)
            q, k = (z / z.norm(dim=-1, keepdim=True) for z in (q, k))
            attended = ((q @ k.mT) * state[f"{block}.attn.temperature"]).softmax(-1) @ v
            y = y + conv(f"{block}.attn.project_out.conv", attended.reshape(y.shape))
            hidden = conv(f"{block}.ffn.project_in.conv", norm(f"{block}.norm2", y))
            gate, value = conv(f"{block}.ffn.dwconv.conv", hidden).chunk(2, 1)
            y = y + conv(f"{block}.ffn.project_out.conv", F.gelu(gate) * value)
        return y

    y, skips, last = conv("patch_embed.conv", x), [], len(depths) - 1
    for i in range(last):
        y = blocks(f"encoder_levels.{i}", y, depths[i], num_heads[i])
        skips.append(y)
        y = F.pixel_unshuffle(conv(f"downsamples.{i}.pixelunshuffle.conv_block", y), 2)
    y = blocks("latent", y, depths[last], num_heads[last])
    for step, i in enumerate(reversed(range(last))):
        y = F.pixel_shuffle(conv(f"upsamples.{step}.pixelshuffle.conv_block", y), 2)
        y = torch.cat([y, skips[i]], 1)
        if i > 0:
            y = conv(f"reduce_channels.{step}.conv", y)
        y = blocks(f"decoder_levels.{step}", y, depths[i], num_heads[i])
    return conv("output.conv", blocks("refinement", y, num_refinement_blocks, num_heads[0])) + x


@needs("einops")
def test_restormer_is_that_of_its_paper():
    network = small("Restormer", 2, **RESTORMER).double()
    assert sum(isinstance(module, nn.LayerNorm) for module in network.modules()) == 2 * (2 * 2 + 2 * 1 + 1 + 1)
    assert not any(isinstance(module, nn.InstanceNorm2d) for module in network.modules())
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1 or "temperature" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    x = image(2, 2, 16, 20, dtype=torch.float64)
    state = {name.removeprefix("network."): value for name, value in network.state_dict().items()}
    numbers = [RESTORMER[name] for name in ("depths", "num_heads", "num_refinement_blocks")]
    with torch.no_grad():
        torch.testing.assert_close(network(x), restormer_by_hand(x, state, *numbers), atol=1e-12, rtol=0)


@needs("einops")
def test_restormer_pads_and_crops():
    network = small("Restormer", **RESTORMER)
    x = image(1, 1, 10, 13)
    with torch.no_grad():
        expected = network(F.pad(x, (0, 3, 0, 2), mode="reflect"))[:, :, :10, :13]
        torch.testing.assert_close(network(x), expected, atol=1e-6, rtol=0)


def test_restormer_levels_must_agree():
    with pytest.raises(ValueError, match=r"depths is \[2\] and num_heads \[1\]: expected .* two levels at least"):
        small("Restormer", depths=[2], num_heads=[1])


# SwinIR

SWINIR = dict(embed_dim=12, depths=[2, 2], num_heads=[3, 3], window_size=4)


@needs("spandrel")
@pytest.mark.parametrize("scale, upsampler", [(1, ""), (1, "pixelshuffle"), (4, "pixelshuffle"), ([1, 3], None)])
def test_swinir_upsamplers(scale, upsampler):
    rows, columns = (scale, scale) if isinstance(scale, int) else scale
    network = small("SwinIR", scale=scale, upsampler=upsampler, **SWINIR)
    assert network.upsampler == network.arguments["upsampler"] == (upsampler or ("pixelshuffledirect", "")[scale == 1])
    with torch.no_grad():
        assert network(image(1, 1, 6, 5)).shape == (1, 1, 6 * rows, 5 * columns)


@needs("spandrel")
def test_swinir_shifts_unless_told_not_to():
    shifted, unshifted = small("SwinIR", **SWINIR), small("SwinIR", shifted=False, **SWINIR)
    unshifted.load_state_dict(shifted.state_dict())
    x = image(1, 1, 8, 12)
    with torch.no_grad():
        assert (shifted(x) - unshifted(x)).abs().max() > 1e-6


@needs("spandrel")
def test_swinir_drops_paths_in_training_only():
    network, x = small("SwinIR", drop_path_rate=0.9, **SWINIR), image(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        network.train()
        assert len({network(x).sum().item() for _ in range(8)}) > 1


@needs("spandrel")
@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(scale=2, upsampler=""), r"upsampler is '' at scale 2: expected one of .*, and '' at scale 1 only"),
        (dict(upsampler="nearest+conv"), r"upsampler is 'nearest\+conv'"),
        (dict(num_heads=[3, 5]), r"num_heads is \[3, 5\]: expected 2 divisors of embed_dim = 12"),
        (dict(num_heads=[3]), r"num_heads is \[3\]: expected 2 divisors"),
    ],
)
def test_swinir_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small("SwinIR", **{**SWINIR, **arguments})


# GFP-GAN

GFPGAN = dict(image_size=32, num_style_feat=8, narrow=1 / 64, num_mlp=1)


@needs("spandrel")
def test_gfpgan_shows_each_channel_as_grey():
    network, x = small("GFPGAN", 2, **GFPGAN), image(1, 2, 32, 32)
    with torch.no_grad():
        for channel in range(2):
            grey = x[:, channel : channel + 1].expand(-1, 3, -1, -1)
            colours = network.network(grey, return_rgb=False, randomize_noise=False)[0]
            torch.testing.assert_close(network(x)[:, channel], colours.mean(1), atol=1e-6, rtol=0)


@needs("spandrel")
def test_gfpgan_takes_larger_images_in_windows():
    network = small("GFPGAN", **GFPGAN)
    row = image(1, 1, 32, 32)
    x = torch.cat([row, image(1, 1, 32, 50), row], dim=3)
    with torch.no_grad():
        out, alone = network(x), network(row)
    # At the ends there is no other window.
    torch.testing.assert_close(out[..., :20], alone[..., :20], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[..., -8:], alone[..., -8:], atol=1e-5, rtol=0)


@needs("spandrel")
def test_gfpgan_noise_is_drawn_in_training_only():
    network, x = small("GFPGAN", **GFPGAN), image(1, 1, 32, 32)
    for name, parameter in network.named_parameters():
        if parameter.shape == (1,) and "decoder" in name:
            nn.init.ones_(parameter)
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        network.train()
        assert not torch.equal(network(x), network(x))


@needs("spandrel")
def test_gfpgan_decoder_can_be_frozen():
    network = small("GFPGAN", fix_decoder=True, **GFPGAN)
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in network.named_parameters() if ".stylegan_decoder." in name}


@needs("spandrel")
def test_gfpgan_weights():
    with torch.device("meta"):
        network = NETWORKS["GFPGAN"](3, 3, 1, shared_style=False, sft_half=True)
    left_out = 8 * 512 * 513  # the styles' own network
    left_out += sum(3 * (channels + 1) for channels in (256, 256, 256, 256, 128, 64))  # the U-Net's images, 8 to 256
    assert sum(parameter.numel() for parameter in network.parameters()) == 81_882_484 - left_out


@needs("spandrel")
def test_gfpgan_sizes_are_powers_of_two():
    with pytest.raises(ValueError, match="image_size is 100: expected a power of 2 from 8 to 1024"):
        small("GFPGAN", image_size=100)
