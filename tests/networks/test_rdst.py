import pytest
import torch
import torch.nn.functional as F

from medsr_monai.networks import NETWORKS, RDST, Bicubic

SMALL = dict(embed_dim=12, growth_rate=6, num_heads=3, window_size=4, num_blocks=2, num_dense_blocks=2)


def small(**arguments):
    """A small network whose attention matters, as that of a trained one does."""
    torch.manual_seed(0)
    network = RDST(**{**SMALL, "scale": 2, **arguments}).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("bias_table"):
            torch.nn.init.normal_(parameter)
        elif parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize(
    "arguments, count",
    [
        (dict(scale=4), 4_464_961),
        (dict(scale=2), 4_335_121),
        (dict(scale=3), 4_497_421),
        (dict(in_channels=4, out_channels=4), 4_468_204),
        (dict(num_blocks=4), 2_379_241),
        (dict(num_blocks=4, scale=2), 2_249_401),
        (dict(num_blocks=4, scale=3), 2_411_701),
        # The authors' 4,497,485 without 4 of MeanShift and without norm (120) and conv_after_body (32,460), never used.
        (dict(global_feature_fusion=True), 4_497_485 - 4 - 120 - 32_460),
    ],
)
def test_parameter_counts(arguments, count):
    assert sum(p.numel() for p in RDST(**arguments).parameters() if p.requires_grad) == count


def test_rdste_is_rdst_with_four_blocks():
    with torch.device("meta"):
        assert NETWORKS["RDSTE"]().arguments == RDST(num_blocks=4).arguments


def test_initialisation():
    torch.manual_seed(0)
    network = RDST(num_blocks=1)
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert 0.018 < module.weight.std() < 0.022 and not module.bias.any(), name
        if isinstance(module, torch.nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5  # kaiming_uniform(a=sqrt(5))
            assert 0.9 * bound < module.weight.abs().max() <= bound and module.bias.any(), name
        if isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any() and module.eps == 1e-5, name


def test_bicubic_residual_starts_at_bicubic():
    x = torch.rand(2, 1, 5, 7)
    expected = F.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False)
    network = RDST(bicubic_residual=True, **SMALL)
    assert torch.equal(network(x), expected)
    torch.testing.assert_close(Bicubic()(x), expected)
    network(x).sum().backward()
    assert network.last.weight.grad.abs().sum() > 0


def test_padding_is_a_reflection_that_is_cropped_off():
    network, x = small(), torch.rand(1, 1, 10, 13)
    padded = F.pad(x, (0, 3, 0, 2), mode="reflect")
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(padded)[:, :, :20, :26], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(8, 12), (4, 4), (5, 3)])
def test_shift_moves_the_windows(size):
    x = torch.rand(2, 1, *size)
    shifted, unshifted = small(), small(shift_size=0)
    unshifted.load_state_dict(shifted.state_dict())
    with torch.no_grad():
        assert (shifted(x) - unshifted(x)).abs().max() > 1e-4
        torch.testing.assert_close(shifted(x)[:1], shifted(x[:1]), atol=1e-6, rtol=0)


def test_global_feature_fusion_uses_every_block():
    network = small(global_feature_fusion=True).train()
    network(torch.rand(1, 1, 8, 8)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    "arguments", [dict(global_feature_fusion=True), dict(bicubic_residual=True), dict(shift_size=0)]
)
def test_variants_script(arguments):
    network = small(**arguments).double()  # eager attention sums in another order
    torch.nn.init.normal_(network.last.weight)
    scripted = torch.jit.script(network)
    with torch.no_grad():
        for size in [(8, 4), (3, 9)]:
            x = torch.rand(1, 1, *size, dtype=torch.float64)
            torch.testing.assert_close(scripted(x), network(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks(backend):
    torch._dynamo.reset()
    network, x = small(num_blocks=1), torch.rand(1, 1, 8, 9)
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), atol=1e-5, rtol=0)


def test_stated_precisions():
    network = small(num_blocks=4)
    x = torch.rand(1, 1, 16, 20)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(
            network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)),
            expected,
            atol=1e-5,
            rtol=0,
        )
        for dtype, bound in ((torch.bfloat16, 0.03), (torch.float16, 0.005)):
            with torch.autocast("cpu", dtype=dtype):
                lowered = network(x)
            assert lowered.dtype == dtype
            assert (lowered.float() - expected).abs().max() <= bound * expected.abs().max()
        torch.testing.assert_close(network.double()(x.double()).float(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(num_heads=5), "num_heads is 5, which does not divide the 12 channels"),
        (dict(growth_rate=5), "num_heads is 3, which does not divide the 17 channels"),
        (dict(shift_size=4), "shift_size is 4: expected 0 <= shift_size < window_size = 4"),
        (dict(in_channels=2, bicubic_residual=True), "2 input channels to 1 output channels"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)
