"""`GammaLines`: the two lines of EVA's and BEiT's blocks, whose LayerScale is a parameter of the block, or none."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class GammaLines:
    """Goes in front of `ReducedLayer`."""

    attn: Any
    mlp: Any
    norm1: Any
    norm2: Any
    gamma_1: Any
    gamma_2: Any
    drop_path1: Any
    drop_path2: Any

    def biased_line(self, x: Tensor, **arguments: Any) -> Tensor:
        """Attention, called with these arguments, and its residual."""
        y = self.attn(self.norm1(x), **arguments)
        return x + self.drop_path1(y if self.gamma_1 is None else self.gamma_1 * y)

    def mlp_line(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm2(x))
        return x + self.drop_path2(y if self.gamma_2 is None else self.gamma_2 * y)
