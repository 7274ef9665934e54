"""`medsr package`: zips that run where this package is not, and that are the same whenever they are made."""

import ast
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import save_weights
from monai.bundle import ConfigParser, ConfigWorkflow

from medsr_monai.commands.package import package
from medsr_monai.weights import vendoring
from medsr_monai.weights.load import load_network
from medsr_monai.weights.stated import examine

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(p.parent.parent for p in ROOT.glob("bundles/*/configs/metadata.json"))
VERSION = {b.name: json.loads((b / "configs" / "metadata.json").read_text())["version"] for b in BUNDLES}
FEW_SAMPLES = {"transmrsr_prior": {"count": 2}}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes below have it: sums by several threads differ in the last digit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """A tiny volume of thick slices, oblique, with an offset."""
    folder = tmp_path_factory.mktemp("volumes")
    angle = np.radians(12)
    affine = np.eye(4)
    affine[:2, :2] = [[-np.cos(angle), -np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    affine[:, 2:] = [[0, 20], [0, -30], [4, 5], [0, 1]]
    values = 300 + 900 * np.random.default_rng(0).random((12, 14, 3))
    nib.save(nib.Nifti1Image(values.astype(np.int16), affine), folder / "case0.nii.gz")
    return folder


@pytest.fixture(scope="module")
def training_volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training_volumes")
    for number in range(2):
        values = np.random.default_rng(number).random((32, 36, 2)).astype(np.float32)
        nib.save(nib.Nifti1Image(values, np.diag([1, 1, 4, 1])), folder / f"case{number}.nii.gz")
    return folder


def random_weights(bundle, path):
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    for parameter in network.parameters():
        if not parameter.any():  # a network that begins as an interpolation
            torch.nn.init.normal_(parameter, std=0.05)
    return save_weights(network, path)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Every bundle packed self-contained, unpacked: the shipped weights, or else random ones."""
    root = tmp_path_factory.mktemp("packed")
    folders = {}
    with pytest.MonkeyPatch.context() as patch:  # most modules are the same in all bundles
        patch.setattr("medsr_monai.weights.package.renamed_source", functools.cache(vendoring.renamed_source))
        for bundle in BUNDLES:
            weights = None
            if examine(bundle / "models" / "model.pt").file is None:
                weights = str(random_weights(bundle, root / f"{bundle.name}.pt"))
            package(str(bundle), str(root), weights=weights)
            zipfile.ZipFile(root / f"{bundle.name}_v{VERSION[bundle.name]}.zip").extractall(root / "elsewhere")
            folders[bundle.name] = root / "elsewhere" / bundle.name
        package("rdst_e", str(root / "thin"), thin=True)
        zipfile.ZipFile(root / "thin" / f"rdst_e_v{VERSION['rdst_e']}.zip").extractall(root / "thin")
    return folders | {"thin": root / "thin" / "rdst_e"}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Python with this environment's dependencies, in which this package is not installed and cannot be imported."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(folder)
    site = next((folder / "lib").glob("python*/site-packages"))
    # editable installs there are not seen: .pth files of such a folder are not read
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # a regular install would be
    (site / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import sys

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "medsr_monai":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Absent())
        """)
    )
    return folder / "bin" / "python"


# MONAI is imported once; then every job is one or two of what `python -m monai.bundle` does, in a process and a folder
# of its own
JOBS = """
import json, os, runpy, sys, traceback
try:
    import medsr_monai
except ModuleNotFoundError:
    pass
else:
    sys.exit("this package is there")
import torch
import monai.bundle, monai.engines, monai.handlers
for name, folder, *runs in json.load(open("jobs.json")):
    child = os.fork()
    if not child:
        code = 1
        try:
            out = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT)
            os.dup2(out, 1), os.dup2(out, 2)
            os.chdir(folder)
            sys.path.insert(0, folder)
            for arguments in runs:
                sys.argv = ["monai.bundle", *arguments]
                runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code or 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def results(packed, elsewhere, volumes, training_volumes, tmp_path_factory):
    """Exit codes and outputs of every package's jobs."""
    out = tmp_path_factory.mktemp("results")
    jobs = []
    for name, folder in packed.items():
        options = {
            "bundle_root": ".",
            "dataset_dir": volumes,
            "output_dir": out / name,
            "device": "$torch.device('cpu')",
        }
        options |= FEW_SAMPLES.get(name, {})
        arguments = [f"--{key}={value}" for key, value in options.items()]
        runs = [["run", "--config_file", "configs/inference.json", *arguments]]
        if name not in ("thin", "transmrsr_prior"):
            checks = ["--bundle_root", ".", "--meta_file", "configs/metadata.json"]
            checks += ["--config_file", "configs/inference.json", "--network_def#truncation=none"][
                : None if name == "transmrsr" else 2
            ]
            runs.insert(0, ["verify_net_in_out", "network_def", *checks])
        jobs.append((name, str(folder), *runs))
    options = {"bundle_root": ".", "dataset_dir": training_volumes, "device": "$torch.device('cpu')", "epochs": 1}
    options |= {"patch_size": 32, "batch_size": 4, "val_slices": 1, "weights": "models/model.pt"}
    options |= {"ckpt_dir": out / "training", "output_dir": out / "training", "plane": "axial"}
    arguments = [f"--{key}={value}" for key, value in options.items()]
    jobs.append(
        ("training", str(packed["rdst_e"]), ["run", "training", "--config_file=configs/train.json", *arguments])
    )
    (out / "jobs.json").write_text(json.dumps(jobs))
    (out / "jobs.py").write_text(JOBS)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([elsewhere, "jobs.py"], cwd=out, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    codes = dict(line.split() for line in done.stdout.splitlines() if re.fullmatch(r"\S+ -?\d+", line))
    return out, codes


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda p: p.name)
def test_a_package_gives_what_the_installed_bundle_gives(bundle, packed, results, volumes, tmp_path):
    out, codes = results
    log = (out / f"{bundle.name}.log").read_text()
    assert codes[bundle.name] == "0", log[-3000:]
    assert ("data shape of network is verified with no error" in log) == (bundle.name != "transmrsr_prior")
    flow = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(bundle),
        ckpt_dir=str(packed[bundle.name] / "models"),
        dataset_dir=str(volumes),
        output_dir=str(tmp_path),
        device="$torch.device('cpu')",
        **FEW_SAMPLES.get(bundle.name, {}),
    )
    flow.initialize()
    flow.run()
    flow.finalize()
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert files
    for file in files:
        here, there = nib.load(file), nib.load(out / bundle.name / file.relative_to(tmp_path))
        np.testing.assert_array_equal(here.get_fdata(), there.get_fdata())
        np.testing.assert_array_equal(here.affine, there.affine)
        assert here.get_data_dtype() == there.get_data_dtype() and np.ptp(here.get_fdata()) > 0


def test_a_package_trains(results):
    out, codes = results
    assert codes["training"] == "0", (out / "training.log").read_text()[-3000:]
    content = torch.load(out / "training" / "model.pt", weights_only=True)
    # weights fit, wherever the code lies
    assert content["network"]["_target_"] == "medsr_monai.networks.RDST"
    load_network(out / "training" / "model.pt")


def test_a_thin_package_needs_this_one(packed, results):
    """Which also shows that it cannot be imported there."""
    out, codes = results
    assert codes["thin"] != "0" and "medsr_monai" in (out / "thin.log").read_text()
    for file in (ROOT / "bundles/rdst_e/configs").rglob("*"):
        if file.is_file() and file.name != "metadata.json":
            assert file.read_bytes() == (packed["thin"] / file.relative_to(ROOT / "bundles/rdst_e")).read_bytes()
    assert not list(packed["thin"].rglob("*.py"))


@functools.cache
def parsed(text):
    """Most modules are the same in all bundles."""
    return ast.parse(text)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda p: p.name)
def test_every_name_in_the_configurations_is_in_the_code(bundle, packed):
    folder = packed[bundle.name]
    assert (folder / "scripts" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    modules = {p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("scripts/**/*.py")}
    imported = set()
    for module in modules:
        for node in ast.walk(parsed((folder / f"{module}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module)
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
    assert not {name for name in imported if name.split(".")[0] == "medsr_monai"}
    names = {name for name in imported if name.split(".")[0] == "scripts"}
    for file in (folder / "configs").rglob("*.json"):
        text = file.read_text()
        if file.name != "metadata.json":
            assert "medsr_monai" not in text
            targets = re.findall(r"\bscripts((?:\.\w+)+)", text)
            names |= {f"scripts{name}".rpartition(".")[0] for name in targets}
            original = (bundle / file.relative_to(folder)).read_text()
            assert text.count("scripts.") - original.count("scripts.") == len(re.findall(r"\bmedsr_monai\b", original))
    paths = {name.replace(".", "/") for name in names}
    assert len(paths) > 5
    assert not {p for p in paths if not {p, f"{p}/__init__"} & modules}
    # whoever only runs the bundle needs no command line, and no table of official checkpoints
    assert not {m for m in modules if m.split("/")[1] in ("cli", "commands", "convert", "compare")}


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda p: p.name)
def test_what_is_imported_is_required(bundle, packed):
    metadata = json.loads((packed[bundle.name] / "configs" / "metadata.json").read_text())
    required = metadata["required_packages_version"]
    assert {"pytorch-ignite", "scikit-image", "itk", "tensorboard", "matplotlib"} <= required.keys()
    assert not required.keys() & {"torch", "monai", "numpy", "spandrel"}
    ours = {"scripts", "torch", "monai", "numpy", *sys.stdlib_module_names}
    stated = required | metadata.get("optional_packages_version", {})
    distributions = packages_distributions()
    for file in packed[bundle.name].rglob("*.py"):
        for node in ast.walk(parsed(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in {n.split(".")[0] for n in names} - ours:
                assert name in stated or set(distributions[name]) & stated.keys(), (file, name)


def test_packing_is_reproducible_and_checksums_fit(medsr, tmp_path, monkeypatch):
    for place, zone in (("one", "UTC"), ("two", "Asia/Tokyo")):
        copy = tmp_path / place / "rdst_e"
        shutil.copytree(ROOT / "bundles" / "rdst_e", copy)
        (copy / "models" / "last.pt").touch()  # of a training, as are evaluations and what systems hide
        (copy / "eval").mkdir()
        (copy / "eval" / "slices.csv").touch()
        (copy / "docs" / ".DS_Store").touch()
        os.utime(copy / "LICENSE", (0, 10**9 + len(place)))
        monkeypatch.setenv("TZ", zone)
        code, out, err = medsr("package", copy, "--output", tmp_path / f"{place}_out")
        assert (code, err) == (0, "") and "sha256" in out
    name = f"rdst_e_v{VERSION['rdst_e']}"
    one, two = (tmp_path / f"{place}_out" for place in ("one", "two"))
    assert sorted(p.name for p in one.iterdir()) == [f"{name}.json", f"{name}.zip", f"{name}.zip.sha256"]
    content = (one / f"{name}.zip").read_bytes()
    assert content == (two / f"{name}.zip").read_bytes()
    entry = json.loads((one / f"{name}.json").read_text())[name]
    sha256 = hashlib.sha256(content).hexdigest()
    assert entry == {"checksum": hashlib.sha1(content).hexdigest(), "source": f"{name}.zip", "sha256": sha256}
    assert (one / f"{name}.zip.sha256").read_text() == f"{sha256}  {name}.zip\n"
    names = zipfile.ZipFile(one / f"{name}.zip").namelist()
    assert names == sorted(names) and all(n.startswith("rdst_e/") for n in names)
    assert [n for n in names if "/models/" in n or "eval" in n.split("/")[1] or "/." in n] == ["rdst_e/models/model.pt"]
    # nothing is overwritten unasked
    code, _, err = medsr("package", tmp_path / "one" / "rdst_e", "--output", one)
    assert code == 1 and "exists" in err and len(err.splitlines()) == 1
    assert medsr("package", tmp_path / "one" / "rdst_e", "--output", one, "--overwrite")[0] == 0


@pytest.mark.slow
def test_style_of_the_code_is_the_zoos(medsr, tmp_path):
    for tool in ("black", "isort", "flake8"):
        pytest.importorskip(tool, reason=f'{tool} is not installed: pip install -e ".[test]"')
    code, _, err = medsr("package", "rdst_e", "--output", tmp_path, "--black")
    assert (code, err) == (0, "")
    zipfile.ZipFile(tmp_path / f"rdst_e_v{VERSION['rdst_e']}.zip").extractall(tmp_path)
    for arguments in (
        ("isort", "--check", "--profile", "black", "--line-length", "120", "."),
        ("black", "--check", "--line-length", "120", "--skip-magic-trailing-comma", "."),
        (
            "flake8",
            "--max-line-length=120",
            "--extend-ignore=E203,E501,E741,W503",
            "--per-file-ignores=__init__.py:F401",
        ),
    ):
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=tmp_path / "rdst_e" / "scripts", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


# weights of a package


@pytest.fixture
def listed(tmp_path):
    """A copy of rdst_e without weights, which large_files.yml lists instead."""
    bundle = tmp_path / "listed" / "rdst_e"
    shutil.copytree(ROOT / "bundles" / "rdst_e", bundle)
    weights = bundle / "models" / "model.pt"
    value = hashlib.sha256(weights.read_bytes()).hexdigest()
    (bundle / "host").mkdir()
    source = weights.rename(bundle / "host" / "weights.pt")
    entry = [f"- path: models/model.pt\n  url: host/weights.pt\n  hash_val: {value}\n  hash_type: sha256\n"]
    (bundle / "large_files.yml").write_text("large_files:\n" + "".join(entry))
    return bundle, source, value


def test_listed_weights_are_fetched_for_a_release(medsr, listed, tmp_path):
    bundle, _, value = listed
    assert medsr("package", bundle, "--output", tmp_path)[0] == 0
    archive = zipfile.ZipFile(tmp_path / f"rdst_e_v{VERSION['rdst_e']}.zip")
    assert "rdst_e/large_files.yml" not in archive.namelist()
    assert hashlib.sha256(archive.read("rdst_e/models/model.pt")).hexdigest() == value
    assert not (bundle / "models" / "model.pt").exists()


def test_listed_weights_stay_out_of_a_pull_request(medsr, listed, tmp_path):
    bundle, source, value = listed
    shutil.copy(source, bundle / "models" / "model.pt")
    assert medsr("package", bundle, "--output", tmp_path, "--keep-large-files")[0] == 0
    archive = zipfile.ZipFile(tmp_path / f"rdst_e_v{VERSION['rdst_e']}.zip")
    assert archive.read("rdst_e/large_files.yml") == (bundle / "large_files.yml").read_bytes()
    assert "rdst_e/models/model.pt" not in archive.namelist()
    metadata = json.loads(archive.read("rdst_e/configs/metadata.json"))
    assert metadata["weights"] == [{"path": "models/model.pt", "sha256": value}]


@pytest.mark.parametrize("state", ["damaged", "gone", "own", "other network"])
def test_what_cannot_be_packed_is_one_line_and_no_output(medsr, listed, tmp_path, state):
    bundle, source, _ = listed
    options = []
    if state == "damaged":
        source.write_bytes(source.read_bytes()[:-10])
        message = "nothing was written"
    elif state == "gone":
        source.unlink()
        message = "no such file"
    elif state == "own":
        content = torch.load(source, weights_only=True)
        torch.save({**content, "mine": True}, bundle / "models" / "model.pt")
        message = "give --weights"
    else:
        options = ["--weights", random_weights(ROOT / "bundles" / "rdst", tmp_path / "other.pt")]
        message = "another network"
    code, out, err = medsr("package", bundle, "--output", tmp_path / "out", *options)
    assert (code, out) == (1, "") and message in err and len(err.splitlines()) == 1
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("place", ["docs/secret.txt", "configs/more", "models/model.pt", "LICENSE", "docs"])
def test_links_are_not_packed(medsr, tmp_path, place):
    """They may lead to anything on this machine."""
    bundle = Path(shutil.copytree(ROOT / "bundles" / "rdst_e", tmp_path / "rdst_e"))
    secret = tmp_path / "secret"
    if (bundle / place).is_dir() or (bundle / place).is_file():
        (bundle / place).rename(secret)
    else:
        secret.mkdir() if place == "configs/more" else secret.write_text("secret")
    (bundle / place).symlink_to(secret)
    code, out, err = medsr("package", bundle, "out")
    reason = "expected one inside the bundle" if place == "models/model.pt" else f"{place}: a symbolic link, which a"
    assert (code, out) == (1, "") and reason in err, err
    assert len(err.splitlines()) == 1 and not Path("out").exists()


@pytest.mark.parametrize("file", ["configs/train.json", "configs/metadata.json", "docs/training_data.json"])
@pytest.mark.parametrize("text", [b"{", b"\xff", b"[1]", b"[" * 100_000])
def test_a_damaged_document_is_not_packed(medsr, tmp_path, file, text):
    bundle = Path(shutil.copytree(ROOT / "bundles" / "rdst_e", tmp_path / "rdst_e"))
    (bundle / file).write_bytes(text)
    code, out, err = medsr("package", bundle, "out")
    assert (code, out) == (1, "") and f"{file}: expected" in err and len(err.splitlines()) == 1, err
    assert not Path("out").exists()


def test_a_bundle_without_weights_says_so(medsr, tmp_path, caplog):
    assert medsr("package", "transmrsr_prior", "--output", tmp_path)[0] == 0
    assert "transmrsr_prior has no weights" in caplog.text


def test_names_that_lead_nowhere_are_refused():
    with pytest.raises(ValueError, match=r"names medsr_monai\.nothing\.here\.Class: no such module"):
        vendoring.needed_modules(['{"_target_": "medsr_monai.nothing.here.Class"}'])
    with pytest.raises(ValueError, match="cannot be renamed"):
        vendoring.renamed_source("import medsr_monai.networks\n")
    assert vendoring.renamed_config('"$import medsr_monai as m", "$medsr_monai.data.x(my_medsr_monai)"') == (
        '"$import scripts as m", "$scripts.data.x(my_medsr_monai)"'
    )
