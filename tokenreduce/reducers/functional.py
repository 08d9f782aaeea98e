"""The functional layer: reduce tensors without a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.maps.places import grid_positions
from tokenreduce.maps.token_map import TokenMap, identity
from tokenreduce.ops.constants import counting
from tokenreduce.ops.modes import without_autocast
from tokenreduce.reducers.entries import ENTRIES, from_attention
from tokenreduce.reducers.given import as_grid, need_floats, need_map, need_sizes, need_tokens, need_whole
from tokenreduce.reducers.registry import create
from tokenreduce.reducers.tokens import Tokens


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
    text_attention: Tensor | None = None,
    received_attention: Tensor | None = None,
    attention: Tensor | None = None,
    positions: Tensor | None = None,
    pixels: Tensor | None = None,
    crops: Tensor | None = None,
    auxiliary_logits: Tensor | None = None,
    scan_output: Tensor | None = None,
    time_step: Tensor | None = None,
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
        class_attention, text_attention: `(B, N)`, needed by methods that rank by them.
        received_attention: `(B, H, N)`, what each token receives from all; that of `attention` where it is given.
        attention: `(B, H, prefix + N, prefix + N)` after softmax, needed by methods that read more of it.
        grid: `(H, W)` of the tokens, of a video `(T, H, W)`, needed by methods that use their places.
        positions: `(B, N, 2)`, row and column of each token; default: those of the grid.
        pixels: `(B, N, F, P)`, the pixels in each token, P in each of the F frames that it covers.
        crops: `(B, N, 3)`, the crop, row and column of each token of an image in crops, see `reducers.entries`.
        auxiliary_logits: `(B, N, P, K)`, logits of K classes for each of the P places in a token.
        scan_output, time_step: `(B, N, E)`, what the scans of a state-space model give before the output projection,
            and their time steps.
        prefix: protected tokens in front of `x` that are not part of it; some methods count positions from them.

    Raises: ValueError for a count that the method cannot reach or something it needs and did not get.
    """
    need_tokens("x", x)
    need_floats("x", x)
    grid = as_grid(grid)
    for name, number, least_number in (("prefix", prefix, 0), ("layer", layer, 0), ("depth", depth, 1)):
        need_whole(name, number, least_number)
    reducer, n = create(method, options), x.shape[1]
    if grid is not None and math.prod(grid) < n:
        raise InvalidValueError(f"grid is {grid}, which has fewer places than the {n} tokens of x")
    decides = reducer.adaptive and keep is None and ratio is None
    if not decides:
        keep = _count(keep, ratio, n)
        least = reducer.least_of(n, grid)
        if not least <= keep <= n:
            raise InvalidValueError(f"{method} can leave {least} to {n} of {n} tokens, not {keep}")
    given = {"keys": keys, "queries": queries, "values": values, "class_attention": class_attention}
    given |= {"text_attention": text_attention, "attention": attention, "positions": positions, "pixels": pixels}
    given |= {"received_attention": received_attention, "crops": crops}
    given |= {"auxiliary_logits": auxiliary_logits, "scan_output": scan_output, "time_step": time_step}
    for name, tensor in given.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise InvalidTypeError(f"{name} is {tensor!r}; it must be a tensor, see the docstring of plan")
    entries = _entries(x, {name: tensor for name, tensor in given.items() if tensor is not None}, grid, prefix)
    sources: dict[str, Callable[[], Tensor]] = {
        name: (lambda tensor=tensor: tensor)  # type: ignore[misc]
        for name, tensor in entries.items()
    }
    if sizes is not None:
        need_sizes(sizes, x)
    if keep == n:
        return identity(x.shape[0], n, x.device)
    tokens = Tokens(x, None if sizes is None else sizes.float(), sources, grid, prefix, 0, layer, depth)
    missing = sorted(name for name in reducer.required() if not tokens.has(name))
    if missing:
        named = ["a grid (T, H, W)" if name == "frames" else name for name in missing]
        raise InvalidValueError(f"{method} needs {', '.join(named)}; pass it to plan")
    with torch.no_grad(), without_autocast(x.device):
        state = reducer.begin(tokens)
        count = reducer.decide(tokens, state) if keep is None else keep
        return reducer.plan(tokens, count, state) if count < n else identity(x.shape[0], n, x.device)


def apply(token_map: TokenMap, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Reduced tokens `(B, M, C)` and their sizes `(B, M)` from `x (B, N, C)` and sizes `(B, N)` (None: one each).

    Raises: ValueError, TypeError for tensors that are not of the map's batch and count.
    """
    need_map(token_map)
    need_tokens("x", x, token_map.batch, token_map.entered, "the map takes")
    need_floats("x", x)
    if sizes is not None:
        need_sizes(sizes, x)
        sizes = sizes.float()
    return token_map.apply(x, sizes), token_map.sizes(sizes)


def restore(token_map: TokenMap, y: Tensor) -> Tensor:
    """Tokens `(B, N, C)` in their first order from reduced ones `(B, M, C)`.

    Every token, merged or dropped, gets a copy of the token that stands for it.

    Raises: ValueError, TypeError for tokens that are not of the map's batch and count.
    """
    need_map(token_map)
    need_tokens("y", y, token_map.batch, token_map.count, "the map leaves")
    return token_map.restore(y)


def _entries(x: Tensor, given: dict[str, Tensor], grid: tuple[int, ...] | None, prefix: int) -> dict[str, Tensor]:
    """The entries of `Tokens` that were given or follow from what was given, their shapes checked."""
    batch, n, _ = x.shape
    found = {"keys": x, **given}
    for name in ("keys", "queries", "values"):
        if name in found and found[name].ndim == 3:
            found[name] = found[name][:, None]
    known = {"B": batch, "N": n, "A": prefix + n, "2": 2, "3": 3}
    for name, tensor in found.items():
        if not ENTRIES[name].fits(tensor, known):
            raise InvalidValueError(
                f"{name} has shape {tuple(tensor.shape)}; with x of shape {tuple(x.shape)} and {prefix} protected "
                f"tokens it must be {ENTRIES[name].axes} with B = {batch}, N = {n}, A = {prefix + n}"
            )
    found["mean_keys"] = found["keys"].float().mean(1)
    found["origin"] = counting(n, x.device).expand(batch, -1)
    if "attention" in found:
        found = from_attention(found["attention"], prefix) | {k: v for k, v in found.items() if k != "attention"}
    if "positions" not in found and grid is not None and math.prod(grid) == n:
        found["positions"] = grid_positions(grid, x.device).expand(batch, -1, -1).clone()
    for name in ("class_attention", "text_attention", "received_attention", "positions"):
        if name in found:
            found[name] = found[name].float()
    if "crops" in found:
        found["crops"] = found["crops"].long()
    return found


def _count(keep: int | None, ratio: float | None, n: int) -> int:
    if (keep is None) == (ratio is None):
        raise InvalidTypeError("give exactly one of keep (tokens left) and ratio (fraction removed)")
    if ratio is not None:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
            raise InvalidTypeError(f"ratio is {ratio!r}; it must be a number")
        if not 0 <= ratio < 1:
            raise InvalidValueError(f"ratio is {ratio}; it is the fraction of tokens removed and lies in [0, 1)")
        return max(1, math.floor(n * (1 - ratio) + 1e-9))
    if isinstance(keep, bool) or not isinstance(keep, int):
        raise InvalidTypeError(f"keep is {keep!r}; it must be a number of tokens (int)")
    return keep
