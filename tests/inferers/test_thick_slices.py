"""What is done to slices in training is what the inferer of volumes does to them."""

import pytest
import torch
from monai.data import MetaTensor

from medsr_monai.inferers import ThickSliceInferer, ThroughPlaneInferer


def blur(x):
    return (x + x.roll(1, dims=3)) / 2


@pytest.mark.parametrize("thickness", [2.0, 3.3, 4.0, 6.7])
@pytest.mark.parametrize(("scale", "network"), [([1, 4], lambda x: blur(x).repeat_interleave(4, dim=3)), (1, blur)])
def test_slices_become_what_the_volume_becomes(thickness, scale, network):
    volume = torch.rand(1, 1, 5, 6, 20, generator=torch.Generator().manual_seed(0))
    affine = torch.diag(torch.tensor([1.0, 1.0, thickness, 1.0], dtype=torch.float64))
    whole = ThroughPlaneInferer(refine="coronal", scale=scale)(MetaTensor(volume, affine=affine), network)
    ratio = whole.shape[-1] / 20
    slices = volume[0].permute(2, 0, 1, 3)  # the coronal ones [6, 1, X, Z]
    made = ThickSliceInferer(ratio, scale)(slices, network)
    torch.testing.assert_close(made.permute(1, 2, 0, 3)[None], whole.as_tensor())


@pytest.mark.parametrize(("ratio", "scale"), [(0.5, 1), (float("inf"), 1), (4, [2, 4]), (4, 2)])
def test_refusals(ratio, scale):
    with pytest.raises(ValueError, match="expected a ratio of at least 1"):
        ThickSliceInferer(ratio, scale)
