"""`Reduction`: everything static about one patch; only `follow` changes it. Blocks share it; it makes no tensor and
survives pickle and deepcopy."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from tokenreduce.budget.geometry import AuxiliaryHeads, Costs, Geometry
from tokenreduce.budget.rehearsal import Rehearsal, Work
from tokenreduce.budget.schedule import Schedule
from tokenreduce.budget.spreading import Counts
from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.owner import Owner
from tokenreduce.forward.parts import Parts
from tokenreduce.forward.scan_state import ScanRules
from tokenreduce.maps.restoring import Restoring
from tokenreduce.ops.modes import without_modes
from tokenreduce.ops.tracing import constant_result
from tokenreduce.reducers.contract import Reducer

_spreading = threading.Lock()  # only one thread spreads a budget anew


@dataclass(frozen=True, eq=False)
class Reduction:
    """One patch: a reducer, a schedule and how outputs are restored, for a model of a given geometry.

    Args:
        requested: `restore`, `prop_attn` and rules of scans as the user gave them, for `save_patch`.
        owner: the model that the patch is for, where there is one.
    """

    reducer: Reducer
    schedule: Schedule
    geometry: Geometry
    adapter: str
    restoring: Restoring
    prop_attn: bool
    requested: dict[str, bool | str]
    owner: Owner | None = None
    scan: ScanRules = field(default_factory=ScanRules)
    full_layers: frozenset[int] = field(init=False)  # the layers that all tokens enter, restored if need be
    # Read where the compiler takes counts as constants, so that its code is for this patch and its copies only.
    key: str = field(init=False, repr=False, default_factory=lambda: uuid4().hex)
    _counts: dict[int, Counts] = field(default_factory=dict, repr=False)
    _work: Work = field(default_factory=dict, repr=False)
    _passing: set[int] = field(default_factory=set, repr=False)  # numbers of tokens that the budget cannot reach

    def __post_init__(self) -> None:
        full = self.geometry.needs_all | {layer + 1 for layer in self.schedule.restored}
        object.__setattr__(self, "full_layers", full)

    @property
    def heads(self) -> AuxiliaryHeads | None:
        """The part of the model that a method asks for its auxiliary predictions, where it does."""
        return None if self.owner is None else self.owner.heads

    @property
    def adaptive(self) -> bool:
        """Whether the method decides the counts from the data."""
        return self.schedule.rule == "adaptive"

    @property
    def deciding_layers(self) -> tuple[int, ...]:
        """The layers in which an adaptive method without a budget reduces."""
        layers = self.schedule.layers or self.reducer.deciding_layers(self.geometry.depth)
        return tuple(layer for layer in layers if layer not in self.geometry.needs_all)

    def image_tokens(self, x: Tensor) -> int:
        """How many image tokens `x (B, prefix + N + suffix, C)` has: a plain number also in a trace, where
        lengths are tensors."""
        return int(x.shape[1]) - self.geometry.protected

    def counts(self, n: int) -> Counts:
        """Image tokens left after each layer when `n` enter the first."""
        if torch.compiler.is_compiling():  # a guard on the dict would fail once the dict has grown
            return self._resolve(n, self.key)
        found = self._counts.get(n)
        return self._resolve(n, self.key) if found is None else found

    @constant_result
    def _resolve(self, n: int, key: str) -> Counts:
        """The counts of `n`, remembered; a constant to the compiler, which must not trace a search."""
        known, passing = self._counts, self._passing  # another thread may put new ones in their place meanwhile
        if n not in known:
            rehearsal = self.rehearsal(n)  # one for the whole search: its state is made once
            searches = self.schedule.flops is not None
            cost = (lambda counts: self.share(n, counts, rehearsal)) if searches else None
            shape = self.geometry
            least = partial(self.reducer.least_of, grid=shape.grid)
            try:
                known[n] = self.schedule.resolve(n, shape.depth, least, cost, shape.needs_all)
            except InvalidValueError:
                if n >= shape.count or self.schedule.rule != "budget":
                    raise
                # A smaller image than the budget was made for, in the middle of serving: what cannot be reduced passes.
                passing.add(n)
                known[n] = (n,) * shape.depth
        return known[n]

    def is_identity(self, n: int) -> bool:
        """Whether nothing is ever removed of `n` tokens."""
        if self.adaptive:
            return False
        return min(self.counts(n), default=n) == n

    def passes(self, n: int) -> bool:
        """Whether all of `n` tokens pass through, because so few of them cannot meet the budget."""
        return n in self._passing

    @constant_result
    def depth_now(self) -> int:
        """The layers that the patched model has now; raises if they are not those that were patched."""
        backbone = None if self.owner is None else self.owner.backbone
        if backbone is None:  # layers that were taken out of it, or copied alone
            return self.geometry.depth
        depth: int = self.owner.adapter.depth_now(backbone, self)  # type: ignore[union-attr]
        self.follow()
        return depth

    def follow(self) -> None:
        """Spread a budget of multiply-adds anew if parts of the model were wrapped or replaced and cost something else
        now."""
        owner = self.owner
        backbone = None if owner is None or self.schedule.flops is None else owner.backbone
        if owner is None or backbone is None or owner.parts.stand():
            return
        with _spreading:
            if not owner.parts.stand():  # else another thread has done it meanwhile
                self._spread_anew(owner, backbone)

    def costs_now(self, backbone: Any) -> Costs | None:
        """What the model costs as it is now; None where that cannot be read."""
        try:
            with without_modes():
                found: Costs = self.owner.adapter.costs_now(backbone)  # type: ignore[union-attr]
                return found
        except (AttributeError, InvalidValueError):  # not of the family any more, which the layer says when it runs
            return None
        except RuntimeError:  # weights that cannot be copied: an export holds them, or FSDP
            return None

    def _spread_anew(self, owner: Owner, backbone: Any) -> None:
        parts, costs = Parts(backbone), self.costs_now(backbone)
        if costs is None:  # the next forward asks again
            return
        if len(costs.mlp) == self.geometry.depth and costs != self.geometry.costs:
            # What was found by the old costs stays in the old dict, which a thread may be writing to.
            geometry = replace(self.geometry, costs=costs)
            anew = {"geometry": geometry, "key": uuid4().hex, "_counts": {}, "_passing": set()}
            for name, value in anew.items():
                object.__setattr__(self, name, value)
        owner.parts = parts

    @constant_result
    def stands(self, layer: int) -> bool:
        """Whether the parts of a layer of the model are still those that were patched."""
        backbone = None if self.owner is None else self.owner.backbone
        return backbone is None or self.owner.adapter.stands(backbone, layer)  # type: ignore[union-attr]

    def cut(self, depth: int) -> Reduction:
        """The same patch for a model of the first `depth` layers alone."""
        shape = self.geometry
        needs_all = frozenset(layer for layer in shape.needs_all if layer < depth)
        shape = replace(shape, depth=depth, costs=shape.costs.first(depth), needs_all=needs_all)
        return replace(self, geometry=shape, _counts={}, _work={}, _passing=set())

    def entering(self, n: int, counts: Counts) -> Counts:
        """Image tokens that enter each layer."""
        return tuple(n if layer in self.full_layers else before for layer, before in enumerate((n, *counts[:-1])))

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
        mode = self.restoring.at_end if self.restoring.charged else None
        return Rehearsal(self.reducer, self.geometry, n, self._work, mode, self.heads)

    def to_json(self) -> dict[str, Any]:
        """Method, options, schedule and modes as JSON-able values."""
        return {
            "method": self.reducer.name,
            "options": self.reducer.options(),
            "schedule": self.schedule.to_json(),
            **self.requested,
        }
