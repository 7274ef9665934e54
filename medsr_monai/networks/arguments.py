"""What a network was built with, written beside its weights and checked when they are loaded."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import threading
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=type)


def records_arguments(cls: Network) -> Network:
    """Class decorator: every instance carries in `.arguments` the MONAI config entry that builds it again.

    `.arguments` is `{"_target_": "medsr_monai.networks.<Class>", <argument>: <value>, ...}`, defaults included, of
    plain numbers, strings, bools and lists: `json.dumps` writes it and `torch.load(weights_only=True)` reads it. An
    argument left at None ("choose for me") is recorded as what the network chose, its attribute of that name. Arguments
    named in the class's `unrecorded`, which do not matter to trained weights, are left out.

    Raises:
        TypeError: when an instance is built, an argument is not such a plain value.
    """
    build = cls.__init__
    signature = inspect.signature(build)

    @functools.wraps(build)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        values = dict(list(given.arguments.items())[1:])  # without self
        values = {name: value for name, value in values.items() if name not in getattr(cls, "unrecorded", ())}
        values = {name: getattr(self, name, None) if value is None else value for name, value in values.items()}
        self.arguments = {"_target_": f"medsr_monai.networks.{cls.__name__}"}
        self.arguments.update({name: _plain(name, value) for name, value in values.items()})

    __init__.records_arguments = True
    cls.__init__ = __init__
    return cls


MOST_MODULES = 20_000
"""Modules of the largest network that is built of arguments from a file; ours have some 2,000 at most."""
LARGEST_ARGUMENT = 2**20
"""No argument of a network is a larger number."""


def build_network(arguments: dict[str, Any]) -> nn.Module:
    """Build the network of which `arguments` are the `.arguments`, with random weights.

    Raises:
        ValueError: `_target_` is no network of medsr_monai.networks that records its arguments (nothing else is
            called), it cannot be built with these arguments, or it would be larger than any is.
    """
    cls = type(describe_network(arguments))
    return cls(**{name: value for name, value in arguments.items() if name != "_target_"})


def check_size(arguments: dict[str, Any], state: Mapping[str, Tensor]) -> None:
    """Refuse arguments from a file, by which its network would take more memory than its weights, before it is built.

    Raises:
        ValueError: see :func:`build_network`.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"its weights are a {type(state).__name__}, expected a dictionary of tensors")
    needed, held = (
        sum(math.prod(tensor.shape) for tensor in tensors.values() if isinstance(tensor, Tensor))
        for tensors in (describe_network(arguments).state_dict(), state)
    )
    if needed > 2 * held + 2**22:
        raise ValueError(f"its arguments make a network of {needed} numbers, its weights are {held}")


def describe_network(arguments: dict[str, Any]) -> nn.Module:
    """Build the same without memory, on the device meta; the errors are those of :func:`build_network`."""
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments are {str(arguments)[:80]!r}, expected a dictionary")
    from medsr_monai import networks

    target = arguments.get("_target_")
    package, _, name = str(target).rpartition(".")
    cls = getattr(networks, name, None) if package == "medsr_monai.networks" else None
    if not (isinstance(cls, type) and getattr(cls.__init__, "records_arguments", False)):
        raise ValueError(f"_target_ is {target!r}: expected a network of medsr_monai.networks, such as its RDST.")
    given = {name: value for name, value in arguments.items() if name != "_target_"}
    for name, value in given.items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, (int, float)) and not abs(number) <= LARGEST_ARGUMENT:
                raise ValueError(f"{name} is {number}, expected at most {LARGEST_ARGUMENT}")
    built = 0

    def count(*_: object) -> None:
        nonlocal built
        built += threading.get_ident() == builder
        if built > MOST_MODULES:
            raise ValueError(f"its arguments make a network of more than {MOST_MODULES} layers")

    builder, hook = threading.get_ident(), nn.modules.module.register_module_module_registration_hook(count)
    try:
        try:
            with torch.device("meta"):
                return cls(**given)
        except (NotImplementedError, RuntimeError) as error:  # of a library whose networks compute when they are built
            if "meta" not in str(error):
                raise
            return cls(**given)
    except ImportError:
        raise
    except Exception as error:  # of whatever is computed with the arguments
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    finally:
        hook.remove()


class NetworkArguments:
    """The `.arguments` of a network as an object that MONAI's CheckpointSaver and CheckpointLoader save and check.

    Put it before the weights, as in `save_dict = load_dict = {"network": NetworkArguments(net), "model": net}`. Weights
    of another network are then refused with the arguments that differ, before any tensor is compared.

    Args:
        network: instance of a class decorated with `records_arguments`; DistributedDataParallel, DataParallel and
            torch.compile around it are looked through.

    Raises:
        TypeError: the network records no arguments.
    """

    def __init__(self, network: nn.Module) -> None:
        network = _unwrap(network)
        if not isinstance(getattr(network, "arguments", None), dict):
            raise TypeError(
                f"{type(network).__name__} records no arguments: decorate its class with "
                "medsr_monai.networks.records_arguments, or leave the entry out of the checkpoint."
            )
        self.network = network

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the arguments."""
        return copy.deepcopy(self.network.arguments)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the weights were made by a network with the same arguments; nothing is changed.

        An argument that the weights do not name yet counts as left at its default.

        Raises:
            ValueError: arguments differ; one line names each of them with its two values, and says what to do.
        """
        ours = self.network.arguments
        theirs = dict(state_dict)
        same_class = theirs.get("_target_") == ours["_target_"]
        if same_class and theirs.keys() < ours.keys():
            theirs = describe_network(theirs).arguments
        names = [*ours, *(name for name in theirs if name not in ours)] if same_class else ["_target_"]
        absent = "absent"
        values = [(name, theirs.get(name, absent), ours.get(name, absent)) for name in names]
        differing = [
            f"{name} is {a!r} in the weights and {b!r} in network_def" for name, a, b in values if not _same(a, b)
        ]
        if differing:
            raise ValueError(
                f"The weights belong to another network: {'; '.join(differing)}. "
                "Give network_def the values of the weights, or load weights made with this network_def."
            )


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(name, v) for v in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}: expected an int, float, str, bool or a list of these.")


def _same(a: Any, b: Any) -> bool:
    """Compare two values, where 4 means the same as [4, 4]: one number for every axis."""
    if isinstance(a, list) and not isinstance(b, list):
        return all(v == b for v in a)
    if isinstance(b, list) and not isinstance(a, list):
        return all(v == a for v in b)
    return a == b


def _unwrap(network: nn.Module) -> nn.Module:
    while True:
        if isinstance(network, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            network = network.module
        elif hasattr(network, "_orig_mod"):  # torch.compile
            network = network._orig_mod
        else:
            return network
