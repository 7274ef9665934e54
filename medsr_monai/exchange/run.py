"""Networks that `medsr export` wrote as ONNX or TorchScript, run in place of their Python class."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medsr_monai.errors import is_out_of_memory, reason_of

__all__ = ["ONNX_PREFIX", "SUFFIXES", "TORCHSCRIPT_RECORD", "ExportedNetwork", "is_exported"]

SUFFIXES = {"onnx": ".onnx", "torchscript": ".ts"}
"""The suffix of a file's name for each format."""
ONNX_PREFIX = "medsr_monai."
"""Prefix of the names in an ONNX file's metadata_props that record what it is; each value is JSON."""
TORCHSCRIPT_RECORD = "medsr_monai.json"
"""Name of the extra file in a TorchScript archive that records the same."""
MOST_CHANNELS = 4096
"""Length of the longest vector that a network is told; ours have at most a few numbers."""


def is_exported(path: str | os.PathLike) -> bool:
    """Return whether a file's name is that of an exported network."""
    return Path(path).suffix in SUFFIXES.values()


class ExportedNetwork(nn.Module):
    """A network in an ONNX or TorchScript file: [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns].

    One that is told the point spread of its input takes it as a second input, as the original does.

    Nothing of medsr_monai.networks is needed. ONNX is data; it is run by onnxruntime on the CPU, in the precision of
    its export and on as many threads as torch uses. TorchScript is code, which can read and write files, so it is
    loaded only where the caller trusts it. It runs on the device of its input and under autocast if that is on.

    Attributes:
        information: what the file says of itself, as `medsr export` recorded it: bundle, version, network,
            weights_sha256, training_data and so on. These are claims, which anyone can write. It is empty for files
            without a record.
        exchange_format: onnx or torchscript.
        psf_channels: length of the vector that tells the point spread; 0 for a network that is not told.
        scale_factors: factors (rows, columns) by which the output is larger; None if neither `scale` nor the file tells
            them.

    Args:
        path: the .onnx or .ts file.
        scale: the scale that the network must have; None takes any.
        trust_code: whether a TorchScript file may be loaded, which runs its code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the suffix is another, the file holds no such network, its record is damaged, its scale is another,
            or it is TorchScript that is not trusted.
        ImportError: onnxruntime is not installed.
    """

    def __init__(
        self, path: str | os.PathLike, scale: int | Sequence[int] | None = None, trust_code: bool = False
    ) -> None:
        super().__init__()
        self.path = Path(path)
        if not is_exported(path):
            raise ValueError(
                f"{path}: expected an exported network, a name that ends in {' or '.join(SUFFIXES.values())}"
            )
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such exported network, write one with `medsr export`")
        self.exchange_format = next(name for name, suffix in SUFFIXES.items() if suffix == self.path.suffix)
        self.script: nn.Module | None = None
        self.session: Any = None
        if self.path.suffix == SUFFIXES["onnx"]:
            self.session, self.information = _open_onnx(self.path)
            self.channels = _checked_channels(self.path, self.session)
        else:
            if str(trust_code).lower() != "true":  # MONAI's command line gives words
                raise ValueError(
                    f"{path}: TorchScript is code, which can do what you can: use ONNX, or if you trust its maker add "
                    "--trust-code (monai.bundle: --trust_code true)"
                )
            self.script, self.information = _open_torchscript(self.path)
            self.channels = self.information.get("in_channels")
        self.psf_channels, self.scale_factors = _recorded(self.path, self.information)
        if scale is not None:
            factors = (scale, scale) if isinstance(scale, int) else tuple(scale)
            if self.scale_factors not in (None, factors):
                raise ValueError(
                    f"{path}: a network of scale {list(self.scale_factors)}, expected {list(factors)}: export the "
                    "bundle that is run, or set its scale"
                )
            self.scale_factors = factors

    def forward(self, x: Tensor, psf: Tensor | None = None) -> Tensor:
        """Super-resolve [B, in_channels, H, W].

        Args:
            x: images.
            psf: [B, psf_channels] or [1, psf_channels], for a network that is told; None if it is unknown.

        Raises:
            ValueError: the images have other channels, or the result is not of the size that the scale says.
        """
        if isinstance(self.channels, int) and x.shape[1] != self.channels:
            raise ValueError(f"{self.path}: takes images of {self.channels} channels, got {x.shape[1]}")
        inputs = [x]
        if self.psf_channels:
            psf = x.new_zeros(1, self.psf_channels) if psf is None else psf
            inputs.append(psf.to(x).expand(len(x), -1))
        try:
            y = self._run(inputs) if self.script is None else self.script(*inputs)
        except Exception as error:  # both runtimes raise many kinds
            if is_out_of_memory(error):
                raise
            raise ValueError(f"{self.path}: fails at images of {list(x.shape)}: {reason_of(error)[-200:]}") from error
        if not isinstance(y, Tensor) or y.ndim != 4 or len(y) != len(x):
            raise ValueError(f"{self.path}: does not make images [B, C, H, W] of images: no network of ours")
        if self.scale_factors is not None:
            expected = [size * factor for size, factor in zip(x.shape[2:], self.scale_factors, strict=True)]
            if list(y.shape[2:]) != expected:
                raise ValueError(
                    f"{self.path}: made {list(y.shape[2:])} pixels of {list(x.shape[2:])}, expected {expected}: the "
                    "network's scale is another"
                )
        return y

    def _run(self, inputs: Sequence[Tensor]) -> Tensor:
        arrays = (x.detach().to("cpu", torch.float32).contiguous().numpy() for x in inputs)
        names = (one.name for one in self.session.get_inputs())
        (pred,) = self.session.run(None, dict(zip(names, arrays, strict=True)))
        return torch.from_numpy(pred).to(inputs[0].device)


def _open_onnx(path: Path) -> tuple[Any, dict[str, Any]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"{path}: needs onnxruntime: pip install 'medsr_monai[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only; it warns of every node of float16 that a CPU computes in float32
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common class for what it raises
        raise ValueError(f"{path}: not a model that onnxruntime reads, or a damaged one") from error
    properties = session.get_modelmeta().custom_metadata_map.items()
    with _as_json(path):
        return session, {
            name.removeprefix(ONNX_PREFIX): json.loads(value)
            for name, value in properties
            if name.startswith(ONNX_PREFIX)
        }


def _checked_channels(path: Path, session: Any) -> int | str | None:
    """Channels that an ONNX file takes, its sizes checked before memory is taken for any."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shapes = [tensor.shape for tensor in (*inputs, *outputs)]
    if not inputs or len(inputs) > 2 or len(outputs) != 1 or [len(shapes[0]), len(shapes[-1])] != [4, 4]:
        raise ValueError(f"{path}: tensors of shapes {str(shapes)[:200]}, expected images [B, C, H, W] to images")
    if any(isinstance(size, int) and size > MOST_CHANNELS for shape in shapes for size in shape):
        raise ValueError(f"{path}: tensors of shapes {str(shapes)[:200]}, expected sides of {MOST_CHANNELS} at most")
    return shapes[0][1]


def _open_torchscript(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    extra = {TORCHSCRIPT_RECORD: ""}
    try:
        script = torch.jit.load(path, map_location="cpu", _extra_files=extra).eval()
    except Exception as error:  # zip, pickle and torch raise many kinds
        raise ValueError(f"{path}: not a TorchScript archive, or a damaged one") from error
    with _as_json(path):
        return script, dict(json.loads(extra[TORCHSCRIPT_RECORD] or "{}"))


def _recorded(path: Path, information: dict[str, Any]) -> tuple[int, tuple[int, int] | None]:
    """Length of the vector that a network is told, and its scale, by what its file says of itself."""
    with _as_json(path):
        psf_channels, scale = information.get("network", {}).get("psf_channels", 0), information.get("scale")
        if not (isinstance(psf_channels, int) and 0 <= psf_channels <= MOST_CHANNELS):
            raise ValueError(f"psf_channels is {psf_channels!r}")
        if scale is not None and not (len(scale) == 2 and all(isinstance(n, int) and n > 0 for n in scale)):
            raise ValueError(f"scale is {scale!r}")
        return psf_channels, None if scale is None else tuple(scale)


@contextlib.contextmanager
def _as_json(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file's record becomes one line."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: its record is damaged ({reason_of(error)}): export the network again") from error
