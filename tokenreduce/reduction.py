"""`Reduction`: everything static about one patch. Blocks share it; it makes no tensor and survives pickle and
deepcopy."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenreduce.constant import constant_result
from tokenreduce.registry import Reducer
from tokenreduce.rehearsal import Rehearsal, Work
from tokenreduce.schedule import Counts, Schedule


@dataclass(frozen=True)
class Costs:
    """MACs of a model as a function of its token count: what each layer costs a token, and a token pair.

    `attention[l]` and `mlp[l]` are MACs a token, `pairs[l]` MACs a pair of tokens; reduction cannot change `fixed`
    (heads) and `per_token` (embedding and what else runs on all image tokens).
    """

    fixed: int
    per_token: int
    attention: tuple[int, ...]
    pairs: tuple[int, ...]
    mlp: tuple[int, ...]

    def macs(self, entered: Counts, left: Counts, protected: int, placement: str) -> int:
        """MACs of the model part when layer l receives `entered[l]` and leaves `left[l]` image tokens."""
        total = self.fixed + self.per_token * entered[0]
        for layer, (n, m) in enumerate(zip(entered, left, strict=True)):
            first = (m if placement == "pre" else n) + protected
            second = (n if placement == "post" else m) + protected
            total += self.attention[layer] * first + self.pairs[layer] * first**2 + self.mlp[layer] * second
        return total


@dataclass(frozen=True)
class Geometry:
    """What a reduction must know of a model: layers, protected tokens, the input's grid, widths and costs.

    `whole`: layers that need all tokens in raster order, such as those with windows; tokens are restored before them.
    `follows_origin`: a reduced token must know which input token represents it (rotary embedding, position tables).
    """

    depth: int
    prefix: int
    suffix: int
    class_tokens: int
    grid: tuple[int, ...]
    width: int
    heads: int
    head_dim: int
    costs: Costs
    whole: frozenset[int] = frozenset()
    follows_origin: bool = False

    @property
    def count(self) -> int:
        """Image tokens of an input of the default size."""
        n = 1
        for side in self.grid:
            n *= side
        return n

    @property
    def in_a_row(self) -> bool:
        """Whether what a layer leaves can enter another layer without having to be all tokens again."""
        free = set(range(self.depth)) - self.whole
        return any(layer + 1 in free for layer in free)

    @property
    def protected(self) -> int:
        """Prefix and suffix tokens together."""
        return self.prefix + self.suffix


class AuxiliaryHeads(Protocol):
    """A module around the backbone that has heads for the tokens of some inner layers."""

    auxiliary_layers: tuple[int, ...]

    def auxiliary_logits(self, layer: int, tokens: Tensor) -> Tensor:
        """Logits `(B, N, P, K)` of K classes, of P places in each of `tokens (B, N, C)` behind `layer`."""
        ...


@dataclass(eq=False)
class Reduction:
    """One patch: a reducer, a schedule and how outputs are restored, for a model of a given geometry.

    `restoring` is the way in which maps come back, `restoring_end` that of the last layer's tokens.
    `heads` is the part of the model that a method asks for its auxiliary predictions, where it does.
    """

    reducer: Reducer
    schedule: Schedule
    geometry: Geometry
    adapter: str
    restore: bool
    restore_taps: bool
    restoring: str
    restoring_end: str
    prop_attn: bool
    requested: dict[str, bool | str]
    heads: AuxiliaryHeads | None = None
    _counts: dict[int, Counts] = field(default_factory=dict)
    _work: Work = field(default_factory=dict, repr=False)
    fresh: frozenset[int] = field(init=False)  # the layers that all tokens enter, restored if need be

    def __post_init__(self) -> None:
        self.fresh = self.geometry.whole | {layer + 1 for layer in self.schedule.restored}

    @property
    def adaptive(self) -> bool:
        """Whether the method decides the counts from the data."""
        return self.schedule.rule == "adaptive"

    @property
    def deciding_layers(self) -> tuple[int, ...]:
        """The layers in which an adaptive method without a budget reduces."""
        layers = self.schedule.layers or self.reducer.deciding_layers(self.geometry.depth)
        return tuple(layer for layer in layers if layer not in self.geometry.whole)

    def counts(self, n: int) -> Counts:
        """Image tokens left after each layer when `n` enter the first."""
        if torch.compiler.is_compiling():  # a guard on the dict would fail once the dict has grown
            return _resolve(self, n)
        return self._counts[n] if n in self._counts else _resolve(self, n)

    def is_identity(self, n: int) -> bool:
        """Whether nothing is ever removed of `n` tokens."""
        if self.adaptive:
            return False
        return min(self.counts(n), default=n) == n

    def entering(self, n: int, counts: Counts) -> Counts:
        """Image tokens that enter each layer."""
        return tuple(n if layer in self.fresh else before for layer, before in enumerate((n, *counts[:-1])))

    def share(self, n: int, counts: Counts, rehearsal: Rehearsal | None = None) -> float:
        """MACs with these counts, the reducer's own work included, as a share of the unpatched MACs."""
        costs = self.geometry.costs
        rehearsal = rehearsal or self.rehearsal(n)
        entered = self.entering(n, counts)
        everything = costs.macs((n,) * len(counts), (n,) * len(counts), self.geometry.protected, "mid")
        reducing = [(layer, a, b) for layer, (a, b) in enumerate(zip(entered, counts, strict=True)) if b < a]
        work = sum(rehearsal.plan(*step) for step in reducing) + rehearsal.begin()
        if self.adaptive:
            work += sum(rehearsal.decide(layer, entered[layer]) for layer in self.deciding_layers)
        return (costs.macs(entered, counts, self.geometry.protected, self.reducer.placement) + work) / everything

    def rehearsal(self, n: int) -> Rehearsal:
        """What the method's own work on `n` tokens costs."""
        restores = self.restore or bool(self.fresh)
        return Rehearsal(
            self.reducer, self.geometry, n, self._work, self.restoring_end if restores else None, self.heads
        )

    def to_json(self) -> dict[str, Any]:
        """Method, options, schedule and modes as JSON-able values."""
        return {
            "method": self.reducer.name,
            "options": self.reducer.options(),
            "schedule": self.schedule.to_json(),
            **self.requested,
        }


@constant_result
def _resolve(reduction: Reduction, n: int) -> Counts:
    """The counts of `n`, remembered; a constant to the compiler, which must not trace a search."""
    if n not in reduction._counts:
        rehearsal = reduction.rehearsal(n)  # one for the whole search: its state is made once
        searches = reduction.schedule.flops is not None
        cost = (lambda counts: reduction.share(n, counts, rehearsal)) if searches else None
        shape = reduction.geometry
        least = partial(reduction.reducer.least_of, grid=shape.grid)
        reduction._counts[n] = reduction.schedule.resolve(n, shape.depth, least, cost, shape.whole)
    return reduction._counts[n]
