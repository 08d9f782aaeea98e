"""timm `NaFlexVit`: images of one shape, or of different ones in one batch, padded to the same number of tokens.

Its blocks are those of timm's plain ViT and EVA; the mask in their arguments hides padding only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import torch
from timm.layers import Attention
from timm.models.eva import EvaBlock
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.noted import collected
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run

from ..shared.adapter import Reads
from ..shared.classes import Classes
from ..shared.masks import adds_nothing, is_traced, visible_of
from .eva import ReducedEvaBlock, TimmEva
from .vit import ReducedBlock


class PaddedLayer:
    """Turns the mask into sizes, in which it reaches the attention again."""

    def collected(self, reduction: Reduction) -> frozenset[int]:
        return collected(reduction)

    def valid(self, reduction: Reduction, x: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
        return None if attn_mask is None else valid_tokens(attn_mask, x)

    def attention_line(self, run: Run, x: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        return super().attention_line(run, x, **kwargs)  # type: ignore[misc]


class ReducedNaFlexBlock(PaddedLayer, ReducedBlock):  # type: ignore[misc]
    pass


class ReducedNaFlexEvaBlock(PaddedLayer, ReducedEvaBlock):  # type: ignore[misc]
    pass


def valid_tokens(mask: Tensor, x: Tensor) -> Tensor:
    """`(B, N)`: the tokens of `x (B, N, C)` that an additive mask `(B, 1, 1 or N, N)` leaves visible, to all queries
    or to visible ones only.

    Raises: ValueError for any other mask, which only an eager forward can see.
    """
    # timm adds a boolean mask to its logits, where that hides nothing.
    if mask.is_floating_point() and mask.ndim == 4 and mask.shape[1] == 1:
        visible = visible_of(mask)
        keys = visible[:, 0] if visible.shape[1] == 1 else visible.diagonal(dim1=1, dim2=2)
        to_all = keys[:, None].expand_as(visible)
        to_visible = to_all if visible.shape[1] == 1 else to_all & keys[:, :, None]
        if is_traced() or (adds_nothing(mask, visible) and any(torch.equal(visible, v) for v in (to_all, to_visible))):
            return keys.expand(x.shape[0], -1)
    raise InvalidValueError(
        "this attn_mask does not fit a reduced model: only masks that hide padding can follow the tokens; "
        "call with patch_valid instead, or call tokenreduce.unpatch(model)"
    )


class TimmNaFlexVit(TimmEva):
    """Tokens are always restored: what pools them uses the mask of the input."""

    name = "timm_naflexvit"
    family = "timm NaFlexVit"
    reduced: ClassVar = {Block: ReducedNaFlexBlock, EvaBlock: ReducedNaFlexEvaBlock}
    kind = NaFlexVit
    known_attention: ClassVar[Classes] = {Attention: Attention, **TimmEva.known_attention}

    def embedding(self, model: Any) -> Any:
        return model.embeds

    def grid(self, model: Any) -> tuple[int, ...] | None:
        """As many tokens as images have by default, in no order: images of a batch may have grids of their own."""
        grid = model.embeds.pos_embed_grid_size
        return None if grid is None else (prod(grid),)

    def has_class_token(self, model: Any) -> bool:
        return model.has_class_token

    def grid_capture(self, model: Any) -> None:
        """No grid holds for all images."""

    def lacks(self, model: Any) -> dict[str, str]:
        grids = dict.fromkeys(("grid", "positions"), "images of a batch may have grids of their own")
        return super().lacks(model) | grids

    def reads(self, model: Any, outer: Sequence[nn.Module]) -> Reads:
        return "all"


ADAPTER = TimmNaFlexVit()
