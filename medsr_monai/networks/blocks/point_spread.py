"""A network that is told the point spread of its input."""

from __future__ import annotations

from torch import Tensor, nn


class PointSpreadEmbedding(nn.Module):
    """Tell a network the point spread of its input: one vector is added to all of its first features.

    It starts as zero, so that a network that is not told yet computes what it did before.

    Source: degradation maps as a second input are those of SRMD (arXiv 1712.06116); here one vector takes their place.

    Args:
        entries: length of what is told, such as that of :func:`medsr_monai.transforms.encode_point_spread`.
        dim: channels of the features.
    """

    def __init__(self, entries: int, dim: int) -> None:
        super().__init__()
        self.entries = entries
        self.layers = nn.Sequential(nn.Linear(entries, dim), nn.GELU(), nn.Linear(dim, dim))

    def start_as_identity(self) -> None:
        """Add nothing until training changes it."""
        last = self.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: Tensor, psf: Tensor | None) -> Tensor:
        """Add to features [B, dim, H, W] what is told, [B, entries] or [1, entries]; None says that it is unknown."""
        if psf is None:
            psf = features.new_zeros(1, self.entries)
        return features + self.layers(psf.to(features.dtype)).unsqueeze(-1).unsqueeze(-1)
