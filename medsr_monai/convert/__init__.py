"""Networks from the checkpoints that the authors published."""

from medsr_monai.convert.official import FAMILIES, load_official

__all__ = ["FAMILIES", "load_official"]
