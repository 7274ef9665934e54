"""Weights: loaded safely, compared with what the bundle states, found offline, fetched where they are listed."""

import ast
import contextlib
import functools
import hashlib
import http.server
import json
import os
import pickle
import re
import shutil
import subprocess
import threading
import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import amend, save_weights, tiny_bundle, tiny_network
from monai.bundle import ConfigWorkflow, download_large_files

from medsr_monai.convert import load_official
from medsr_monai.networks import load_inception_features, load_vgg19_features
from medsr_monai.networks.segmentation_unet import SegmentationUNet
from medsr_monai.upscaling import bundles
from medsr_monai.weights import fetch
from medsr_monai.weights.load import load_network, load_trained_part, load_weights
from medsr_monai.weights.stated import examine, stated_files

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "medsr_monai").rglob("*.py"))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def set_metadata(bundle, **entries):
    amend(bundle / "configs" / "metadata.json", **entries)


def list_large_file(bundle, url, value, **more):
    entry = {"path": "models/model.pt", "url": str(url), "hash_val": value, "hash_type": "sha256"} | more
    (bundle / "large_files.yml").write_text(json.dumps({"large_files": [entry]}))  # JSON is YAML


@pytest.fixture
def bundle(tmp_path):
    """A bundle with a tiny network, whose weights are there and stated."""
    folder = tiny_bundle(tmp_path / "bundles" / "tiny")
    weights = folder / "models" / "model.pt"
    set_metadata(folder, weights=[{"path": "models/model.pt", "sha256": sha256(weights)}])
    return folder


@pytest.fixture
def volume(tmp_path):
    (tmp_path / "volumes").mkdir()
    path = tmp_path / "volumes" / "case.nii.gz"
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((12, 10, 2)).astype(np.float32), np.diag([1, 1, 4, 1])), path
    )
    return path


def warnings_in(caplog):
    ours = [r for r in caplog.records if r.name.startswith("medsr_monai") and r.levelname == "WARNING"]
    return "\n".join(r.getMessage() for r in ours)


def by_monai(bundle, volume, out, **options):
    flow = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(volume.parent),
        output_dir=str(out),
        device="$torch.device('cpu')",
        **options,
    )
    flow.initialize()
    flow.run()
    flow.finalize()


def run_both(medsr, bundle, volume, tmp_path, caplog):
    """What both ways to run a bundle say: exit code, and the warning or the reason of each."""
    caplog.clear()
    arguments = ("upscale", volume, tmp_path / "a" / "case_sr.nii.gz", "--bundle", bundle, "--device", "cpu")
    code, _, err = medsr(*arguments)
    by_command = err.strip() or warnings_in(caplog)  # pytest has the log instead of stderr
    caplog.clear()
    try:
        by_monai(bundle, volume, tmp_path / "b")
        by_workflow = warnings_in(caplog)
    except RuntimeError as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        by_workflow = str(cause)
    made = [len(list((tmp_path / name).rglob("*.nii.gz"))) for name in ("a", "b")]
    assert made == ([0, 0] if code else [1, 1])
    return code, by_command, by_workflow


def damage(path):
    """One bit of the largest part's numbers, which torch.load does not notice."""
    with zipfile.ZipFile(path) as parts:
        part = max(parts.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[part.header_offset + 30 + len(part.filename) + 200 + part.file_size // 2] ^= 1
    path.write_bytes(content)


# what a bundle states


def test_stated_weights_are_verified(medsr, bundle, volume, tmp_path, caplog):
    assert examine(bundle / "models" / "model.pt").state == "verified"
    assert run_both(medsr, bundle, volume, tmp_path, caplog) == (0, "", "")


@pytest.mark.parametrize("how", ["a bit", "the end", "a page of a server", "empty"])
def test_damaged_weights_are_refused(medsr, bundle, volume, tmp_path, caplog, how):
    weights = bundle / "models" / "model.pt"
    stated = sha256(weights)
    if how == "a bit":
        damage(weights)
        torch.load(weights, weights_only=True)  # it would have been used
    else:
        weights.write_bytes({"the end": weights.read_bytes()[:-100], "empty": b""}.get(how, b"<html>404</html>"))
    code, command, workflow = run_both(medsr, bundle, volume, tmp_path, caplog)
    assert code == 1 and command == f"medsr: error: {workflow}" and len(command.splitlines()) == 1
    assert str(weights) in workflow and stated in workflow and sha256(weights) in workflow
    assert "get it again" in workflow and ("damaged" if how == "a bit" else "part of one") in workflow


def test_a_damaged_file_is_refused_without_a_stated_checksum(medsr, bundle, volume, tmp_path, caplog):
    set_metadata(bundle, weights=[])
    assert examine(bundle / "models" / "model.pt").state == "unverified"
    assert run_both(medsr, bundle, volume, tmp_path, caplog) == (0, "", "")
    other = shutil.copy(bundle / "models" / "model.pt", tmp_path / "other.pt")
    damage(Path(other))
    with pytest.raises(ValueError, match=r"other\.pt: damaged \(CRC of "):
        load_weights(tiny_network(), other)


def test_own_weights_in_the_bundle_are_used_with_a_warning(medsr, bundle, volume, tmp_path, caplog):
    """Training writes there unless told otherwise, as does MONAI Label's, whose next inference uses them."""
    weights = bundle / "models" / "model.pt"
    stated = sha256(weights)
    save_weights(tiny_network(seed=1), weights)
    code, command, workflow = run_both(medsr, bundle, volume, tmp_path, caplog)
    assert code == 0 and len(workflow.splitlines()) == 1 and workflow in command.splitlines()
    assert "what they were trained for is not known" in command  # of the sidecar
    assert stated in workflow and sha256(weights) in workflow and "trained here" in workflow
    # by name they are used; only what they were trained for is not known
    mine = weights.rename(tmp_path / "mine.pt")
    arguments = ("upscale", volume, "mine.nii.gz", "--bundle", bundle, "--weights", mine, "--device", "cpu")
    caplog.clear()
    assert medsr(*arguments)[::2] == (0, "") and "published" not in warnings_in(caplog)
    assert "what they were trained for is not known" in warnings_in(caplog)


def test_shipped_weights_are_the_stated_ones():
    listed = subprocess.run(["git", "ls-files", "bundles/*/models/*"], cwd=ROOT, capture_output=True, text=True)
    # without git those that are here; with it not what somebody trains in a checkout
    shipped = [ROOT / name for name in listed.stdout.split()] or sorted(ROOT.glob("bundles/*/models/model.pt"))
    assert {path: examine(path).state for path in shipped} == dict.fromkeys(shipped, "verified")
    assert "rdst_e" in {p.parent.parent.name for p in shipped}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"hash_val": "0" * 64}, "different checksums"),
        ({"path": "../outside.pt"}, "inside the bundle"),
        ({"path": None}, "inside the bundle"),
        ({"hash_type": "crc"}, "expected one of md5"),
    ],
)
def test_statements_that_make_no_sense(medsr, bundle, entry, message):
    list_large_file(bundle, "https://nowhere.invalid/model.pt", sha256(bundle / "models" / "model.pt"), **entry)
    with pytest.raises(ValueError, match=message):
        stated_files(bundle)
    (bundle / "large_files.yml").write_text("large_files: {")
    with pytest.raises(ValueError, match=r"large_files\.yml: expected a list large_files of .* as YAML"):
        stated_files(bundle)


# where they are looked for


def test_offline_folder(medsr, bundle, volume, tmp_path, caplog, monkeypatch):
    weights = bundle / "models" / "model.pt"
    folder = tmp_path / "offline"
    kept = weights.rename(weights.with_suffix(".kept"))
    code, command, workflow = run_both(medsr, bundle, volume, tmp_path, caplog)
    assert (
        code == 1 and "bundle tiny has no trained weights here" in command and "$MEDSR_WEIGHTS/tiny/models" in command
    )
    monkeypatch.setenv("MEDSR_WEIGHTS", str(folder))
    assert run_both(medsr, bundle, volume, tmp_path, caplog)[0] == 1
    there = folder / "tiny" / "models" / "model.pt"
    there.parent.mkdir(parents=True)
    kept.rename(there)
    assert examine(weights)[:2] == ("verified", there)
    assert run_both(medsr, bundle, volume, tmp_path, caplog) == (0, "", "")
    # a folder of downloads holds what is stated, or something is wrong
    save_weights(tiny_network(seed=1), there)
    shutil.rmtree(tmp_path / "a"), shutil.rmtree(tmp_path / "b")
    code, command, workflow = run_both(medsr, bundle, volume, tmp_path, caplog)
    assert code == 1 and "put the stated file there" in workflow and command == f"medsr: error: {workflow}"
    # the bundle's own come first
    save_weights(tiny_network(seed=1), weights)
    assert examine(weights)[:2] == ("own", weights)


@pytest.fixture
def host(tmp_path):
    """URL of this test's folder, from a server on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("way", ["URL", "path inside"])
def test_fetch(medsr, bundle, tmp_path, host, way):
    weights = bundle / "models" / "model.pt"
    value = sha256(weights)
    weights.rename(tmp_path / "host.pt" if way == "URL" else bundle / "large.pt")
    set_metadata(bundle, weights=[])
    url = f"{host}/host.pt" if way == "URL" else "large.pt"
    list_large_file(bundle, url, value)
    code, out, err = medsr("fetch", bundle)
    assert (code, err) == (0, "") and value in out and sha256(weights) == value
    assert [p.name for p in weights.parent.iterdir()] == ["model.pt"]
    assert examine(weights).state == "verified"
    assert "is here" in medsr("fetch", bundle)[1]
    # into a folder for a machine without network
    assert medsr("fetch", bundle, "--output", "disk")[0] == 0
    assert sha256(tmp_path / "disk" / "tiny" / "models" / "model.pt") == value
    # a file that is there is not replaced unasked
    weights.write_text("mine")
    code, _, err = medsr("fetch", bundle)
    assert code == 1 and "add --overwrite" in err and weights.read_text() == "mine"
    assert medsr("fetch", bundle, "--overwrite")[0] == 0 and sha256(weights) == value


def test_monai_reads_the_same_list(bundle, tmp_path):
    weights = bundle / "models" / "model.pt"
    source = weights.rename(tmp_path / "host.pt")
    list_large_file(bundle, source.as_uri(), sha256(source))
    download_large_files(str(bundle))
    assert examine(weights).state == "verified"


@pytest.mark.parametrize("way", ["file URL", "path", "relative path", "link", "ftp"])
def test_files_outside_the_bundle_are_not_fetched(medsr, bundle, tmp_path, way):
    weights = bundle / "models" / "model.pt"
    value = sha256(weights)
    source = weights.rename(tmp_path / "secret.pt")
    set_metadata(bundle, weights=[])
    (bundle / "link.pt").symlink_to(source)
    urls = {"file URL": source.as_uri(), "path": source, "link": "link.pt", "ftp": "ftp://127.0.0.1/secret.pt"}
    list_large_file(bundle, urls.get(way, os.path.relpath(source, bundle)), value)
    code, out, err = medsr("fetch", bundle)
    assert (code, out) == (1, "") and "cannot be fetched: " in err and "inside" in err and len(err.splitlines()) == 1
    assert not list(weights.parent.iterdir())


@pytest.mark.parametrize("fault", ["silent", "endless", "no checksum"])
def test_a_server_that_never_ends_and_a_file_without_checksum_are_refused(medsr, bundle, monkeypatch, fault):
    monkeypatch.setattr(fetch, "TIMEOUT", 0.5)
    monkeypatch.setattr(fetch, "LARGEST", 5_000_000)
    weights = bundle / "models" / "model.pt"
    value = sha256(weights)
    weights.unlink()
    set_metadata(bundle, weights=[])

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while fault == "endless":
                    self.wfile.write(bytes(2**20))
            time.sleep(2)

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        list_large_file(bundle, f"http://127.0.0.1:{server.server_port}/x", "" if fault == "no checksum" else value)
        code, out, err = medsr("fetch", bundle)
        server.shutdown()
    reason = {"silent": "timed out", "endless": "is larger than", "no checksum": "no hash_val for models/model.pt"}[
        fault
    ]
    assert (code, out) == (1, "") and reason in err and len(err.splitlines()) == 1, err
    assert not list(weights.parent.iterdir())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("large_files:\n- 5\n", "entry 1 of large_files is 5, expected path, url, hash_val"),
        (
            "large_files:\n- path: 5\n  url: http://127.0.0.1:9/x\n",
            "path of entry 1 of large_files is 5, expected",
        ),
        ("large_files:\n- path: models/model.pt\n  url: 5\n", "url of entry 1 of large_files is 5, expected text"),
        ("large_files: &a [*a]\n", "aliases, or nested too deeply"),
        ("large_files: 7\n", "large_files is 7, expected a list"),
        ("[" * 100_000, "damaged, or another file"),
        ("\0", "damaged, or another file"),
    ],
)
def test_a_damaged_list_of_large_files_is_one_line(medsr, bundle, tmp_path, text, reason):
    (bundle / "large_files.yml").write_text(text)
    for command in (("fetch", bundle), ("package", bundle, tmp_path / "out")):
        code, out, err = medsr(*command)
        assert (code, out) == (1, "") and "large_files.yml: " in err and reason in err, err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_fetch_into_the_offline_folder(medsr, bundle, tmp_path, host, monkeypatch):
    weights = bundle / "models" / "model.pt"
    source = weights.rename(tmp_path / "host.pt")
    list_large_file(bundle, f"{host}/host.pt", sha256(source))
    monkeypatch.setenv("MEDSR_WEIGHTS", str(tmp_path / "offline"))
    assert medsr("fetch", bundle)[0] == 0
    assert not weights.exists() and examine(weights).state == "verified"


def test_a_damaged_download_leaves_nothing(medsr, bundle, volume, tmp_path, host):
    weights = bundle / "models" / "model.pt"
    value = sha256(weights)
    source = weights.rename(tmp_path / "host.pt")
    list_large_file(bundle, f"{host}/host.pt", value)
    damage(source)
    code, out, err = medsr("fetch", bundle)
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert value in err and sha256(source) in err and "nothing was written" in err
    assert list(weights.parent.iterdir()) == []
    source.unlink()
    code, _, err = medsr("fetch", bundle)
    assert code == 1 and "cannot be fetched" in err and len(err.splitlines()) == 1
    list_large_file(bundle, "gone.pt", value)
    assert "no such file" in medsr("fetch", bundle)[2]
    (bundle / "large_files.yml").unlink()
    code, _, err = medsr("fetch", bundle)
    assert code == 1 and "nothing to fetch" in err
    assert list(weights.parent.iterdir()) == []


def test_a_missing_listed_file_says_how_to_get_it(medsr, bundle, volume, tmp_path, caplog):
    weights = bundle / "models" / "model.pt"
    value = sha256(weights)
    weights.unlink()
    list_large_file(bundle, "https://nowhere.invalid/model.pt", value)
    code, command, workflow = run_both(medsr, bundle, volume, tmp_path, caplog)
    assert code == 1 and command == f"medsr: error: {workflow}"
    assert "`medsr fetch tiny`" in workflow and "download_large_files" in workflow and value in workflow


def test_models_shows_what_is_there_and_verified(medsr, bundle, tmp_path, monkeypatch):
    published = sha256(bundle / "models" / "model.pt")
    folders = {}
    for state in ("verified", "own", "unverified", "mismatch", "missing", "listed"):
        folder = folders[state] = tmp_path / "all" / state
        shutil.copytree(bundle, folder)
        weights = folder / "models" / "model.pt"
        if state == "own":
            save_weights(tiny_network(seed=1), weights)
        elif state == "unverified":
            set_metadata(folder, weights=[])
        elif state == "mismatch":
            damage(weights)
        elif state in ("missing", "listed"):
            weights.unlink()
    list_large_file(folders["listed"], "https://nowhere.invalid/model.pt", published)
    monkeypatch.setattr(bundles, "bundle_folders", lambda: folders)
    monkeypatch.setattr("medsr_monai.commands.models.bundle_folders", lambda: folders)
    code, out, _ = medsr("models", "--json")
    rows = {row["bundle"]: row for row in json.loads(out)}
    assert code == 0 and {name: row["state"] for name, row in rows.items()} == {
        name: "missing" if name == "listed" else name for name in folders
    }
    usable = {"verified", "own", "unverified"}
    for name, row in rows.items():
        file = folders[name] / "models" / "model.pt"
        assert row["trained"] == (name in usable)
        assert row["sha256"] == (sha256(file) if file.is_file() else None)
        assert row["expected"] == (None if name == "unverified" else published)
        assert bool(row["reason"]) == (name in ("own", "mismatch"))
    assert rows["listed"]["url"] == "https://nowhere.invalid/model.pt"
    text = medsr("models")[1]
    assert "verified\n" in text and "`medsr fetch listed`" in text and "get it again" in text


# nothing in a file is executed


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_no_loader_executes_what_a_file_says(tmp_path, zipped, bundle):
    marker, path = tmp_path / "executed", tmp_path / "bad.pt"
    content = {"model": Malicious(marker), "network": {}, "state": {"discriminator": Malicious(marker)}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaders = [
        lambda: load_weights(tiny_network(), path),
        lambda: load_network(path),
        lambda: load_trained_part(tiny_network(), path, "discriminator"),
        lambda: load_official(path, "rdst"),
        lambda: load_vgg19_features(str(path)),
        lambda: load_inception_features(str(path)),
        lambda: SegmentationUNet(1, 2, encoder="resnet18", encoder_weights=str(path)),
    ]
    for load in loaders:
        with pytest.raises(ValueError, match=r"bad\.pt"):
            load()
    # training that is resumed
    last = shutil.copy(path, tmp_path / "last.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(last, weights_only=True)
    assert not marker.exists()
    # the file is as bad as it looks
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_every_load_is_of_weights_only():
    loads = 0
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
                assert not {"pickle", "joblib", "dill", "cloudpickle"} & set(names), file
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if ast.unparse(node.func) == "torch.load":
                loads += 1
                assert options.get("weights_only") == "True", (file, node.lineno)
            assert options.get("allow_pickle", "False") == "False", (file, node.lineno)
    assert loads >= 6
    for file in ROOT.glob("bundles/*/configs/**/*.json"):
        assert not re.search(r"torch\.load\(|pickle", file.read_text()), file
