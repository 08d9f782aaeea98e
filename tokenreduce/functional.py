"""The functional layer: reduce tensors without a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.places import grid_positions
from tokenreduce.registry import create
from tokenreduce.run import without_autocast
from tokenreduce.token_map import TokenMap, counting, identity
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
    attention: Tensor | None = None,
    positions: Tensor | None = None,
    pixels: Tensor | None = None,
    auxiliary_logits: Tensor | None = None,
    grid: tuple[int, ...] | None = None,
    prefix: int = 0,
    layer: int = 0,
    depth: int = 1,
    **options: Any,
) -> TokenMap:
    """Plan how the image tokens `x (B, N, C)` become fewer, with `method` and its `options`.

    Args:
        keep: tokens left. Or `ratio`: the fraction removed, in [0, 1). Exactly one of them; none for an adaptive
            method that shall decide itself.
        sizes: `(B, N)`, how many input tokens each token stands for; None: one each.
        keys, queries, values: `(B, H, N, d)` or `(B, N, d)`; keys default to `x` itself.
        class_attention: `(B, N)`, needed by methods that rank by it.
        attention: `(B, H, prefix + N, prefix + N)` after softmax, needed by methods that read more of it.
        grid: `(H, W)` of the tokens, of a video `(T, H, W)`, needed by methods that use their places.
        positions: `(B, N, 2)`, row and column of each token; default: those of the grid.
        pixels: `(B, N, F, P)`, the pixels in each token, P in each of the F frames that it covers.
        auxiliary_logits: `(B, N, P, K)`, logits of K classes for each of the P places in a token.
        prefix: protected tokens in front of `x` that are not part of it; some methods count positions from them.

    Raises: ValueError for a count that the method cannot reach or something it needs and did not get.
    """
    if not isinstance(x, Tensor) or x.ndim != 3:
        raise InvalidTypeError(
            f"x must be a tensor (B, N, C), not {tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__}"
        )
    reducer, n = create(method, options), x.shape[1]
    decides = reducer.adaptive and keep is None and ratio is None
    if not decides:
        keep = _count(keep, ratio, n)
        least = reducer.least_of(n, grid)
        if not least <= keep <= n:
            raise InvalidValueError(f"{method} can leave {least} to {n} of {n} tokens, not {keep}")
    sources = _entries(x, keys, queries, values, class_attention, attention, positions, grid, prefix)
    if sizes is not None and sizes.shape != x.shape[:2]:
        raise InvalidValueError(f"sizes has shape {tuple(sizes.shape)}; it must be (B, N) = {tuple(x.shape[:2])}")
    sources |= _by_token(x, {"pixels": pixels, "auxiliary_logits": auxiliary_logits})
    if keep == n:
        return identity(x.shape[0], n, x.device)
    tokens = Tokens(x, None if sizes is None else sizes.float(), sources, grid, prefix, 0, layer, depth)
    missing = sorted(name for name in reducer.required() if not tokens.provides(name))
    if missing:
        named = ["a grid (T, H, W)" if name == "frames" else name for name in missing]
        raise InvalidValueError(f"{method} needs {', '.join(named)}; pass it to plan")
    with torch.no_grad(), without_autocast(x.device):
        state = reducer.begin(tokens)
        count = reducer.decide(tokens, state) if keep is None else keep
        return reducer.plan(tokens, count, state) if count < n else identity(x.shape[0], n, x.device)


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


def _entries(
    x: Tensor,
    keys: Tensor | None,
    queries: Tensor | None,
    values: Tensor | None,
    class_attention: Tensor | None,
    attention: Tensor | None,
    positions: Tensor | None,
    grid: tuple[int, ...] | None,
    prefix: int,
) -> dict[str, Callable[[], Tensor]]:
    """The lazy entries of `Tokens` that were given or follow from what was given, their shapes checked."""
    batch, n, _ = x.shape
    given = {"keys": keys, "queries": queries, "values": values}
    found = {name: t[:, None] if t.ndim == 3 else t for name, t in given.items() if t is not None}
    found.setdefault("keys", x[:, None])
    found["mean_keys"] = found["keys"].float().mean(1)
    if attention is not None:
        if attention.ndim != 4 or attention.shape[2:] != (prefix + n, prefix + n):
            raise InvalidValueError(
                f"attention has shape {tuple(attention.shape)}; with {prefix} protected and {n} image tokens it must "
                f"be (B, H, {prefix + n}, {prefix + n})"
            )
        found["attention"] = attention.float()
        found["received_attention"] = found["attention"].sum(2)[..., prefix:]
        found["own_attention"] = found["attention"].diagonal(dim1=2, dim2=3)[..., prefix:]
        if prefix:
            found["class_attention"] = found["attention"][:, :, 0, prefix:].mean(1)
    if class_attention is not None:
        found["class_attention"] = class_attention.float()
    if positions is not None:
        found["positions"] = positions.float()
    elif grid is not None and math.prod(grid) == n:
        found["positions"] = grid_positions(grid, x.device).expand(batch, -1, -1)
    found["origin"] = counting(n, x.device).expand(batch, -1)
    places = {"keys": (4, 2), "queries": (4, 2), "values": (4, 2)}
    places |= {"mean_keys": (3, 1), "positions": (3, 1)}
    for name, tensor in found.items():
        ndim, axis = places.get(name, (tensor.ndim, -1)) if name != "class_attention" else (2, 1)
        count = prefix + n if name == "attention" else n
        if tensor.ndim != ndim or tensor.shape[0] != batch or tensor.shape[axis] != count:
            raise InvalidValueError(
                f"{name} has shape {tuple(tensor.shape)}, which does not fit x with shape {tuple(x.shape)}"
            )
    return {name: (lambda tensor=tensor: tensor) for name, tensor in found.items()}  # type: ignore[misc]


def _by_token(x: Tensor, given: dict[str, Tensor | None]) -> dict[str, Callable[[], Tensor]]:
    """Entries `(B, N, ., .)` that only some methods read, of those given."""
    found = {name: tensor for name, tensor in given.items() if tensor is not None}
    for name, tensor in found.items():
        if tensor.ndim != 4 or tensor.shape[:2] != x.shape[:2]:
            raise InvalidValueError(
                f"{name} has shape {tuple(tensor.shape)}, which does not fit x with shape {tuple(x.shape)}"
            )
    return {name: (lambda tensor=tensor: tensor) for name, tensor in found.items()}  # type: ignore[misc]


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
