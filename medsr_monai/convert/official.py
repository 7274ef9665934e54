"""Official checkpoints read into the networks of this package, by one table of names for each family."""

from __future__ import annotations

import argparse
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medsr_monai.convert import convnet, edsr, rcan, rdn, rdst, segmentation_unet, styleswin, swinir, transmrsr

WRAPPERS = ("model", "state_dict", "params")
"""Keys under which training scripts put the weights."""


@dataclass(frozen=True)
class Family:
    """How the checkpoints of one method are read.

    Attributes:
        build: makes the network for a checkpoint's tensors. It reads the hyper-parameters off their names and shapes
            and takes as keywords those that no tensor tells; it raises ValueError where a tensor that the table drops
            would change the output.
        table: their name -> our name, or None for what is dropped on purpose; or a function that makes it for a
            checkpoint's tensors. A `*` stands for one part between dots, and the nth `*` on the right for what the nth
            on the left has matched; `**` stands for any parts of a name that is dropped.
        wrappers: further keys than `WRAPPERS` under which the method's training script puts the weights, the
            preferred one first.
    """

    build: Callable[..., nn.Module]
    table: Mapping[str, str | None] | Callable[[Mapping[str, Tensor]], Mapping[str, str | None]]
    wrappers: tuple[str, ...] = ()

    def table_for(self, state: Mapping[str, Tensor]) -> Mapping[str, str | None]:
        """Return the table of names for a checkpoint's tensors."""
        return self.table(state) if callable(self.table) else self.table


FAMILIES: dict[str, Family] = {  # by the name that `medsr convert --family` takes
    "rdst": Family(rdst.build, rdst.table),
    "styleswin": Family(styleswin.build, styleswin.TABLE, styleswin.GENERATOR_WRAPPERS),
    "styleswin_discriminator": Family(
        styleswin.build_discriminator, styleswin.discriminator_table, styleswin.DISCRIMINATOR_WRAPPERS
    ),
    "transmrsr": Family(transmrsr.build, transmrsr.table),
    "segmentation_unet": Family(segmentation_unet.build, segmentation_unet.TABLE),
    "edsr": Family(edsr.build, edsr.TABLE),
    "rdn": Family(rdn.build, rdn.TABLE),
    "rcan": Family(rcan.build, rcan.TABLE),
    "rcan_ada": Family(rcan.build_ada, rcan.ADA_TABLE),
    "han": Family(rcan.build_han, rcan.table_han),
    "convnet": Family(convnet.build, convnet.TABLE),
    "swinir": Family(swinir.build, swinir.TABLE),
}


def load_official(source: str | os.PathLike | Mapping[str, Any], family: str, **arguments: Any) -> nn.Module:
    """Build the network of an official checkpoint and load its weights into it.

    Args:
        source: a file, or what was read from it: the state dict, plain or under "model", "state_dict" or "params", or
            where the method's training script puts it (StyleSwin: "g_ema", "g", "d"). Files are read with
            `weights_only=True`.
        family: a name in `FAMILIES`.
        arguments: what the method's checkpoints do not hold: the keywords of its `build`, and tensors that belong to
            the weights. "transmrsr" takes `centroids` ([centroids, style_dim]; without them nothing is truncated),
            `truncation` ("farthest" as in the authors' code, "nearest" or "none") and `encoder_attention_scale` (1 as
            in the authors' code; None for Swin's); "edsr" takes `negative_slope` and `res_scale` (0 and 0.1 as in the
            large network; 0.2 and 1 for EDSR-lite of the RDST paper), "rdn" takes `negative_slope` (0.2 as there).

    Returns:
        The network in eval mode, float32, on the CPU. Its `.arguments` are the `network_def` for a config.

    Raises:
        ValueError: unknown family or argument; a file that holds no state dict; a tensor of the checkpoint that the
            table does not know, or one of the network that the checkpoint lacks; a dropped tensor that would change the
            output.
        RuntimeError: a tensor's shape contradicts the others'.
    """
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}: expected one of {sorted(FAMILIES)}.")
    if not isinstance(source, Mapping):
        source = _read(source)
    for wrapper in (*FAMILIES[family].wrappers, *WRAPPERS):
        if isinstance(source.get(wrapper), Mapping):
            source = source[wrapper]
    source = {**source, **{name: value for name, value in arguments.items() if isinstance(value, Tensor)}}
    options = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}
    accepted = list(inspect.signature(FAMILIES[family].build).parameters)[1:]  # without the tensors
    if not options.keys() <= set(accepted):
        raise ValueError(f"arguments are {sorted(options)}: {family!r} takes tensors and {accepted or 'nothing else'}.")
    table = FAMILIES[family].table_for(source)
    renamed = {name: _rename(name, table) for name in source}
    _refuse(
        [name for name, ours in renamed.items() if ours == ""],
        f"not known to the table of {family!r}: is this checkpoint of another family, or of a variant?",
    )
    try:
        network = FAMILIES[family].build(source, **options)
    except KeyError as error:
        raise ValueError(
            f"The checkpoint has no tensor {error}, from which {family!r} reads its hyper-parameters: "
            "is it complete, and of this family?"
        ) from None
    weights = {ours: source[name] for name, ours in renamed.items() if ours}
    _refuse(weights.keys() - network.state_dict().keys(), "without a place in the network that the others describe.")
    _refuse(network.state_dict().keys() - weights.keys(), "of the network that the checkpoint lacks: is it complete?")
    network.load_state_dict(weights)
    return network.eval()


def _read(path: str | os.PathLike) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # in which scripts keep their options
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # pickle, zip and torch have no common class
        raise ValueError(f"{path}: not a PyTorch weights file, or a damaged one") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, a state dict is needed")
    return content


def _rename(name: str, table: Mapping[str, str | None]) -> str | None:
    """Look a name up: our name, None where it is dropped, "" where no pattern matches."""
    for theirs, ours in table.items():
        match = re.fullmatch(re.escape(theirs).replace(r"\*\*", ".+").replace(r"\*", r"([^.]+)"), name)
        if match:
            parts = iter(match.groups())
            return ours and re.sub(r"\*", lambda _, parts=parts: next(parts), ours)
    return ""


def _refuse(names: Iterable[str], why: str) -> None:
    names = sorted(names)
    if names:
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        raise ValueError(f"{len(names)} tensors {why} They are: {shown}.")
