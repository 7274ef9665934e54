import pytest
import torch
import torch.nn.functional as F

from medsr_monai.networks.blocks.window_attention import (
    SplitWindowAttention,
    WindowAttention,
    attend,
    regroup,
    relative_position_index,
    shift_mask,
    shifted_windows,
    window_partition,
    window_reverse,
)


def test_partition_by_hand():
    x = torch.arange(16).view(1, 4, 4, 1)
    assert window_partition(x, 2).squeeze(-1).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize("shape, window", [((2, 8, 12, 3), 4), ((1, 4, 4, 1), 4), ((3, 3, 6, 2), 3)])
def test_partition_and_reverse_cancel(shape, window):
    x = torch.rand(shape)
    windows = window_partition(x, window)
    assert windows.shape == (shape[0] * shape[1] * shape[2] // window**2, window**2, shape[3])
    assert torch.equal(window_reverse(windows, window, shape[1], shape[2]), x)


def test_shift_mask_by_hand():
    """4 x 4 image, windows of 2, shift 1: after the roll, row 3 and column 3 hold what was row 0 and column 0."""
    left_right = [[0, -100, 0, -100], [-100, 0, -100, 0], [0, -100, 0, -100], [-100, 0, -100, 0]]
    up_down = [[0, 0, -100, -100], [0, 0, -100, -100], [-100, -100, 0, 0], [-100, -100, 0, 0]]
    corner = [[0 if i == j else -100 for j in range(4)] for i in range(4)]
    expected = [[[0] * 4] * 4, left_right, up_down, corner]
    assert shift_mask(4, 4, 2, 1).tolist() == expected
    assert shift_mask(4, 4, 2, 1, windows=torch.tensor([3, 1])).tolist() == [corner, left_right]
    assert not shift_mask(4, 4, 2, 0).any()


@pytest.mark.parametrize("height, width, window, shift", [(12, 8, 4, 2), (4, 4, 4, 1), (4, 12, 4, 3), (16, 8, 8, 4)])
def test_shifted_windows_are_a_roll(height, width, window, shift):
    x = torch.rand(1, height, width, 2)
    to_shifted, from_shifted, mask = shifted_windows(height, width, window, shift)
    tokens = window_partition(x, window).reshape(-1, 2)
    moved = tokens[to_shifted].view(-1, window**2, 2)
    rolled = window_partition(x.roll((-shift, -shift), (1, 2)), window)
    full_mask = shift_mask(height, width, window, shift)
    wrapped = full_mask.flatten(1).any(1)

    assert torch.equal(moved.flatten(0, 1)[from_shifted], tokens)
    assert torch.equal(moved, torch.cat([rolled[~wrapped], rolled[wrapped]])[_order(moved, rolled, wrapped)])
    assert len(mask) == wrapped.sum() == height // window + width // window - 1
    for window_tokens, window_mask in zip(moved[-len(mask) :], mask, strict=True):
        source = (rolled == window_tokens).flatten(1).all(1).nonzero().item()
        assert torch.equal(window_mask, full_mask[source])


def _order(moved, rolled, wrapped):
    """The unmasked windows keep their order; the masked ones may come in any."""
    candidates = torch.cat([rolled[~wrapped], rolled[wrapped]])
    order = [(candidates == window).flatten(1).all(1).nonzero().item() for window in moved]
    free = int((~wrapped).sum())
    assert order[:free] == list(range(free)) and sorted(order) == list(range(len(moved)))
    return order


def test_relative_position_index_by_hand():
    assert relative_position_index(2).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_attention_by_hand():
    """Equation 4 of Swin written out, with a bias that tells query from key and one head from another."""
    torch.manual_seed(0)
    attention = WindowAttention(dim=6, num_heads=2, window_size=2).double()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    x = torch.rand(1, 3, 4, 6, dtype=torch.float64)
    mask = shift_mask(4, 4, 2, 1)[1:]
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    heads = []
    for head in range(2):
        cut = slice(3 * head, 3 * head + 3)
        bias = torch.zeros(4, 4, dtype=torch.float64)
        for a in range(4):
            for b in range(4):
                row = (a // 2 - b // 2 + 1) * 3 + (a % 2 - b % 2 + 1)
                bias[a, b] = attention.relative_position_bias_table[row, head]
        scores = q[..., cut] @ k[..., cut].transpose(-1, -2) * 3**-0.5 + bias
        scores[:, 1:] += mask[1:]
        heads.append(scores.softmax(-1) @ v[..., cut])
    expected = attention.proj(torch.cat(heads, dim=-1))

    torch.testing.assert_close(attention(x, mask[1:]), expected, atol=1e-12, rtol=0)
    with torch.no_grad():
        attention.relative_position_bias_table.copy_(attention.relative_position_bias_table.flip(0))
    assert (attention(x, mask[1:]) - expected).abs().max() > 1e-2


def test_attention_of_all_windows_masked_and_of_a_batch():
    torch.manual_seed(0)
    attention = WindowAttention(dim=6, num_heads=2, window_size=2)
    x = torch.rand(3, 4, 4, 6)
    mask = shift_mask(4, 4, 2, 1)  # that of the first window is zero
    torch.testing.assert_close(attention(x, mask), attention(x, mask[1:]), atol=1e-6, rtol=0)
    torch.testing.assert_close(attention(x, mask)[1:2], attention(x[1:2], mask), atol=1e-6, rtol=0)
    assert (attention(x, mask) - attention(x)).abs().max() > 1e-3


def test_attend_averages_values_when_scores_are_equal():
    qkv = torch.rand(1, 2, 4, 3, 1, 5)
    qkv[:, :, :, 0] = 0
    out = attend(qkv, torch.zeros(1, 1, 4, 4))
    torch.testing.assert_close(out, qkv[:, :, :, 2, 0].mean(2, keepdim=True).expand(1, 2, 4, 5))


def test_index_is_not_in_the_state_dict():
    assert "index" not in WindowAttention(6, 2, 2).state_dict()


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="num_heads is 4, which does not divide the 6 channels"):
        WindowAttention(6, 4, 2)


def test_scale_multiplies_the_scores_before_the_bias():
    torch.manual_seed(0)
    swin, unscaled = WindowAttention(8, 2, 2), WindowAttention(8, 2, 2, scale=1.0)
    unscaled.load_state_dict(swin.state_dict())
    with torch.no_grad():
        unscaled.qkv.weight[:8] *= 0.5  # the queries, of heads with 4 channels
        unscaled.qkv.bias[:8] *= 0.5
    x = torch.rand(2, 3, 4, 8)
    torch.testing.assert_close(unscaled(x), swin(x), atol=1e-6, rtol=0)


def split_attention(shift):
    torch.manual_seed(0)
    attention = SplitWindowAttention(dim=8, num_heads=4, window_size=2, shift_size=shift).double()
    torch.nn.init.normal_(attention.qkv.weight)
    torch.nn.init.normal_(attention.plain_bias_table)
    torch.nn.init.normal_(attention.shifted_bias_table)
    return attention


@pytest.mark.parametrize("shift", [0, 1])
def test_split_attention_is_an_attention_for_each_half(shift):
    """Half of the heads see windows as they are, half those of the rolled image, each with its own bias table."""
    attention, halves = split_attention(shift), []
    image = torch.rand(2, 4, 6, 8, dtype=torch.float64)
    for half, table in enumerate([attention.plain_bias_table, attention.shifted_bias_table]):
        rows = [8 * part + 4 * half + i for part in range(3) for i in range(4)]  # of q, of k, of v
        moved = image.roll((-shift * half, -shift * half), (1, 2))
        windows = window_partition(moved, 2).unflatten(0, (2, -1))
        bias = table[relative_position_index(2)].permute(2, 0, 1)[None]
        qkv = F.linear(windows, attention.qkv.weight[rows], attention.qkv.bias[rows]).view(2, 6, 4, 3, 2, 2)
        y = attend(qkv, bias + shift_mask(4, 6, 2, shift * half).double().unsqueeze(1))
        y = window_reverse(y.flatten(0, 1), 2, 4, 6)
        halves.append(y.roll((shift * half, shift * half), (1, 2)))
    expected = attention.proj(torch.cat(halves, dim=-1))

    windows = window_partition(image, 2).unflatten(0, (2, -1))
    out = attention(windows, shifted_windows(4, 6, 2, shift))
    torch.testing.assert_close(window_reverse(out.flatten(0, 1), 2, 4, 6), expected, atol=1e-12, rtol=0)


def test_split_attention_needs_an_even_divisor():
    for heads in (3, 1, 6):
        with pytest.raises(ValueError, match=f"num_heads is {heads} for 8 channels: expected an even divisor"):
            SplitWindowAttention(8, heads, 2, 1)


def test_regrouping_is_undone():
    to_shifted, from_shifted, _ = shifted_windows(8, 4, 4, 1)
    x = torch.rand(2, 2, 16, 3, 5)
    assert torch.equal(regroup(x, to_shifted)[1].flatten(0, 1)[7], x[1].flatten(0, 1)[to_shifted[7]])
    assert torch.equal(regroup(regroup(x, to_shifted), from_shifted), x)
