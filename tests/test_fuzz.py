"""Damaged files of every kind that is read: one line says so, or they are read; nothing else comes out of a reader.

A fixed seed makes the same files each time: few by default, 10,000 of each kind with ``-m slow``. Volumes and DICOM
series have their own tests (data/test_mutated_headers.py, data/dicom), since what is read has to be right, too.
"""

import copy
import functools
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bundle_copies import BUNDLES, TINY, copy_bundle, save_weights, tiny_network
from PIL import Image

from medsr_monai.data import load_picture
from medsr_monai.data.datalists import split_volumes
from medsr_monai.errors import MedsrError, naming, reason_of
from medsr_monai.exchange.run import TORCHSCRIPT_RECORD, ExportedNetwork
from medsr_monai.exchange.write import export_network
from medsr_monai.records.sidecar import bundle_record, read_sidecar
from medsr_monai.records.training_data import TrainingData
from medsr_monai.upscaling.bundles import BundleRunner, read_inference
from medsr_monai.upscaling.status import StatusTable
from medsr_monai.weights.load import load_network
from medsr_monai.weights.stated import stated_files

FEW, MANY = 40, 10_000
VALUES = (
    *(None, True, False, 0, -1, 5, 10**9, 10**30, 1.5, -2.5e300, "", "a", "../..", "/", "$print(1)", "@a", "%a", "\0"),
    *([], [[]], ["a"], [5], [1, 2, 3], {}, {"a": 1}, "x" * 1000, "nan", "1e9", "\ud800", "a\nb"),
)


def nodes(value: object, path: tuple = ()) -> list[tuple]:
    """Paths to all that a document holds."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, part in parts for inner in nodes(part, (*path, key)))]


def changed(content: object, rng: random.Random) -> object:
    """One or two parts of a document taken away, or replaced."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 2))):
        path = rng.choice(nodes(content))
        if not path:
            if rng.random() < 0.1:
                content = copy.deepcopy(rng.choice(VALUES))
            continue
        inside = functools.reduce(lambda part, key: part[key], path[:-1], content)
        if rng.random() < 0.2:
            del inside[path[-1]]
        else:
            inside[path[-1]] = copy.deepcopy(rng.choice(VALUES))
    return content


def broken(content: bytes, rng: random.Random) -> bytes:
    """A file cut short, or with bits or bytes changed."""
    content = bytearray(content)
    kind = rng.choice(("cut", "flip", "bytes", "insert"))
    place = rng.randrange(len(content))
    if kind == "cut":
        del content[place:]
    elif kind == "flip":
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        content[place : place + 8] = rng.randbytes(8)
    else:
        content[place:place] = rng.choice((b"[" * 2000, b"{" * 10, b"\xff\xfe", b"\0", b"&a [*a]"))
    return bytes(content)


def text_of(content: object, dump: Callable[[object], str], rng: random.Random) -> bytes:
    text = dump(changed(content, rng)).encode(errors="surrogatepass")
    return broken(text, rng) if text and rng.random() < 0.3 else text


def told(read: Callable[[], object]) -> bool:
    """Whether a reader refuses a file, as it should: in one line."""
    try:
        read()
    except (ValueError, OSError) as error:
        line = reason_of(error)  # as commands say it
        assert len(line) < 1200 and "Traceback" not in line, line
        return True
    return False


def bundle_of(folder: Path) -> Path:
    bundle = copy_bundle(folder / "bundle", **TINY)
    (bundle / "models").mkdir()
    return bundle


def documents(folder: Path, kind: str) -> tuple[Path, object, Callable, Callable]:
    """A document's file, content, writer and reader."""
    bundle = bundle_of(folder)
    docs = json.loads((BUNDLES / "rdst_e" / "docs" / "training_data.json").read_text())
    inference, metadata = (bundle / "configs" / f"{name}.json" for name in ("inference", "metadata"))
    weights = [{"path": "models/model.pt", "sha256": "0" * 64}]
    large = {"large_files": [{"path": "models/model.pt", "url": "http://127.0.0.1:9/x", "hash_val": "0" * 64,
                              "hash_type": "sha256"}]}  # fmt: skip
    lists = {part: [{"image": "a.nii.gz", "label": "b.nii.gz", "subject": part}] for part in ("training", "test")}
    lists["validation"] = [{"image": ["a.nii.gz", "b.nii.gz"], "slices": {"axial": [0]}}]
    sidecar = {"GeneratedBy": [{"Name": "medsr_monai"}], "Outputs": [{"Name": "a.nii.gz", "SHA256": "0"}], "Inputs": []}

    def datalist() -> None:
        split_volumes(folder, folder / "datalist.json")

    def described() -> None:
        str(TrainingData.read(folder / "d.json").sentence)

    def stated() -> None:
        stated_files(bundle)
        bundle_record(bundle, None)

    return {
        "inference.json": (inference, json.loads(inference.read_text()), json.dumps, lambda: read_inference(bundle)),
        "metadata.json": (metadata, json.loads(metadata.read_text()) | {"weights": weights}, json.dumps, stated),
        "large_files.yml": (bundle / "large_files.yml", large, yaml.safe_dump, lambda: stated_files(bundle)),
        "datalist": (folder / "datalist.json", lists, json.dumps, datalist),
        "training_data.json": (folder / "d.json", docs, json.dumps, described),
        "sidecar": (folder / "a.json", sidecar, json.dumps, lambda: read_sidecar(folder / "a.nii.gz")),
    }[kind]


def counts(few: int = FEW) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("count", [few, pytest.param(MANY, marks=pytest.mark.slow)])


KINDS = ("inference.json", "metadata.json", "large_files.yml", "datalist", "training_data.json", "sidecar")


@pytest.mark.parametrize("kind", KINDS)
@counts()
def test_a_damaged_document_is_one_line(tmp_path, kind, count):
    path, content, dump, read = documents(tmp_path, kind)
    path.write_text(dump(content))
    assert not told(read)  # what is changed is right before
    rng, refused = random.Random(0), 0
    for _ in range(count):
        path.write_bytes(text_of(content, dump, rng))
        refused += told(read)
    assert (refused > count // 10) == (kind != "sidecar")  # what is no sidecar is none


@counts()
def test_a_damaged_table_is_one_line(tmp_path, count):
    table, rng = StatusTable(tmp_path), random.Random(0)
    table.update([{"output": "a.nii.gz", "status": "done", "case": "a"}])
    content = table.path.read_bytes()
    for _ in range(count):
        table.path.write_bytes(broken(content, rng))
        told(lambda: StatusTable(tmp_path))


@counts()
def test_damaged_arguments_of_weights_are_one_line(tmp_path, count):
    """As `load_network` reads them, and as a bundle does."""
    path, rng = tmp_path / "w.pt", random.Random(0)
    bundle = bundle_of(tmp_path)
    save_weights(tiny_network(), path)
    content = torch.load(path, weights_only=True)
    refused = 0
    for number in range(count):
        torch.save({**content, "network": changed(content["network"], rng)}, path)
        read = functools.partial(BundleRunner, str(bundle)) if number % 4 == 0 else load_network
        refused += told(lambda read=read: read(weights=str(path)) if read is not load_network else read(path))
    assert refused > count // 4


@pytest.mark.parametrize("suffix", ["ts", "pt"])
@counts(20)
def test_damaged_networks_are_one_line(tmp_path, suffix, count):
    path, rng, network = tmp_path / f"w.{suffix}", random.Random(0), tiny_network()
    if suffix == "pt":
        content = save_weights(network, path).read_bytes()
    else:
        export_network(network, path, "torchscript")
        content = path.read_bytes()
        script = torch.jit.load(path)
        record = ExportedNetwork(path, trust_code=True).information
    for number in range(count):
        if suffix == "ts" and number % 2:
            script.save(path, _extra_files={TORCHSCRIPT_RECORD: json.dumps(changed(record, rng))})
        else:
            path.write_bytes(broken(content, rng))
        told(lambda: load_network(path) if suffix == "pt" else ExportedNetwork(path, trust_code=True))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@counts()
def test_a_damaged_picture_is_one_line(tmp_path, suffix, count):
    path, rng = tmp_path / f"a.{suffix}", random.Random(0)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, dpi=(72, 72))
    content = path.read_bytes()
    for _ in range(count):
        path.write_bytes(broken(content, rng))
        told(lambda: load_picture(path))


def test_what_is_no_mistake_of_a_user_is_one_line_too():
    line = r"^a.nii: KeyError: 'x': please report it with what --verbose shows$"
    with pytest.raises(MedsrError, match=line), naming("a.nii"):
        raise KeyError("x")
