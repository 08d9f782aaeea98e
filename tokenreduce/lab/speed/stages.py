"""How long the reducer's own two stages take inside a forward: planning the map and applying it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    Planning includes the method's begin and the entries of `Tokens` it asks for; applying includes the new sizes;
    medians over a few forwards. The device is synchronised around each stage, so on a GPU the sum is an upper bound.
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
        """None: its kernel would do both stages at once."""
        return FastPath(averages_keys=self._reducer.fast().averages_keys)

    def begin(self, tokens: Tokens) -> Any:
        return self._watch("plan", self._reducer.begin, tokens)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        token_map = self._watch("plan", self._reducer.plan, tokens, keep, state)
        own = type(token_map)
        token_map.__class__ = type(f"Watched{own.__name__}", (_WatchedMap, own), {})
        token_map.watch, token_map.own = self._watch, own
        return token_map


class _WatchedMap(TokenMap):
    """A `TokenMap` of class `own` that times its application, by whichever of two ways a run asks for it."""

    watch: Any
    own: type[TokenMap]

    def apply(self, x: Tensor, sizes: Tensor | None = None, prefix: int = 0, suffix: int = 0) -> Tensor:
        return self.watch("apply", super().apply, x, sizes, prefix, suffix)

    def merge(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        self.__class__ = self.own  # type: ignore[assignment]  # what merging calls is part of it
        return self.watch("apply", self.merge, *arguments)


@contextmanager
def _watched(model: nn.Module, synchronize: Call) -> Iterator[_Watch]:
    reducer, watch = reduction_of(model).reducer, _Watch(synchronize)
    change_patch(model, reducer=_WatchedReducer(reducer, watch))
    try:
        yield watch
    finally:
        change_patch(model, reducer=reducer)
