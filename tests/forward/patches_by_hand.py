"""Patches without a model, and maps, for tests of one forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenreduce import Schedule, TokenMap
from tokenreduce.budget.geometry import Costs, Geometry
from tokenreduce.forward.reduction import Reduction
from tokenreduce.maps.restoring import Restoring
from tokenreduce.maps.token_map import keep_tokens
from tokenreduce.reducers.registry import create

BATCH, GRID, COUNT, DEPTH = 2, (3, 4), 12, 4


def geometry(**fields: Any) -> Geometry:
    ones = (1,) * DEPTH
    own = {"depth": DEPTH, "prefix": 2, "suffix": 1, "class_tokens": 1, "grid": GRID, "width": 8, "heads": 2}
    return Geometry(**own | {"head_dim": 4, "costs": Costs(0, 1, ones, ones, ones)} | fields)


def reduction(
    keep: Mapping[int, float] | None = None,
    method: str = "random",
    restoring: Restoring | None = None,
    prop_attn: bool = True,
    **fields: Any,
) -> Reduction:
    """A patch that keeps so many tokens after layers; `fields` of its geometry."""
    schedule = Schedule.keep(keep or {1: 8, 2: 5})
    restoring = restoring or Restoring("copy", "copy", ends=True, taps=True, charged=False)
    return Reduction(create(method, {}), schedule, geometry(**fields), "by hand", restoring, prop_attn, {})


def tokens(seed: int = 0, count: int = COUNT, channels: int = 8) -> Tensor:
    """All tokens that enter: 2 protected, `count` of the image, 1 protected."""
    return torch.randn(BATCH, 2 + count + 1, channels, generator=torch.Generator().manual_seed(seed))


def merging_map(n: int, m: int, seed: int) -> TokenMap:
    """A random map; representatives stand in no order."""
    g = torch.Generator().manual_seed(seed)
    rep = torch.stack([torch.randperm(n, generator=g)[:m] for _ in range(BATCH)])
    dest = torch.randint(m, (BATCH, n), generator=g).scatter(1, rep, torch.arange(m).expand(BATCH, -1))
    return TokenMap(m, dest=dest, rep=rep)


def dropping_map(n: int, m: int, seed: int) -> TokenMap:
    merged = merging_map(n, m, seed)
    assert merged.rep is not None and merged.dest is not None
    return keep_tokens(merged.rep, merged.dest)
