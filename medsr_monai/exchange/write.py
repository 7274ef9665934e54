"""Networks written as ONNX or TorchScript for other runtimes, and compared with the original before they are kept."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from medsr_monai.atomic import written_atomically
from medsr_monai.exchange.run import ONNX_PREFIX, SUFFIXES, TORCHSCRIPT_RECORD, ExportedNetwork
from medsr_monai.networks.blocks.deformable import DeformableConv2d, use_grid_sample

__all__ = ["OPSET", "PRECISIONS", "Parity", "check_sizes", "export_network"]

OPSET = 20
"""Version of ONNX's operators: the first with GridSample for images of any rank; onnxruntime reads it since 1.17."""
PRECISIONS = {"float32": 1e-4, "float16": 2e-2}
"""For each precision, by how much an exported network may differ from the original in float32, as a share of the
largest output, or of 1 if that is larger."""


@dataclass(frozen=True)
class Parity:
    """How an exported network compares with the original.

    Attributes:
        difference: largest absolute difference of the outputs over all sizes.
        limit: the allowed difference, as PRECISIONS has it.
        largest: largest absolute output of the original.
        sizes: (batch, height, width) of the random images in [0, 1] on which both were run.
    """

    difference: float
    limit: float
    largest: float
    sizes: tuple[tuple[int, int, int], ...]


class HalfPrecision(nn.Module):
    """A network that takes and gives float32 images and computes in float16."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.half()).float()


class ToldHalfPrecision(HalfPrecision):
    """The same of a network that is told the point spread of its images."""

    def forward(self, x: Tensor, psf: Tensor) -> Tensor:
        return self.network(x.half(), psf.half()).float()


def export_network(
    network: nn.Module,
    path: str | os.PathLike,
    format: str,
    *,
    precision: str = "float32",
    information: Mapping[str, Any] | None = None,
) -> Parity:
    """Write a super-resolution network for any batch, height and width, and compare it with the original.

    Both formats take float32 images [B, in_channels, H, W] and give [B, out_channels, H * rows, W * columns]. Padding,
    tiles and cropping are inside the file, so whoever runs it hands over images as they are. The file holds
    `information` and the network's scale, channels, size multiple and arguments (see
    `medsr_monai.exchange.run.ExportedNetwork`), and no path of this machine. It gets its name when it has passed the
    comparison.

    Deformable convolutions are written by grid_sample, so that neither torchvision nor DeformConv is needed.

    Args:
        network: a network with `arguments`, `scale_factors` and `size_multiple`, as those of medsr_monai.networks have;
            it stays as it is.
        path: the file, whose name ends in .onnx or .ts as the format wants.
        format: "onnx" or "torchscript".
        precision: "float32", or "float16" for weights and all that is computed inside, at half the size.
        information: further entries, which JSON can hold.

    Returns:
        The comparison.

    Raises:
        ImportError: the format is ONNX, and onnx, onnxscript or onnxruntime is not installed.
        ValueError: the format, precision or suffix is unknown, the format cannot hold the network, or the outputs
            differ by more than `PRECISIONS` allows. No file is written then.
    """
    path = Path(path)
    if format not in SUFFIXES:
        raise ValueError(f"format is {format!r}, expected {' or '.join(SUFFIXES)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected {' or '.join(PRECISIONS)}")
    if path.suffix != SUFFIXES[format]:
        raise ValueError(f"{path}: give a name that ends in {SUFFIXES[format]}")
    record = {
        **(information or {}),
        "network": network.arguments,
        "in_channels": network.arguments["in_channels"],
        "out_channels": network.arguments["out_channels"],
        "scale": list(network.scale_factors),
        "size_multiple": network.size_multiple,
        "padding": "inside the network, images of any height and width",
        "precision": precision,
    }
    written = copy.deepcopy(network).cpu().eval()
    if any(isinstance(module, DeformableConv2d) for module in written.modules()):
        use_grid_sample(written)
    if precision == "float16":
        written = (ToldHalfPrecision if _is_told(network) else HalfPrecision)(written)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as partial:
        write = _write_onnx if format == "onnx" else _write_torchscript
        write(written, partial, record)
        exported = ExportedNetwork(partial, record["scale"], trust_code=True)
        parity = _compare(copy.deepcopy(network).cpu().float().eval(), exported, PRECISIONS[precision])
        if not parity.difference <= parity.limit * max(1.0, parity.largest):  # nor NaN
            raise ValueError(
                f"{path}: not written, its output differs from the network's by {parity.difference:.2g}, more than "
                f"{parity.limit:g} of {max(1.0, parity.largest):.2g}: "
                + ("export it as float32" if precision != "float32" else f"use another format than {format}")
            )
    return parity


def check_sizes(size_multiple: int) -> tuple[tuple[int, int, int], ...]:
    """Return (batch, height, width) that show faults of padding, windows and tiles: whole, odd, small and narrow."""
    whole = -(-32 // size_multiple) * size_multiple
    return (1, whole, whole), (2, whole + 5, whole - 3), (3, 5, 7), (1, 2, whole + 1)


def _is_told(network: nn.Module) -> bool:
    """Whether a network is told the point spread of its input."""
    return getattr(network, "psf_channels", 0) > 0


def _compare(network: nn.Module, exported: ExportedNetwork, limit: float) -> Parity:
    channels, sizes = network.arguments["in_channels"], check_sizes(network.size_multiple)
    generator = torch.Generator().manual_seed(0)
    difference = largest = 0.0
    with torch.no_grad():
        for batch, height, width in sizes:
            x = torch.rand(batch, channels, height, width, generator=generator)
            told = [torch.rand(batch, network.psf_channels, generator=generator)] if _is_told(network) else []
            expected = network(x, *told)
            difference = max(difference, float((exported(x, *told) - expected).abs().nan_to_num(torch.inf).max()))
            largest = max(largest, float(expected.abs().max()))
    return Parity(difference, limit, largest, sizes)


def _write_onnx(network: nn.Module, path: Path, record: Mapping[str, Any]) -> None:
    try:
        import onnxruntime  # noqa: F401 (the comparison needs it)
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise ImportError(f"ONNX needs {error.name}: pip install 'medsr_monai[export]'") from error
    batch, height, width = (torch.export.Dim(name, min=least) for name, least in AXES.items())
    # any sizes will do if no axis is as long as another, or 1 long
    whole = -(-32 // record["size_multiple"]) * record["size_multiple"]
    examples = {"image": torch.rand(2, record["in_channels"], whole + 5, 2 * whole - 3)}
    shapes: list[dict[int, Any]] = [{0: batch, 2: height, 3: width}]
    if told := record["network"].get("psf_channels"):
        examples["psf"] = torch.rand(2, told)
        shapes.append({0: batch})
    try:
        with _quiet(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # as products and softmax, which ONNX has
            program = torch.onnx.export(
                network,
                tuple(examples.values()),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=tuple(shapes),
                input_names=list(examples),
                output_names=["pred"],
                verbose=False,
                optimize=False,  # onnxruntime does it when it loads the file, and better; here it takes minutes
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(
            f"{_name(record)} has no ONNX form for images of any size, "
            "see medsr_monai/networks/README.md for those that have"
        ) from error
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with paths of this machine
    model.metadata_props.update({ONNX_PREFIX + name: json.dumps(value) for name, value in record.items()})
    model.producer_name = "medsr_monai"
    program.save(path)


AXES = {"batch": 1, "height": 2, "width": 2}
"""The free axes in ONNX and their least lengths for torch.export, which takes a length of 1 for a constant; the written
model takes 1, too."""


def _write_torchscript(network: nn.Module, path: Path, record: Mapping[str, Any]) -> None:
    archive = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is, but MONAI's bundles still use it
            warnings.simplefilter("ignore", FutureWarning)
            script = torch.jit.script(network)
            torch.jit.save(script, archive, _extra_files={TORCHSCRIPT_RECORD: json.dumps(record)})
    except Exception as error:  # what torch.jit raises has no common class
        raise ValueError(
            f"{_name(record)} has no TorchScript form: it is made of another library's parts, which torch.jit.script "
            "does not compile, see medsr_monai/networks/README.md"
        ) from error
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if not name.endswith(".debug_pkl"):  # these hold the paths of source files on this machine
                target.writestr(name, source.read(name))


def _name(record: Mapping[str, Any]) -> str:
    return record["network"]["_target_"].rpartition(".")[2]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch, onnxscript and onnx_ir from logging their own steps."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
