"""Random changes of a batch of images on its own device, by random numbers that the caller draws."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["AugmentImages"]


class AugmentImages:
    """Mirror images, change their brightness, saturation and contrast, shift them and cut a square out of each.

    These are the augmentations of StyleSwin's consistency regularisation: those of DiffAugment (arXiv 2006.10738) and
    a mirror image. Each image has its own random numbers. An image whose numbers are all 0.5 stays as it is, but for
    the square.

    Args:
        flip: probability of the mirror image, left for right.
        brightness: largest number that is added to or taken from all pixels. The authors' 0.5, for images divided by
            ImageNet's standard deviation of about 0.226, is 0.113 for images in [0, 1].
        saturation: largest change of the factor, about 1, of the difference from grey; only images with 3 channels
            have it.
        contrast: largest change of the factor, about 1, of the difference from the image's mean.
        translation: largest shift along each axis, as a fraction of the side; zeros move in.
        cutout: side of the square of zeros, as a fraction of the image's side; its centre is anywhere in the image.

    Attributes:
        count: how many random numbers an image needs.
    """

    count = 8

    def __init__(
        self,
        flip: float = 0.5,
        brightness: float = 0.113,
        saturation: float = 1.0,
        contrast: float = 0.5,
        translation: float = 0.125,
        cutout: float = 0.5,
    ) -> None:
        self.flip = flip
        self.brightness = brightness
        self.saturation = saturation
        self.contrast = contrast
        self.translation = translation
        self.cutout = cutout

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Change images [B, C, H, W] as the random numbers [B, 8] in [0, 1) say."""
        flip, bright, grey, contrast, down, right, row, column = (
            numbers.to(images).view(len(images), -1, 1, 1).unbind(1)
        )
        per_image = (-1, 1, 1, 1)
        x = torch.where(flip.view(per_image) > 1 - self.flip, images.flip(-1), images)
        x = x + self.brightness * (2 * bright.view(per_image) - 1)
        if x.shape[1] == 3:
            mean = x.mean(dim=1, keepdim=True)
            x = mean + (x - mean) * (1 + self.saturation * (2 * grey.view(per_image) - 1))
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = mean + (x - mean) * (1 + self.contrast * (2 * contrast.view(per_image) - 1))
        if self.translation:
            x = _shift(x, down, right, self.translation)
        if self.cutout:
            x = _cut(x, row, column, self.cutout)
        return x


def _shift(x: Tensor, down: Tensor, right: Tensor, fraction: float) -> Tensor:
    """Shift images by whole pixels, at most by a fraction of the side."""
    height, width = x.shape[2:]
    rows, columns = round(height * fraction), round(width * fraction)
    padded = F.pad(x, (columns, columns, rows, rows))
    # number 0.5 is the middle of the 2 n + 1 shifts, which is none
    top = torch.arange(height, device=x.device) + (2 * rows - (down.view(-1, 1) * (2 * rows + 1)).long())
    left = torch.arange(width, device=x.device) + (2 * columns - (right.view(-1, 1) * (2 * columns + 1)).long())
    padded = padded.gather(2, top[:, None, :, None].expand(-1, x.shape[1], -1, padded.shape[3]))
    return padded.gather(3, left[:, None, None].expand(-1, x.shape[1], height, -1))


def _cut(x: Tensor, row: Tensor, column: Tensor, fraction: float) -> Tensor:
    """Set a square of each image to 0, whose centre is a pixel of the image."""
    inside = []
    for side, centre in ((x.shape[2], row), (x.shape[3], column)):
        length = round(side * fraction)
        start = (centre.view(-1, 1) * side).long() - length // 2
        places = torch.arange(side, device=x.device)
        inside.append((places >= start) & (places < start + length))
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None])[:, None], 0)
