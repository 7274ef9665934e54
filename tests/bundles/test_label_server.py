"""Bundles as MONAI Label 0.8.5 and `monai.bundle run` use them: what they are asked for, and what they are given."""

import json
import logging
import os

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import BUNDLES, TINY, interpolating_bundle, tiny_bundle
from made_volumes import save_study
from monai.bundle import ConfigParser, ConfigWorkflow

from medsr_monai.data import LoadVolumed, find_volumes, list_volumes, one_series, split_volumes
from medsr_monai.data.write import SaveVolumed

SERVED = sorted(p.name for p in BUNDLES.iterdir() if p.is_dir() and p.name != "transmrsr_prior")


def save(path, shape=(20, 24, 5), edges=(1, 1, 4), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).random(shape, dtype=np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([*edges, 1])), path)
    return path


class Server:
    """A bundle's inference as MONAI Label's `BundleInferTask` does it, by its own account of what it does."""

    def __init__(self, bundle):
        self.parser = ConfigParser()
        self.parser.read_config(bundle / "configs" / "inference.json")
        self.parser.config["bundle_root"] = str(bundle)
        self.displayed = self.parser.get_parsed_content("displayable_configs")

    def __call__(self, image, **request):
        path = str(image) if os.path.exists(image) else ""  # so its datastore knows nothing of an unknown id
        data = {"device": ["cpu"], **self.displayed, "model": "a", "image": path, "description": "b", **request}
        data |= {"image_path": path, "device": "cpu"}
        self.parser["displayable_configs"].update({name: data[name] for name in self.displayed})
        self.parser.parse()
        for transform in self.parser.get_parsed_content("preprocessing").transforms:
            data = transform(data)
        with torch.no_grad():
            network = self.parser.get_parsed_content("network_def")
            data["pred"] = self.parser.get_parsed_content("inferer")(data["image"][None], network)[0]
        return data["pred"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    bundle = tiny_bundle(tmp_path_factory.mktemp("served") / "tiny")
    (bundle / "models" / "other.pt").write_bytes((bundle / "models" / "model.pt").read_bytes())
    return Server(bundle)


def message(call):
    """The one line that a refusal says."""
    with pytest.raises((ValueError, OSError, RuntimeError)) as caught:
        call()
    error = caught.value
    while error.__cause__ is not None and isinstance(error, RuntimeError):
        error = error.__cause__
    assert "\n" not in str(error)
    return str(error)


# what no one has named


@pytest.mark.parametrize("image", ["", "an-unknown-id"])
def test_an_image_that_is_not_named_is_not_the_working_folder(server, tmp_path, monkeypatch, image):
    save_study(tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    assert LoadVolumed("image").load(".").shape == (1, 8, 6, 4), "the series that would be answered"
    assert "the path of the image is empty" in message(lambda: server(image))


def test_empty_paths_are_refused_by_all_that_read_and_write(tmp_path, monkeypatch):
    save_study(tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    for read in (list_volumes, find_volumes, split_volumes, one_series, LoadVolumed("image").load):
        assert "is empty" in message(lambda read=read: read("")), read
    assert "is empty" in message(lambda: LoadVolumed("image").load(["", "0.dcm"]))
    assert "None in place of an image" in message(lambda: LoadVolumed("image").load(None))
    assert "output_dir is empty" in message(lambda: SaveVolumed("pred", ""))
    for item in ({"image": ""}, {"image": ["", "a.nii.gz"]}, {"image": "a.nii.gz", "label": ""}):
        (tmp_path / "list.json").write_text(json.dumps({"training": [item], "validation": [{"image": "b.nii.gz"}]}))
        line = message(lambda: split_volumes(tmp_path, tmp_path / "list.json"))
        assert "item 1 of training" in line and "expected the name of a file" in line


def inference(bundle, **options):
    options = {"device": "$torch.device('cpu')", "bundle_root": str(bundle)} | options
    flow = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"), workflow_type="infer", logging_file=False, **options
    )
    flow.initialize()
    return flow


def test_bundle_run_refuses_an_empty_folder(tmp_path, monkeypatch):
    bundle = tiny_bundle(tmp_path / "tiny")
    save_study(tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    for options in ({"dataset_dir": "", "output_dir": str(tmp_path / "out")}, {"dataset_dir": ".", "output_dir": ""}):
        assert "is empty" in message(lambda options=options: inference(bundle, **options).run())
    assert not (tmp_path / "out").exists() and len(list((tmp_path / "study").iterdir())) == 4


# one bad volume


def test_bundle_run_goes_on_after_bad_volumes_and_names_them(tmp_path, caplog):
    """One is isotropic, which the bundle for thick slices refuses, and one is damaged."""
    bundle = interpolating_bundle(tmp_path / "thick", "rdst_e_thick")
    for name, edges in (("a", (1, 1, 4)), ("b", (1, 1, 1)), ("d", (1, 1, 4))):
        save(tmp_path / "in" / f"{name}.nii.gz", edges=edges)
    (tmp_path / "in" / "c.nii.gz").write_bytes(b"no volume")
    line = message(lambda: inference(bundle, dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out")).run())
    assert "2 of 4 volumes failed: " in line
    assert "b.nii.gz: voxels of 1x1x1 mm" in line and "c.nii.gz: cannot be read as a volume" in line
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_sr.nii.gz", "d_sr.nii.gz"]
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert sum("failed, the others go on" in one for one in told) == 2


def test_bundle_run_of_one_volume_tells_its_own_error(tmp_path):
    bundle = interpolating_bundle(tmp_path / "thick", "rdst_e_thick")
    save(tmp_path / "in" / "b.nii.gz", edges=(1, 1, 1))
    line = message(lambda: inference(bundle, dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out")).run())
    assert "volumes failed" not in line and "mm" in line and not (tmp_path / "out").exists()


# parameters of requests


def test_a_request_chooses_the_plane(server, tmp_path):
    image = save(tmp_path / "a.nii.gz")
    assert server(image).shape == (1, 80, 96, 5)
    assert server(image, plane="coronal").shape == (1, 80, 24, 20)
    assert server(image).shape == (1, 80, 96, 5), "the next request has its own"
    assert "plane is 'sideways'" in message(lambda: server(image, plane="sideways"))


@pytest.mark.parametrize("name", SERVED)
def test_what_a_bundle_obeys_is_what_it_lists(name):
    config = json.loads((BUNDLES / name / "configs" / "inference.json").read_text())
    asked = {key for key in config if config[key] == f"@displayable_configs#{key}"}
    assert asked | {"model_filename"} == config["displayable_configs"].keys() and len(asked) >= 2
    assert config["preprocessing"]["obeyed"] == "@displayable_configs"
    assert config["preprocessing"]["models"] == "@ckpt_dir"


@pytest.mark.parametrize("parameter", ["scale", "frame", "sw_batch_size", "precision", "plain", "overwrite"])
def test_a_parameter_that_is_not_obeyed_is_refused_by_name(server, tmp_path, parameter):
    image = save(tmp_path / "a.nii.gz")
    line = message(lambda: server(image, **{parameter: 2}))
    assert (
        f"{image}: the request's {parameter} would not be obeyed" in line and "intensity, model_filename, plane" in line
    )


def test_what_monai_label_and_its_clients_send_passes(server, tmp_path):
    image = save(tmp_path / "a.nii.gz")
    sent = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "a", "label_info": [], "frame": None}
    sent |= {"_id": 0, "_image_id": "a", "save_label": True, "label_tag": "original", "multi_gpu": False}
    assert server(image, logging="INFO", **sent).shape == (1, 80, 96, 5)


def test_weights_that_are_not_there_are_refused_by_name(server, tmp_path):
    image = save(tmp_path / "a.nii.gz")
    for name in ("other.pt", ["other.pt"], "model.pt"):
        assert server(image, model_filename=name).shape == (1, 80, 96, 5)
    for name in ("absent.pt", "../models/model.pt", ["absent.pt"], "model.ts"):
        line = message(lambda name=name: server(image, model_filename=name))
        assert f"no weights {name[0] if isinstance(name, list) else name!r}".replace("'", "") in line.replace("'", "")
        assert "choose model.pt, other.pt" in line


def test_items_that_are_no_requests_may_hold_anything(tmp_path):
    bundle = tiny_bundle(tmp_path / "tiny")
    image = save(tmp_path / "a.nii.gz")
    read = inference(bundle, dataset_dir=str(image.parent)).parser.get_parsed_content("preprocessing")
    assert read({"image": str(image), "scale": 2, "model": "Skyra"})["image"].shape == (1, 20, 24, 5)


# trainings that MONAI Label starts


def training(tmp_path, monkeypatch, name="rdst_e", train=(), validate=(), **options):
    """With the lists that MONAI Label takes of the images with final labels."""
    monkeypatch.setenv("MONAI_LABEL_STUDIES", str(tmp_path / "studies"))
    bundle, out = BUNDLES / name, tmp_path / "out"
    options = {f"network_def#{key}": value for key, value in TINY.items() if name == "rdst_e"} | options
    options |= {"train#trainer#max_epochs": 1, "train#dataset#data": list(train), "bundle_root": str(out)}
    options |= {"validate#dataset#data": list(validate), "device": "$torch.device('cpu')", "dataset_dir": str(out)}
    flow = ConfigWorkflow(
        str(bundle / "configs" / "train.json"), workflow_type="train", logging_file=False, batch_size=2, **options
    )
    flow.initialize()
    return flow


def test_images_without_labels_train(tmp_path, monkeypatch, caplog):
    for number in range(3):
        save(tmp_path / "studies" / f"case{number}.nii.gz", (40, 40, 3), seed=number)
    save(tmp_path / "studies" / "labels" / "original" / "case0.nii.gz", (160, 160, 3))  # of an earlier inference
    flow = training(tmp_path, monkeypatch, patch_size=32)
    parts = {part: flow.parser.get_parsed_content(f"{part}#dataset").data for part in ("train", "validate")}
    named = {part: sorted(os.path.basename(item["image"]) for item in items) for part, items in parts.items()}
    assert (len(named["train"]), len(named["validate"])) == (2, 1)
    assert sorted(named["train"] + named["validate"]) == ["case0.nii.gz", "case1.nii.gz", "case2.nii.gz"]
    assert "no image with a final label: all 3 volumes train and validate" in caplog.text
    flow.run()
    record = json.loads((tmp_path / "out" / "models" / "model.pt.json").read_text())
    assert sorted(part for one in record["Inputs"] for part in one["Lists"]) == ["training", "training", "validation"]


def test_trainings_without_what_they_need_say_what_was_found_and_what_is_needed(tmp_path, monkeypatch):
    def refused(*words, **lists):
        line = message(lambda: training(tmp_path, monkeypatch, **lists).run())
        assert all(word in line for word in words), line
        assert "patch_size" not in line and not (tmp_path / "out").exists()

    refused("no image with a final label for", "no folder", "submit labels")
    (tmp_path / "studies").mkdir()
    refused(str(tmp_path / "studies"), "no volume")
    one = {"image": str(save(tmp_path / "studies" / "case0.nii.gz", (100, 100, 3)))}
    refused("volumes of one subject only (case0)", "at least two")
    refused("no volume for validation, all 1 are for the other", "val_split", train=[one])
    save(tmp_path / "studies" / "case1.nii.gz", (40, 40, 3))
    refused("(2 images there): segmentation learns from label maps", name="seg_unet")
    monkeypatch.delenv("MONAI_LABEL_STUDIES")
    monkeypatch.setattr(monkeypatch, "setenv", lambda *_: None)
    refused("no volume for", "its data list is empty")
