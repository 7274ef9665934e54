"""`medsr convert` as a user types it."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import torch
from bundle_copies import copy_bundle
from typed_commands import make_volume, official_checkpoint, refused


def test_converted_weights_load_in_a_bundle(medsr, tmp_path):
    official_checkpoint(tmp_path / "official.pt")
    code, out, err = medsr("convert", "official.pt", "bundle/models/model.pt", "--family", "rdst")
    assert (code, err) == (0, "") and "'embed_dim': " in out
    arguments = torch.load("bundle/models/model.pt", weights_only=True)["network"]
    shutil.move("bundle/models/model.pt", "model.pt")
    shutil.rmtree("bundle")
    copy_bundle(tmp_path / "bundle", **{k: v for k, v in arguments.items() if k != "scale"})
    make_volume(tmp_path / "in.nii.gz", shape=(8, 9, 2))
    options = ("--bundle", "bundle", "--nopicture", "--weights", "model.pt")
    assert medsr("upscale", "in.nii.gz", "out.nii.gz", *options)[0] == 0
    assert nib.load("out.nii.gz").shape == (32, 36, 2)


def test_convert_refuses_in_one_line(medsr, tmp_path):
    official_checkpoint(tmp_path / "official.pt")
    Path("text.pt").write_text("no weights")
    torch.save([1], "list.pt")
    Path("old.pt").write_text("mine")
    refused(
        medsr("convert", "official.pt", "out.pt", "--family", "rdts"), r"family is 'rdts': expected one of \[.*'rdst'"
    )
    refused(medsr("convert", "text.pt", "out.pt"), "text.pt: not a PyTorch weights file")
    refused(medsr("convert", "list.pt", "out.pt"), "list.pt: holds a list")
    refused(medsr("convert", "missing.pt", "out.pt"), "missing.pt: no such file")
    refused(medsr("convert", "official.pt", "old.pt"), "old.pt: exists.*--overwrite")
    refused(medsr("convert", "official.pt", "official.pt", "--overwrite"), "is the input")
    assert Path("old.pt").read_text() == "mine" and not Path("out.pt").exists()
