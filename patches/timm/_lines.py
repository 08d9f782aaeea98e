"""The two lines of blocks that several models of timm have. These classes go in front of `ReducedLayer`."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class BlockLines:
    """The parts of a block."""

    attn: Any
    mlp: Any
    norm1: Any
    norm2: Any
    drop_path1: Any
    drop_path2: Any

    def biased_line(self, x: Tensor, **arguments: Any) -> Tensor:
        """Attention, called with these arguments, and its residual."""
        raise NotImplementedError  # every kind has its own


class GammaLines(BlockLines):
    """Of EVA and BEiT: LayerScale is a parameter of the block, or there is none."""

    gamma_1: Any
    gamma_2: Any

    def biased_line(self, x: Tensor, **arguments: Any) -> Tensor:
        y = self.attn(self.norm1(x), **arguments)
        return x + self.drop_path1(y if self.gamma_1 is None else self.gamma_1 * y)

    def mlp_line(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm2(x))
        return x + self.drop_path2(y if self.gamma_2 is None else self.gamma_2 * y)


class PostNormLines(BlockLines):
    """Norms after attention and MLP."""

    def biased_line(self, x: Tensor, **arguments: Any) -> Tensor:
        return x + self.drop_path1(self.norm1(self.attn(x, **arguments)))

    def mlp_line(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self.norm2(self.mlp(x)))
