"""A 2D network in half precision, or compiled: what an inferer hands its slices to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from medsr_monai.errors import is_out_of_memory

__all__ = ["PRECISIONS", "FastNetwork", "check_compiler", "chosen_precision"]

PRECISIONS = ("float32", "bfloat16", "float16")
GPU_PRECISION = "float16"
"""By default on CUDA: of the two half precisions the one with the smaller error, which upscaling/README.md states."""
SIZES = 64
"""Sizes of slices that one process compiles for; torch's own limit of 8 is soon reached by a folder of volumes."""
COMPILER_ERRORS = ("torch._dynamo", "torch._inductor")


def chosen_precision(precision: str, device: torch.device | str) -> str:
    """The precision that ``auto`` is on a device: float32, on CUDA float16; any other is returned as it is.

    Raises:
        ValueError: unknown precision.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"precision is {precision!r}, expected auto, {', '.join(PRECISIONS)}")
    if precision == "auto":
        return GPU_PRECISION if torch.device(device).type == "cuda" else "float32"
    return precision


class FastNetwork:
    """A network under autocast, compiled if wanted, called with images [B, C, H, W].

    Autocast lowers the precision of convolutions and matrix products, not of normalisation and softmax, and leaves the
    weights as they are. Compiling takes minutes for the first batch of each size of slices in a process, less where an
    earlier process has left torch's cache on disk; so that a last, smaller batch needs no compiling of its own, it is
    filled up with its last image, and the result is cut again. On CUDA the compiled network is replayed as a CUDA
    graph; this is unmeasured, for want of a GPU.

    Args:
        network: [B, C, H, W] to [B, C', H', W']. Of one whose attribute ``exchange_format`` is ``onnx`` the precision
            is its file's, and none with this attribute is compiled.
        precision: float32, bfloat16, float16 or auto, see :func:`chosen_precision`.
        compile: call ``torch.compile``.
        device: of the images.

    Raises:
        ValueError: unknown precision; one or compiling asked of a network that has none to give; by a call or at once,
            no compiler that works.
    """

    def __init__(
        self,
        network: Callable[..., torch.Tensor],
        precision: str = "float32",
        compile: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device_type = torch.device(device).type
        chosen = chosen_precision(precision, device)
        form = getattr(network, "exchange_format", None)
        if form == "onnx" and chosen != "float32":
            if precision != "auto":
                raise ValueError(
                    f"precision is {precision}, but an ONNX file computes in its own: leave --precision out, or write "
                    "the file with `medsr export --precision float16`"
                )
            chosen = "float32"
        if form is not None and compile:
            raise ValueError(f"a network exported as {form} is run as it is: leave --compile out")
        self.network = network
        self.precision = chosen
        self.compile = compile
        if compile:
            check_compiler(device)
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SIZES)
            mode = "reduce-overhead" if self.device_type == "cuda" else "default"
            self.network = torch.compile(network, dynamic=False, mode=mode)

    def __call__(self, images: torch.Tensor, *args: object, batch: int | None = None, **kwargs: object) -> torch.Tensor:
        """The network's output; ``batch``: the number of images for which a compiled network is compiled."""
        count = images.shape[0]
        filled = self.compile and batch is not None and count < batch
        if filled:
            images = torch.cat([images, images[-1:].expand(batch - count, *images.shape[1:])])
        if self.compile:
            images = images.contiguous()  # other strides would be compiled for, too
        with self._autocast(), _compiler_errors():
            pred = self.network(images, *args, **kwargs)
        return pred[:count] if filled else pred

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, getattr(torch, self.precision))


def check_compiler(device: torch.device | str = "cpu") -> None:
    """Compile a line of nothing, to know before any work whether torch.compile works here.

    Raises:
        ValueError: it does not, and what to do.
    """
    with torch.inference_mode(), _compiler_errors():
        torch.compile(_line)(torch.zeros(8, device=device))


def _line(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x + 1)


@contextlib.contextmanager
def _compiler_errors() -> Iterator[None]:
    """What torch's compiler raises, in words for users; memory that has run out is left to who can save some."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(COMPILER_ERRORS) or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split("\n\nSet TORCH")[0].split())[:200]
        raise ValueError(
            f"torch.compile does not work here ({reason}): leave --compile out, or install a C++ compiler such as g++ "
            "(on a GPU Triton, too); where it worked before, a compilation may have been cut off: empty the folder "
            "that TORCHINDUCTOR_CACHE_DIR names, by default torchinductor_USER among the temporary files"
        ) from error
