"""LGSR: local features by deformable convolutions, global ones between pixels and between patches (see `LGSR`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsr_monai.networks.arguments import records_arguments
from medsr_monai.networks.blocks.deformable import DeformableConv2d, use_grid_sample
from medsr_monai.networks.blocks.non_local import NonLocal
from medsr_monai.networks.blocks.patch_transformer import PatchTransformer
from medsr_monai.networks.blocks.upsample import Upsample, enlarge, require_equal_channels, scale_per_axis

LOCAL = ("conv", "dcn_v1", "dcn_v2")
"""First convolutions that a local block can have; see `LGSR`."""
ORDERS = ("pixel_patch", "patch_pixel", "parallel")
"""Orders in which pixels and patches learn from each other; see `LGSR`."""


class DynamicLocalBlock(nn.Module):
    """Deformable or plain convolution, LeakyReLU and plain convolution, added to their input [B, C, H, W]."""

    def __init__(self, channels: int, local: str, offset_groups: int) -> None:
        super().__init__()
        if local == "conv":
            self.local = nn.Conv2d(channels, channels, 3, padding=1)
        else:
            self.local = DeformableConv2d(
                channels, channels, 3, offset_groups=offset_groups, modulated=local == "dcn_v2"
            )
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.leaky_relu(self.local(x), 0.2))


class DynamicLocalGroup(nn.Module):
    """Local blocks, one after the other, and a convolution, added to their input [B, C, H, W]."""

    def __init__(self, channels: int, blocks: int, local: str, offset_groups: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DynamicLocalBlock(channels, local, offset_groups) for _ in range(blocks)))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.blocks(x))


@records_arguments
class LGSR(nn.Module):
    """LGSR-style network for 2D medical images of any modality, re-implemented from the published abstract.

    Neither the paper's network in detail nor its code is public. The abstract says that deformable convolutions find
    what is local, that a non-local mechanism relates pixels and a vision transformer patches to find what is global,
    and that the way leads from local to global. All widths, all depths and the rest of the topology are this package's,
    and none of the authors' results is claimed for it.

    An image [B, in_channels, H, W] of any H, W >= 1 becomes [B, out_channels, H * rows, W * columns]. The features h of
    a first convolution go through groups of local blocks, whose outputs a 1x1 convolution fuses to L. The pixels of L
    learn from each other, which gives P, and the patches of P do, which gives T. L, P and T are fused, added to h,
    enlarged, and added to the bicubic enlargement of the input. The last convolution starts at zero, so that an
    untrained network is exactly bicubic. Only the transformer needs a multiple of its patch; features are padded for it
    and cropped again. Intensities are neither scaled nor clipped.

    Memory grows with H * W, not with its square: inference of the default at x4 needs some 11 kB an input pixel, 2.7 GB
    at 512 x 512. The time of the non-local stage does grow with the square, hence large images are best given in
    overlapping tiles, or with `non_local_subsample=2`. On CPU, float32 agrees with float64 to 1e-5, channels_last with
    the contiguous layout to 1e-5, and bfloat16 autocast with float32 to 3 % of the largest output.

    Export. `torch.jit.script` compiles it for any size, and `torch.onnx.export(..., dynamo=True)` writes it; results
    agree to 1e-5. With `grid_sample` they hold torch's own operators only. Without, who runs the file must `import
    torchvision` first, or have ONNX's DeformConv (opset 19). In ONNX the non-local stage holds the whole matrix of all
    pairs of pixels, 340 MB at 96 x 96, so export it for tiles. The older exporter, `dynamo=False`, refuses the
    deformable operator, and `torch.jit.trace` fixes the padding of one size.

    Source: Huang et al., Computerized Medical Imaging and Graphics 115 (2024) 102374, abstract only,
    doi 10.1016/j.compmedimag.2024.102374.

    Attributes:
        scale_factors: (rows, columns) by which the output is larger.
        size_multiple: the patch, or 1 without the transformer; inputs of such a size need no padding.
        minimum_size: the smallest H and W, 1.
        arguments: the config entry that builds this network (see `records_arguments`).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        scale: 1, 2, 3, 4 or 8, or one of them per slice axis such as [1, 4].
        embed_dim: channels of the features; a multiple of offset_groups.
        num_groups: groups of local blocks.
        blocks_per_group: local blocks in each of them.
        local: first convolution of a local block, "dcn_v2" (modulated deformable), "dcn_v1" (deformable) or "conv".
        offset_groups: groups of channels with shifts of their own in a deformable convolution.
        non_local: relate pixels by a non-local block.
        non_local_subsample: side of that block's max-pooling, by whose square its time is divided; 1 for none.
        vit: relate patches by a vision transformer.
        patch_size: side of the transformer's patches, in input pixels.
        hidden_size: channels of the transformer's tokens, a multiple of num_heads.
        num_layers: layers of the transformer.
        num_heads: attention heads of each layer.
        mlp_ratio: hidden width of the transformer's perceptrons, as a multiple of hidden_size.
        order: "pixel_patch" (non-local, then transformer), "patch_pixel", or "parallel" (both on L).
        bicubic_residual: add the bicubic enlargement of the input, and start with a last convolution of zeros.
        grid_sample: compute deformable convolutions by torch's grid_sample, which is faster on a CPU (see
            `blocks.deformable.use_grid_sample`); weights and `arguments` do not depend on it.

    Raises:
        ValueError: scale, local or order is not supported; offset_groups does not divide embed_dim, or num_heads
            hidden_size; or bicubic_residual is set and in_channels differs from out_channels.
    """

    __constants__ = ("bicubic_residual", "parallel")
    unrecorded = ("grid_sample",)
    minimum_size = 1

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int | Sequence[int] = 4,
        *,
        embed_dim: int = 64,
        num_groups: int = 4,
        blocks_per_group: int = 4,
        local: str = "dcn_v2",
        offset_groups: int = 4,
        non_local: bool = True,
        non_local_subsample: int = 1,
        vit: bool = True,
        patch_size: int = 4,
        hidden_size: int = 256,
        num_layers: int = 4,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        order: str = "pixel_patch",
        bicubic_residual: bool = True,
        grid_sample: bool = False,
    ) -> None:
        super().__init__()
        for name, value, choices in (("local", local, LOCAL), ("order", order, ORDERS)):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}: expected one of {', '.join(choices)}.")
        if bicubic_residual:
            require_equal_channels(in_channels, out_channels)
        self.scale_factors = scale_per_axis(scale)
        self.size_multiple = patch_size if vit else 1
        self.parallel = order == "parallel"
        self.bicubic_residual = bicubic_residual

        self.head = nn.Conv2d(in_channels, embed_dim, 3, padding=1)
        self.groups = nn.ModuleList(
            DynamicLocalGroup(embed_dim, blocks_per_group, local, offset_groups) for _ in range(num_groups)
        )
        self.local_fusion = nn.Conv2d(num_groups * embed_dim, embed_dim, 1)
        stages: dict[str, nn.Module] = {}
        if non_local:
            stages["pixel"] = NonLocal(embed_dim, subsample=non_local_subsample)
        if vit:
            stages["patch"] = PatchTransformer(embed_dim, hidden_size, patch_size, num_layers, num_heads, mlp_ratio)
        if order == "patch_pixel":
            stages = dict(reversed(stages.items()))
        self.global_stages = nn.ModuleDict(stages)
        self.fusion = nn.Conv2d((1 + len(stages)) * embed_dim, embed_dim, 1)
        self.conv_after_body = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)
        self.upsample = Upsample(embed_dim, scale)
        self.last = nn.Conv2d(embed_dim, out_channels, 3, padding=1)
        if bicubic_residual:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)
        if grid_sample and local != "conv":
            use_grid_sample(self)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve [B, in_channels, H, W] -> [B, out_channels, H * rows, W * columns]."""
        shallow = self.head(x)
        y = shallow
        outputs: list[Tensor] = []
        for group in self.groups:
            y = group(y)
            outputs.append(y)
        local = self.local_fusion(torch.cat(outputs, dim=1))
        y = local
        outputs = [local]
        for stage in self.global_stages.values():
            y = stage(local if self.parallel else y)
            outputs.append(y)
        y = self.conv_after_body(self.fusion(torch.cat(outputs, dim=1)))
        y = self.last(self.upsample(y + shallow))
        if self.bicubic_residual:
            rows, columns = self.scale_factors
            y = y + enlarge(x, rows, columns)
        return y
