"""Makes thick slices thin: interpolation across them, and a 2D network on the slices that contain the thick axis."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import ensure_tuple_rep

from medsr_monai.inferers.fast_network import FastNetwork
from medsr_monai.inferers.plan import InferencePlan, SlicePass
from medsr_monai.inferers.plane import UNKNOWN, WHOLE_SLICES, FindPointSpread, PlaneInferer
from medsr_monai.transforms.geometry import (
    AXES,
    PLANE_ACROSS,
    PLANES,
    SQUARE_RATIO,
    THICK_RATIO,
    format_edges,
    plane_axis,
    spacing,
    target_size,
    thick_axis,
)
from medsr_monai.transforms.interpolation import resample
from medsr_monai.transforms.point_spread import PointSpread

__all__ = ["ThroughPlaneInferer"]


class ThroughPlaneInferer(Inferer):
    """Refine thick slices: from a volume whose voxels are long along one axis to one with short edges along it, too.

    The thick axis is brought to the target spacing, and a 2D network works on the slices of the planes that contain
    the thick axis, which it always finds along their columns (the last axis). By the network's ``scale``:

    - 1: cubic B-splines bring the volume to the target grid, then the network refines its slices (TransMRSR);
    - [1, k]: the network itself makes k of each thick slice, then cubic B-splines bring the result to the target grid,
      unless it lies there already. Best where the slices are about k times as thick as the target.

    Both give the same grid: its slices are as many as come closest to the target spacing, and divide the extent of the
    input evenly, so the outer corners stay exactly where they were, for any ratio. What a plane has to itself (batches
    of slices, tiles, what is done when memory runs out) is that of :class:`PlaneInferer`.

    Memory: that of :class:`PlaneInferer`, and up to two more volumes of the output's size: the interpolated one, and
    the first plane's result while the second plane is refined.

    Args:
        thick_axis: ``left-right``, ``posterior-anterior``, ``inferior-superior``, or ``auto`` for the axis of the
            longest voxel edge (see :func:`medsr_monai.transforms.geometry.thick_axis`).
        target_spacing: wanted slice thickness in mm; None for the smaller one of the other two voxel edges.
        refine: ``both`` for the mean of the two planes that contain the thick axis, or one of them by name, which takes
            half the time.
        sw_batch_size, roi_size, overlap: see :class:`PlaneInferer`.
        scale: scale of the network, 1 or [1, k].
        force: whether volumes are taken whose slices are less than THICK_RATIO times as thick as the target.
        psf, find_psf: point spread across the thick slices, see :class:`PlaneInferer`.
        precision, compile, progress, sw_device, device: see :class:`PlaneInferer`.

    Raises:
        ValueError: the axis or plane is unknown, the plane runs across the thick axis, the target is no positive
            number, or the scale is neither 1 nor [1, k].
    """

    takes_pictures = False

    def __init__(
        self,
        thick_axis: str = "auto",
        target_spacing: float | None = None,
        refine: str = "both",
        sw_batch_size: int = 4,
        roi_size: Sequence[int] = WHOLE_SLICES,
        overlap: float = 0.5,
        *,
        scale: int | Sequence[int] = 1,
        force: bool = False,
        psf: str | PointSpread = UNKNOWN,
        find_psf: FindPointSpread | None = None,
        precision: str = "float32",
        compile: bool = False,
        progress: bool = False,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if thick_axis not in ("auto", *AXES):
            raise ValueError(f"thick axis is {thick_axis!r}, expected auto, {', '.join(AXES)}")
        if refine not in ("both", *PLANES):
            raise ValueError(f"refine is {refine!r}, expected both, {', '.join(PLANES)}")
        if thick_axis != "auto":
            _planes(thick_axis, refine)
        if target_spacing is not None and not 0 < target_spacing < math.inf:
            raise ValueError(f"target spacing is {target_spacing}, expected millimetres such as 1.0")
        rows, factor = ensure_tuple_rep(scale, 2)
        if rows != 1 or factor < 1:
            raise ValueError(
                f"scale is {scale}: expected 1, or [1, k] for a network that enlarges the last slice axis k times; "
                "others enlarge the fine axes too"
            )
        self.thick_axis = thick_axis
        self.target_spacing = target_spacing
        self.refine = refine
        self.factor = factor
        self.force = force
        self.slices = PlaneInferer(
            "auto",
            sw_batch_size,
            roi_size,
            overlap,
            psf=psf,
            find_psf=find_psf,
            precision=precision,
            compile=compile,
            progress=progress,
            sw_device=sw_device,
            device=device,
        )

    def plan(
        self, affine: np.ndarray | torch.Tensor, shape: Sequence[int], scale: Sequence[int] | None = None
    ) -> InferencePlan:
        """What will be done to a volume with this 4x4 affine and shape (X, Y, Z).

        Args:
            scale: that of the network is known here already; the argument is that of :class:`PlaneInferer`.

        Raises:
            ValueError: no thick axis is named and the volume has none or two, its slices are not thick enough for the
                target, or the plane to refine does not contain the thick axis.
        """
        axis_name = self.thick_axis
        if axis_name == "auto":
            axis_name = thick_axis(affine, SQUARE_RATIO if self.force else THICK_RATIO)
        planes = _planes(axis_name, self.refine)
        edges = spacing(affine)
        axis = plane_axis(affine, PLANE_ACROSS[axis_name])
        size, edge = int(shape[axis]), float(edges[axis])
        target = float(np.delete(edges, axis).min()) if self.target_spacing is None else self.target_spacing
        new_size = target_size(size, edge, target)
        voxels = f"voxels of {format_edges(edges)} mm are {edge:.3g} mm long in the {axis_name} direction"
        if new_size < size:
            raise ValueError(f"{voxels}, shorter than the target spacing of {target:.3g} mm: choose a smaller one")
        if edge < THICK_RATIO * target and not self.force:
            raise ValueError(
                f"{voxels}, below {THICK_RATIO:g} times the target spacing of {target:.3g} mm: nothing to do, "
                "unless you give --force"
            )
        shape = tuple(int(n) for n in shape)
        new_shape = tuple(new_size if a == axis else n for a, n in enumerate(shape))
        seen = new_shape if self.factor == 1 else shape
        passes = []
        for plane in planes:
            across, rows, columns = PlaneInferer(plane, through=PLANE_ACROSS[axis_name]).axes(affine, seen)
            passes.append(SlicePass(plane, across, seen[across], seen[rows], seen[columns]))
        work = "refined" if self.factor == 1 else f"made x{self.factor} by the network"
        new_edge = size * edge / new_size
        sentence = (
            f"thick axis {axis_name}{' (auto)' if self.thick_axis == 'auto' else ''}: {size} slices of {edge:.3g} mm "
            f"become {new_size} of {new_edge:.4g} mm, {work} in {' and '.join(planes)} slices"
        )
        return InferencePlan(
            *(shape, new_shape, tuple(passes), sentence),
            volumes=1 + len(planes),
            tiled=self.slices.tiled,
            thick_axis=axis_name,
            array_axis=axis,
            edge=edge,
            new_edge=new_edge,
            interpolated=self.factor == 1,
            point_spread=self.slices.point_spread(edge),
        )

    def prepare(self, network: Callable[..., torch.Tensor], device: torch.device | str) -> FastNetwork:
        """See :meth:`PlaneInferer.prepare`."""
        return self.slices.prepare(network, device)

    def of_plane(self, plane: str, image: MetaTensor) -> ThroughPlaneInferer:
        """A copy that refines parts of a volume [C, X, Y, Z] in a plane chosen for the whole; it shows no progress."""
        fixed = copy.copy(self)
        fixed.thick_axis, fixed.refine = self.plan(image.affine, image.shape[1:]).thick_axis, plane
        fixed.slices = copy.copy(self.slices)
        fixed.slices.progress = False
        return fixed

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: object, **kwargs: object
    ) -> torch.Tensor:
        """Refine a batch of volumes.

        Args:
            inputs: ``MetaTensor`` [N, C, X, Y, Z], whose voxels are alike in the whole batch.
            network: [B, C, H, W] -> [B, C', H, W * k], with the k of ``scale``; the thick axis runs along W.

        Returns:
            [N, C', X', Y', Z'], larger along the thick axis only, with axes in the order of the input and the input's
            metadata. The affine is the input's, too, which :class:`medsr_monai.transforms.geometry.MatchCornersd`
            corrects.

        Raises:
            ValueError: see :meth:`plan`; or the input is a plain tensor, the volumes of a batch differ in their voxels,
                or the network is of another scale.
        """
        if not isinstance(inputs, MetaTensor):
            raise ValueError("the volume has no affine, by which the thick axis is found: give a MetaTensor")
        plans = [self.plan(affine, inputs.shape[2:]) for affine in inputs.affine.reshape(-1, 4, 4)]
        plan = plans[0]
        if any((p.array_axis, p.planes, p.new_size) != (plan.array_axis, plan.planes, plan.new_size) for p in plans):
            raise ValueError("volumes of one batch differ in their voxels: use batches of one volume")
        if not args and "psf" not in kwargs:
            kwargs = self.slices.told(network, inputs, (plan.array_axis,)) | kwargs
        sizes = list(inputs.shape[2:])
        sizes[plan.array_axis] = plan.new_size
        volume = inputs.as_tensor()
        if self.factor == 1:
            volume = resample(volume, sizes)
        volume = MetaTensor(volume).copy_meta_from(inputs)
        out = None
        for plane in plan.planes:
            refined = self._refine(volume, plan, plane, network, *args, **kwargs)
            if out is not None and out.device != refined.device:  # a GPU had room for the first one only
                out, refined = out.cpu(), refined.cpu()
            out = refined if out is None else out.add_(refined)
        if len(plan.planes) > 1:
            out /= len(plan.planes)
        return MetaTensor(resample(out, sizes)).copy_meta_from(inputs)

    def _refine(
        self,
        volume: MetaTensor,
        plan: InferencePlan,
        plane: str,
        network: Callable[..., torch.Tensor],
        *args,
        **kwargs,
    ) -> torch.Tensor:
        """Return the network's output on the slices of one plane, in the grid that the network makes."""
        # one object for all planes and volumes: it has learnt how many slices fit into memory
        self.slices.plane, self.slices.through = plane, PLANE_ACROSS[plan.thick_axis]
        refined = self.slices(volume, network, *args, **kwargs).as_tensor()
        expected = list(volume.shape[2:])
        expected[plan.array_axis] *= self.factor
        if list(refined.shape[2:]) != expected:
            raise ValueError(
                f"the network made {tuple(refined.shape[2:])} voxels of {tuple(volume.shape[2:])}, expected "
                f"{tuple(expected)}: the inferer's scale and the network's differ"
            )
        return refined


def _planes(axis_name: str, refine: str) -> tuple[str, ...]:
    """Return the planes that are refined, all of which contain the axis."""
    across = PLANE_ACROSS[axis_name]
    planes = tuple(plane for plane in PLANES if plane != across)
    if refine == across:
        raise ValueError(
            f"{across} slices do not contain the thick axis {axis_name}: refine {' or '.join(planes)} slices, or both"
        )
    return planes if refine == "both" else (refine,)
