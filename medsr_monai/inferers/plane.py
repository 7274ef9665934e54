"""Inference slice by slice in an anatomical plane."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence

import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from monai.utils import BlendMode, PytorchPadMode

from medsr_monai.errors import is_out_of_memory
from medsr_monai.inferers.fast_network import FastNetwork, chosen_precision
from medsr_monai.inferers.plan import InferencePlan, SlicePass
from medsr_monai.inferers.slice_batches import enlarge_slices
from medsr_monai.transforms.geometry import PLANES, plane_axis, sharp_plane, spacing
from medsr_monai.transforms.point_spread import PointSpread, encode_point_spread, parse_point_spread

__all__ = ["FindPointSpread", "PlaneInferer"]

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"
"""The point spread of an input of which nothing is known."""
AUTO = "auto"
"""The point spread is looked for in the input."""
FindPointSpread = Callable[[MetaTensor, Sequence[int]], PointSpread | None]
"""What finds a point spread: of a volume [C, X, Y, Z], along the array axes that are enlarged; None if in doubt."""
WHOLE_SLICES = (-1, -1)
"""The ``roi_size`` that stands for whole slices."""
MEMORY_TILES = (128, 128)
"""Rows and columns of the tiles that are taken when not even one slice fits into memory."""


class PlaneInferer(SliceInferer):
    """Run a 2D network on the slices of a volume in a plane that is named by anatomy instead of by array axis.

    By default slices are whole, which leaves no seams. They go through the network in batches. A batch that does not
    fit into memory is halved until it fits, also for the volumes that follow; if not even one slice fits, the slices of
    this volume are tiled. There is a warning each time. The result is bit-identical for the same batch size, and
    differs between batch sizes by less than 1e-5 of the output's range (3e-7 was measured), because the order of
    float32 sums changes with the batch.

    Memory: the output and the activations of one batch of slices; with tiles also a count map of the output's size for
    one channel.

    Args:
        plane: ``sagittal``, ``coronal``, ``axial``, or ``auto`` for the plane with the finest pixels by voxel size
            (axial where voxels are isotropic).
        sw_batch_size: number of slices in a batch.
        roi_size: rows and columns of tiles, or (-1, -1) for whole slices. Tiles save memory and leave seams, which
            blending does not remove but which are never larger than the network's own error at a tile's border. With
            overlap 0.5 and tiles of 64 or 128 pixels they measured 0.1 % of the output's range for bicubic
            interpolation, 0.4 % for it plus a tenth of untrained zero-padded convolutions, and a third for these alone
            (see ``tests/inferers``).
        overlap: share of a tile by which neighbouring tiles overlap.
        through: plane in which thick slices were acquired, for networks with a scale for each axis: they get slices
            with the thick axis last, as ``scale=[1, 4]`` expects. None keeps the volume's order of axes.
        psf: point spread of the input, which a network is told that has ``psf_channels``: ``auto``, ``unknown``, a
            :class:`medsr_monai.transforms.PointSpread`, or KIND or KIND:FWHM_MM (see
            :func:`medsr_monai.transforms.parse_point_spread`), of which both axes of the slices have the same, or with
            ``through`` the thick one.
        find_psf: what finds that of a volume with ``psf="auto"``, such as
            :func:`medsr_monai.upscaling.point_spread.measure_point_spread`. It is called for networks that are told
            only, and with one volume at a time: without it, and in batches of several, the point spread is unknown.
        precision, compile: see :class:`medsr_monai.inferers.FastNetwork`.
        progress: whether a bar with the time left is shown.
        sw_device, device: devices on which slices are computed and the output is gathered; None for the input's. An
            output of whole slices that does not fit on a GPU is gathered in main memory, which has not been measured.

    Raises:
        ValueError: a plane, the point spread or the precision is unknown, or ``through`` is the plane that is cut; when
            called: the network is not told a point spread that is given.
        MemoryError: when called: not even tiles fit into memory.
    """

    def __init__(
        self,
        plane: str = "auto",
        sw_batch_size: int = 4,
        roi_size: Sequence[int] = WHOLE_SLICES,
        overlap: float = 0.5,
        *,
        through: str | None = None,
        psf: str | PointSpread = UNKNOWN,
        find_psf: FindPointSpread | None = None,
        precision: str = "float32",
        compile: bool = False,
        progress: bool = False,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if plane not in ("auto", *PLANES):
            raise ValueError(f"plane is {plane!r}, expected auto, {', '.join(PLANES)}")
        if through not in (None, *PLANES):
            raise ValueError(f"through is {through!r}, expected None, {', '.join(PLANES)}")
        if through is not None and through == plane:
            raise ValueError(f"plane and through are both {plane!r}: slices across the thick axis do not contain it")
        self.plane = plane
        self.through = through
        self.psf = psf
        self.find_psf = find_psf
        self.point_spread(1.0)
        chosen_precision(precision, "cpu")
        self.precision = precision
        self.compile = compile
        self._prepared: FastNetwork | None = None
        self._prepared_of: tuple | None = None
        super().__init__(
            spatial_dim=0,
            roi_size=tuple(roi_size),
            sw_batch_size=sw_batch_size,
            overlap=overlap,
            mode=BlendMode.CONSTANT if tuple(roi_size) == WHOLE_SLICES else BlendMode.GAUSSIAN,
            padding_mode=PytorchPadMode.REPLICATE,
            sw_device=sw_device,
            device=device,
            progress=progress,
        )

    takes_pictures = True
    """2D images are volumes of one slice."""

    @property
    def slices(self) -> PlaneInferer:
        """The part that cuts volumes into slices: itself, as other inferers name theirs."""
        return self

    def resolve(self, affine: torch.Tensor, shape: Sequence[int] | None = None) -> str:
        """Return the plane in which a volume with this 4x4 affine and shape (X, Y, Z) is cut."""
        if self.plane != "auto":
            return self.plane
        plane = sharp_plane(affine, shape)
        if plane != self.through:
            return plane
        return next(name for name in PLANES if name != self.through)

    def point_spread(self, coarse_mm: float) -> PointSpread | None:
        """Return the point spread of an input whose samples lie so far apart; None if it is not known beforehand."""
        if isinstance(self.psf, PointSpread):
            return self.psf
        return None if self.psf in (UNKNOWN, AUTO) else parse_point_spread(self.psf, coarse_mm)

    def _enlarged(self, axes: Sequence[int]) -> tuple[int, ...]:
        """Return the array axis or axes that the network enlarges, of those of :meth:`axes`."""
        return tuple(axes[2:] if self.through is not None else axes[1:])

    def plan(self, affine: torch.Tensor, shape: Sequence[int], scale: Sequence[int] = (1, 1)) -> InferencePlan:
        """What will be done to a volume with this 4x4 affine and shape (X, Y, Z).

        Args:
            scale: by which the network enlarges rows and columns of a slice.
        """
        shape = tuple(int(n) for n in shape)
        plane = self.resolve(affine, shape)
        across, rows, columns = self.axes(affine, shape)
        new_shape = list(shape)
        new_shape[rows] *= scale[0]
        new_shape[columns] *= scale[1]
        seen = SlicePass(plane, across, shape[across], shape[rows], shape[columns])
        sentence = f"plane {plane}{' (auto)' if self.plane == 'auto' else ''}"
        told = self.point_spread(_mean_edge(affine, self._enlarged((across, rows, columns))))
        return InferencePlan(shape, tuple(new_shape), (seen,), sentence, tiled=self.tiled, point_spread=told)

    @property
    def tiled(self) -> bool:
        """Whether slices are computed in tiles."""
        return min(self.orig_roi_size) > 0

    def of_plane(self, plane: str, image: MetaTensor) -> PlaneInferer:
        """A copy that cuts parts of a volume in a plane that was chosen for the whole; it shows no progress."""
        fixed = copy.copy(self)
        fixed.plane, fixed.progress = plane, False
        return fixed

    def axes(self, affine: torch.Tensor, shape: Sequence[int] | None = None) -> tuple[int, int, int]:
        """Return three array axes: the one across the slices, that of their rows and that of their columns."""
        across = plane_axis(affine, self.resolve(affine, shape))
        rows, columns = (axis for axis in range(3) if axis != across)
        if self.through is not None and plane_axis(affine, self.through) == rows:
            rows, columns = columns, rows
        return across, rows, columns

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: object, **kwargs: object
    ) -> torch.Tensor:
        """Super-resolve a batch of volumes.

        Args:
            inputs: ``MetaTensor`` [N, C, X, Y, Z] of volumes that are cut alike; a plain tensor counts as RAS, 1 mm.
            network: [B, C, H, W] -> [B, C', H * sh, W * sw] with whole factors.

        Returns:
            [N, C', X', Y', Z'] on ``device``, with axes in the order of the input and the input's metadata. The affine
            is the input's, too, which :class:`medsr_monai.transforms.geometry.MatchCornersd` corrects.
        """
        affine = torch.eye(4)
        if isinstance(inputs, MetaTensor):
            affines = inputs.affine.reshape(-1, 4, 4)
            affine = affines[0]
            if len({self.axes(a, inputs.shape[2:]) for a in affines}) > 1:
                raise ValueError("volumes of one batch differ in orientation: use batches of one volume")
        axes = self.axes(affine, inputs.shape[2:])
        order = (0, 1, *(axis + 2 for axis in axes))
        inverse = tuple(int(i) for i in torch.tensor(order).argsort())
        data = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        if not args and "psf" not in kwargs:
            kwargs = self.told(network, inputs, self._enlarged(axes)) | kwargs
        out = self._run(data.permute(order), network, *args, **kwargs).permute(inverse)
        return MetaTensor(out).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else out

    def prepare(self, network: Callable[..., torch.Tensor], device: torch.device | str) -> FastNetwork:
        """Return what is called with slices on a device; it is made once for a network, also by a call.

        Raises:
            ValueError: see :class:`medsr_monai.inferers.FastNetwork`.
        """
        wanted = (network, torch.device(device))
        if self._prepared is None or self._prepared_of != wanted:
            self._prepared, self._prepared_of = FastNetwork(network, self.precision, self.compile, device), wanted
        return self._prepared

    def told(self, network: object, inputs: torch.Tensor, axes: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return what a network is told beside the slices, by its name; nothing for a network that is not told.

        Args:
            network: it is told if it has ``psf_channels``.
            inputs: the volumes [N, C, X, Y, Z].
            axes: the array axes that are enlarged.

        Raises:
            ValueError: a point spread is given, but the network is not told any.
        """
        affine = inputs.affine.reshape(-1, 4, 4)[0] if isinstance(inputs, MetaTensor) else torch.eye(4)
        told = self.point_spread(_mean_edge(affine, axes))
        if getattr(getattr(network, "module", network), "psf_channels", 0):
            if self.psf == AUTO and self.find_psf is not None and len(inputs) == 1:
                meta = (inputs.meta if isinstance(inputs, MetaTensor) else {}) | {"affine": affine}
                voxels = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
                told = self.find_psf(MetaTensor(voxels[0].detach().cpu(), meta=meta), axes)
            return {"psf": encode_point_spread(told)[None].to(self.sw_device or inputs.device)}
        if told is not None:
            raise ValueError(f"psf is {self.psf}, but this network was not made to be told: leave it out")
        return {}

    def _run(self, volume: torch.Tensor, network: Callable[..., torch.Tensor], *args, **kwargs) -> torch.Tensor:
        tiles, mode = self.orig_roi_size, self.mode
        fast = self.prepare(network, self.sw_device or volume.device)

        def run(slices: torch.Tensor) -> torch.Tensor:
            return fast(slices, *args, batch=self.sw_batch_size, **kwargs)

        try:
            while True:
                try:
                    if self.orig_roi_size == WHOLE_SLICES:
                        return enlarge_slices(
                            volume,
                            run,
                            self.sw_batch_size,
                            progress=self.progress,
                            sw_device=self.sw_device,
                            device=self.device,
                        )
                    return super().__call__(volume, run)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    self._save_memory(error)
        finally:
            # the next volume may be smaller, and tiles leave seams
            self.orig_roi_size, self.mode = tiles, mode

    def _save_memory(self, error: Exception) -> None:
        """Take fewer slices at a time, then tiles; if both was done already, raise a MemoryError in words for users."""
        if self.sw_batch_size > 1:
            self.sw_batch_size //= 2
            logger.warning("out of memory: going on with %d slices at a time", self.sw_batch_size)
        elif self.orig_roi_size == WHOLE_SLICES:
            self.orig_roi_size, self.mode = MEMORY_TILES, BlendMode.GAUSSIAN
            logger.warning("out of memory with one slice: going on with tiles of %dx%d pixels", *MEMORY_TILES)
        else:
            raise MemoryError(
                f"out of memory even with one tile of {'x'.join(map(str, self.orig_roi_size))} pixels at a time: the "
                "volume or its output is too large for this device, take a smaller --tile, another --device or a "
                "cropped volume"
            ) from error


def _mean_edge(affine: torch.Tensor, axes: Sequence[int]) -> float:
    """Return the distance of the samples along one array axis, or the geometric mean along several."""
    return float(spacing(affine)[list(axes)].prod() ** (1 / len(axes)))
