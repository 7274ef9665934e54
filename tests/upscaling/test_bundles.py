"""Code in bundles: only what installed bundles hold runs without being trusted."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from bundle_copies import BUNDLES, TINY, amend, copy_bundle, save_weights, tiny_network
from made_volumes import save
from monai.bundle import ConfigParser

from medsr_monai import __version__
from medsr_monai.upscaling.bundles import BundleRunner, bundle_folders, read_inference

INFERENCE = Path("configs") / "inference.json"
HOSTILE = {
    "expression": {"plane": "$__import__('pathlib').Path('written').touch() or 'auto'"},
    "import": {"imports": ["$import torch", "$import evil as torch"]},
    "function": {"preprocessing": {"_target_": "os.system", "command": "touch written"}},
    "module of torch": {"network_def": {"_target_": "torch.os.system", "command": "touch written"}},
    "function of torch": {"network_def": {"_target_": "torch.hub.load", "repo_or_dir": ".", "source": "local"}},
    "class behind MONAI's": {"inferer": {"_target_": "monai.data.utils.os.popen", "cmd": "touch written"}},
    "another configuration": {"inferer": {"_target_": "monai.bundle.ConfigWorkflow", "config_file": "evil.json"}},
    "target by reference": {"target": "os.system", "network_def": {"_target_": "@target", "command": "touch written"}},
    "target by expression": {"network_def": {"_target_": "$__import__('os').system", "command": "touch written"}},
    "other file": {"plane": "%evil.json::plane"},
    "our own TorchScript": {
        "network_def": {"_target_": "medsr_monai.exchange.run.ExportedNetwork", "path": "a.ts", "trust_code": True}
    },
    "nested": {"evaluator": [{"a": {"b": [1, "$print(1)"]}}]},
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("evil.json").write_text(json.dumps({"plane": "$__import__('pathlib').Path('written').touch()"}))
    Path("evil.py").write_text("import pathlib\npathlib.Path('written').touch()\n")


@pytest.mark.parametrize("name", HOSTILE)
def test_code_that_no_installed_bundle_has_runs_only_where_it_is_trusted(medsr, name):
    bundle = copy_bundle(Path("foreign"), **TINY)
    amend(bundle / INFERENCE, **HOSTILE[name])
    code, _, error = medsr("upscale", save(Path("a.nii.gz")), "x.nii.gz", "--bundle", bundle)
    assert code == 1 and "foreign/configs/inference.json: holds code that no installed bundle has (" in error
    assert error.count("\n") == 1 and "--trust-code" in error
    assert not Path("written").exists() and not Path("x.nii.gz").exists()


def test_what_is_trusted_runs(medsr):
    bundle = copy_bundle(Path("foreign"))
    network = {"_target_": "medsr_monai.networks.Bicubic", "scale": "@scale"}
    amend(bundle / INFERENCE, **HOSTILE["expression"], network_def=network, weights=None)
    arguments = ("upscale", save(Path("a.nii.gz")), "x.nii.gz", "--bundle", bundle)
    code, _, error = medsr(*arguments, "--trust-code")
    assert code == 0 and Path("x.nii.gz").exists() and Path("written").exists(), error


@pytest.mark.parametrize("name", bundle_folders())
def test_a_copy_of_an_installed_bundle_with_other_numbers_needs_no_trust(name):
    copy = Path(shutil.copytree(BUNDLES / name, "trained", ignore=shutil.ignore_patterns("models")))
    content = json.loads((copy / INFERENCE).read_text())
    content["network_def"]["a_number"] = 7
    content["a_number"] = 1.5
    (copy / INFERENCE).write_text(json.dumps(content))
    assert read_inference(copy)["a_number"] == 1.5


@pytest.mark.parametrize("target", ["monai.networks.nets.UNet", "UNet", "torch.nn.Conv2d", "medsr_monai.networks.EDSR"])
def test_classes_that_compute_need_no_trust(target):
    bundle = copy_bundle(Path("own"))
    amend(bundle / INFERENCE, network_def={"_target_": target})
    assert isinstance(read_inference(bundle), ConfigParser)


def test_a_folder_whose_name_is_an_expression_is_a_folder():
    bundle = copy_bundle(Path("$print('evil')"), **TINY)
    runner = BundleRunner(str(bundle), trained=False)
    assert runner["bundle_root"] == "./$print('evil')"


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, '"a"', "\udcff"])
def test_a_damaged_configuration_is_one_line(medsr, text):
    bundle = copy_bundle(Path("foreign"))
    (bundle / INFERENCE).write_bytes(text.encode(errors="surrogateescape"))
    code, _, error = medsr("upscale", save(Path("a.nii.gz")), "x.nii.gz", "--bundle", bundle)
    assert code == 1 and error.startswith("medsr: error: foreign/configs/inference.json: "), error
    assert error.count("\n") == 1 and len(error) < 400, error


def test_a_bundle_that_was_made_for_0_1_0_runs(medsr, caplog):
    """Its configurations name modules as they were called then; the log says how they are called now."""
    bundle = copy_bundle(Path("old"), **TINY)
    file = bundle / INFERENCE
    text = file.read_text().replace("medsr_monai.recipes.", "medsr_monai.transforms.recipes.")
    file.write_text(text)
    assert text.count("medsr_monai.transforms.recipes.") == 2
    for module in [name for name in sys.modules if name.startswith("medsr_monai.transforms.recipes")]:
        del sys.modules[module]
    save_weights(tiny_network(), bundle / "models" / "model.pt")
    save(Path("a.nii.gz"))
    assert medsr("upscale", "a.nii.gz", "x.nii.gz", "--bundle", bundle, "--nopicture")[0] == 0
    assert "medsr_monai.transforms.recipes is called medsr_monai.recipes now" in caplog.text


@pytest.mark.parametrize("name", bundle_folders())
def test_citation(medsr, name):
    """Of every bundle: the papers that its card and README name, and the version that README states."""
    code, out, _ = medsr("models", "--cite", name)
    entries = out.strip().split("\n\n")
    assert code == 0 and f"version = {{{__version__}}}" in entries[-1] and len(entries) > 1
    card = (BUNDLES / name / "docs" / "README.md").read_text().split("## Citation")[1]
    for entry in entries[:-1]:
        assert entry.count("{") == entry.count("}") and "author = {" in entry and "title = {" in entry
        assert re.search(r"(?:eprint|doi) = {(.*?)}", entry)[1] in card
    front = (BUNDLES.parent / "README.md").read_text()
    assert f"medsr_monai {__version__}" in front
    papers = re.findall(r"arXiv (\d+\.\d+)|DOI (\S+)\.$", front.split("## How to cite")[1], re.M)
    known = (BUNDLES / "references.bib").read_text()
    assert len(papers) == 3 and all("".join(paper) in known for paper in papers)


def test_a_bundle_of_no_known_paper_is_refused(medsr, tmp_path):
    folder = copy_bundle(tmp_path / "other")
    amend(folder / "configs" / "metadata.json", references=["Somebody's paper, arXiv 0000.00000"])
    code, out, err = medsr("models", "--cite", folder)
    assert (code, out) == (1, "") and "refers to no paper that is known here" in err
