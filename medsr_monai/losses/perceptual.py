"""Content and style losses, which compare the features of a trained network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsr_monai.losses.frozen_prior import FrozenPriorLoss


class VGGContentLoss(FrozenPriorLoss):
    """Mean squared difference between the VGG features of two images (SRGAN, arXiv 1609.04802, equation 5).

    Images of 3 channels go in as they are, and those of 1 channel are repeated to 3. Of images with other channels each
    channel goes in alone, repeated to 3, and the losses are summed, as in the RDST authors' code. Nothing is rescaled.
    Gradients reach ``pred`` only; the network is frozen for good and stays in eval mode (see `FrozenPriorLoss`).

    Args:
        network: RGB images [B, 3, H, W] in [0, 1] -> features, such as
            :func:`medsr_monai.networks.load_vgg19_features`, whose ``layer`` chooses VGG22 or VGG54.

    Raises:
        ValueError: when called: the images differ in shape.
    """

    def compare(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the mean squared difference of the features."""
        channels = pred.shape[1]
        with torch.no_grad():
            target = self.network(_as_rgb(label))
        loss = F.mse_loss(self.network(_as_rgb(pred)), target)
        # one pass over all channels as a batch: its mean is 1/channels of the sum of the channels' means
        return loss if channels == 3 else loss * channels


class ContentStyleLoss(FrozenPriorLoss):
    """Mean squared differences of features (content) and of their Gram matrices (style), each summed over layers.

    Content is what a feature map shows and where, style only how its channels go together (arXiv 1508.06576 and
    1603.08155; TransMRSR, arXiv 2306.06669, adds both). Gradients reach ``pred`` only; the network is frozen for good
    and stays in eval mode (see `FrozenPriorLoss`). Features are compared in float32 or better, whatever the images are.

    Args:
        network: a trained network of images [B, C, H, W]; its own output is not used.
        content: names of the modules in ``network`` whose outputs [B, C', H', W'] are compared.
        style: names of the modules of whose outputs the :func:`gram_matrix` is compared.
        content_weight, style_weight: factors of the two sums.
        rgb: whether the network takes RGB images. Images of 1 channel are then repeated to 3; of images with other
            channels than 3 each channel goes in alone and the losses are summed.

    Raises:
        ValueError: there is no layer to compare, or a name that the network does not have; when called: the images
            differ in shape.
    """

    def __init__(
        self,
        network: nn.Module,
        content: Sequence[str] = (),
        style: Sequence[str] = (),
        *,
        content_weight: float = 1.0,
        style_weight: float = 1.0,
        rgb: bool = False,
    ) -> None:
        super().__init__(network)
        self.content, self.style = tuple(content), tuple(style)
        if not (self.content or self.style):
            raise ValueError("There is nothing to compare: give layers for content or style.")
        modules = dict(network.named_modules())
        unknown = [name for name in (*self.content, *self.style) if name not in modules]
        if unknown:
            known = ", ".join(filter(None, modules))
            raise ValueError(f"The network has no layer {', '.join(unknown)}: expected names out of {known}.")
        self.content_weight = content_weight
        self.style_weight = style_weight
        self.rgb = rgb

    def compare(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the weighted sum of content and style."""
        channels = pred.shape[1]
        if self.rgb:
            pred, label = _as_rgb(pred), _as_rgb(label)
        with torch.no_grad():
            target = self._features(label)
        features = self._features(pred)
        loss = pred.new_zeros((), dtype=torch.float32 if pred.dtype.itemsize < 4 else pred.dtype)
        for name in self.content:
            loss = loss + self.content_weight * F.mse_loss(features[name], target[name])
        for name in self.style:
            loss = loss + self.style_weight * F.mse_loss(gram_matrix(features[name]), gram_matrix(target[name]))
        # as in VGGContentLoss
        return loss * channels if self.rgb and channels not in (1, 3) else loss

    def _features(self, image: Tensor) -> dict[str, Tensor]:
        """Return the outputs of the layers by name, in float32 or better."""
        features: dict[str, Tensor] = {}
        handles = []
        for name in {*self.content, *self.style}:

            def keep(module: nn.Module, args: tuple, output: Tensor, name: str = name) -> None:
                features[name] = output.float() if output.dtype.itemsize < 4 else output

            handles.append(self.network.get_submodule(name).register_forward_hook(keep))
        try:
            self.network(image)
        finally:
            for handle in handles:
                handle.remove()
        return features


def gram_matrix(features: Tensor) -> Tensor:
    """Return which channels go together: F F^T / (C H W), [B, C, C], of features [B, C, H, W] seen as F [C, H W].

    Source: arXiv 1603.08155, equation 3.
    """
    _, channels, height, width = features.shape
    flat = features.flatten(2)
    with torch.autocast(features.device.type, enabled=False):  # thousands of products are summed
        return flat @ flat.transpose(1, 2) / (channels * height * width)


def _as_rgb(image: Tensor) -> Tensor:
    return image if image.shape[1] == 3 else image.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
