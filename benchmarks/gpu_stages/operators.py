"""The operators as calls of the library's own layers, on inputs as a model has them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tokenreduce.maps.restoring import Around, restore_tokens
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.attention import class_rows, received_and_own
from tokenreduce.ops.merging import size_bias
from tokenreduce.ops.native import dispatch
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.entries import image_sources
from tokenreduce.reducers.methods.evit import EViT
from tokenreduce.reducers.methods.tome import ToMe, merge_at_once
from tokenreduce.reducers.methods.ward import Ward
from tokenreduce.reducers.parts.bipartite import match_bipartite
from tokenreduce.reducers.registry import lookup
from tokenreduce.reducers.tokens import Tokens

METHODS = ("ward", "evit", "pitome", "topk")
HEAD = 64
Tensors = list[Tensor]
# The kernel behind an operator, where `dispatch` knows one.
KERNELS = {
    "match": "bipartite_match",
    "merge": "merge_apply",
    "restore": "restore_apply",
    "kriging": "krige_apply",
    "size_bias": "size_bias",
    "layer of tome": "bipartite_merge",
    "class rows": "class_rows",
    "statistics": "attention_statistics",
    "evit": "fuse_rest",
    "evit, attended": "fuse_attended",
    "ward": "ward_cluster",
    "ward, attended": "ward_cluster_attended",
    "ward in rounds, attended": "ward_match_attended",
    "pitome": "pitome_energy",
}


def operators(
    device: torch.device, dtype: torch.dtype, batch: int, n: int, channels: int, removed: int, ties: bool = False
) -> dict[str, Callable[[], Tensors]]:
    """Calls by name, each of which gives its tensors. Tokens have a class token in front; with `ties` every image
    token is there twice."""
    torch.manual_seed(n)
    x = torch.randn(batch, n + 1, channels, device=device, dtype=dtype)
    heads = channels // HEAD
    fused = torch.randn(batch, n + 1, 3, heads, HEAD, device=device, dtype=dtype)
    if ties:
        x[:, 2::2], fused[:, 2::2] = x[:, 1 : n - n % 2 : 2], fused[:, 1 : n - n % 2 : 2]
    queries, every_key = fused.permute(2, 0, 3, 1, 4)[:2]
    keys = every_key[:, :, 1:]
    sizes = torch.randint(1, 9, (batch, n), device=device).float()
    sources = {"mean_keys": lambda: keys, "class_attention": lambda: x[:, 1:, 0].float().softmax(1)}
    tokens = Tokens(x[:, 1:], sizes, sources, prefix=1)
    keep = n - removed
    with dispatch.using("reference"), torch.inference_mode():
        fixed = match_bipartite(keys, keep, 1)
        merged = fixed.merge(x, sizes, 1)[0]
        after, around = merged + merged.sin(), [Around(x, merged)]
    calls: dict[str, Callable[[], Tensors]] = {
        "match": lambda: parts(match_bipartite(keys, keep, 1)),
        "merge": lambda: list(fixed.merge(x, sizes, 1)[:2]),
        "restore": lambda: [restore_tokens("delta", after, [fixed], around, 1, 0)],
        "kriging": lambda: [restore_tokens("kriging", after, [fixed], around, 1, 0)],
        "size_bias": lambda: [size_bias(sizes, 1, 0)],
        "layer of tome": lambda: merged_at_once(x, every_key, sizes, keep),
        "class rows": lambda: [class_rows(queries, every_key, None, 1)],
        "statistics": lambda: list(received_and_own(queries, every_key)),
    }
    calls |= {name: partial(planned, lookup(name)(), tokens, keep) for name in METHODS if possible(name, n, keep)}
    return calls | attended(x, queries, every_key, sizes, keep)


def attended(x: Tensor, queries: Tensor, keys: Tensor, sizes: Tensor, keep: int) -> dict[str, Callable[[], Tensors]]:
    """Methods in a layer that weighs the class token's attention."""
    with dispatch.using("reference"), torch.inference_mode():
        shown = image_sources(queries, keys, size_bias(sizes, 1, 0), 1, slice(1, x.shape[1]))
    tokens = Tokens(x[:, 1:], sizes, shown, prefix=1, layer=1, depth=2)
    methods = {"ward": Ward(), "ward in rounds": Ward(rounds=3), "evit": EViT()}
    return {f"{name}, attended": partial(planned, method, tokens, keep) for name, method in methods.items()}


def merged_at_once(x: Tensor, keys: Tensor, sizes: Tensor, keep: int) -> Tensors:
    """Matching and merging as a layer of a patched model does it, by one kernel where there is one, which takes the
    class token's key too."""
    kernel = dispatch.choose("bipartite_merge", x)
    if kernel is None:
        token_map = match_bipartite(keys[:, :, 1:], keep, 1)
        return [token_map.dest, *token_map.merge(x, sizes, 1)[:2]]
    token_map, out, grown, _ = merge_at_once(ToMe(), kernel, x, keys, sizes, keep, 1, 0)
    return [token_map.dest, out, grown]


def possible(method: str, n: int, keep: int) -> bool:
    return lookup(method)().least_of(n, None) <= keep


def planned(reducer: Reducer, tokens: Tokens, keep: int) -> Tensors:
    """The map that a method plans."""
    return parts(reducer.plan(tokens, keep, reducer.begin(tokens)))


def parts(token_map: TokenMap) -> Tensors:
    """The tensors of a map that say who goes where."""
    found = (token_map.dest, token_map.rep, token_map.share)
    return [tensor for tensor in found if tensor is not None]
