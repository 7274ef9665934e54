"""RDST's segmentation prior, which compares a frozen U-Net's features and predictions (arXiv 2302.11184)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple
from torch import Tensor, nn

from medsr_monai.losses.frozen_prior import FrozenPriorLoss

DISTANCES = {"l1": F.l1_loss, "mse": F.mse_loss}
LAYER_REDUCTIONS = ("sum", "nested_mean")
TARGETS = ("hard", "soft")


class SegmentationPerceptualLoss(FrozenPriorLoss):
    """Compare two images by what a frozen segmentation U-Net makes of them.

    The loss is the sum of the chosen terms, a scalar:

    - E(k), ``encoder``: the distance between the k-th feature maps of the encoder (equation 8). In a ResNet encoder,
      E(1) compares the stem's output after its activation, at half the image's size, and E(5) the deepest features.
    - D, ``decoder``: the distance between the outputs of the decoder, before the segmentation head.
    - HRL, ``hrl``: the Dice loss (equation 10) between the class probabilities p of the super-resolved image and the
      prediction y on the reference. It is the mean over classes of 1 - 2 sum(p y) / sum(p + y), with sums over batch
      and pixels; a class that y does not have counts 0.

    Gradients reach ``pred`` only; the network is frozen for good and stays in eval mode (see `FrozenPriorLoss`).

    Args:
        network: a U-Net with the parts ``encoder`` (image -> list of features, the image itself first), ``decoder``
            (list of features -> features) and ``segmentation_head`` (-> logits [B, classes, H, W]), such as
            :class:`medsr_monai.networks.SegmentationUNet` or any ``segmentation_models_pytorch.Unet``.
        encoder: each k of the E(k) to be summed, such as 1 or [1, 2, 3, 4, 5]; empty for none.
        decoder: whether D is added.
        hrl: whether HRL is added.
        distance: "l1", the paper's mean absolute difference, or "mse", what the authors' code computes for "L1".
        layer_reduction: "sum", the paper's plain sum of the E(k), or "nested_mean" as in the authors' code: after each
            layer the sum so far is divided by the number n of layers, so that the last weighs 1/n and the first n^-n.
        target: the prediction y of HRL: "hard", the most probable class, as in the authors' code, or "soft", the
            probabilities, with which the Dice loss of equal predictions is 0 only if these are certain.
        include_background: whether HRL counts class 0, too.

    Raises:
        ValueError: no term is chosen, a k is below 1, or an option is unknown; when called: a k is beyond the encoder's
            depth, HRL is of a network with one class, or the images differ in shape.
    """

    def __init__(
        self,
        network: nn.Module,
        encoder: int | Sequence[int] = (1,),
        decoder: bool = False,
        hrl: bool = False,
        *,
        distance: str = "l1",
        layer_reduction: str = "sum",
        target: str = "hard",
        include_background: bool = True,
    ) -> None:
        super().__init__(network)
        self.encoder = tuple(ensure_tuple(encoder))
        if not (self.encoder or decoder or hrl):
            raise ValueError("There is nothing to compare: give encoder one or more layers, or set decoder or hrl.")
        for k in self.encoder:
            if isinstance(k, bool) or not isinstance(k, int) or k < 1:
                raise ValueError(f"encoder is {encoder!r}: expected layers counted from 1, such as 1 or [1, 2].")
        _check("distance", distance, DISTANCES)
        _check("layer_reduction", layer_reduction, LAYER_REDUCTIONS)
        _check("target", target, TARGETS)
        self.decoder = decoder
        self.hrl = hrl
        self.distance = DISTANCES[distance]
        self.layer_reduction = layer_reduction
        self.target = target
        self.include_background = include_background

    def compare(self, pred: Tensor, label: Tensor) -> Tensor:
        """Return the sum of the chosen terms."""
        with torch.no_grad():
            target_features, target_decoded, target_logits = self._outputs(label)
        features, decoded, logits = self._outputs(pred)
        loss = pred.new_zeros(())
        for k in self.encoder:
            loss = loss + self.distance(features[k], target_features[k])
            if self.layer_reduction == "nested_mean":
                loss = loss / len(self.encoder)
        if self.decoder:
            loss = loss + self.distance(decoded, target_decoded)
        if self.hrl:
            loss = loss + self._dice(logits, target_logits)
        return loss

    def _outputs(self, image: Tensor) -> tuple[Sequence[Tensor], Tensor | None, Tensor | None]:
        """Return the encoder's features, the decoder's and the logits, as far as they are needed."""
        features = self.network.encoder(image)
        if self.encoder and max(self.encoder) >= len(features):
            raise ValueError(
                f"encoder is {list(self.encoder)}: expected layers 1 to {len(features) - 1} of this network."
            )
        decoded = self.network.decoder(features) if self.decoder or self.hrl else None
        return features, decoded, self.network.segmentation_head(decoded) if self.hrl else None

    def _dice(self, logits: Tensor, target_logits: Tensor) -> Tensor:
        classes = logits.shape[1]
        if classes < 2:
            raise ValueError("hrl needs a network with 2 or more classes, background included; this one has 1.")
        p = logits.float().softmax(1)
        y = target_logits.float().softmax(1)
        if self.target == "hard":
            y = F.one_hot(y.argmax(1), classes).movedim(-1, 1).to(p)
        over = (0, *range(2, p.ndim))
        loss = 1 - 2 * (p * y).sum(over) / (p + y).sum(over).clamp_min(1e-7)
        loss = loss * (y.sum(over) > 0)
        return loss[0 if self.include_background else 1 :].mean()


def _check(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}: expected one of {', '.join(known)}.")
