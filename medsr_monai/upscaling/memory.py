"""The main memory that `medsr upscale` takes: estimated before a run, and kept below a limit."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor

from medsr_monai.data import StoredVolume, check_nifti, read_grid
from medsr_monai.inferers import InferencePlan, PlaneInferer, Slab, slab_passes
from medsr_monai.suffixes import VOLUME_SUFFIXES
from medsr_monai.transforms import with_corners_of
from medsr_monai.upscaling.bundles import BundleRunner
from medsr_monai.upscaling.cases import Case
from medsr_monai.upscaling.plan import (
    HEAP,
    MOST_SLICES,
    activation_bytes,
    free_gpu_bytes,
    peak_memory,
    resident_bytes,
    slices_that_fit,
)

UNITS = {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "MB": 10**6, "GB": 10**9, "TB": 10**12}
MARGIN = 1.05
"""A limit must be at least this factor above the estimate, which covers the error of the estimate."""
M_MMAP_THRESHOLD = -3
MMAP_BYTES = 2**20
"""Under a limit the C library gives buffers of this many bytes or more back to the system as soon as they are freed."""


class Way(NamedTuple):
    """How a volume is made, and the largest number of bytes of memory that this takes.

    Attributes:
        estimate: bytes; None where they are not known.
        slice_batch: slices computed at a time.
        slabs: whether the output is made slab by slab, through a file.
    """

    estimate: int | None
    slice_batch: int
    slabs: bool = False

    def __str__(self) -> str:
        memory = "memory unknown" if self.estimate is None else f"about {format_size(self.estimate)} of memory"
        count = "1 slice" if self.slice_batch == 1 else f"{self.slice_batch} slices"
        return f"{memory}, {count} at a time" + (", slab by slab through a file" if self.slabs else "")


def parse_size(text: str) -> int:
    """Give the number of bytes of a size such as 4GiB.

    Raises:
        ValueError: another spelling, or a size of 0.
    """
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)({'|'.join(UNITS)})", text)
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if not size:
        raise ValueError(f"max_memory is {text!r}, expected a number and a unit, {', '.join(UNITS)}, such as 4GiB")
    return size


def format_size(size: float) -> str:
    """Write a number of bytes in MiB, from 10 GiB on in GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 10 * 2**30 else f"{size / 2**20:.0f} MiB"


def load_libraries(picture: bool) -> None:
    """Import what upscale imports as it goes on, so that the process is as large as it will be without volumes.

    Args:
        picture: whether it will draw.
    """
    from medsr_monai.upscaling import quality  # noqa: F401

    if picture:
        import matplotlib.backends.backend_agg
        import matplotlib.figure
        import matplotlib.patheffects  # noqa: F401

    # libraries of kernels are loaded by the first call
    ones = torch.ones(1, 1, 16, 16)
    torch.nn.functional.conv2d(ones, ones[..., :3, :3]) @ torch.ones(14, 1)


class Memory:
    """Estimates the memory that volumes take in this process, and sets how many slices are computed at a time.

    The number of slices is the inferer's own ``sw_batch_size``: it is set here before a volume where there is a limit
    or a GPU to fill, and the inferer lowers it where memory runs out.

    Args:
        runner: the loaded bundle. No more slices at a time are taken than its inferer was given.
        limit: the bytes that the process may take; None for no limit.
        automatic: take as many slices at a time as a GPU has room for.
        picture: whether a quality picture is drawn.
        enforced: whether consistency with the input is enforced.
        dicom: whether the output is a DICOM series.

    Raises:
        ValueError: a limit on a GPU, or together with compiling.
    """

    def __init__(
        self,
        runner: BundleRunner,
        limit: int | None = None,
        *,
        automatic: bool = False,
        picture: bool = True,
        enforced: bool = False,
        dicom: bool = False,
    ) -> None:
        load_libraries(picture)
        self.runner = runner
        self.limit = limit
        self.automatic = automatic
        self.picture, self.enforced, self.dicom = picture, enforced, dicom
        self.slices: PlaneInferer = runner["inferer"].slices
        self.most = self.slices.sw_batch_size
        self.chosen: int | None = None
        self.activations: dict[tuple[int, ...], int | None] = {}
        if limit is not None:
            if runner["device"].type != "cpu":
                raise ValueError("max_memory is the main memory of a run on the CPU: say --device cpu, or leave it out")
            if self.slices.compile:
                raise ValueError("max_memory: what a compiler takes is not known: leave --compile or --max-memory out")
            _keep_no_freed_buffers()
        self.resident = self._resident()

    def before_reading(self, case: Case) -> Way | None:
        """Choose the way that fits the limit: the output in memory, or fewer slices at a time, or slab by slab.

        Only headers are read. Without a limit it is None, and :meth:`of` chooses when the volume has been read.

        Raises:
            ValueError: nothing fits, or what is read is no volume; one line.
        """
        if self.limit is None:
            return None
        from medsr_monai.data.dicom.slices import limit_unpacking

        limit_unpacking(None)  # the estimate below says what would do
        shape, affine, read = self._header(case)
        plan = self.runner.plan(affine, shape)
        self.resident = self._resident()  # it has grown by what earlier volumes have left
        ways = [Way(self.estimate(plan, *way, read=read), *way) for way in self._ways()]
        if ways[0].estimate is None:
            raise ValueError("the memory that this network takes is not known: leave --max-memory out")
        fitting = next((way for way in ways if way.estimate * MARGIN <= self.limit), None)
        if fitting is None:
            least = math.ceil(min(way.estimate for way in ways) * MARGIN / 2**20 / 10) * 10
            reason = f" ({why})" if (why := self._why_whole()) else ""
            raise ValueError(
                f"does not fit into --max-memory {format_size(self.limit)} even with one slice at a time{reason}: give "
                f"{least}MiB"
            )
        self.slices.sw_batch_size = fitting.slice_batch
        limit_unpacking(self.limit)
        return fitting

    def _ways(self) -> list[tuple[int, bool]]:
        """Slices at a time, and whether slab by slab, in the order of preference."""
        batches = [self.most // 2**n for n in range(self.most.bit_length())]
        return [(batch, slabs) for slabs in ((False,) if self._why_whole() else (False, True)) for batch in batches]

    def of(self, plan: InferencePlan, channels: int = 1) -> Way:
        """Choose the way in which a volume is made where there is no limit."""
        if self.automatic:
            self._fill_gpu(plan, channels)
        batch = self.slices.sw_batch_size
        return Way(self.estimate(plan, batch, channels=channels), batch)

    def _fill_gpu(self, plan: InferencePlan, channels: int) -> None:
        """Set the slices at a time for a GPU.

        Where an estimate was too bold, the inferer has taken fewer: later volumes get no more. A compiled network,
        which takes minutes for every number of slices, keeps to that of the first volume as long as it fits; where a
        volume has fewer slices, its batch is filled up.
        """
        if self.runner.exported is not None:
            return  # its activations are not to be seen
        compiled = self.slices.compile
        if self.chosen is None:
            self.most = MOST_SLICES
        elif compiled or self.slices.sw_batch_size < self.chosen:
            self.most = self.slices.sw_batch_size
        if compiled and self.chosen is not None:
            filled = (dataclasses.replace(one, count=max(one.count, self.most)) for one in plan.passes)
            plan = dataclasses.replace(plan, passes=tuple(filled))
        free = free_gpu_bytes(self.runner["device"])
        self.chosen = min(self.most, slices_that_fit(self.runner.network, plan, free, channels))
        self.slices.sw_batch_size = self.chosen

    def estimate(
        self,
        plan: InferencePlan,
        slice_batch: int,
        slabs: bool = False,
        *,
        read: float | None = None,
        channels: int = 1,
    ) -> int | None:
        """Estimate the peak memory of the process in bytes; None for exported networks and on systems without /proc."""
        found = self.activation_bytes(plan, slice_batch)
        if self.resident is None or found is None:
            return None
        return peak_memory(
            self.resident,
            plan,
            found,
            channels,
            slab_batch=slice_batch if slabs else None,
            heap=HEAP if self.limit is None else 0,
            read=read,
            enforced=self.enforced,
            picture=self.picture,
        )

    def activation_bytes(self, plan: InferencePlan, slice_batch: int) -> int | None:
        """Count the bytes of main memory that the largest batch takes in the network; None for exported networks."""
        if self.runner["device"].type != "cpu":
            return 0
        tile = self.slices.orig_roi_size  # below 1 for whole slices
        batches = {
            (
                min(slice_batch, one.count),
                *(n if side < 1 else side for n, side in zip((one.rows, one.columns), tile, strict=True)),
            )
            for one in plan.passes
        }
        found = [self._activations(*batch) for batch in batches]
        return None if None in found else max(found)

    @contextlib.contextmanager
    def run(self, way: Way, item: dict[str, MetaTensor], out: Path | None) -> Iterator[MetaTensor | StoredVolume]:
        """Make the output of a preprocessed input in a way, in memory or on the disk of the output file ``out``."""
        if not way.slabs:
            yield self.runner.run(item)
            return
        folder = next(parent for parent in out.absolute().parents if parent.is_dir())
        with run_in_slabs(self.runner, item, folder) as result:
            gc.collect()  # the last slabs are in cycles
            yield result

    def record(self, way: Way) -> dict[str, Any]:
        """Describe a way for the sidecar of its output."""
        mib = [None if size is None else round(size / 2**20) for size in (way.estimate, self.limit)]
        return {"EstimateMiB": mib[0], "LimitMiB": mib[1], "Slabs": way.slabs}

    def _resident(self) -> int | None:
        """Read the process's memory once unused parts are given back; None where the system does not tell it."""
        if self.limit is not None:
            gc.collect()
            if trim := _of_c_library("malloc_trim"):
                trim(0)
        return resident_bytes()

    def _activations(self, *batch: int) -> int | None:
        """Count the activations of a batch of slices with rows and columns."""
        if batch not in self.activations:
            count, rows, columns = batch
            network = self.runner.network
            shape = (count, 1, rows, columns)
            self.activations[batch] = None if self.runner.exported is not None else activation_bytes(network, shape)
        return self.activations[batch]

    def _why_whole(self) -> str | None:
        """Why the output cannot be made slab by slab; None where it can."""
        if self.dicom:
            return "DICOM series are written from memory, NIfTI takes less"
        if self.enforced:
            return "enforced consistency needs the whole output, leaving it out takes less"
        return None

    def _header(self, case: Case) -> tuple[tuple[int, ...], Any, float]:
        """Shape and affine of a volume, and the bytes that reading it takes."""
        if case.series is not None:
            shape = tuple(int(n) for n in case.series.shape)
            return shape, case.series.affine, 12 * math.prod(shape)
        if not Path(case.source).name.lower().endswith(VOLUME_SUFFIXES):
            raise ValueError("max_memory is for volumes, pictures are made whole: leave it out")
        frame = self.runner["frame"] if "frame" in self.runner.parser else None
        check_nifti(case.source, frame)
        shape, affine = read_grid(case.source)
        voxels = nibabel.load(case.source).dataobj
        scaled = (voxels.slope, voxels.inter) != (1, 0) if hasattr(voxels, "slope") else False
        one = voxels.dtype.itemsize + (8 if scaled else 0) + np.dtype(np.float32).itemsize
        return shape, affine, one * math.prod(int(n) for n in voxels.shape)


def run_in_slabs(runner: BundleRunner, item: dict[str, MetaTensor], folder: Path) -> StoredVolume:
    """Make what :meth:`BundleRunner.run` returns slab by slab, in a temporary file in ``folder``.

    Raises:
        ValueError: as `run` does, and where the bundle's postprocessing changes more than intensities.
    """
    image = item["image"]
    plan = runner.plan(image.affine, image.shape[1:])
    like = with_corners_of(image, torch.zeros(()).expand(1, *plan.new_shape))

    def restored(pred: torch.Tensor) -> torch.Tensor:
        image_of_slab = MetaTensor(image.as_tensor(), meta=dict(image.meta))  # transforms write into it
        out = runner["postprocessing"](item | {"image": image_of_slab, "pred": pred})["pred"]
        if out.shape != pred.shape:
            raise ValueError("the bundle's postprocessing changes the output's grid, which only whole outputs allow")
        return out.as_tensor()

    axis = plan.passes[0].axis if plan.compared_axis is None else plan.compared_axis
    with torch.inference_mode():
        passes = slab_passes(runner["inferer"], image, runner.network, runner["device"])
        result = StoredVolume(folder, like, axis)
        try:
            if plan.in_one_go:
                for slab in passes[0]:
                    result[_place(slab.axis, slab.start, slab.pred)] = restored(slab.pred)
            else:
                _merge(passes, [one.axis for one in plan.passes], folder, like, restored, result)
        except BaseException:
            result.close()
            raise
    if result.broken:
        result.close()
        raise ValueError(runner.broken(result.broken, result.numel()))
    return result


def _merge(
    passes: Sequence[Iterator[Slab]],
    planes: Sequence[int],
    folder: Path,
    like: MetaTensor,
    restored: Callable[[torch.Tensor], torch.Tensor],
    result: StoredVolume,
) -> None:
    """The mean of the planes, each of which goes through a file of its own, since its slabs lie across the others'."""
    with contextlib.ExitStack() as files:
        made = []
        for slabs, axis in zip(passes, planes, strict=True):
            made.append(files.enter_context(StoredVolume(folder, like, axis)))
            for slab in slabs:
                made[-1][_place(slab.axis, slab.start, slab.pred)] = slab.pred
        for start, mean in made[0].chunks():
            for other in made[1:]:
                mean += other.narrow(3, start, mean.shape[3])
            if len(made) > 1:
                mean /= len(made)
            result[_place(2, start, mean)] = restored(mean)


def _place(axis: int, start: int, part: torch.Tensor) -> tuple[slice, ...]:
    return (slice(None),) * (axis + 1) + (slice(start, start + part.shape[axis + 1]),)


def _keep_no_freed_buffers() -> None:
    """Have the C library give large buffers back to the system; by default it keeps up to 32 MiB of each."""
    if mallopt := _of_c_library("mallopt"):
        mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)


def _of_c_library(name: str) -> Callable[..., int] | None:
    """A function of the C library that this process has loaded; None where there is none, as on macOS and Windows."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except TypeError:  # Windows wants the name of a library
        return None
