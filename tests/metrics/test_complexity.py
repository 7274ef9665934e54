"""Counts of weights and operations: by hand, and Tables 1 and 5 of the RDST paper."""

import importlib.util

import pytest
import torch
from torch import nn

from medsr_monai.metrics.complexity import (
    count_macs,
    count_macs_as_published,
    count_parameters,
    count_parameters_as_published,
)
from medsr_monai.networks import NETWORKS

needs_spandrel = pytest.mark.skipif(
    importlib.util.find_spec("spandrel") is None, reason="SwinIR needs spandrel, which is not installed"
)
MEAN_SHIFT = 4  # weights of the authors' two frozen 1x1 convolutions, which the networks here do not have

# One channel, x4, [1, 1, 40, 32]: the paper's million weights and GMACs, then those of the authors' code, measured:
# weights, thop's million weights and GMACs, and half of FlopCounterMode's GFLOP.
PAPER = [
    ("RDST", {}, "4.40", "6.17", 4_464_965 - MEAN_SHIFT, 4.4002, 6.1696, 6.7791),
    ("RDSTE", {}, "2.35", "3.53", 2_379_245 - MEAN_SHIFT, 2.3468, 3.5263, 3.8309),
    # GFF: without norm (120) and conv_after_body (32,460), which the authors allocate and do not use.
    ("RDSTGFF", {}, "4.40", "6.17", 4_497_485 - 4 - 120 - 32_460, 4.4001, 6.1695, 6.7791),
    ("SwinIR", dict(shifted=False), "11.47", "14.68", 11_521_996, 11.4734, 14.6788, 15.6536),
    ("SwinIRLite", dict(shifted=False), "0.88", "1.15", 911_236, 0.8788, 1.1467, 1.3398),
    ("EDSR", {}, "43.08", "64.22", 43_080_709 - MEAN_SHIFT, 43.0807, 64.2230, 64.2230),
    ("EDSRLite", {}, "1.52", "2.51", 1_515_269 - MEAN_SHIFT, 1.5153, 2.5134, 2.5134),
    ("RDN", {}, "5.76", "7.95", 5_761_925 - MEAN_SHIFT, 5.7619, 7.9450, 7.9450),
    ("RCANAda", {}, "32.03", "41.34", 32_025_253 - MEAN_SHIFT, 32.0252, 41.3377, 41.3213),
    ("HAN", {}, "64.19", "83.86", 64_194_147 - MEAN_SHIFT, 64.1941, 83.8649, 83.8718),
    ("ConvNetLite", {}, "0.88", "1.69", 880_325 - MEAN_SHIFT, 0.8772, 1.6916, 1.6916),
    ("ConvNetLarge", {}, "12.43", "21.00", 12_452_933 - MEAN_SHIFT, 12.4345, 20.9960, 20.9960),
]


@pytest.mark.parametrize(
    "name, arguments, paper_parameters, paper_macs, parameters, published_parameters, published_macs, macs",
    [pytest.param(*row, marks=needs_spandrel if row[0].startswith("SwinIR") else ()) for row in PAPER],
    ids=[row[0] + "".join(f"-{name}" for name in row[1]) for row in PAPER],
)
def test_tables_of_the_rdst_paper(
    name, arguments, paper_parameters, paper_macs, parameters, published_parameters, published_macs, macs
):
    with torch.device("meta"):
        network = NETWORKS[name](1, 1, 4, **arguments).eval()
    shape = (1, 1, 40, 32)
    as_published = count_parameters_as_published(network) / 1e6, count_macs_as_published(network, shape) / 1e9
    assert [f"{number:.2f}" for number in as_published] == [paper_parameters, paper_macs]
    # The MeanShift layers are 4 weights and 21,760 operations.
    assert as_published[0] == pytest.approx(published_parameters, abs=1e-4)
    assert as_published[1] == pytest.approx(published_macs, abs=1e-4)
    assert count_parameters(network) == parameters
    assert count_macs(network, shape) / 1e9 == pytest.approx(macs, abs=1e-4)


def test_by_hand():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3, padding=1, groups=2)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.norm = nn.LayerNorm(4)
            self.linear = nn.Linear(4, 3)
            self.gate = nn.Parameter(torch.ones(7))

        def forward(self, x):
            x = self.conv(x)
            x = self.linear(self.norm(x.permute(0, 2, 3, 1)))
            tokens = x.flatten(1, 2).unsqueeze(1)
            attended = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
            return attended + self.pool(x.permute(0, 3, 1, 2)).mean() * self.gate.sum()

    network = Network().eval()
    conv, norm, linear = 4 * 1 * 9 + 4, 8, 4 * 3 + 3
    assert count_parameters(network) == conv + norm + linear + 7
    assert count_parameters_as_published(network) == conv + norm + linear
    batch, pixels = 2, 5 * 6
    conv, linear = batch * pixels * 4 * 9, batch * pixels * 4 * 3
    products = batch * 2 * pixels * pixels * 3
    softmax, norm, pool = batch * pixels * (3 * pixels - 1), 2 * batch * pixels * 4, batch * 3 * (pixels + 1)
    assert count_macs(network, (batch, 2, 5, 6)) == conv + linear + products
    assert count_macs_as_published(network, (batch, 2, 5, 6)) == conv + linear + softmax + norm + pool


def test_subclasses_are_not_counted_as_published():
    class ChannelNorm(nn.LayerNorm):
        pass

    network = nn.Sequential(nn.Linear(4, 4), ChannelNorm(4))
    assert count_parameters_as_published(network) == 20
    assert count_macs_as_published(network, (3, 4)) == 48


def test_no_hook_stays_behind():
    network = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError):
        count_macs_as_published(network, (3, 5))
    assert not network[0]._forward_hooks
    assert count_macs_as_published(network, (3, 4)) == 48


def test_a_layer_that_is_given_weights_themselves():
    """As the decoder of TransMRSR without encoder features, whose first layer sees the learned constant."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.constant = nn.Parameter(torch.ones(1, 4))
            self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(self.constant.expand(len(x), -1)) + x.mean() * self.frozen

    network = Network().eval()
    assert count_macs(network, (1, 4)) == 12 and count_macs_as_published(network, (1, 4)) == 12
    trained = [name for name, weight in network.named_parameters() if weight.requires_grad]
    assert trained == ["constant", "linear.weight", "linear.bias"]


def test_a_network_without_weights():
    assert count_parameters(NETWORKS["Bicubic"]()) == 0
    assert count_macs(NETWORKS["Bicubic"](), (1, 1, 4, 4)) == 0
