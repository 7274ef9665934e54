from pathlib import Path

import numpy as np
import pytest
import torch

from medsr_monai.convert import FAMILIES, load_official


@pytest.fixture
def state():
    with np.load(Path(__file__).parents[1] / "golden" / "rdst_x4.npz") as arrays:
        return {name[3:]: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("sd/")}


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "params"])
def test_file_plain_or_wrapped(state, wrapper, tmp_path):
    path = tmp_path / "official.pt"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    network = load_official(path, "rdst")
    assert torch.equal(network.head.weight, state["head.weight"])
    assert not network.training and network.head.weight.dtype == torch.float32


def test_unknown_family_lists_the_known():
    with pytest.raises(ValueError, match=r"family is 'rdts': expected one of .*'rdst'"):
        load_official({}, "rdts")


def test_unknown_tensors_are_named(state):
    state["body.0.gate.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 tensors not known to the table of 'rdst'.*body.0.gate.weight"):
        load_official(state, "rdst")


def test_tensors_without_a_place_are_named(state):
    state["tail.0.7.weight"] = torch.zeros(24 * 4, 24, 3, 3)
    with pytest.raises(ValueError, match=r"without a place.*upsample.7.weight"):
        load_official(state, "rdst")


def test_missing_tensors_are_named(state):
    del state["body.1.conv.bias"]
    with pytest.raises(ValueError, match=r"that the checkpoint lacks.*blocks.1.fusion.bias"):
        load_official(state, "rdst")
    del state["head.weight"]
    with pytest.raises(ValueError, match=r"has no tensor 'head.weight'"):
        load_official(state, "rdst")


def test_every_family_can_say_what_it_lacks():
    for family in FAMILIES:
        with pytest.raises(ValueError, match="has no tensor"):
            load_official({}, family)
