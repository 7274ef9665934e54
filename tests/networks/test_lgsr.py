import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medsr_monai.metrics import count_macs
from medsr_monai.networks import LGSR, NETWORKS, Bicubic
from medsr_monai.networks.blocks.deformable import DeformableConv2d, use_grid_sample
from medsr_monai.networks.blocks.non_local import NonLocal
from medsr_monai.networks.blocks.patch_transformer import PatchTransformer

SMALL = dict(embed_dim=8, num_groups=2, blocks_per_group=1, offset_groups=2, hidden_size=16, num_layers=1, num_heads=2)


def small(**arguments):
    """A small network in which nothing is zero any more, as in a trained one."""
    torch.manual_seed(0)
    network = LGSR(**{**SMALL, "scale": 2, **arguments}).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    "name, arguments, expected",
    [
        ("LGSR", dict(), 5_371_169),
        ("LGSR", dict(scale=2), 5_223_457),
        ("LGSR", dict(scale=3), 5_408_097),
        ("LGSR", dict(in_channels=3, out_channels=3), 5_373_475),
        ("LGSR", dict(offset_groups=1), 4_623_377),
        ("LGSR", dict(offset_groups=8), 6_368_225),
        ("LGSRLight", dict(), 1_810_981),
        ("LGSRLarge", dict(), 9_230_865),
        # Without a stage: its weights and its share of the fusion; one with plain convolutions: without `offset`.
        ("LGSR", dict(non_local=False), 5_371_169 - 8_352 - 64 * 64),
        ("LGSR", dict(vit=False), 5_371_169 - 2_673_984 - 64 * 64),
        ("LGSR", dict(local="conv"), 5_371_169 - 16 * 62_316),
        ("LGSR", dict(local="dcn_v1"), 5_371_169 - 16 * (62_316 // 3)),
    ],
)
def test_parameter_counts(name, arguments, expected):
    with torch.device("meta"):
        assert count(NETWORKS[name](**arguments)) == expected


def test_counts_of_the_parts():
    with torch.device("meta"):
        network = LGSR()
    assert count(network.head) == 640
    assert count(network.groups) == 2_326_464
    assert count(network.local_fusion) == 16_448
    assert count(network.global_stages["pixel"]) == 8_352
    assert count(network.global_stages["patch"]) == 2_673_984
    assert count(network.fusion) == 12_352
    assert count(network.conv_after_body) == 36_928
    assert count(network.upsample) + count(network.last) == 296_001


@pytest.mark.parametrize(
    "name, arguments, gigamacs",
    [
        ("LGSR", dict(), 4.40),
        ("LGSR", dict(scale=2), 3.64),
        ("LGSR", dict(offset_groups=1), 3.44),
        ("LGSRLight", dict(), 1.85),
        ("LGSRLarge", dict(), 8.07),
    ],
)
def test_multiply_accumulate_operations(name, arguments, gigamacs):
    """Of an image of 40 x 32, a deformable tap counted as that of a plain convolution, in either form."""
    with torch.device("meta"):
        network = NETWORKS[name](**arguments).eval()
    macs = count_macs(network, [1, 1, 40, 32])
    assert macs / 1e9 == pytest.approx(gigamacs, abs=0.006)
    assert count_macs(use_grid_sample(network), [1, 1, 40, 32]) == macs


@pytest.mark.parametrize("scale", [1, 3, [1, 4]])
@pytest.mark.parametrize("channels", [1, 3])
def test_starts_at_bicubic_and_can_learn(scale, channels):
    network, x = LGSR(channels, channels, scale, **SMALL), torch.rand(2, channels, 5, 7)
    torch.testing.assert_close(network(x), Bicubic(channels, channels, scale)(x), atol=0, rtol=0)
    network(x).sum().backward()
    assert network.last.weight.grad.abs().sum() > 0


def test_starts_with_plain_convolutions_and_silent_non_local():
    """Before training, the deformable variants are the plain one, and the non-local block hands on what it gets."""
    plain = LGSR(local="conv", bicubic_residual=False, **SMALL)
    x = torch.rand(1, 1, 9, 6)
    for local in ("dcn_v1", "dcn_v2"):
        network = LGSR(local=local, bicubic_residual=False, **SMALL)
        rest = network.load_state_dict(plain.state_dict(), strict=False)
        assert not rest.unexpected_keys and all(".local.offset." in key for key in rest.missing_keys)
        torch.testing.assert_close(network(x), plain(x), atol=1e-5, rtol=0)
    pixel = network.global_stages["pixel"]
    features = torch.rand(1, 8, 4, 5)
    assert torch.equal(pixel(features), features)


@pytest.mark.parametrize("local, non_local, vit", itertools.product(["conv", "dcn_v1", "dcn_v2"], [0, 1], [0, 1]))
def test_every_ablation_trains(local, non_local, vit):
    network = small(local=local, non_local=bool(non_local), vit=bool(vit)).train()
    modules = list(network.modules())
    deformable = [module for module in modules if isinstance(module, DeformableConv2d)]
    assert [module.modulated for module in deformable] == {"conv": []}.get(local, [local == "dcn_v2"] * 2)
    assert sum(isinstance(module, NonLocal) for module in modules) == non_local
    assert sum(isinstance(module, PatchTransformer) for module in modules) == vit
    assert network.size_multiple == (4 if vit else 1)
    x = torch.rand(1, 1, 7, 6, requires_grad=True)
    network(x).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_orders():
    """The fusion sees L, then the stages in their order; in parallel both are computed from L."""
    x, weights, seen = torch.rand(1, 1, 8, 12), small().state_dict(), {}
    for order in ("pixel_patch", "patch_pixel", "parallel"):
        network = small(order=order)
        network.load_state_dict(weights)
        network.fusion.register_forward_pre_hook(lambda _, args, order=order: seen.update({order: args[0].chunk(3, 1)}))
        with torch.no_grad():
            network(x)
            pixel, patch = network.global_stages["pixel"], network.global_stages["patch"]
            local = seen[order][0]
            expected = {
                "pixel_patch": (pixel(local), patch(pixel(local))),
                "patch_pixel": (patch(local), pixel(patch(local))),
                "parallel": (pixel(local), patch(local)),
            }[order]
        for found, wanted in zip(seen[order][1:], expected, strict=True):
            torch.testing.assert_close(found, wanted)
    assert (seen["pixel_patch"][2] - seen["parallel"][2]).abs().max() > 1e-4


@pytest.mark.parametrize(
    "arguments, everywhere",
    [
        (dict(non_local=True, vit=False), True),
        (dict(non_local=False, vit=True), True),
        (dict(non_local=False, vit=False), False),
    ],
)
def test_receptive_field_is_global_by_either_global_stage(arguments, everywhere):
    network = small(local="conv", **arguments).double()
    x = torch.rand(1, 1, 40, 48, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[0, 0, 0, 0], x)
    assert bool((gradient != 0).all()) == everywhere
    assert bool(gradient[0, 0, -1, -1] != 0) == everywhere


def test_deformable_taps_reach_as_far_as_they_are_sent():
    network = small(non_local=False, vit=False).double()
    for module in network.modules():
        if isinstance(module, DeformableConv2d):
            torch.nn.init.constant_(module.offset.bias[: 2 * module.taps], 20.3)
    x = torch.rand(1, 1, 60, 60, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[0, 0, 0, 0], x)
    assert gradient[0, 0, 38:44, 38:44].abs().sum() > 0  # twice 20.3 pixels away


def test_only_the_transformer_pads():
    """Every stage sees the image's own size."""
    network, sizes = small(), []
    for module in [network.local_fusion, *network.global_stages.values(), network.upsample]:
        module.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[2:])))
    with torch.no_grad():
        network(torch.rand(1, 1, 9, 7))
    assert sizes == [(9, 7)] * 4


def test_images_of_a_batch_do_not_meet():
    network, x = small(), torch.rand(3, 1, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[1:2], network(x[1:2]), atol=1e-6, rtol=0)


def test_subsampled_non_local():
    full, subsampled, x = small(), small(non_local_subsample=2), torch.rand(1, 1, 10, 11)
    assert subsampled.global_stages["pixel"].subsample == 2
    subsampled.load_state_dict(full.state_dict())
    with torch.no_grad():
        assert (full(x) - subsampled(x)).abs().max() > 1e-6


@pytest.mark.parametrize(
    "arguments",
    [dict(local="conv"), dict(local="dcn_v1", vit=False), dict(order="parallel"), dict(non_local=False, scale=[1, 3])],
)
@pytest.mark.parametrize("by_grid_sample", [False, True])
def test_variants_script(arguments, by_grid_sample):
    network = small(**arguments)
    expected = {size: network(image(*size)) for size in [(8, 4), (3, 9)]}
    if network.arguments["local"] != "conv":
        use_grid_sample(network, by_grid_sample)
    scripted = torch.jit.script(network)
    with torch.no_grad():
        for size, y in expected.items():
            torch.testing.assert_close(scripted(image(*size)), y, atol=1e-5, rtol=0)


def image(*size):
    return torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, by_grid_sample",
    [(dict(), False), (dict(), True), (dict(local="dcn_v1", scale=[1, 4]), False), (dict(order="parallel"), True)],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_onnx(arguments, by_grid_sample, dynamic, tmp_path):
    """ONNX of both forms gives onnxruntime's answer within 1e-5, for one size or for all multiples of the patch."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = small(**arguments)
    sizes = [(20, 12), (8, 16)] if dynamic else [(10, 13)]
    expected = [network(image(*size)).detach() for size in sizes]
    height, width = (torch.export.Dim(name, min=2, max=64) for name in ("height", "width"))
    torch.onnx.export(
        use_grid_sample(network, by_grid_sample),
        (image(*(sizes[0] if not dynamic else (12, 16))),),
        tmp_path / "model.onnx",
        dynamo=True,
        opset_version=19,
        verbose=False,
        dynamic_shapes=({2: 4 * height, 3: 4 * width},) if dynamic else None,
    )
    model = onnx.load(tmp_path / "model.onnx")
    assert model.opset_import[0].version == 19
    operators = {node.op_type for node in model.graph.node}
    assert ("GridSample" in operators, "DeformConv" in operators) == (by_grid_sample, not by_grid_sample)
    assert "Softmax" in operators  # the attention is not fused: see the memory that the docstring states
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for size, y in zip(sizes, expected, strict=True):
        (found,) = session.run(None, {session.get_inputs()[0].name: image(*size).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), y, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_what_does_not_export(tmp_path):
    network, x = small(), image(12, 16)
    pytest.importorskip("onnx")
    with pytest.raises(Exception, match="torchvision::deform_conv2d"):
        torch.onnx.export(network, (x,), tmp_path / "model.onnx", dynamo=False, opset_version=19)
    traced = torch.jit.trace(network, x)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), network(x))
        with pytest.raises(RuntimeError, match="must match the size"):
            traced(image(9, 7))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks(backend):
    torch._dynamo.reset()
    network, x = small(), torch.rand(1, 1, 8, 9)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(network, fullgraph=True, backend=backend)(x), network(x), atol=1e-5, rtol=0
        )


def test_stated_precisions():
    network, x = small(), torch.rand(1, 1, 16, 20)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(
            network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)),
            expected,
            atol=1e-5,
            rtol=0,
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (network(x).float() - expected).abs().max() <= 0.03 * expected.abs().max()
        torch.testing.assert_close(network.double()(x.double()).float(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(local="dcn"), "local is 'dcn': expected one of conv, dcn_v1, dcn_v2"),
        (dict(order="global"), "order is 'global': expected one of pixel_patch, patch_pixel, parallel"),
        (dict(offset_groups=3), "offset_groups is 3, which does not divide the 8 channels"),
        (dict(num_heads=3), "num_heads is 3, which does not divide hidden_size 16"),
        (dict(in_channels=2), "2 input channels to 1 output channels"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_other_number_of_output_channels():
    network = small(in_channels=2, bicubic_residual=False)
    assert network(torch.rand(1, 2, 5, 4)).shape == (1, 1, 10, 8)


MEMORY = """
import json, multiprocessing, sys, torch
from medsr_monai.networks import LGSR
from medsr_monai.networks.blocks.non_local import NonLocal
from medsr_monai.networks.blocks.patch_transformer import PatchTransformer

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

def run(network, channels, side, backward):
    with torch.set_grad_enabled(backward):
        y = network(torch.rand(1, channels, side, side, requires_grad=backward))
    if backward:
        y.sum().backward()

def measure(case):
    network, channels, side, backward, _ = case
    network = eval(network)
    run(network, channels, 16, backward)
    before = peak()
    run(network, channels, side, backward)
    return peak() - before

torch.set_num_threads(1)
with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:  # each in memory of its own
    print(json.dumps(pool.map(measure, json.loads(sys.argv[1]), chunksize=1)))
"""
# network, channels, side of the image, with backward pass, bytes a pixel
FAST = [
    ("NonLocal(64)", 64, 144, False, 8 * 64 * 4),
    ("NonLocal(64)", 64, 96, True, 20 * 64 * 4),
    ("PatchTransformer(4, 32, patch_size=1, num_layers=1)", 4, 96, False, 8 * 32 * 4),
    ("LGSR(num_groups=1)", 1, 128, False, 20_000),  # small blocks of memory are reused less well
]
WHOLE_IMAGE = [("NonLocal(64)", 64, 512, False, 8 * 64 * 4), ("LGSR()", 1, 512, False, 14_000)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("cases", [FAST, pytest.param(WHOLE_IMAGE, marks=pytest.mark.slow)], ids=["fast", "512"])
def test_memory_grows_with_the_pixels_only(cases):
    """Measured in processes of their own; the matrix of all pairs of pixels alone is side ** 4 * 4 bytes."""
    command = [sys.executable, "-c", MEMORY, json.dumps(cases)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for (network, _, side, _, bytes_per_pixel), used in zip(cases, found, strict=True):
        allowed = bytes_per_pixel * side**2 + 32 * 2**20  # 32 MiB for what the allocator and the libraries keep
        assert allowed < 0.6 * side**4 * 4
        assert 0 < used <= allowed, f"{network} at {side} x {side}"
