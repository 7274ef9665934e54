import copy
import inspect
import json

import pytest
import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader, CheckpointSaver

from medsr_monai.networks import RDST, Bicubic, NetworkArguments, records_arguments

SMALL = dict(embed_dim=12, growth_rate=6, num_heads=3, window_size=4, num_blocks=1, num_dense_blocks=1)


def test_arguments_are_plain_and_complete(tmp_path):
    network = RDST(scale=(1, 4), **SMALL)
    assert network.arguments == {
        "_target_": "medsr_monai.networks.RDST",
        "in_channels": 1,
        "out_channels": 1,
        "scale": [1, 4],
        **SMALL,
        "shift_size": 2,  # chosen by the network
        "mlp_ratio": 2.0,
        "layers_per_block": 2,
        "global_feature_fusion": False,
        "bicubic_residual": False,
        "psf_channels": 0,
    }
    torch.save(network.arguments, tmp_path / "arguments.pt")
    assert torch.load(tmp_path / "arguments.pt", weights_only=True) == network.arguments
    assert json.loads(json.dumps(network.arguments)) == network.arguments
    assert copy.deepcopy(network).arguments == network.arguments


def test_signature_stays_visible():
    assert list(inspect.signature(Bicubic).parameters) == ["in_channels", "out_channels", "scale"]
    assert inspect.signature(RDST).parameters["embed_dim"].default == 60


def test_values_that_a_config_cannot_hold_are_refused():
    @records_arguments
    class Odd(torch.nn.Module):
        def __init__(self, act):
            super().__init__()

    with pytest.raises(TypeError, match="act is a ReLU: expected an int"):
        Odd(torch.nn.ReLU())


def save(network, folder):
    engine = Engine(lambda *_: None)
    entries = {"network": NetworkArguments(network), "model": network}
    CheckpointSaver(str(folder), entries, save_final=True, final_filename="model.pt").attach(engine)
    engine.run([0], max_epochs=1)
    return folder / "model.pt"


def load(network, path):
    engine = Engine(lambda *_: None)
    CheckpointLoader(str(path), {"network": NetworkArguments(network), "model": network}).attach(engine)
    engine.run([0], max_epochs=1)


def test_checkpoint_round_trip(tmp_path):
    network, other = RDST(scale=2, **SMALL), RDST(scale=[2, 2], shift_size=2, **SMALL)
    load(other, save(network, tmp_path))
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_other_network_is_refused_in_one_line(tmp_path):
    path = save(RDST(scale=2, **SMALL), tmp_path)
    with pytest.raises(ValueError) as error:
        load(RDST(scale=4, shift_size=0, **SMALL), path)
    message = str(error.value)
    assert (
        "scale is 2 in the weights and 4 in network_def; shift_size is 2 in the weights and 0 in network_def" in message
    )
    assert "embed_dim" not in message and "\n" not in message
    with pytest.raises(ValueError, match=r"_target_ is 'medsr_monai.networks.RDST' in the weights and .*Bicubic"):
        NetworkArguments(Bicubic()).load_state_dict(NetworkArguments(RDST(**SMALL)).state_dict())


def test_older_weights_have_the_defaults():
    network = RDST(**SMALL)
    old = NetworkArguments(network).state_dict()
    del old["bicubic_residual"], old["shift_size"]
    state = torch.random.get_rng_state()
    NetworkArguments(network).load_state_dict(old)
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(ValueError, match="bicubic_residual is False in the weights and True in network_def"):
        NetworkArguments(RDST(bicubic_residual=True, **SMALL)).load_state_dict(old)
    with pytest.raises(ValueError, match="shift_size is 2 in the weights and 1 in network_def"):
        NetworkArguments(RDST(shift_size=1, **SMALL)).load_state_dict(old)


def test_newer_weights_name_an_unknown_argument():
    network = RDST(**SMALL)
    with pytest.raises(ValueError, match="gates is 3 in the weights and 'absent' in network_def"):
        NetworkArguments(network).load_state_dict({**network.arguments, "gates": 3})


def test_wrappers_are_looked_through():
    network = Bicubic(scale=2)
    assert NetworkArguments(torch.nn.DataParallel(network)).state_dict() == network.arguments
    assert NetworkArguments(torch.compile(network)).state_dict() == network.arguments
    with pytest.raises(TypeError, match="Conv2d records no arguments"):
        NetworkArguments(torch.nn.Conv2d(1, 1, 1))


def test_state_dict_is_a_copy():
    network = RDST(scale=[1, 2], **SMALL)
    NetworkArguments(network).state_dict()["scale"].append(3)
    assert network.arguments["scale"] == [1, 2]
