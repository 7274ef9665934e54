"""Half precision against float32 on trained weights, and compiling for one number of slices."""

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medsr_monai.data import sample_volume
from medsr_monai.exchange.run import ExportedNetwork
from medsr_monai.inferers import FastNetwork, PlaneInferer, ThroughPlaneInferer
from medsr_monai.inferers.fast_network import check_compiler, chosen_precision
from medsr_monai.networks import RDST
from medsr_monai.transforms import intensity_range

WEIGHTS = Path(__file__).parents[2] / "bundles" / "rdst_e" / "models" / "model.pt"


class Enlarging(nn.Module):
    """Two zero-padded convolutions and a pixel shuffle by two."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))

    def forward(self, x):
        return F.pixel_shuffle(self.layers(x), 2)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.inference_mode():
        yield


def test_what_auto_is():
    assert chosen_precision("auto", "cpu") == "float32" and chosen_precision("auto", "cuda:1") == "float16"
    for device in ("cpu", "cuda"):
        assert [chosen_precision(p, device) for p in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    for make in (PlaneInferer, ThroughPlaneInferer):
        with pytest.raises(ValueError, match="precision is 'half', expected auto, float32, bfloat16, float16"):
            make(precision="half")


def test_float32_is_the_network_itself():
    network, images = Enlarging(), torch.rand(3, 1, 8, 9)
    assert torch.equal(FastNetwork(network, "auto")(images), network(images))


def psnr(image, ref):
    return -10 * math.log10(float((image - ref)[..., 4:-4, 4:-4].square().mean()))


@pytest.mark.parametrize(
    ("precision", "largest", "decibels"), [("bfloat16", 1.2e-2, 2e-3), ("float16", 2.5e-3, 2e-4)], ids=str
)
def test_error_of_half_precision_on_trained_weights(precision, largest, decibels):
    """rdst_e on slices of the sample volume; the bounds of upscaling/README.md, in parts of the output's range."""
    arguments = {"num_blocks": 4, "bicubic_residual": True}
    network = RDST(1, 1, 4, **arguments).eval()
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True)["model"])
    volume = nib.load(sample_volume()).get_fdata(dtype=np.float32)
    low, high = intensity_range(torch.tensor(volume))
    reference = (torch.tensor(volume)[4:6, 20:116, 40:136] - low)[:, None] / (high - low)
    images = F.interpolate(reference, scale_factor=0.25, mode="bicubic", align_corners=False)
    expected, found = network(images), FastNetwork(network, precision)(images).float()
    error = float((found - expected).abs().max() / (expected.max() - expected.min()))
    assert largest / 50 < error < largest
    assert abs(psnr(found, reference) - psnr(expected, reference)) < decibels


def test_inferers_compute_in_the_precision_and_return_float32():
    volume = torch.rand(1, 1, 6, 7, 4)
    network = Enlarging()
    seen = set()
    network.layers[0].register_forward_hook(lambda module, args, pred: seen.add(pred.dtype))
    out = PlaneInferer("axial", precision="bfloat16")(volume, network)
    assert seen == {torch.bfloat16} and out.dtype == torch.float32
    expected = PlaneInferer("axial")(volume, network)
    assert 0 < float((out - expected).abs().max()) < 0.02
    tiled = PlaneInferer("axial", roi_size=(4, 4), precision="bfloat16")(volume, network)
    assert seen == {torch.bfloat16, torch.float32} and tiled.shape == expected.shape


@pytest.fixture
def compiled(monkeypatch):
    """Shapes for which torch.compile would have compiled, without its minutes."""
    shapes = set()

    def fake(network, **options):
        assert options.get("dynamic") is False or network.__name__ == "_line"

        def run(images):
            assert images.is_contiguous()
            shapes.add(tuple(images.shape))
            return network(images)

        return run if isinstance(network, nn.Module) else network

    monkeypatch.setattr(torch, "compile", fake)
    return shapes


@pytest.mark.parametrize("slices", [1, 4, 9])
def test_compiled_for_one_number_of_slices(compiled, slices):
    network, volume = Enlarging(), torch.rand(1, 1, 6, 7, slices)
    inferer = PlaneInferer("axial", 4, compile=True)
    for _ in range(2):
        out = inferer(volume, network)
    assert compiled == {(4, 1, 6, 7)}
    torch.testing.assert_close(out, PlaneInferer("axial", 4)(volume, network), rtol=0, atol=1e-6)


def test_on_cuda_graphs_are_replayed_under_autocast(monkeypatch):
    """The device is asked of, nothing is computed there."""
    modes, autocasts = [], []
    monkeypatch.setattr(torch, "compile", lambda network, **options: modes.append(options.get("mode")) or network)
    monkeypatch.setattr("medsr_monai.inferers.fast_network.check_compiler", lambda device: None)
    monkeypatch.setattr(torch, "autocast", lambda *how: autocasts.append(how) or torch.no_grad())
    for device in ("cuda:1", "cpu"):
        FastNetwork(Enlarging(), "auto", compile=True, device=device)(torch.rand(1, 1, 6, 7), batch=2)
    assert modes == ["reduce-overhead", "default"] and autocasts == [("cuda", torch.float16)]


def test_compiled_anew_for_what_memory_holds(compiled):
    class Limited(Enlarging):
        def forward(self, x):
            if x.shape[0] > 2:
                raise torch.OutOfMemoryError("simulated")
            return super().forward(x)

    volume = torch.rand(1, 1, 6, 7, 5)
    out = PlaneInferer("axial", 4, compile=True)(volume, Limited())
    assert compiled == {(4, 1, 6, 7), (2, 1, 6, 7)}
    torch.testing.assert_close(out, PlaneInferer("axial", 2)(volume, Enlarging()), rtol=0, atol=1e-6)


def has_compiler():
    try:
        check_compiler()
    except ValueError:
        return False
    return True


def test_compiled_in_earnest():
    if not has_compiler():
        pytest.skip("torch.compile finds no C++ compiler here")
    network, volume = Enlarging(), torch.rand(1, 1, 6, 7, 5)
    inferer = PlaneInferer("axial", 4, compile=True)
    out = inferer(volume, network)
    torch.testing.assert_close(out, PlaneInferer("axial", 4)(volume, network), rtol=0, atol=1e-5)
    # compiling for a further number of slices would be an error now
    with torch.compiler.set_stance("fail_on_recompile"):
        again = inferer(torch.rand(1, 1, 6, 7, 3), network)
    assert again.shape == (1, 1, 12, 14, 3)


def test_without_a_compiler_it_is_one_line_that_says_what_to_do(monkeypatch):
    import torch._inductor.exc

    def none_here(network, **options):
        def run(images):
            raise torch._inductor.exc.InvalidCxxCompiler

        return run

    monkeypatch.setattr(torch, "compile", none_here)
    with pytest.raises(ValueError, match=r"torch.compile does not work here .*leave --compile out, or install a C\+\+"):
        PlaneInferer(compile=True).prepare(Enlarging(), "cpu")


def test_exported_networks_are_not_compiled_and_onnx_has_its_own_precision(tmp_path):
    torch.jit.script(nn.Upsample(scale_factor=2, mode="bicubic")).save(str(tmp_path / "a.ts"))
    script = ExportedNetwork(tmp_path / "a.ts", trust_code=True)
    assert script.exchange_format == "torchscript"
    assert FastNetwork(script, "bfloat16").precision == "bfloat16"
    with pytest.raises(ValueError, match="exported as torchscript is run as it is: leave --compile out"):
        FastNetwork(script, compile=True)

    class Onnx:
        exchange_format = "onnx"

    assert FastNetwork(Onnx(), "auto", device="cuda").precision == "float32"
    with pytest.raises(ValueError, match=r"an ONNX file computes in its own: .*medsr export --precision float16"):
        FastNetwork(Onnx(), "bfloat16")
    with pytest.raises(ValueError, match="exported as onnx is run as it is"):
        FastNetwork(Onnx(), compile=True)
