"""Maps whose outputs stand in the order of the tokens that represent them, for models that scan their tokens."""

from __future__ import annotations

import torch

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import counting
from tokenreduce.ops.native.dispatch import choose
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.rows import take


def in_order(token_map: TokenMap) -> TokenMap:
    """The same map with its outputs in ascending order of the tokens that represent them; an output without a token of
    its own comes after another of the same."""
    if token_map.ascending:  # some maps are made in parts, and are never made whole
        return token_map
    rep, dest, gain, undo = token_map.representatives(), token_map.dest, token_map.gain, token_map.undo
    share, is_plain = None, gain is None and undo is None
    compiled = choose("order_outputs", dest) if dest is not None and is_plain else None
    if compiled is not None:
        dest, rep = compiled(dest, rep)
    else:
        order = stable_order(rep, 1)
        places = counting(token_map.count, order.device).expand_as(order)
        rank = torch.empty_like(order).scatter(1, order, places)
        dest, rep = None if dest is None else rank.gather(1, dest), rep.gather(1, order)
        share = take(token_map.dense(), order) if dest is None else None
        gain = None if gain is None else gain.gather(1, order)
        undo = None if undo is None else undo.gather(2, order[:, None, :].expand(-1, token_map.entered, -1))
    return TokenMap(
        token_map.count,
        dest=dest,
        weight=token_map.weight,
        share=share,
        size_weight=token_map.size_weight,
        rep=rep,
        sources=token_map.sources,
        drops=token_map.drops,
        gain=gain,
        divide=token_map.divide,
        undo=undo,
        grid=token_map.grid,
        ascending=True,
    )
