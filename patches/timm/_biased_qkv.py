"""Attention of timm's EVA and BEiT. Where its fused projection has biases, no module returns queries, keys and values:
what methods read of them is computed here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def is_hidden(attn: Any) -> bool:
    """Whether `attn` has a fused projection that it does not call as a module."""
    return attn.qkv is not None and attn.q_bias is not None and not attn.qkv_bias_separate


def project(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `(B, H, N, d)` of `x (B, N, C)`, as the library computes them."""
    bias = None if attn.q_bias is None else torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    if bias is None or attn.qkv_bias_separate:
        qkv = attn.qkv(x)
        qkv = qkv if bias is None else qkv + bias
    else:
        qkv = F.linear(x, weight=attn.qkv.weight, bias=bias)
    queries, keys, values = qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return queries, keys, values


def attention(attn: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """What attention gives before its output projection, `(B, N, H d)`, fused or not as `attn` says."""
    if attn.fused_attn:
        dropout = attn.attn_drop.p if attn.training else 0.0
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout)
    else:
        logits = (queries * attn.scale) @ keys.transpose(-2, -1)
        logits = logits if bias is None else logits + bias
        out = attn.attn_drop(logits.softmax(-1)) @ values
    return out.transpose(1, 2).flatten(2)
