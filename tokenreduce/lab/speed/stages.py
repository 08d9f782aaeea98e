"""How long the reducer's own two stages take inside a forward: planning the map and applying it."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from tokenreduce.lab.speed.timing import Call, seconds, synchronizer
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.patching.finding import reduction_of
from tokenreduce.patching.verbs import change_patch
from tokenreduce.reducers.contract import FastPath, Reducer
from tokenreduce.reducers.tokens import Tokens


def stage_microseconds(model: nn.Module, batch: Tensor, forwards: int = 3) -> tuple[float, float]:
    """Microseconds of plan and of apply in one forward of the patched `model` on `batch`, summed over its layers.

    Plan covers the method's begin, its decision on a count, and the entries of `Tokens` it asks for; apply covers the
    new sizes. Where a kernel does both in one call (`FastPath`), that call runs and its whole time is plan's; apply is
    0 then. Each figure is the median of a few forwards. The device is synchronised around each stage, so on a GPU the
    sum is an upper bound.
    """
    watches = []
    for _ in range(forwards):
        with _watched(model, synchronizer(batch.device)) as watch:
            model(batch)
        watches.append(watch.spent)
    plan, apply = (statistics.median(spent[stage] for spent in watches) for stage in ("plan", "apply"))
    return 1e6 * plan, 1e6 * apply


class _Watch:
    """Adds up the seconds of each stage."""

    def __init__(self, synchronize: Call) -> None:
        self.synchronize = synchronize
        self.spent: defaultdict[str, float] = defaultdict(float)

    def __call__(self, stage: str, function: Callable[..., Any], *args: Any) -> Any:
        results: list[Any] = []
        self.spent[stage] += seconds(lambda: results.append(function(*args)), self.synchronize)
        return results[0]


class _WatchedReducer:
    """Stands for a reducer in one `Reduction` and times what it does; everything else it passes on."""

    def __init__(self, reducer: Reducer, watch: _Watch) -> None:
        self._reducer, self._watch = reducer, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def fast(self) -> FastPath:
        fast = self._reducer.fast()
        return dataclasses.replace(fast, merge=fast.merge and partial(self._watch, "plan", fast.merge))

    def begin(self, tokens: Tokens) -> Any:
        return self._watch("plan", self._reducer.begin, tokens)

    def decide(self, tokens: Tokens, state: Any = None) -> int:
        return self._watch("plan", self._reducer.decide, tokens, state)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        token_map = self._watch("plan", self._reducer.plan, tokens, keep, state)
        _watch_application(token_map, self._watch)
        return token_map


def _watch_application(token_map: TokenMap, watch: _Watch) -> None:
    """Time the one application of this map, by whichever of its two methods a run takes."""
    plain = {"apply": token_map.apply, "merge": token_map.merge}

    def timed(name: str, *args: Any) -> Any:
        for shadow in plain:
            delattr(token_map, shadow)  # what follows, and what merging calls, is the map's own again
        return watch("apply", plain[name], *args)

    for name in plain:
        setattr(token_map, name, partial(timed, name))


@contextmanager
def _watched(model: nn.Module, synchronize: Call) -> Iterator[_Watch]:
    reducer, watch = reduction_of(model).reducer, _Watch(synchronize)
    change_patch(model, reducer=_WatchedReducer(reducer, watch))
    try:
        yield watch
    finally:
        change_patch(model, reducer=reducer)
