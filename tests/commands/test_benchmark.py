"""`medsr benchmark` as a user types it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from bundle_copies import tiny_network
from monai.utils import ComponentStore
from typed_commands import refused

from medsr_monai.upscaling.bundles import DEFAULT_BUNDLE

ROOT = Path(__file__).parents[2]

# million weights and GMACs that Tables 1 and 5 of the RDST paper (arXiv 2302.11184) print
PAPER = {
    "RDST": ("4.40", "6.17"),
    "RDSTE": ("2.35", "3.53"),
    "RDSTGFF": ("4.40", "6.17"),
    "SwinIR": ("11.47", "14.68"),
    "SwinIRLite": ("0.88", "1.15"),
    "EDSR": ("43.08", "64.22"),
    "EDSRLite": ("1.52", "2.51"),
    "RDN": ("5.76", "7.95"),
    "RCANAda": ("32.03", "41.34"),
    "HAN": ("64.19", "83.86"),
    "ConvNetLite": ("0.88", "1.69"),
    "ConvNetLarge": ("12.43", "21.00"),
}


LIGHT = ("RDSTE", "SwinIRLite", "EDSRLite", "RDN", "ConvNetLite")


@pytest.mark.parametrize("names", [LIGHT, pytest.param([*PAPER], marks=pytest.mark.slow)], ids=["light", "all"])
def test_benchmark_reproduces_the_counts_of_the_rdst_paper(medsr, names):
    names = [name for name in names if importlib.util.find_spec("spandrel") or not name.startswith("SwinIR")]
    code, out, err = medsr("benchmark", "--networks", ",".join(names), "--size", "40x32", "--runs", 0)
    header, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines())
    rows = {row["network"]: row for row in (dict(zip(header, line, strict=True)) for line in lines)}
    counts = {name: (row["M weights, as published"], row["GMACs, as published"]) for name, row in rows.items()}
    assert (code, err) == (0, "") and counts == {name: PAPER[name] for name in names}


def test_benchmark_takes_all_super_resolution_networks(medsr, monkeypatch):
    from medsr_monai import metrics

    monkeypatch.setattr(metrics, "benchmark_network", lambda build, *args: {"target": build.args[0]["_target_"]})
    code, out, err = medsr("benchmark", "--networks", "all", "--size", "40x32", "--json")
    names = {row["network"] for row in json.loads(out)}
    assert code == 0 and {"RDSTGFF", "TransMRSR", "Restormer", "MINet", "RCAN", "Bicubic"} <= names
    assert not {"StyleSwinGenerator", "StyleSwinDiscriminator"} & names
    without_spandrel = 0 if importlib.util.find_spec("spandrel") else 3
    assert err.count("is left out") == err.count("\n") == without_spandrel
    assert len(PAPER.keys() - names) == (2 if without_spandrel else 0)


@pytest.mark.usefixtures("warm_spawn")
def test_benchmark_measures_a_bundle(medsr, bundle):
    options = ("--size", "16x12", "--runs", 1, "--device", "cpu", "--json")
    code, out, err = medsr("benchmark", "--bundle", bundle, *options)
    [row] = json.loads(out)
    assert (code, err) == (0, "")
    assert (row["network"], row["input"], row["runs"], row["device"]) == (str(bundle), "1x1x16x12", 1, "cpu")
    assert row["seconds"] > 0 and row["matmul_share"] > 0 and row["peak_mib"] > 0
    assert row["parameters"] == sum(p.numel() for p in tiny_network().parameters())


PLAIN = ROOT / "tests" / "networks" / "plain_rdst.py"


@pytest.mark.usefixtures("warm_spawn")
@pytest.mark.parametrize(("option", "mode", "passes"), [((), "inference", 1), (("--training",), "training step", 3)])
def test_benchmark_beside_a_reference(medsr, bundle, option, mode, passes):
    options = ("--size", "16x12", "--batch", 2, "--runs", 3, "--device", "cpu", "--reference", f"{PLAIN}:PlainRDST")
    code, out, err = medsr("benchmark", "--bundle", bundle, *options, *option, "--json")
    assert (code, err) == (0, "")
    ours, reference = rows = json.loads(out)
    assert (ours["network"], reference["network"]) == (str(bundle), "PlainRDST")
    for row in rows:
        assert (row["input"], row["mode"], row["runs"]) == ("2x1x16x12", mode, 3)
        assert row["parameters"] == sum(p.numel() for p in tiny_network().parameters()) and row["peak_mib"] > 50
        assert 0 < row["seconds_q1"] <= row["seconds"] <= row["seconds_q3"]
        assert row["gflop_per_s"] == pytest.approx(2 * passes * row["macs"] / 1e9 / row["seconds"])
        assert row["slices_per_s"] == pytest.approx(2 / row["seconds"]) and row["matmul_share"] > 0
    assert reference["speed_up"] == 1 and ours["speed_up"] > 0 and ours["macs"] == reference["macs"]
    assert list(ours) == list(reference)


@pytest.mark.usefixtures("warm_spawn")
@pytest.mark.parametrize("mode", [(), ("--training",)], ids=["inference", "training"])
def test_benchmark_in_another_precision(medsr, bundle, mode):
    """The network alone; its reference stays in float32."""
    options = ("--size", "16x12", "--runs", 1, "--device", "cpu", "--reference", f"{PLAIN}:PlainRDST", "--json")
    code, out, err = medsr("benchmark", "--bundle", bundle, *options, "--precision", "bfloat16", *mode)
    assert (code, err) == (0, "")
    assert [row["precision"] for row in json.loads(out)] == ["bfloat16", "float32"]
    refused(medsr("benchmark", "--precision", "half"), "precision is 'half', expected float32, bfloat16, float16")


@pytest.mark.usefixtures("warm_spawn")
def test_benchmark_refuses_another_function_as_reference(medsr, bundle):
    source = PLAIN.read_text().replace(
        "torch.cat([x, self.bottleneck(y)], dim=-1)", "torch.cat([x, self.bottleneck(x)], dim=-1)"
    )
    Path("other.py").write_text(source)
    options = ("benchmark", "--bundle", bundle, "--size", "16x12", "--runs", 1, "--device", "cpu", "--reference")
    refused(medsr(*options, "other.py:PlainRDST"), "the reference computes something else")
    refused(medsr(*options, "missing.py:PlainRDST"), "missing.py:PlainRDST.*expected FILE.py:NAME")
    refused(medsr(*options, "other.py:Nothing"), "has no class or function 'Nothing'")
    Path("few.py").write_text("def build(): pass")
    refused(medsr(*options, "few.py:build"), "does not take the network's arguments")


def test_benchmark_puts_bundle_and_networks_in_one_table(medsr, bundle):
    options = ("--bundle", bundle, "--networks", "Bicubic", "--size", "16x12", "--runs", 0)
    code, out, err = medsr("benchmark", *options, "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "") and [row["network"] for row in rows] == [str(bundle), "Bicubic"]
    assert list(rows[0]) == list(rows[1]) and rows[0]["macs"] > rows[1]["macs"] == 0


def test_benchmark_runs_the_default_bundle(medsr):
    code, out, err = medsr("benchmark", "--runs", 0, "--json")
    assert (code, err) == (0, "")
    assert [(row["network"], row["input"], row["seconds"]) for row in json.loads(out)] == [
        (DEFAULT_BUNDLE, "1x1x160x160", None)
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--size", "16"], "size is '16', expected HxW"),
        (["--runs=-1"], "runs is -1"),
        (["--batch", "0"], "batch is 0, expected at least 1"),
        (["--bundle", "nope"], "no bundle 'nope'"),
        (["--bundle", "transmrsr_prior"], "bundle transmrsr_prior takes no images"),
        (["--networks", "EDSRLite,EDRS"], "no network 'EDRS': choose all, or some of RDST,RDSTE,"),
        (["--networks", "StyleSwinGenerator"], "no network 'StyleSwinGenerator'"),
        (["--networks", "Bicubic", "--device", "abacus"], "device 'abacus' is not available"),
    ],
)
def test_benchmark_refuses_wrong_options(medsr, options, reason):
    refused(medsr("benchmark", *options), reason)


@pytest.mark.parametrize(("names", "code"), [("all", 0), ("SwinIRLite,EDSRLite", 1)])
def test_benchmark_names_what_an_absent_library_leaves_out(medsr, monkeypatch, names, code):
    from medsr_monai import networks

    few = ComponentStore("networks", "those of this test")
    for name in ("EDSRLite", "SwinIRLite"):
        few.add(name, name, networks.NETWORKS[name])
    monkeypatch.setattr(networks, "NETWORKS", few)
    monkeypatch.setitem(sys.modules, "spandrel.architectures.SwinIR", None)
    monkeypatch.setitem(sys.modules, "spandrel", None)
    end, out, err = medsr("benchmark", "--networks", names, "--size", "8x8", "--runs", 0, "--json")
    assert end == code and [row["network"] for row in json.loads(out)] == ["EDSRLite"]
    assert err == (
        f"medsr: {'error: ' if code else ''}SwinIRLite is left out: SwinIR is made of spandrel's parts: "
        "pip install 'medsr_monai[compare]'\n"
    )


def test_benchmark_goes_on_after_a_network_that_fails(medsr, monkeypatch):
    from medsr_monai import metrics

    counted = metrics.benchmark_network

    def fail(build, *args):
        if "EDSR" in build.args[0]["_target_"]:
            raise RuntimeError("CUDA out of memory")
        return counted(build, *args)

    monkeypatch.setattr(metrics, "benchmark_network", fail)
    options = ("--networks", "EDSRLite,Bicubic", "--size", "8x8", "--runs", 0, "--device", "cpu")
    code, out, err = medsr("benchmark", *options)
    assert code == 1 and [line.split("|")[1].strip() for line in out.splitlines()[2:]] == ["Bicubic"]
    assert (
        err.startswith("medsr: error: EDSRLite on cpu: out of memory (CUDA out of memory): ") and err.count("\n") == 1
    )
