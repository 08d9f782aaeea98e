"""timm Swin, Swin v2 and its first port: known, so that they are refused with the reason."""

from __future__ import annotations

from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from torch import nn

from ..shared.adapter import Adapter


class TimmSwin(Adapter):
    """Every block shifts its windows over the whole grid and patch merging reads 2 x 2 cells of it, so that tokens
    would have to be restored before each layer; its windows are small already, and merging them saves nothing."""

    name = "timm_swin"
    family = "timm SwinTransformer and SwinTransformerV2 (known and refused: all their layers have windows)"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, (SwinTransformer, SwinTransformerV2, SwinTransformerV2Cr))

    def refusals(self, model: nn.Module) -> list[str]:
        return [
            "all its layers attend in windows that are shifted over the full grid of tokens, and its stages halve that "
            "grid, so that no layer can do with fewer tokens"
        ]

    def lacks(self, model: nn.Module) -> dict[str, str]:
        return {}


ADAPTER = TimmSwin()
