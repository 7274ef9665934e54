"""RDST equals its plain forms, in values and gradients, and is not slower; the plain form equals the goldens."""

import importlib.util
import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from medsr_monai.convert import load_official
from medsr_monai.networks import RDST, build_network, fast_rdst, rdst
from medsr_monai.networks.blocks.upsample import pixel_shuffle
from medsr_monai.networks.fast_rdst import shuffle_and_convolve

ROOT = Path(__file__).parents[2]
GOLDENS = [ROOT / "tests" / "golden" / "rdst_x4.npz"]
GOLDENS += [ROOT.parent / "shared" / "golden" / f"rdst_{name}.npz" for name in ("x2", "w8_x4", "c4_g24_x3")]
spec = importlib.util.spec_from_file_location("plain_rdst", Path(__file__).with_name("plain_rdst.py"))
plain_rdst = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain_rdst)


def plain_form(network):
    plain = plain_rdst.PlainRDST(**{k: v for k, v in network.arguments.items() if k != "_target_"})
    plain.load_state_dict(network.state_dict())
    return plain.train(network.training)


def trained_like(**arguments):
    """A network whose attention, biases and residuals all matter, as those of a trained one do."""
    torch.manual_seed(0)
    network = RDST(**arguments)
    for name, parameter in network.named_parameters():
        if name.endswith("bias_table"):
            torch.nn.init.normal_(parameter)
        elif parameter.dim() < 3:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return network


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_the_plain_form_equals_the_goldens(path):
    if not path.exists():
        pytest.skip(f"{path} is not part of the repository")
    with np.load(path) as golden:
        arrays = {name: torch.from_numpy(golden[name]) for name in golden.files if name != "config"}
    plain = plain_form(load_official({k[3:]: v for k, v in arrays.items() if k.startswith("sd/")}, "rdst"))
    for suffix in ("", "_b"):
        if f"input{suffix}" in arrays:
            x = arrays[f"input{suffix}"]
            with torch.no_grad():
                single, double = plain.float()(x), plain.double()(x.double())
            torch.testing.assert_close(single, arrays[f"output{suffix}"], atol=1e-5, rtol=0)
            torch.testing.assert_close(double, arrays[f"output{suffix}_f64"], atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (dict(num_blocks=4, bicubic_residual=True), (2, 1, 8, 16)),
        (dict(num_blocks=4, bicubic_residual=True), (1, 1, 13, 9)),
        (dict(num_blocks=8), (1, 1, 9, 6)),
        (dict(num_blocks=1, scale=3), (2, 1, 8, 8)),
        (dict(num_blocks=1, scale=2, in_channels=4, out_channels=4, global_feature_fusion=True), (1, 4, 17, 8)),
        (dict(num_blocks=1, scale=8, window_size=2, shift_size=0), (1, 1, 2, 2)),
        (dict(num_blocks=1, scale=1), (1, 1, 8, 16)),
    ],
)
def test_equals_the_plain_form(arguments, shape):
    network = trained_like(**arguments)
    plain, x = plain_form(network), torch.rand(shape)
    results = []
    for each in (network, plain):
        image = x.clone().requires_grad_()
        out = each(image)
        (out.sin() * torch.linspace(0, 1, out.numel()).view(out.shape)).mean().backward()
        results.append((out.detach(), image.grad, {name: p.grad for name, p in each.named_parameters()}))
    (ours, image_grad, grads), (theirs, plain_image_grad, plain_grads) = results
    bound = 1e-5 * theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, atol=bound, rtol=0)
    torch.testing.assert_close(image_grad, plain_image_grad, atol=1e-4 * plain_image_grad.abs().max().item(), rtol=0)
    greatest = max(grad.abs().max().item() for grad in plain_grads.values())
    assert grads.keys() == plain_grads.keys()
    for name, grad in plain_grads.items():
        torch.testing.assert_close(grads[name], grad, atol=1e-4 * grad.abs().max().item() + 1e-7 * greatest, rtol=0)


def test_everybody_gets_the_fast_form_of_the_module_that_reads_like_the_paper():
    network = trained_like(num_blocks=2, window_size=4, embed_dim=12, growth_rate=6).eval()
    arguments = network.arguments
    configured = ConfigParser({"network_def": arguments}).get_parsed_content("network_def")
    with np.load(GOLDENS[0]) as golden:
        converted = load_official({k[3:]: torch.from_numpy(golden[k]) for k in golden.files if k[:3] == "sd/"}, "rdst")
    for each in (network, configured, build_network(arguments), converted):
        assert type(each) is fast_rdst.RDST and each.works_in_chunks and each.merges_layers
    paper = rdst.RDST(**{k: v for k, v in arguments.items() if k != "_target_"}).eval()
    assert type(paper) is not type(network) and paper.arguments == arguments
    paper.load_state_dict(network.state_dict())
    x = torch.rand(2, 1, 9, 14)
    with torch.no_grad():
        expected, found = paper.double()(x.double()), network.double()(x.double())
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize("rows, columns", [(2, 2), (3, 3), (1, 2), (2, 1)])
@pytest.mark.parametrize("size", [(2, 2), (2, 7), (9, 4)])
def test_merged_convolutions_are_exact_to_the_border(rows, columns, size):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(5, 7 * rows * columns, 3, padding=1).double()
    last = torch.nn.Conv2d(7, 3, 3, padding=1).double()
    x = torch.rand(2, 5, *size, dtype=torch.float64)
    merged = shuffle_and_convolve(x, conv.weight, conv.bias, last.weight, last.bias, rows, columns)
    torch.testing.assert_close(merged, last(pixel_shuffle(conv(x), rows, columns)), atol=1e-13, rtol=0)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow  # how much faster depends on the processor's caches
@pytest.mark.parametrize(("training", "shape"), [(False, (1, 1, 80, 80)), (True, (8, 1, 24, 24))], ids=str)
def test_is_faster_than_the_plain_form(one_thread, training, shape):
    """By turns and by the processor's time, so that other load matters little; measured were 1.4 times and more."""
    network = RDST(num_blocks=1).train(training)
    plain, x = plain_form(network), torch.rand(shape)
    seconds = {network: [], plain: []}
    with torch.set_grad_enabled(training):
        for number in range(6):
            for each, times in seconds.items():
                start = time.process_time()
                out = each(x)
                if training:
                    out.mean().backward()
                if number > 0:
                    times.append(time.process_time() - start)
    assert median(theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)) > 1.15
