"""Every network as ONNX and TorchScript: what can be written, that it gives the same, and what is said otherwise."""

import copy
import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.trt_compiler import get_dynamic_axes
from monai.networks.utils import convert_to_onnx

from medsr_monai.exchange.run import ONNX_PREFIX, SUFFIXES, ExportedNetwork
from medsr_monai.exchange.write import PRECISIONS, check_sizes, export_network
from medsr_monai.networks import NETWORKS
from medsr_monai.weights.load import load_network

ROOT = Path(__file__).parents[2]
ROUNDING = 2e-6
"""Sums in another order: two orders of magnitude below what an export is refused for."""

# The smallest sensible arguments of each super-resolution network, beside in_channels, out_channels and scale.
SWIN = dict(embed_dim=12, growth_rate=6, num_heads=3, window_size=4, num_blocks=1, num_dense_blocks=1)
SPANDREL_SWIN = dict(embed_dim=12, depths=[2], num_heads=[3], window_size=4, drop_path_rate=0.0)
RESIDUAL = dict(channels=8, num_groups=2, num_blocks=1, reduction=1)
SMALL = {
    "RDST": SWIN,
    "RDSTE": SWIN | dict(bicubic_residual=True),
    "RDSTGFF": SWIN | dict(num_blocks=2),
    "LGSR": dict(embed_dim=8, num_groups=1, blocks_per_group=1, hidden_size=16, num_layers=1, num_heads=2),
    "LGSRLight": dict(embed_dim=4, num_groups=1, blocks_per_group=1, hidden_size=8, num_layers=1, num_heads=2),
    "LGSRLarge": dict(embed_dim=4, num_groups=2, blocks_per_group=1, hidden_size=8, num_layers=1, num_heads=2),
    "TransMRSR": dict(size=16, style_dim=16, channels=[16, 16, 16], num_heads=[2, 2, 2], num_centroids=3),
    "Bicubic": dict(),
    "EDSR": dict(channels=8, num_blocks=2),
    "EDSRLite": dict(channels=8, num_blocks=2),
    "RDN": dict(channels=8, growth_rate=4, num_layers=2, num_blocks=2),
    "RCAN": RESIDUAL,
    "RCANAda": RESIDUAL,
    "HAN": RESIDUAL,
    "ConvNetLite": dict(channels=8, num_blocks=2),
    "ConvNetLarge": dict(channels=8, num_blocks=2),
    "MINet": RESIDUAL,
    "Restormer": dict(channels=8, depths=[1, 1], num_heads=[1, 2], num_refinement_blocks=1),
    "SwinIR": SPANDREL_SWIN,
    "SwinIRLite": SPANDREL_SWIN,
    "GFPGAN": dict(image_size=32, num_style_feat=8, narrow=1 / 64, num_mlp=1),
}
NOT_SUPER_RESOLUTION = {"StyleSwinGenerator", "StyleSwinDiscriminator"}
# the table in networks/README.md says the same
NO_TORCHSCRIPT = ("SwinIR", "SwinIRLite", "GFPGAN", "Restormer")
NO_ONNX = ("SwinIR", "SwinIRLite", "GFPGAN")
QUICK = ("Bicubic", "EDSRLite")
NEEDS = {"SwinIR": "spandrel", "SwinIRLite": "spandrel", "GFPGAN": "spandrel", "Restormer": "einops"}


def cases(names, quick=()):
    for name in names:
        lacks = name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None
        marks = [pytest.mark.skipif(lacks, reason=f"{NEEDS.get(name)} is not installed")]
        if quick and name not in quick:
            marks.append(pytest.mark.slow)
        yield pytest.param(name, marks=marks)


def small(name, channels=1, scale=2):
    torch.manual_seed(0)
    network = NETWORKS[name](channels, channels, scale, **SMALL[name]).eval()
    for parameter in network.parameters():
        if not parameter.any():  # what starts at zero has left it in a trained network, and hides what stands before it
            torch.nn.init.normal_(parameter, std=0.1)
    if name == "TransMRSR":
        network.load_centroids(torch.randn(network.centroids.shape))
    return network


def image(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def same(exported, network, sizes, atol, channels=1):
    with torch.no_grad():
        for batch, height, width in sizes:
            x = image(batch, channels, height, width)
            torch.testing.assert_close(exported(x), network(x), atol=atol, rtol=0)


def onnx_tools():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)


def test_every_super_resolution_network_is_listed():
    assert {*SMALL} | NOT_SUPER_RESOLUTION == {*NETWORKS.names}


@pytest.mark.parametrize("name", cases([n for n in SMALL if n not in NO_TORCHSCRIPT], (*QUICK, "RDSTE", "LGSRLight")))
def test_torchscript(name, tmp_path):
    network = small(name, scale=[1, 4])
    parity = export_network(network, tmp_path / "model.ts", "torchscript")
    assert parity.difference <= 1e-5 and parity.largest > 0.05
    exported = ExportedNetwork(tmp_path / "model.ts", [1, 4], trust_code=True)
    same(exported, network, [(2, 1, 1), (1, 16, 8), (1, 31, 9)], 1e-5)


@pytest.mark.parametrize("name", cases([n for n in SMALL if n not in NO_ONNX], QUICK))
def test_onnx(name, tmp_path):
    """One file for every batch, height and width: whole windows and tiles, odd sizes, single lines and pixels."""
    onnx_tools()
    network = small(name, scale=[1, 4])
    parity = export_network(network, tmp_path / "model.onnx", "onnx")
    assert parity.difference <= ROUNDING and parity.largest > 0.05
    sizes = [(2, 16, 24), (1, 33, 7), (5, 8, 8), (1, 3, 40), (1, 1, 9), (1, 1, 1)]
    same(ExportedNetwork(tmp_path / "model.onnx", [1, 4]), network, sizes, ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RDST", "LGSR", "TransMRSR"])
def test_onnx_of_several_channels(name, tmp_path):
    onnx_tools()
    network = small(name, channels=3)
    export_network(network, tmp_path / "model.onnx", "onnx")
    same(ExportedNetwork(tmp_path / "model.onnx", 2), network, [(2, 19, 24), (1, 70, 7)], ROUNDING, channels=3)


@pytest.mark.parametrize("name", cases(NO_TORCHSCRIPT))
def test_what_torchscript_cannot_hold_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"{type(small(name)).__name__} has no TorchScript form"):
        export_network(small(name), tmp_path / "model.ts", "torchscript")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", cases(NO_ONNX))
def test_what_onnx_cannot_hold_is_refused(name, tmp_path):
    onnx_tools()
    with pytest.raises(ValueError, match=r"has no ONNX form|not written, its output differs"):
        export_network(small(name), tmp_path / "model.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_float16_halves_the_file(format, tmp_path):
    if format == "onnx":
        onnx_tools()
    torch.manual_seed(0)
    network = NETWORKS["EDSRLite"](1, 1, 4, channels=32, num_blocks=2).eval()
    sizes, differences = [], []
    for precision in PRECISIONS:
        path = tmp_path / f"{precision}{SUFFIXES[format]}"
        differences.append(export_network(network, path, format, precision=precision).difference)
        sizes.append(path.stat().st_size)
        y = ExportedNetwork(path, trust_code=True)(image(1, 1, 9, 12))
        assert y.dtype == torch.float32 and y.shape == (1, 1, 36, 48)
    assert sizes[1] < 0.62 * sizes[0]
    assert differences[0] <= ROUNDING and 1e-6 < differences[1] < 2e-3
    assert next(network.parameters()).dtype == torch.float32  # stays as it is


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_the_file_says_what_it_is_and_not_where_it_was_made(format, tmp_path):
    if format == "onnx":
        onnx_tools()
    network = small("EDSRLite", scale=[1, 4])
    path = tmp_path / f"model{SUFFIXES[format]}"
    export_network(network, path, format, information={"bundle": "name", "weights_sha256": "12e3"})
    found = ExportedNetwork(path, trust_code=True).information
    assert (
        found.items()
        >= {
            "bundle": "name",
            "weights_sha256": "12e3",
            "in_channels": 1,
            "out_channels": 1,
            "scale": [1, 4],
            "size_multiple": 1,
            "precision": "float32",
        }.items()
    )
    assert ConfigParser({"network": found["network"]}).get_parsed_content("network").arguments == network.arguments
    if format == "onnx":
        import onnx

        model = onnx.load(path)
        onnx.checker.check_model(model)
        assert {p.key: json.loads(p.value) for p in model.metadata_props}[f"{ONNX_PREFIX}scale"] == [1, 4]
        assert [i.name for i in model.graph.input] == ["image"] and [o.name for o in model.graph.output] == ["pred"]
        axes = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        assert axes == ["batch", 1, "height", "width"]
        contents = [path.read_bytes()]
    else:
        with zipfile.ZipFile(path) as archive:
            contents = [archive.read(name) for name in archive.namelist()]
    places = [str(Path(torch.__file__).parents[1]), str(ROOT), str(tmp_path)]
    assert not [place for place in places for content in contents if place.encode() in content]


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_what_differs_is_not_written(format, tmp_path, monkeypatch):
    """The comparison can fail: here the file is made of other weights."""
    if format == "onnx":
        onnx_tools()
    network = small("EDSRLite")
    monkeypatch.setattr(copy, "deepcopy", spoiled(copy.deepcopy))
    path = tmp_path / f"model{SUFFIXES[format]}"
    with pytest.raises(ValueError, match=r"not written, its output differs from the network's by 0\.001"):
        export_network(network, path, format)
    path.write_text("old")
    with pytest.raises(ValueError, match="not written"):
        export_network(network, path, format)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text() == "old"


def spoiled(deepcopy):
    """A deepcopy whose first result of two is a little off."""
    count = 0

    def copied(thing):
        nonlocal count
        thing = deepcopy(thing)
        if isinstance(thing, torch.nn.Module) and hasattr(thing, "arguments"):
            count += 1
            if count % 2:
                with torch.no_grad():
                    thing.last.bias += 1e-3
        return thing

    return copied


@pytest.mark.parametrize(
    "path, format, precision, reason",
    [
        ("model.onnx", "tensorrt", "float32", "format is 'tensorrt', expected onnx or torchscript"),
        ("model.ts", "onnx", "float32", "give a name that ends in .onnx"),
        ("model.onnx", "onnx", "int8", "precision is 'int8', expected float32 or float16"),
    ],
)
def test_wrong_requests_are_named(path, format, precision, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        export_network(small("Bicubic"), tmp_path / path, format, precision=precision)


def test_sizes_of_the_comparison():
    for multiple in (1, 8, 64):
        sizes = check_sizes(multiple)
        assert any(h % multiple == w % multiple == 0 for _, h, w in sizes)
        assert any(h > multiple and (multiple == 1 or h % multiple) for _, h, _ in sizes)
        assert {batch for batch, _, _ in sizes} >= {1, 2}


@pytest.mark.slow
def test_onnx_of_the_shipped_weights(tmp_path):
    onnx_tools()
    network = load_network(ROOT / "bundles" / "rdst_e" / "models" / "model.pt")
    assert export_network(network, tmp_path / "model.onnx", "onnx").difference <= 1e-5
    same(ExportedNetwork(tmp_path / "model.onnx", 4), network, [(1, 41, 30), (2, 8, 17)], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("format", list(SUFFIXES))
def test_transmrsr_of_the_shipped_weights(format, tmp_path):
    onnx_tools()
    weights = ROOT / "bundles" / "transmrsr" / "models" / "model.pt"
    if not weights.is_file():
        pytest.skip("the weights are in a checkout only")
    network = load_network(weights)
    path = tmp_path / f"model{SUFFIXES[format]}"
    assert export_network(network, path, format).difference <= 1e-4
    same(ExportedNetwork(path, 1, trust_code=True), network, [(1, 64, 64), (1, 150, 90), (3, 20, 65)], 1e-4)


@pytest.mark.slow
def test_the_light_lgsr(tmp_path):
    onnx_tools()
    torch.manual_seed(0)
    network = NETWORKS["LGSRLight"](1, 1, 4).eval()
    torch.nn.init.normal_(network.last.weight, std=0.02)
    for name, parameter in network.named_parameters():
        if ".offset." in name:
            torch.nn.init.normal_(parameter, std=0.01)
    assert export_network(network, tmp_path / "model.onnx", "onnx").difference <= 1e-4
    same(ExportedNetwork(tmp_path / "model.onnx", 4), network, [(1, 64, 48), (1, 37, 50), (2, 6, 9)], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["rdst_e", "lgsr", "transmrsr", "comparison"])
def test_the_onnx_file_that_tensorrt_would_read(bundle, tmp_path):
    """What trt_compile writes before TensorRT takes over, by the overlay's profiles and under its settings."""
    onnx_tools()
    names = {"rdst_e": "RDSTE", "lgsr": "LGSRLight", "transmrsr": "TransMRSR", "comparison": "EDSRLite"}
    overlay = json.loads((ROOT / "bundles" / bundle / "configs" / "inference_trt.json").read_text())
    parser = ConfigParser({"sw_batch_size": 4, "trt_args": overlay["trt_args"]})
    profiles = parser.get_parsed_content("trt_args")["input_profiles"]
    network, path = small(names[bundle]), tmp_path / "model.onnx"
    flash = torch.backends.cuda.flash_sdp_enabled()
    try:
        ConfigParser({"imports": overlay["imports"], "run": overlay["initialize"]}).get_parsed_content("run")
        convert_to_onnx(
            network,
            {"x": image(4, 1, 41, 38)},
            input_names=["x"],
            dynamic_axes=get_dynamic_axes(profiles),
            filename=str(path),
        )
    finally:
        for switch in ("flash", "mem_efficient", "cudnn"):
            getattr(torch.backends.cuda, f"enable_{switch}_sdp")(flash)
    same(ExportedNetwork(path, 2, trust_code=True), network, [(1, 32, 32), (4, 50, 35)], ROUNDING)
