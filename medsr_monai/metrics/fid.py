"""The Frechet inception distance between two sets of slices."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from monai.metrics import CumulativeIterationMetric, FIDMetric
from torch import Tensor

__all__ = ["FIDSlices", "fid", "inception_features"]


@torch.no_grad()
def inception_features(network: Callable[[Tensor], Tensor], slices: Tensor) -> Tensor:
    """Return the features [N, C, F], float32 on the CPU, of slices; every channel is an image of its own.

    Intensities are clipped to [0, 1], and each channel is repeated to three.

    Args:
        network: RGB images [B, 3, H, W] in [0, 1] -> features [B, F], such as
            :class:`medsr_monai.networks.InceptionFeatures`, in eval mode and on the device of the slices.
        slices: slices [N, C, H, W], their intensities scaled to about [0, 1].
    """
    grey = torch.as_tensor(slices).float().clamp(0, 1).flatten(0, 1)[:, None]
    features = network(grey.expand(-1, 3, -1, -1))
    return features.reshape(*slices.shape[:2], -1).float().cpu()


def fid(pred: Tensor, label: Tensor) -> float:
    """Return the Frechet distance between Gaussians fitted to two sets of features, [N, F] and [M, F].

    It is |mean - mean'|^2 + trace(S + S' - 2 sqrt(S S')) with the sample covariances S, by MONAI's ``FIDMetric``. Where
    there are fewer images than features, the features are first written in coordinates of the space that they span,
    which changes no distance and no eigenvalue and spares the root of a large singular matrix.

    With torchvision's Inception-v3 weights (see :class:`medsr_monai.networks.InceptionFeatures`) figures differ from
    those of the original TensorFlow Inception network: compare only what was computed the same way. The distance is
    biased for few images, so compare only sets of equal size.

    Raises:
        ValueError: a set has fewer than two images.

    Source: arXiv 1706.08500.
    """
    if min(len(pred), len(label)) < 2:
        raise ValueError(
            f"FID of {len(pred)} and {len(label)} images: a covariance needs at least 2 slices of each, evaluate more"
        )
    pred, label = pred.double().flatten(1), label.double().flatten(1)
    points = torch.cat([pred, label]) - label.mean(0)
    if len(points) < points.shape[1]:
        points = torch.linalg.qr(points.T, mode="r").R.T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy's: covariances of few images are singular
        return float(FIDMetric()(points[: len(pred)], points[len(pred) :]))


class FIDSlices(CumulativeIterationMetric):
    """:func:`fid` between two sets of slices [B, C, H, W], collected batch by batch over all processes.

    Args:
        network: see :func:`inception_features`; it is on the device of the slices.
    """

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the features [B, C * F] of both on the slices' device, where they are gathered over processes."""
        return tuple(inception_features(self.network, x).flatten(1).to(x.device) for x in (y_pred, y))

    def aggregate(self) -> float:
        """Return the distance of all slices since the last reset."""
        pred, label = self.get_buffer()
        return fid(pred.cpu(), label.cpu())
