"""The functional layer: reduce tensors without a model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.registry import create
from tokenreduce.run import without_autocast
from tokenreduce.token_map import TokenMap, identity
from tokenreduce.tokens import Tokens


def plan(
    x: Tensor,
    method: str,
    *,
    keep: int | None = None,
    ratio: float | None = None,
    sizes: Tensor | None = None,
    keys: Tensor | None = None,
    queries: Tensor | None = None,
    values: Tensor | None = None,
    class_attention: Tensor | None = None,
    grid: tuple[int, ...] | None = None,
    prefix: int = 0,
    layer: int = 0,
    depth: int = 1,
    **options: Any,
) -> TokenMap:
    """Plan how the image tokens `x (B, N, C)` become fewer, with `method` and its `options`.

    Args:
        keep: tokens left. Or `ratio`: the fraction removed, in [0, 1). Exactly one of them.
        sizes: `(B, N)`, how many input tokens each token stands for; None: one each.
        keys, queries, values: `(B, H, N, d)` or `(B, N, d)`; keys default to `x` itself.
        class_attention: `(B, N)`, needed by methods that rank by it.
        grid: `(H, W)` of the tokens, needed by methods that use their places.
        prefix: protected tokens in front of `x` that are not part of it; some methods count positions from them.

    Raises: ValueError for a count that the method cannot reach or something it needs and did not get.
    """
    if not isinstance(x, Tensor) or x.ndim != 3:
        raise InvalidTypeError(
            f"x must be a tensor (B, N, C), not {tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__}"
        )
    reducer, n = create(method, options), x.shape[1]
    keep = _count(keep, ratio, n)
    least = reducer.least(n)
    if not least <= keep <= n:
        raise InvalidValueError(f"{method} can leave {least} to {n} of {n} tokens, not {keep}")
    given = {"keys": keys, "queries": queries, "values": values}
    heads = {name: t[:, None] if t.ndim == 3 else t for name, t in given.items() if t is not None}
    heads.setdefault("keys", x[:, None])
    heads["mean_keys"] = heads["keys"].float().mean(1)
    if class_attention is not None:
        heads["class_attention"] = class_attention.float()
    for name, tensor in heads.items():
        ndim, axis = {"class_attention": (2, 1), "mean_keys": (3, 1)}.get(name, (4, 2))
        if tensor.ndim != ndim or tensor.shape[0] != len(x) or tensor.shape[axis] != n:
            raise InvalidValueError(
                f"{name} has shape {tuple(tensor.shape)}, which does not fit x with shape {tuple(x.shape)}"
            )
    if sizes is not None and sizes.shape != x.shape[:2]:
        raise InvalidValueError(f"sizes has shape {tuple(sizes.shape)}; it must be (B, N) = {tuple(x.shape[:2])}")
    sources = {name: (lambda tensor=tensor: tensor) for name, tensor in heads.items()}
    if keep == n:
        return identity(x.shape[0], n, x.device)
    missing = reducer.needs - sources.keys() - ({"grid"} if grid is not None else set())
    if missing:
        raise InvalidValueError(f"{method} needs {', '.join(sorted(missing))}; pass it to plan")
    tokens = Tokens(x, None if sizes is None else sizes.float(), sources, grid, prefix, 0, layer, depth)
    with torch.no_grad(), without_autocast(x.device):
        return reducer.plan(tokens, keep, reducer.begin(tokens))


def apply(token_map: TokenMap, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Reduced tokens `(B, M, C)` and their sizes `(B, M)` from `x (B, N, C)` and sizes `(B, N)` (None: one each)."""
    if x.ndim != 3 or x.shape[1] != token_map.entered:
        raise InvalidValueError(f"x has shape {tuple(x.shape)}; the map takes (B, {token_map.entered}, C)")
    return token_map.apply(x, sizes), token_map.sizes(sizes)


def restore(token_map: TokenMap, y: Tensor) -> Tensor:
    """Tokens `(B, N, C)` in their first order from reduced ones `(B, M, C)`: merged ones as copies, dropped ones
    too."""
    if y.ndim != 3 or y.shape[1] != token_map.count:
        raise InvalidValueError(f"y has shape {tuple(y.shape)}; the map leaves (B, {token_map.count}, C)")
    return token_map.restore(y)


def _count(keep: int | None, ratio: float | None, n: int) -> int:
    if (keep is None) == (ratio is None):
        raise InvalidTypeError("give exactly one of keep (tokens left) and ratio (fraction removed)")
    if ratio is not None:
        if not 0 <= ratio < 1:
            raise InvalidValueError(f"ratio is {ratio}; it is the fraction of tokens removed and lies in [0, 1)")
        return max(1, math.floor(n * (1 - ratio) + 1e-9))
    if isinstance(keep, bool) or not isinstance(keep, int):
        raise InvalidTypeError(f"keep is {keep!r}; it must be a number of tokens (int)")
    return keep
