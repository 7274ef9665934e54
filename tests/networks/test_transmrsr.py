import copy

import pytest
import torch
import torch.nn.functional as F

from medsr_monai.networks import StyleSwinGenerator, TransMRSR
from medsr_monai.networks.transmrsr import PatchMerging

SHARED = dict(size=16, style_dim=12, channels=[16, 8, 8], num_heads=[4, 2, 2])
GENERATOR = dict(mapping_layers=2, **SHARED)


def small(lively=True, **arguments):
    """A small network with centroids whose decoder matters, as that of a trained one does."""
    torch.manual_seed(0)
    network = TransMRSR(**{**SHARED, "num_centroids": 3, **arguments}).eval()
    if lively:
        for name, parameter in network.named_parameters():
            if not name.startswith(("decoder", "to_")):
                torch.nn.init.normal_(parameter, std=0.2)
    if network.centroids is not None:
        network.load_centroids(3 * torch.randn(3, 12))
    return network


def image(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def run(network, x):
    """The output, and the inputs and outputs of the named children on the way to it."""
    seen, handles = {}, []
    for name, child in network.named_children():
        handles.append(child.register_forward_hook(lambda _, i, o, name=name: seen.__setitem__(name, (i, o))))
    with torch.no_grad():
        y = network(x)
    for handle in handles:
        handle.remove()
    return y, seen


@pytest.mark.parametrize(
    "arguments, count",
    [
        (dict(encoder_heads=[16, 16, 16, 16, 8, 4]), 160_842_497),  # the authors'
        # 15 * 15 biases for 12 heads fewer in two layers at 256 and at 128, 8 fewer at 64, 8 and 12 more at 16 and 8
        (dict(), 160_842_497 - 225 * 2 * (12 + 12 + 8 - 8 - 12)),
        (dict(encoder_features=False), 160_837_097 - 2 * 15_265_344),
        (dict(in_channels=1, out_channels=1), 160_837_097 - 2 * 64 * 9 - 2 * 65),
    ],
)
def test_parameter_counts(arguments, count):
    with torch.device("meta"):
        network = TransMRSR(**{"in_channels": 3, "out_channels": 3, **arguments})
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == count


def test_parameters_of_the_parts():
    with torch.device("meta"):
        network = TransMRSR(3, 3, encoder_heads=[16, 16, 16, 16, 8, 4])
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in network.named_children()}
    assert counts == dict(
        shallow=149_504,
        embed_norm=128,
        encoder=32_728_280,
        encoder_norm=1_024,
        to_latents=58_727_424,
        to_scale=15_265_344,
        to_shift=15_265_344,
        deep=184_640,
        last=195,
        decoder=38_520_614,
    )


@pytest.mark.parametrize("size", [16, 32, 256, 1024])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_builds_and_runs_on_shapes_alone(size, channels):
    with torch.device("meta"):
        network = TransMRSR(channels, channels, size=size, truncation="none")
        assert network(torch.rand(1, channels, size - 3, size)).shape == (1, channels, size - 3, size)


def test_arguments_left_out_are_recorded_as_chosen():
    with torch.device("meta"):
        arguments = TransMRSR().arguments
    assert arguments["channels"] == [512, 512, 512, 512, 256, 128, 64]
    assert arguments["num_heads"] == [16, 16, 16, 16, 8, 4, 4]
    assert arguments["encoder_heads"] == [4, 4, 8, 16, 16, 16]
    assert arguments["encoder_attention_scale"] is None


def test_patch_merging_order():
    merge = PatchMerging(1, 4)
    x = torch.tensor([[1.0, 2.0], [30.0, 400.0]]).view(1, 2, 2, 1)
    with torch.no_grad():
        merge.reduction.weight.copy_(torch.eye(4))
        out = merge(x).flatten()
    expected = F.layer_norm(torch.tensor([1.0, 30.0, 2.0, 400.0]), [4])
    torch.testing.assert_close(out, expected)


def test_initialisation():
    torch.manual_seed(0)
    network = TransMRSR(size=16, channels=[32, 32, 32], style_dim=16, truncation="none")
    for name, module in network.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            assert 0.014 < module.weight.std() < 0.026, name
            assert module.bias is None or not module.bias.any(), name
    assert not network.to_scale[0][2].bias.any()
    half_on = TransMRSR(size=16, channels=[8] * 3, num_heads=[2] * 3, initial_scale=1.0)
    assert all((net[2].bias == 1).all() for net in half_on.to_scale)
    assert not any(net[2].bias.any() for net in half_on.to_shift)


def test_prior_is_the_decoder_in_use():
    """After load_prior, the features of the forward pass are those that the generator's own decoder computes."""
    torch.manual_seed(3)
    generator = StyleSwinGenerator(**GENERATOR)
    for parameter in generator.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network, x = small(), image(1, 1, 16, 16)
    before, (_, features) = run(network, x)[0], run(network, x)[1]["decoder"]
    network.load_prior(generator.state_dict())
    after, seen = run(network, x)
    inputs, outputs = seen["decoder"]
    with torch.no_grad():
        expected = generator.decoder(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert (outputs[-1] - features[-1]).abs().max() > 1e-2 and (after - before).abs().max() > 1e-3
    for name, value in generator.decoder.state_dict().items():
        assert torch.equal(network.decoder.state_dict()[name], value), name


def test_prior_is_copied_and_learns_unless_frozen():
    prior = StyleSwinGenerator(**GENERATOR).state_dict()
    kept = copy.deepcopy(prior)
    for freeze in (False, True):
        network = small()
        network.load_prior(prior, torch.randn(3, 12), freeze=freeze)
        optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
        network(image(1, 1, 16, 16)).square().mean().backward()
        optimiser.step()
        changed = not torch.equal(network.decoder.constant, kept["decoder.constant"])
        assert changed is not freeze
        assert not torch.equal(network.to_latents.weight, small().to_latents.weight)
        assert all(torch.equal(prior[name], value) for name, value in kept.items())


def test_prior_that_does_not_fit_is_named_and_changes_nothing():
    network = small()
    before = copy.deepcopy(network.state_dict())
    other = StyleSwinGenerator(**{**GENERATOR, "channels": [16, 16, 8]}).state_dict()
    with pytest.raises(ValueError, match=r"does not fit, \d+ tensors differ: decoder.layers.0.upsample.reduction"):
        network.load_prior(other)
    larger = StyleSwinGenerator(**{**GENERATOR, "size": 32, "channels": [16, 8, 8, 8], "num_heads": [4, 2, 2, 2]})
    with pytest.raises(ValueError, match=r"\) in the prior and absent here"):
        network.load_prior(larger.state_dict())
    with pytest.raises(ValueError, match=r"decoder.constant is absent in the prior and \(1, 16, 4, 4\) here"):
        network.load_prior({"input.input": torch.zeros(1, 16, 4, 4)})
    with pytest.raises(ValueError, match=r"centroids are \(2, 12\): expected finite numbers \(3, 12\)"):
        network.load_prior(StyleSwinGenerator(**GENERATOR).state_dict(), torch.zeros(2, 12))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("truncation", ["nearest", "farthest"])
def test_truncation_by_hand(truncation):
    network, x = small(truncation=truncation, psi=0.75), image(2, 1, 16, 16)
    seen = run(network, x)[1]
    latents, used = seen["to_latents"][1].view(2, 6, 12), seen["decoder"][0][0]
    pick = min if truncation == "nearest" else max
    chosen = set()
    for w, moved in zip(latents.flatten(0, 1), used.flatten(0, 1), strict=True):
        centre = pick(network.centroids, key=lambda c, w=w: (w - c).norm())
        chosen.add(centre[0].item())
        torch.testing.assert_close(moved, 0.75 * w + 0.25 * centre)
    with torch.no_grad():
        assert (small(truncation="none")(x) - network(x)).abs().max() > 1e-4


def test_each_latent_has_its_own_centroid():
    network = small()
    with torch.no_grad():
        network.to_latents.bias.copy_(100 * torch.randn(72) * 5)
    seen = run(network, image(1, 1, 16, 16))[1]
    latents, used = seen["to_latents"][1].view(6, 12), seen["decoder"][0][0][0]
    centres = (used - 0.9 * latents) / 0.1
    nearest = torch.cdist(centres, network.centroids).argmin(1)
    assert len(set(nearest.tolist())) > 1


def test_truncation_needs_centroids():
    network = TransMRSR(**SHARED)
    with pytest.raises(RuntimeError, match=r"no centroids to truncate to: load_prior\(state_dict, centroids\)"):
        network(image(1, 1, 16, 16))
    network.load_state_dict(TransMRSR(**SHARED).state_dict())  # of a network without centroids either
    with pytest.raises(RuntimeError, match="no centroids"):
        network(image(1, 1, 16, 16))
    with pytest.raises(ValueError, match="truncation 'none': centroids have no use"):
        small(truncation="none").load_centroids(torch.zeros(3, 12))
    with pytest.raises(ValueError, match="expected finite numbers"):
        small().load_centroids(torch.full((3, 12), torch.nan))


def test_centroids_travel_with_the_weights():
    network, x = small(), image(1, 1, 16, 16)
    again = TransMRSR(**SHARED, num_centroids=3).eval()
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
        assert torch.equal(torch.nn.Sequential(copy.deepcopy(again))(x), network(x))
    assert "centroids" not in small(truncation="none").state_dict()


def test_padding_repeats_the_border_and_is_cropped_off():
    network, x = small(), image(1, 1, 11, 14)
    padded = F.pad(x, (1, 1, 3, 2), mode="replicate")
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(padded)[:, :, 3:14, 1:15], atol=1e-6, rtol=0)


def test_large_images_are_tiles_that_fade_into_each_other():
    """Far from the seams the output is that of a tile, and a network that keeps images keeps large ones too."""
    network, x = small(), image(1, 1, 28, 16)
    with torch.no_grad():
        whole, top, bottom = network(x), network(x[:, :, :16]), network(x[:, :, 12:])
        torch.testing.assert_close(whole[:, :, :12], top[:, :, :12], atol=1e-5, rtol=0)
        torch.testing.assert_close(whole[:, :, 16:], bottom[:, :, 4:], atol=1e-5, rtol=0)
        # line 12 is the 4th from the end of the first tile and the first of the second
        torch.testing.assert_close(whole[:, :, 12], (4 * top[:, :, 12] + bottom[:, :, 0]) / 5, atol=1e-5, rtol=0)
        torch.nn.init.zeros_(network.last.weight)
        torch.nn.init.zeros_(network.last.bias)
        large = image(1, 1, 37, 50)
        torch.testing.assert_close(network(large), large, atol=1e-6, rtol=0)


def test_gradients_pass_through_tiles():
    network, x = small(), image(1, 1, 20, 21).requires_grad_()
    network(x).square().mean().backward()
    assert (x.grad.abs() > 0).all()


def test_scale_is_a_bicubic_enlargement_before():
    network, x = small(scale=[1, 4]), image(1, 1, 16, 4)
    enlarged = F.interpolate(x, size=(16, 16), mode="bicubic", align_corners=False)
    with torch.no_grad():
        assert torch.equal(network(x), small()(enlarged))


def test_skips_are_sums():
    x = image(1, 1, 16, 16)
    network = small()
    y, seen = run(network, x)
    deep_in, shallow, last = seen["deep"][0][0], seen["shallow"][1], seen["last"][1]
    decoded = seen["decoder"][1][-1].permute(0, 3, 1, 2)
    assert torch.equal(deep_in, decoded + shallow) and torch.equal(y, last + x)
    y, seen = run(small(feature_skip=False, global_residual=False), x)
    assert torch.equal(seen["deep"][0][0], seen["decoder"][1][-1].permute(0, 3, 1, 2))
    assert torch.equal(y, seen["last"][1])


def test_conditions_come_from_the_encoder_level_of_the_same_resolution():
    network, x = small(), image(1, 1, 16, 16)
    levels = []
    for level in network.encoder:
        level.register_forward_hook(lambda _, i, o: levels.append(o.permute(0, 3, 1, 2)))
    conditions = run(network, x)[1]["decoder"][0][1]
    assert [tuple(scale.shape) for scale, _ in conditions] == [(1, 8, 4, 4), (1, 4, 8, 8)]
    with torch.no_grad():
        for (scale, shift), level, a, b in zip(
            conditions, levels[::-1], network.to_scale, network.to_shift, strict=True
        ):
            torch.testing.assert_close(scale, a(level))
            torch.testing.assert_close(shift, b(level))
    plain = small(encoder_features=False)
    assert run(plain, x)[1]["decoder"][0][1] == [] and not plain.to_scale and not plain.to_shift


def test_encoder_attention_scale_and_heads_matter():
    x = image(1, 1, 16, 16)
    with torch.no_grad():
        for arguments in (dict(encoder_attention_scale=1.0), dict(encoder_heads=[4, 2]), dict(modulated_half="second")):
            changed, plain = small(**arguments), small()
            if "encoder_heads" not in arguments:
                changed.load_state_dict(plain.state_dict())
            assert (changed(x) - plain(x)).abs().max() > 1e-5, arguments


@pytest.mark.parametrize("arguments", [dict(), dict(encoder_features=False), dict(truncation="farthest")])
def test_variants_train_every_parameter(arguments):
    network = small(lively=False, **arguments).train()
    network(image(2, 1, 16, 16)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripts_with_centroids_and_tiles(tmp_path):
    network = small(feature_skip=False, truncation="farthest")
    torch.jit.script(network).save(tmp_path / "model.ts")
    scripted = torch.jit.load(tmp_path / "model.ts")
    with torch.no_grad():
        for size in [(16, 16), (20, 9)]:
            x = image(1, 1, *size)
            torch.testing.assert_close(scripted(x), network(x), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    torch._dynamo.reset()
    network, x = small(), image(1, 1, 16, 12)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), atol=1e-5, rtol=0)


def test_lower_and_higher_precision_stay_close():
    network, x = small(), image(1, 1, 16, 16)
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lowered = network(x)
        assert (lowered.float() - expected).abs().max() <= 0.03 * expected.abs().max()
        torch.testing.assert_close(network.double()(x.double()).float(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(size=20), "size is 20: expected a power of two"),
        (dict(truncation="closest"), r"truncation is 'closest': expected one of \['nearest', 'farthest', 'none'\]"),
        (dict(psi=1.5), "psi is 1.5: expected 0 .* to 1"),
        (dict(num_centroids=0), "num_centroids is 0: expected at least 1"),
        (dict(in_channels=1, out_channels=3), "1 input channels to 3 output channels"),
        (dict(encoder_heads=[2]), "encoder_heads has 1 numbers: expected 2"),
        (dict(encoder_heads=[3, 2]), "num_heads is 3, which does not divide the 8 channels"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TransMRSR(**{**SHARED, **arguments})
