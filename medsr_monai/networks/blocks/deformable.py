"""Deformable convolution, which reads its input at learnt places that depend on the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula
from torchvision.ops import deform_conv2d


def deform_conv2d_flop(
    input_shape: torch.Size, weight_shape: torch.Size, *args: object, out_shape: torch.Size, **kwargs: object
) -> int:
    """Count a deformable convolution for torch's FlopCounterMode as the plain one; reading between pixels is free."""
    return conv_flop_count(input_shape, weight_shape, out_shape)


if torch.ops.torchvision.deform_conv2d not in flop_registry:  # torch knows its own operators only
    register_flop_formula(torch.ops.torchvision.deform_conv2d)(deform_conv2d_flop)


def deform_conv2d_by_grid_sample(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """`torchvision.ops.deform_conv2d` at stride 1 and the input's size, written with torch's own operators only.

    It serves runtimes without that operator, and checks it independently: on float32 images up to 512 pixels wide the
    two agree to 1e-5 of the largest output. Bilinear reading has a kink at whole-number shifts, where their gradients
    may be those of different sides. On one CPU core it takes some 0.6 of torchvision's time, and a quarter of it with
    the backward pass (64 channels, 4 groups, 40 to 256 pixels a side). It holds the input once per tap, as torchvision
    does.

    Args:
        x: image [B, C, H, W]; zero outside.
        offset: where each tap of the kernel reads, in pixels beside its usual place, [B, groups * taps * 2, H, W]:
            offset group by group, tap by tap (row by row), down before right. Each group moves C / groups channels.
        weight: kernel [C out, C, rows, columns] of odd sides.
        bias: [C out].
        mask: factor of each tap, [B, groups * taps, H, W]; 1 by default.

    Returns:
        [B, C out, H, W].
    """
    b, c, h, w = x.shape
    rows, columns = weight.shape[2], weight.shape[3]
    taps = rows * columns
    groups = offset.shape[1] // (2 * taps)

    tap = torch.arange(taps, device=x.device)
    tap_row = (tap // columns - rows // 2).view(taps, 1, 1)
    tap_column = (tap % columns - columns // 2).view(taps, 1, 1)
    offset = offset.reshape(b * groups, taps, 2, h, w)
    down = offset[:, :, 0] + (tap_row + torch.arange(h, device=x.device).view(1, h, 1))
    right = offset[:, :, 1] + (tap_column + torch.arange(w, device=x.device).view(1, 1, w))
    # grid_sample counts from -1 to 1 between the outer edges of the image.
    grid = torch.stack([(2 * right + 1) / w - 1, (2 * down + 1) / h - 1], dim=-1).reshape(b * groups, taps * h, w, 2)

    read = F.grid_sample(x.reshape(b * groups, c // groups, h, w), grid, padding_mode="zeros", align_corners=False)
    read = read.reshape(b * groups, c // groups, taps, h * w)
    if mask is not None:
        read = read * mask.reshape(b * groups, 1, taps, h * w)
    y = torch.matmul(weight.flatten(1), read.reshape(b, c * taps, h * w)).reshape(b, weight.shape[0], h, w)
    return y if bias is None else y + bias.view(1, -1, 1, 1)


class DeformableConv2d(nn.Conv2d):
    """Convolution whose taps move and are weighed by what the image shows: [B, C in, H, W] -> [B, C out, H, W].

    A second convolution, `offset`, reads the same input and gives each tap of each pixel an unbounded shift in pixels
    and, if `modulated`, a factor in [0, 2]. It starts at zero, so that an untrained layer equals the plain convolution
    with its `weight` and `bias`; the papers train it at a tenth of the learning rate (parameters `*.offset.*`).
    The taps are read in float32 also under autocast or in half precision.

    Source: Deformable ConvNets, arXiv 1703.06211, equation 2; modulated: Deformable ConvNets v2, arXiv 1811.11168,
    equation 1, there with factors sigmoid(.), here 2 * sigmoid(.), which is 1 at the start.

    Attributes:
        by_grid_sample: compute by `deform_conv2d_by_grid_sample` in place of torchvision's operator; set it for all
            layers of a network with `use_grid_sample`.

    Args:
        in_channels: channels of the input, a multiple of offset_groups.
        out_channels: channels of the output.
        kernel_size: odd side of the kernel.
        offset_groups: into how many groups the input's channels are split, each with its own shifts and factors.
        modulated: learn factors as well as shifts.

    Raises:
        ValueError: kernel_size is even, or offset_groups does not divide in_channels.
    """

    __constants__ = (*nn.Conv2d.__constants__, "modulated", "by_grid_sample")  # TorchScript compiles one branch only

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        offset_groups: int = 1,
        modulated: bool = True,
    ) -> None:
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}: expected an odd number, such as 3, to keep H and W.")
        if offset_groups < 1 or in_channels % offset_groups:
            raise ValueError(
                f"offset_groups is {offset_groups}, which does not divide the {in_channels} channels: expected a "
                f"divisor of {in_channels}, choose another offset_groups or width."
            )
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.modulated = modulated
        self.by_grid_sample = False
        self.taps = offset_groups * kernel_size**2
        self.offset = nn.Conv2d(in_channels, (3 if modulated else 2) * self.taps, kernel_size, padding=kernel_size // 2)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve [B, C in, H, W] -> [B, C out, H, W]."""
        # The operator has no bfloat16 form, and shifts need more digits than half precision has.
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        moves = self.offset(input).to(dtype)
        offset = moves[:, : 2 * self.taps]
        mask: Tensor | None = None
        if self.modulated:
            mask = 2 * torch.sigmoid(moves[:, 2 * self.taps :])
        x, weight = input.to(dtype), self.weight.to(dtype)
        bias = self.bias
        if bias is not None:
            bias = bias.to(dtype)
        if self.by_grid_sample:
            y = deform_conv2d_by_grid_sample(x, offset, weight, bias, mask)
        else:
            y = deform_conv2d(x, offset, weight, bias, padding=self.padding, mask=mask)
        return y.to(input.dtype)


def use_grid_sample(network: nn.Module, enabled: bool = True) -> nn.Module:
    """Let every deformable convolution of a network read by torch's grid_sample, in place of torchvision's operator.

    Call it before scripting or exporting for a runtime that lacks the operator, such as a TorchScript process that has
    not imported torchvision or an ONNX runtime without DeformConv. It is also the faster form on a CPU, above all in
    training. Weights stay the same, and results agree to 1e-5.

    Args:
        network: changed in place.
        enabled: False goes back to torchvision's operator.

    Returns:
        The network.

    Raises:
        ValueError: the network has no deformable convolution.
    """
    layers = [module for module in network.modules() if isinstance(module, DeformableConv2d)]
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no DeformableConv2d: expected at least one; script or export it as it is."
        )
    for layer in layers:
        layer.by_grid_sample = enabled
    return network
