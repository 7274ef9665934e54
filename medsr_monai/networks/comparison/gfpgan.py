"""GFP-GAN (arXiv 2101.04061), made of spandrel's parts.

spandrel is MIT-licensed, its GFP-GAN Tencent's code under Apache-2.0 with parts of third parties, which that licence
lists. It is installed with the extra `compare` and imported when a network is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.padding import pad_to_multiple
from medsr_monai.networks.blocks.upsample import enlarge, scale_per_axis


@records_arguments
class GFPGAN(nn.Module):
    """GFP-GAN on an image that is enlarged bicubically first: a U-Net that steers the layers of a StyleGAN2 decoder.

    An image [B, in_channels, H, W] of any H, W >= 1 becomes [B, out_channels, H * rows, W * columns]. The network works
    on colour images of one size: three channels are taken as they are; of any other number each channel is shown as a
    grey image, and the mean of the three colours of the answer is its result. Smaller images are padded at the bottom
    and right, larger ones cut into overlapping windows of that size. The noise of StyleGAN2 is drawn anew in training
    and stored, the same for every image, in eval mode. The U-Net's own images, which only its authors' training looks
    at, are left out.

    Attributes:
        scale_factors: (rows, columns) by which the output is larger.
        size_multiple: image_size; enlarged images of exactly this size need neither padding nor windows.
        minimum_size: the smallest H and W, 1.
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, equal to in_channels.
        scale: 1, 2, 3, 4 or 8, or one of them per slice axis such as [1, 4].
        image_size: side of the image that the network works on, a power of 2 from 8 to 1024.
        num_style_feat: length of the style code.
        channel_multiplier: width of the levels above 32 pixels, as a multiple of StyleGAN2's smaller network.
        narrow: width of all levels, as a multiple of GFP-GAN's.
        num_mlp: layers of the network from the code to the styles.
        shared_style: one style for all layers, through that network; otherwise the U-Net gives each layer its own.
        sft_half: steer only the second half of the channels, which keeps more of the decoder's own image.
        fix_decoder: do not train the decoder; sensible only after its weights have been loaded.

    Raises:
        ImportError: spandrel is not installed.
        ValueError: scale or image_size is not supported, or out_channels differs from in_channels.
    """

    minimum_size = 1

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int | Sequence[int] = 4,
        *,
        image_size: int = 256,
        num_style_feat: int = 512,
        channel_multiplier: int = 2,
        narrow: float = 1.0,
        num_mlp: int = 8,
        shared_style: bool = True,
        sft_half: bool = False,
        fix_decoder: bool = False,
    ) -> None:
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(
                f"GFPGAN keeps its channels: in_channels is {in_channels} and out_channels {out_channels}, "
                "expected equal numbers; set out_channels to in_channels."
            )
        if image_size not in (8, 16, 32, 64, 128, 256, 512, 1024):
            raise ValueError(f"image_size is {image_size}: expected a power of 2 from 8 to 1024, such as 256.")
        self.scale_factors = scale_per_axis(scale)
        self.size_multiple = image_size
        try:
            from spandrel.architectures.GFPGAN import GFPGAN as SpandrelGFPGAN
        except ImportError as error:
            raise ImportError("GFPGAN is made of spandrel's parts: pip install 'medsr_monai[compare]'") from error
        self.network = SpandrelGFPGAN(
            out_size=image_size,
            num_style_feat=num_style_feat,
            channel_multiplier=channel_multiplier,
            narrow=narrow,
            num_mlp=num_mlp,
            input_is_latent=not shared_style,
            different_w=not shared_style,
            sft_half=sft_half,
            fix_decoder=fix_decoder,
        )
        self.network.toRGB = nn.ModuleList()
        if not shared_style:
            self.network.stylegan_decoder.style_mlp = nn.Identity()  # not used

    def load_prior(self, prior: Mapping[str, Tensor], centroids: None = None, *, freeze: bool = False) -> None:
        """Take over the StyleGAN2 decoder of another GFP-GAN, whose U-Net has no place here.

        Args:
            prior: state dict of a `GFPGAN` with the same size and widths.
            centroids: GFP-GAN does not truncate, so there are none.
            freeze: keep the decoder as it is in training, as the authors of GFP-GAN do.

        Raises:
            ValueError: tensors do not fit; one line names the first of them, and nothing is changed.
        """
        prefix = "network.stylegan_decoder."
        theirs = {n.removeprefix(prefix): value for n, value in prior.items() if n.startswith(prefix)}
        ours = self.network.stylegan_decoder.state_dict()
        shapes = [{name: tuple(value.shape) for name, value in one.items()} for one in (theirs, ours)]
        if differing := sorted(name for name in ours.keys() | theirs.keys() if len({s.get(name) for s in shapes}) > 1):
            name = differing[0]
            raise ValueError(
                f"The prior does not fit, {len(differing)} tensors differ: {prefix}{name} is "
                f"{shapes[0].get(name, 'absent')} in the prior and {shapes[1].get(name, 'absent')} here. Expected the "
                "state dict of a GFPGAN with this network's image_size, channel_multiplier, narrow and num_mlp."
            )
        self.network.stylegan_decoder.load_state_dict(theirs)
        if freeze:
            self.network.stylegan_decoder.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns]."""
        rows, columns = self.scale_factors
        x = enlarge(x, rows, columns)
        if x.shape[1] == 3:
            return self._restore(x)
        grey = x.flatten(0, 1).unsqueeze(1)
        return self._restore(grey.expand(-1, 3, -1, -1)).mean(dim=1).view(x.shape)

    def _restore(self, x: Tensor) -> Tensor:
        """Restore colour images of any size, [B, 3, H, W] -> the same."""
        side = self.size_multiple
        height, width = x.shape[2:]
        x = pad_to_multiple(x, side) if max(height, width) <= side else x
        if x.shape[2:] == (side, side):
            return self._restore_window(x)[:, :, :height, :width]
        return sliding_window_inference(
            x, side, sw_batch_size=1, predictor=self._restore_window, mode="gaussian", padding_mode="replicate"
        )

    def _restore_window(self, x: Tensor) -> Tensor:
        return self.network(x, return_rgb=False, randomize_noise=self.training)[0]
