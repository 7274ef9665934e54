"""A 2D network in half precision or compiled, as inferers call it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from medsr_monai.errors import is_out_of_memory

__all__ = ["PRECISIONS", "FastNetwork", "check_compiler", "chosen_precision"]

PRECISIONS = ("float32", "bfloat16", "float16")
"""The precisions in which convolutions and matrix products may be computed."""
GPU_PRECISION = "float16"
"""The precision of ``auto`` on CUDA: of both half precisions the one with the smaller error (upscaling/README.md)."""
SIZES = 64
"""Number of sizes of slices that one process compiles for; a folder of volumes soon exceeds torch's limit of 8."""
COMPILER_ERRORS = ("torch._dynamo", "torch._inductor")
"""Modules of the errors that torch's compiler raises."""


def chosen_precision(precision: str, device: torch.device | str) -> str:
    """Return the precision that ``auto`` means on a device: float16 on CUDA, else float32; others stay as they are.

    Raises:
        ValueError: the precision is unknown.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"precision is {precision!r}, expected auto, {', '.join(PRECISIONS)}")
    if precision == "auto":
        return GPU_PRECISION if torch.device(device).type == "cuda" else "float32"
    return precision


class FastNetwork:
    """A network under autocast and, if wanted, compiled, that is called with images [B, C, H, W].

    Autocast lowers the precision of convolutions and matrix products, not of normalisation and softmax, and leaves the
    weights as they are. Compiling takes minutes for the first batch of each size of slices in a process, and less if an
    earlier process has left torch's cache on disk. A last, smaller batch is filled up with its last image, so that it
    needs no compiling of its own, and the result is cut again. On CUDA the compiled network is replayed as a CUDA
    graph; this is unmeasured, for want of a GPU.

    Args:
        network: [B, C, H, W] -> [B, C', H', W']. A network with an attribute ``exchange_format`` is not compiled, and
            one whose format is ``onnx`` computes in the precision of its file.
        precision: float32, bfloat16, float16 or auto, see :func:`chosen_precision`.
        compile: whether ``torch.compile`` is called.
        device: device of the images.

    Raises:
        ValueError: the precision is unknown, the network has no other precision or cannot be compiled, or, also when
            called, no compiler works here.
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
        """Return the network's output; ``batch`` is the number of images for which a compiled network is compiled."""
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
    """Compile a trivial function, which tells before any work whether torch.compile works here.

    Raises:
        ValueError: it does not; the text says what to do.
    """
    with torch.inference_mode(), _compiler_errors():
        torch.compile(_line)(torch.zeros(8, device=device))


def _line(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x + 1)


@contextlib.contextmanager
def _compiler_errors() -> Iterator[None]:
    """Put errors of torch's compiler into words for users; out-of-memory errors pass, since callers can save memory."""
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
