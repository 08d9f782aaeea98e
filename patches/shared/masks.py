"""Attention masks that users give to reduced models: honoured where they only hide padding, else refused."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError


def refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise InvalidValueError(
            "attn_mask and is_causal do not fit a reduced model: its tokens are no longer those the mask was made for; "
            "call without a mask, or call tokenreduce.unpatch(model)"
        )


def valid_keys(mask: Tensor, x: Tensor) -> Tensor:
    """`(B, N)`: the tokens of `x (B, N, C)` that a mask `(B, 1, 1 or N, N)`, boolean or additive, leaves visible.

    Raises: ValueError for a mask that is not the same for all queries or adds anything else, which only an eager
    forward can see.
    """
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    pads = mask.ndim == 4 and mask.shape[1] == 1
    if pads and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        pads = bool((visible == visible[:, :, :1]).all()) and (
            mask.dtype == torch.bool or bool((mask[visible] == 0).all())
        )
    if not pads:
        raise InvalidValueError(
            "this attention_mask does not fit a reduced model: only masks that hide padding, the same for all "
            "queries, can follow the tokens; call without it, or call tokenreduce.unpatch(model)"
        )
    return visible[:, 0, 0].expand(x.shape[0], -1)
