"""`nn.MultiheadAttention` of a reduced model, for the libraries whose layers use it.

No module in it puts out keys, queries or values for a hook to see, and its fused kernel takes no additive logits: its
forward is restated for the layers that need either.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from tokenreduce.forward.marks import Mark
from tokenreduce.forward.stack import capturing

from .classes import Classes
from .hooks import show_heads, split_heads


class ReducedMultiheadAttention(nn.MultiheadAttention):
    """Self-attention that takes additive logits `(B, 1, 1, N)` as `attn_mask` and shows what a reducer reads; the
    original forward, with its fused kernel, where there is neither."""

    _tokenreduce: Mark

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        run, attn_mask = capturing(self._tokenreduce.reduction), kwargs.get("attn_mask")
        if run is None and (attn_mask is None or attn_mask.ndim < 4):
            return super().forward(query, key, value, *args, **kwargs)
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        q, k, v = (split_heads(part, self.num_heads) for part in projected)
        if run is not None:
            show_heads(run, q, k, v)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


ATTENTIONS: Classes = {nn.MultiheadAttention: ReducedMultiheadAttention}


def refuse_attention(attentions: Iterable[Any]) -> list[str]:
    """Why these attentions cannot be restated, if they cannot."""
    reasons = set()
    for attention in attentions:
        if type(attention) not in (nn.MultiheadAttention, ReducedMultiheadAttention):
            reasons.add(f"its attention is {type(attention).__name__}, only nn.MultiheadAttention is known")
        elif type(attention.out_proj) is not NonDynamicallyQuantizableLinear:
            reasons.add("the output projection of its attention was replaced, which nn.MultiheadAttention ignores")
        elif attention.bias_k is not None or attention.add_zero_attn:
            reasons.add("its attention adds a key and a value of its own (bias_k or add_zero_attn)")
        elif not attention._qkv_same_embed_dim or not attention.batch_first:
            reasons.add("its attention has separate projections or batch_first=False")
    return sorted(reasons)
