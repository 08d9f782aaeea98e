"""Relative position bias, as BEiT has it: additive logits of all tokens in pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.forward.run import Run


def pair_logits(run: Run, table: Tensor | None, x: Tensor) -> Tensor | None:
    """The additive logits of the tokens of `x (B, N, C)`, sizes and position bias, to be handed to attention; `table`
    is that of all the input's tokens. Tells the run of them, too."""
    pairs = None if table is None else run.pairs(table, x)

    def logits(like: Tensor, dtype: torch.dtype) -> Tensor | None:
        sizes = run.attention_bias(like, dtype)
        return sizes if pairs is None else pairs.to(dtype) if sizes is None else pairs.to(dtype) + sizes

    run.show_attention(lambda queries, keys: (queries, keys, logits(queries, torch.float32)))
    return logits(x, x.dtype)
