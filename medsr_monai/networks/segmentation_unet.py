"""The U-Net whose predictions and features judge a super-resolved image: segmentation_models_pytorch's."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.padding import pad_to_multiple


@records_arguments
class SegmentationUNet(nn.Module):
    """A U-Net of segmentation_models_pytorch for slices of any size; its state dict has that library's names.

    Images [B, in_channels, H, W] of any H, W >= 1 become logits [B, classes, H, W], class 0 being the background.
    Inside, they are padded to a multiple of 32 at the bottom and right (reflected); the padding is cropped off.

    Attributes:
        encoder, decoder, segmentation_head: the library's parts; the encoder makes six feature maps, the first of them
            the image itself, the decoder makes 16 channels of them, and the head logits of these.
        size_multiple: 32; images of such a size need no padding.
        minimum_size: the smallest H and W, 1.
        arguments: the config entry that builds this network (see `records_arguments`), without encoder_weights, which
            matter only before the training.

    Args:
        in_channels: channels of the image, 1 for one contrast.
        classes: number of classes, background included.
        encoder: name of an encoder of segmentation_models_pytorch with five stages, at 1/2 to 1/32 of the size.
        encoder_weights: local file with the encoder's weights for RGB images, as torchvision (resnet34-b627a593.pth) or
            the library (model.safetensors) publishes them; the first convolution is adapted to in_channels. None for
            random weights.

    Raises:
        ValueError: the encoder is unknown, or encoder_weights belong to another network.
        FileNotFoundError: there is no file encoder_weights.
    """

    unrecorded = ("encoder_weights",)
    minimum_size = 1

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 4,
        *,
        encoder: str = "resnet34",
        encoder_weights: str | None = None,
    ) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp

        try:
            unet = smp.Unet(encoder, encoder_weights=None, in_channels=in_channels, classes=classes)
        except KeyError as error:
            raise ValueError(f"encoder is {encoder!r}: {error.args[0]}") from None
        self.in_channels = in_channels
        self.size_multiple = 32
        self.encoder, self.decoder, self.segmentation_head = unet.encoder, unet.decoder, unet.segmentation_head
        if encoder_weights is not None:
            pretrained = smp.encoders.get_encoder(encoder)
            try:
                pretrained.load_state_dict(_read(encoder_weights))
            except (AttributeError, RuntimeError) as error:
                raise ValueError(f"{encoder_weights}: not the weights of {encoder} for RGB images") from error
            pretrained.set_in_channels(in_channels, pretrained=True)
            self.encoder.load_state_dict(pretrained.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """Segment images: [B, in_channels, H, W] -> logits [B, classes, H, W].

        Raises:
            ValueError: the image has other channels than in_channels.
        """
        if x.shape[1] != self.in_channels:
            raise ValueError(f"the image has {x.shape[1]} channels: expected in_channels = {self.in_channels}.")
        padded = pad_to_multiple(x, self.size_multiple)
        logits = self.segmentation_head(self.decoder(self.encoder(padded)))
        return logits[:, :, : x.shape[2], : x.shape[3]]


def _read(path: str) -> dict[str, Tensor]:
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"encoder_weights is {path}: no such file, and nothing is downloaded; give the path of a file with the "
            "encoder's weights, or leave it out."
        )
    if str(path).endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise many kinds
        raise ValueError(f"{path}: not a PyTorch weights file, or a damaged one") from error
