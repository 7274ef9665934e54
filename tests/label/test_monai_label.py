"""A real MONAI Label server with the bundles copied into its stock app, driven over HTTP as a client would.

It runs where MEDSR_LABEL_PYTHON names the Python of an environment made by make_environment.sh:
MEDSR_LABEL_PYTHON=label_env/bin/python pytest -m label -rP tests/label
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Resize
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medsr_monai.networks import NetworkArguments

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("MEDSR_LABEL_PYTHON")


def takes_an_image(bundle):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    return next(iter(metadata["network_data_format"]["inputs"])) == "image"


BUNDLES = [p.parents[1] for p in sorted(ROOT.glob("bundles/*/configs/metadata.json")) if takes_an_image(p.parents[1])]
NAMES = [bundle.name for bundle in BUNDLES]
each_bundle = pytest.mark.parametrize("name", NAMES)
served = [
    pytest.mark.label,
    pytest.mark.skipif(PYTHON is None, reason="MEDSR_LABEL_PYTHON names no environment of make_environment.sh"),
]
JSON = {"Content-Type": "application/json"}
NIFTI = {"result_extension": ".nii.gz"}


def recipe(name):
    """The card's blocks about MONAI Label: starting a server, inference, training; each a list of lines."""
    text = (ROOT / "bundles" / name / "docs" / "README.md").read_text()
    section = text.split("### MONAI Label\n")[1].split("\n## ")[0]
    return [block.splitlines() for block in re.findall(r"```bash\n(.*?)```", section, re.S)]


@each_bundle
def test_the_cards_have_one_recipe(name):
    model = recipe("rdst_e")
    assert [len(block) for block in model] == [6, 4, 3]
    assert recipe(name) == [[line.replace("rdst_e", name) for line in block] for block in model]
    assert "Slicer" in (ROOT / "bundles" / name / "docs" / "README.md").read_text()


# data


def corners(affine, shape):
    """Outer corners in mm [8, 3], in no order that matters."""
    ends = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    return ends @ affine[:3, :3].T + affine[:3, 3]


def corners_apart(image, other):
    """Largest distance in mm between a corner and the nearest one of the other volume."""
    a, b = (corners(i.affine, i.shape[:3]) for i in (image, other))
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return max(distances.min(0).max(), distances.min(1).max())


def save_volume(path, shape, seed):
    """Smooth, int16, oblique, left-handed, slices four times as thick as the pixels."""
    smooth = Resize(shape, mode="trilinear")(np.random.default_rng(seed).random((1, 8, 8, 3)))[0].numpy()
    angle = np.radians(12)
    affine = np.eye(4)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = rotation @ np.diag([-1.0, 1.1, 4.0])
    affine[:3, 3] = (20, -30, 5)
    nib.save(nib.Nifti1Image((300 + 900 * smooth).astype(np.int16), affine), path)
    return path


def save_dicom(folder, volume):
    """The volume as a plain MR series."""
    folder.mkdir()
    image = nib.load(volume)
    affine = np.diag([-1, -1, 1, 1]) @ image.affine  # DICOM's axes
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    uids = {key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    for number in range(image.shape[2]):
        item = pydicom.Dataset()
        item.file_meta = pydicom.dataset.FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = MRImageStorage
        item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        for key, uid in uids.items():
            setattr(item, key, uid)
        item.Modality, item.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M"]
        item.InstanceNumber, item.SeriesNumber = number + 1, 1
        item.Columns, item.Rows = image.shape[:2]
        item.PixelSpacing = [f"{edges[1]:.10g}", f"{edges[0]:.10g}"]
        item.SliceThickness = f"{edges[2]:.10g}"
        item.ImageOrientationPatient = [f"{v:.12g}" for axis in (0, 1) for v in affine[:3, axis] / edges[axis]]
        item.ImagePositionPatient = [f"{v:.12g}" for v in affine[:3, 3] + number * affine[:3, 2]]
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated = item.BitsStored = 16
        item.HighBit, item.PixelRepresentation = 15, 1
        item.PixelData = np.asarray(image.dataobj)[:, :, number].T.astype("<i2").tobytes()
        item.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def give_weights(bundle):
    """Random weights for a bundle that ships none."""
    torch.manual_seed(0)
    network = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text())).get_parsed_content(
        "network_def"
    )
    if getattr(network, "centroids", None) is not None:
        network.load_centroids(torch.randn(network.centroids.shape))
    (bundle / "models").mkdir()
    content = {"network": NetworkArguments(network).state_dict(), "model": network.state_dict()}
    torch.save(content, bundle / "models" / "model.pt")


# the server, its clients, and what they are compared with


def environment(folder):
    """Like an activated environment, without a GPU, and with nothing written outside of the folder."""
    bin_folder = Path(PYTHON).absolute().parent
    cache = {"HOME": folder, "MONAI_LABEL_SESSION_PATH": folder / "sessions", "XDG_CACHE_HOME": folder / "cache"}
    return os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        **{key: str(value) for key, value in cache.items()},
    }


class Client:
    """Requests to a server; every answer is noted down."""

    def __init__(self, port):
        self.root = f"http://127.0.0.1:{port}"

    def __call__(self, method, path, body=None, headers=None, timeout=1200):
        request = urllib.request.Request(self.root + path, data=body, headers=headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        if not path.startswith("/train/?"):
            print(f"{method} {path}: {status}, {len(content)} bytes")
        return status, content

    def form(self, method, path, files=None, **fields):
        """A multipart form."""
        boundary = uuid.uuid4().hex
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
            for key, value in fields.items()
        ]
        for key, file in (files or {}).items():
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"; filename="{file.name}"\r\n\r\n'
            parts.append(head.encode() + file.read_bytes() + b"\r\n")
        body = b"".join(parts) + f"--{boundary}--\r\n".encode()
        return self(method, path, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})

    def infer(self, name, query, files=None, path="answer.nii.gz", **params):
        """The volume that the server answers with."""
        status, content = self.form(
            "POST", f"/infer/{name}?output=image&{query}", files=files, params=json.dumps(params)
        )
        assert status == 200, content
        Path(path).write_bytes(content)
        return nib.load(path)

    def train(self, name, **params):
        """Train in the server's background process until it ends: its status and its last lines."""
        status, content = self("POST", f"/train/{name}", json.dumps(params).encode(), JSON)
        assert status == 200, content
        while True:
            task = json.loads(self("GET", "/train/?all=false")[1])
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return task["status"], "\n".join(task.get("details", []))
            time.sleep(1)


@contextlib.contextmanager
def running_server(folder, models):
    """The card's last line, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = recipe("rdst_e")[0][-1].replace("path/to/volumes", "studies").replace("8000", str(port))
    line = line.replace("--conf models rdst_e", f"--conf models {','.join(models)}")
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {line}"], cwd=folder, env=environment(folder), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        client = Client(port)
        for _ in range(600):
            assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
            with contextlib.suppress(OSError):
                client("GET", "/info/")
                break
            time.sleep(0.5)
        yield client
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The stock app with all bundles, fetched by the card's lines, studies, and a DICOM series of one of them."""
    folder = tmp_path_factory.mktemp("label")
    for name in NAMES:
        shutil.copytree(ROOT / "bundles" / name, folder / "bundles" / name)
        if not (folder / "bundles" / name / "models" / "model.pt").is_file():
            give_weights(folder / "bundles" / name)
        lines = recipe(name)[0]
        assert lines[:2] == ["bash tests/label/make_environment.sh label_env", ". label_env/bin/activate"]
        # as the card of seg_unet says: weights are written after a validation, there every 500 steps
        config = folder / "bundles" / name / "configs" / "train.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"val_interval": 1}))
        first = 2 if name == NAMES[0] else 3  # the app is fetched once
        commands = "\n".join(["set -e", *lines[first:-1]])
        subprocess.run(["bash", "-c", commands], cwd=folder, env=environment(folder), check=True, capture_output=True)
    (folder / "studies").mkdir()
    (folder / "inputs").mkdir()
    case = save_volume(folder / "inputs" / "case1.nii.gz", (20, 24, 3), seed=0)
    shutil.copy(case, folder / "studies")
    save_dicom(folder / "dicom", case)
    with zipfile.ZipFile(folder / "study.zip", "w") as archive:
        for file in sorted((folder / "dicom").iterdir()):
            archive.write(file, file.name)
    for number, shape in enumerate([(100, 104, 3), (104, 100, 3), (100, 100, 3)]):
        volume = save_volume(folder / "studies" / f"train{number}.nii.gz", shape, seed=number + 1)
        image = nib.load(volume)
        mask = np.digitize(image.get_fdata(), (600, 750, 900)).astype(np.uint8)
        nib.save(nib.Nifti1Image(mask, image.affine), folder / f"mask{number}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def client(folder):
    with running_server(folder, NAMES) as client:
        for number in range(3):
            path = f"/datastore/label?image=train{number}"
            assert client.form("PUT", path, files={"label": folder / f"mask{number}.nii.gz"})[0] == 200
        yield client


def bundle_run(folder, name, source, output):
    """What `monai.bundle run` makes of a folder, in the server's environment, with the bundle that it serves."""
    bundle = folder / "label_app" / "monaibundle" / "model" / name
    command = (
        f"{PYTHON} -m monai.bundle run --config_file {bundle}/configs/inference.json --bundle_root {bundle}".split()
    )
    command += ["--dataset_dir", str(folder / source), "--output_dir", str(folder / output)]
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (folder / output).glob("*.nii.gz")
    return nib.load(path)


def assert_equal(answer, expected, source, what):
    """Voxels and affine equal, data type too, and the source's corners."""
    difference = np.abs(answer.get_fdata() - expected.get_fdata()).max() if answer.shape == expected.shape else np.inf
    apart = corners_apart(answer, source)
    print(f"  {what}: {answer.shape} {answer.get_data_dtype()}, max difference {difference:g}, corners {apart:.1e} mm")
    assert answer.shape == expected.shape and answer.get_data_dtype() == expected.get_data_dtype()
    assert difference == 0
    np.testing.assert_allclose(answer.affine, expected.affine, atol=1e-4)
    assert apart < 1e-3


@pytest.mark.usefixtures("client")
class TestServer:
    """In this order: inference, what the cards warn of, training, restart."""

    pytestmark = served

    def test_info(self, client):
        status, content = client("GET", "/info/")
        info = json.loads(content)
        print(info["name"], "serves", *info["models"])
        assert status == 200 and info["version"] == "0.8.5"
        assert sorted(info["models"]) == sorted(info["trainers"]) == NAMES
        for name in NAMES:
            metadata = json.loads((ROOT / "bundles" / name / "configs" / "metadata.json").read_text())
            model = info["models"][name]
            assert (model["version"], model["description"]) == (metadata["version"], metadata["description"])
            assert model["config"]["model_filename"] == "model.pt"
            assert (model["labels"] == {}) is (name != "seg_unet"), "else results are taken for label maps"

    @each_bundle
    def test_inference_equals_bundle_run(self, client, folder, name, tmp_path):
        source = nib.load(folder / "inputs" / "case1.nii.gz")
        out = tmp_path / "answer.nii.gz"
        expected = bundle_run(folder, name, "inputs", f"expected/{name}")
        finer = "seg_unet" not in name
        assert (expected.shape > source.shape) is finer
        assert len(np.unique(expected.get_fdata())) > 1, "an empty result would prove nothing"
        answer = client.infer(name, "image=case1", path=out)
        assert_equal(answer, expected, source, "by name")
        answer = client.infer(name, "", {"file": folder / "inputs" / "case1.nii.gz"}, out)
        assert_equal(answer, expected, source, "upload")

        expected = bundle_run(folder, name, "dicom", f"expected_dicom/{name}")
        answer = client.infer(name, f"image={folder}/dicom", path=out, **NIFTI)
        assert_equal(answer, expected, source, "DICOM folder")
        status, content = client.form("PUT", "/session/?uncompress=true", files={"files": folder / "study.zip"})
        assert status == 200, content
        answer = client.infer(name, f"session_id={json.loads(content)['session_id']}", path=out, **NIFTI)
        assert_equal(answer, expected, source, "DICOM zip, uploaded")

    @each_bundle
    def test_batch_inference_equals_bundle_run(self, client, folder, name):
        params = {"multi_gpu": False, "label_tag": name}
        # the larger ones have final labels
        path = f"/batch/infer/{name}?run_sync=true&images=unlabeled"
        status, content = client("POST", path, json.dumps(params).encode(), JSON)
        assert status == 200 and list(json.loads(content)) == ["case1"], content
        answer = nib.load(folder / "studies" / "labels" / name / "case1.nii.gz")
        expected = nib.load(folder / "expected" / name / f"case1_{'seg' if name == 'seg_unet' else 'sr'}.nii.gz")
        assert_equal(answer, expected, nib.load(folder / "inputs" / "case1.nii.gz"), "batch")

    def test_what_the_cards_ask_for_is_needed(self, client, folder):
        """MONAI Label's own failures; should they go, the cards can say less."""
        assert client.form("POST", f"/infer/rdst_e?output=image&image={folder}/dicom")[0] == 500
        path = "/batch/infer/rdst_e?run_sync=true&images=unlabeled"
        assert client("POST", path, b'{"label_tag": "unused"}', JSON)[0] == 500
        reasons, deadline = ("The truth value of an array", "ZeroDivisionError"), time.monotonic() + 60
        while time.monotonic() < deadline:  # they are logged after the answer
            log = (folder / "server.log").read_text()
            if all(reason in log for reason in reasons):
                break
            time.sleep(0.5)
        assert [reason for reason in reasons if reason not in log] == []

    def test_what_would_pass_silently_is_refused(self, client, folder):
        """A server that finds a DICOM series in its own folder, unknown images, parameters that are ignored."""
        shutil.copytree(folder / "dicom", folder, dirs_exist_ok=True)  # its working folder
        for query, params, words in (
            ("image=unknown", {}, "the path of the image is empty"),
            ("image=case1", {"scale": 2}, "the request's scale would not be obeyed"),
            ("image=case1", {"model_filename": "absent.pt"}, "no weights 'absent.pt'"),
        ):
            path = f"/infer/rdst_e?output=image&{query}"
            assert client.form("POST", path, params=json.dumps(params))[0] == 500
            deadline = time.monotonic() + 60
            while words not in (folder / "server.log").read_text() and time.monotonic() < deadline:
                time.sleep(0.5)
            assert words in (folder / "server.log").read_text()
        answers = [
            client.infer("rdst_e", "image=case1", path=folder / "a.nii.gz", plane=p) for p in ("axial", "coronal")
        ]
        assert [one.shape for one in answers] == [(80, 96, 3), (80, 24, 12)]

    def test_a_batch_goes_on_after_a_volume_that_is_refused(self, client, folder):
        """With two workers, as the guide says; with one MONAI Label stops."""
        save_volume(folder / "studies" / "case0.nii.gz", (20, 24, 20), seed=9)
        image = nib.load(folder / "studies" / "case0.nii.gz")
        nib.save(nib.Nifti1Image(image.get_fdata(), np.diag([1, 1, 1, 1])), folder / "studies" / "case0.nii.gz")
        path = "/batch/infer/rdst_e_thick?run_sync=true&images=unlabeled"
        params = {"multi_gpu": False, "label_tag": "mixed", "max_workers": 2}
        for _ in range(20):  # the server sees new files in a while
            status, content = client("POST", path, json.dumps(params).encode(), JSON)
            assert status == 200, content
            if len(json.loads(content)) == 2:
                break
            time.sleep(1)
        answers = json.loads(content)
        assert answers["case0"] == {} and answers["case1"]["params"] is not None
        assert [p.name for p in (folder / "studies" / "labels" / "mixed").iterdir()] == ["case1.nii.gz"]
        assert "have no thick axis" in (folder / "server.log").read_text()
        (folder / "studies" / "case0.nii.gz").unlink()
        time.sleep(2)

    @pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
    def test_the_recipe_as_typed(self, client, folder):
        for name in ("path/to/volumes", "path/to/dicom"):
            shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(folder / "inputs", folder / "path/to/volumes")
        shutil.copytree(folder / "dicom", folder / "path/to/dicom")
        commands = "\n".join(["set -e", *recipe("rdst_e")[1]])
        commands = commands.replace("http://127.0.0.1:8000", client.root)
        # the volumes with labels are too large for a test
        commands = commands.replace("run_sync=true", "run_sync=true&images=unlabeled")
        done = subprocess.run(["bash", "-c", commands], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        source = nib.load(folder / "inputs" / "case1.nii.gz")
        for file, expected in (("case1_out", "expected"), ("upload_out", "expected"), ("dicom_out", "expected_dicom")):
            (path,) = (folder / expected / "rdst_e").glob("*.nii.gz")
            assert_equal(nib.load(folder / f"{file}.nii.gz"), nib.load(path), source, file)

    @each_bundle
    def test_training(self, client, folder, name, tmp_path):
        models = folder / "label_app" / "monaibundle" / "model" / name / "models"
        before = torch.load(models / "model.pt", weights_only=True)
        earlier = client.infer(name, "image=case1", path=tmp_path / "earlier.nii.gz")
        status, details = client.train(name, max_epochs=2, val_split=0.34)
        assert status == "DONE", details
        assert {p.name for p in models.iterdir()} == {
            "model.pt",
            "model.1.pt",
            "last.pt",
            "model.pt.json",
            "last.pt.json",
        }
        print("  trained:", *[line for line in details.splitlines() if "Key metric" in line][-1:])
        kept, after = (torch.load(models / file, weights_only=True) for file in ("model.1.pt", "model.pt"))
        assert kept["network"] == before["network"] and before["network"].items() <= after["network"].items()
        assert all(torch.equal(kept["model"][key], value) for key, value in before["model"].items())
        parameters = [k for k, v in before["model"].items() if v.is_floating_point() and "running_" not in k]
        moved = max((after["model"][k] - before["model"][k]).abs().max().item() for k in parameters)
        print(f"  largest change of a weight {moved:g}")
        assert 0 < moved < 5e-3, "a few steps from the weights that were there"

        source = nib.load(folder / "inputs" / "case1.nii.gz")
        answer = client.infer(name, "image=case1", path=tmp_path / "answer.nii.gz")
        expected = bundle_run(folder, name, "inputs", f"trained/{name}")
        assert_equal(answer, expected, source, "by name, new weights")
        if name != "seg_unet":  # its label map may stay
            assert not np.array_equal(answer.get_fdata(), earlier.get_fdata())

    def test_training_without_labels(self, folder):
        """Of images that nobody has labelled; segmentation says what it needs."""
        bare = folder / "bare"
        shutil.copytree(folder / "label_app", bare / "label_app")
        (bare / "studies").mkdir(parents=True)
        for number in range(3):
            shutil.copy(folder / "studies" / f"train{number}.nii.gz", bare / "studies")
        with running_server(bare, ["rdst_e", "seg_unet"]) as client:
            status, details = client.train("rdst_e", max_epochs=1)
            assert status == "DONE", details
            log = (bare / "server.log").read_text()
            assert "no image with a final label: all 3 volumes train and validate" in log
            status, details = client.train("seg_unet", max_epochs=1)
            assert status == "ERROR", details  # of which MONAI Label keeps the last lines only
            log = (bare / "server.log").read_text()
            assert "(3 images there): segmentation learns from label maps" in log

    def test_a_new_server_uses_the_best_weights(self, client, folder, tmp_path):
        source = nib.load(folder / "inputs" / "case1.nii.gz")
        with running_server(folder, NAMES) as restarted:
            for name in NAMES:
                (path,) = (folder / "trained" / name).glob("*.nii.gz")
                answer = restarted.infer(name, "image=case1", path=tmp_path / "answer.nii.gz")
                assert_equal(answer, nib.load(path), source, f"{name} after a restart")
