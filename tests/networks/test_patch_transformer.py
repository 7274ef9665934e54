import pytest
import torch
import torch.nn.functional as F

from medsr_monai.networks.blocks.patch_transformer import PatchTransformer, TransformerLayer


def transformer(**arguments):
    torch.manual_seed(0)
    return PatchTransformer(**{"channels": 3, "hidden_size": 8, "num_heads": 2, "num_layers": 2, **arguments}).eval()


def test_layer_is_torchs():
    """The same numbers as torch.nn.TransformerEncoderLayer, the norms before, with the same weights."""
    torch.manual_seed(0)
    ours = TransformerLayer(12, 3, 2.0)
    theirs = torch.nn.TransformerEncoderLayer(12, 3, 24, 0.0, "gelu", norm_first=True, batch_first=True)
    names = {"norm1": "norm1", "norm2": "norm2", "linear1": "mlp.linear1", "linear2": "mlp.linear2"}
    names |= {"self_attn.out_proj": "attn.out_proj"}
    for their_name, name in names.items():
        torch.nn.init.normal_(ours.get_submodule(name).weight)
        theirs.get_submodule(their_name).load_state_dict(ours.get_submodule(name).state_dict())
    theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias = ours.attn.qkv.weight, ours.attn.qkv.bias
    torch.nn.init.normal_(ours.attn.qkv.bias)
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 4), (13, 6)])
def test_any_size(size):
    x = torch.rand(2, 3, *size)
    assert transformer()(x).shape == x.shape


def test_padding_is_cropped_off():
    module, x = transformer(), torch.rand(1, 3, 6, 7)
    padded = F.pad(x, (0, 1, 0, 2), mode="reflect")
    cropped = F.pixel_shuffle(branch(module, padded), 4)[:, :, :6, :7]
    torch.testing.assert_close(module(x), x + module.conv(cropped))


def branch(module, x):
    """Tokens of an image that the patch divides, unfolded but not yet shuffled, written with loops."""
    patches = module.patch_size
    rows, columns = x.shape[2] // patches, x.shape[3] // patches
    grid = torch.zeros(1, module.embed.out_channels, rows, columns)
    for i in range(rows):
        for j in range(columns):
            patch = x[0, :, patches * i : patches * (i + 1), patches * j : patches * (j + 1)]
            grid[0, :, i, j] = module.embed.weight.flatten(1) @ patch.flatten() + module.embed.bias
    grid = grid + module.position(grid)
    tokens = torch.stack([grid[:, :, i, j] for i in range(rows) for j in range(columns)], dim=1)
    for layer in module.layers:
        tokens = layer(tokens)
    tokens = module.unfold(module.norm(tokens))
    return torch.stack([tokens[:, i * columns : (i + 1) * columns].transpose(1, 2) for i in range(rows)], dim=2)


def test_a_patch_learns_from_all_others_and_knows_its_place():
    module, x = transformer(), torch.rand(1, 3, 24, 28, requires_grad=True)
    for layer in module.layers:
        torch.nn.init.normal_(layer.attn.qkv.weight)
    (gradient,) = torch.autograd.grad((module(x) - x)[0, :, 0, 0].sum(), x)
    assert (gradient.abs().sum(1) > 0).all()
    flat = torch.ones(1, 3, 24, 28)
    patches = F.pixel_unshuffle(module(flat), 4).std(dim=(2, 3))
    assert patches.max() > 1e-4  # one patch differs from another by its place alone


def test_initialisation():
    for name, module in transformer(hidden_size=64).named_modules():
        if isinstance(module, torch.nn.Linear):
            assert 0.018 < module.weight.std() < 0.022 and not module.bias.any(), name


def test_heads_must_divide_the_tokens():
    with pytest.raises(ValueError, match="num_heads is 3, which does not divide hidden_size 8"):
        transformer(num_heads=3)
