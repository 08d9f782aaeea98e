"""`Schedule`: which layers keep how many image tokens. It knows neither methods nor tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from tokenreduce.budget.spreading import Counts, Walk, spread_flops, spread_ratio, wanted_by
from tokenreduce.errors import InvalidTypeError, InvalidValueError, unknown
from tokenreduce.reducers.contract import SHAPES


@dataclass(frozen=True)
class Schedule:
    """A rule that resolves to plain integers: the image tokens left after each layer (0-based, fractions round down).

    Make one with `keep`, `remove`, `budget` or `adaptive`.
    """

    rule: str
    events: tuple[tuple[int, float], ...] = ()
    shape: str = "constant"
    ratio: float | None = None
    flops: float | None = None
    layers: tuple[int, ...] | None = None
    restored: tuple[int, ...] = ()

    @classmethod
    def keep(cls, events: Mapping[int, float]) -> Schedule:
        """Keep tokens after some layers: a float is a keep ratio (kept / entered), an int a number of tokens."""
        if not isinstance(events, Mapping) or not events:
            raise InvalidTypeError(f"Schedule.keep takes a mapping such as {{3: 0.7, 6: 0.7}}, not {events!r}")
        for layer, kept in events.items():
            _check_layer(layer)
            if isinstance(kept, bool) or not isinstance(kept, (int, float)) or math.isnan(kept):
                raise InvalidTypeError(
                    f"layer {layer} keeps {kept!r}; give a keep ratio (float) or a number of tokens (int)"
                )
            if kept <= 0 or (isinstance(kept, float) and kept > 1):
                raise InvalidValueError(
                    f"layer {layer} keeps {kept}; a keep ratio lies in (0, 1], a number of tokens is 1 or more"
                )
        return cls("keep", tuple(sorted(events.items())))

    @classmethod
    def remove(cls, r: int | Sequence[int], layers: Sequence[int] | None = None) -> Schedule:
        """Remove `r` tokens in every block (or in `layers`), or `r[l]` in block l (a shorter list ends with zeros)."""
        counts = [r] if isinstance(r, int) else list(r) if isinstance(r, Sequence) and not isinstance(r, str) else None
        if counts is None or any(isinstance(c, bool) or not isinstance(c, int) for c in counts):
            raise InvalidTypeError(
                f"r is {r!r}; give the tokens removed in every block as an int, or a list with one int a block"
            )
        if any(c < 0 for c in counts):
            raise InvalidValueError(f"r is {r!r}; it must not be negative (0 removes nothing)")
        if isinstance(r, int):
            return cls("remove", ((-1, r),), layers=_check_layers(layers))
        if layers is not None:
            raise InvalidTypeError(
                "layers and a list for r exclude each other: the list already says what each layer removes"
            )
        return cls("remove", tuple(enumerate(counts)))

    @classmethod
    def budget(
        cls, shape: str, ratio: float | None = None, flops: float | None = None, layers: Sequence[int] | None = None
    ) -> Schedule:
        """Scale a `shape` so that the fraction `ratio` of the image tokens is gone, or `flops` of the MACs are left."""
        if not isinstance(shape, str) or shape not in SHAPES:
            raise unknown("shape", shape, SHAPES)
        if (ratio is None) == (flops is None):
            raise InvalidTypeError("give exactly one of ratio and flops")
        if ratio is not None and not 0 <= _number("ratio", ratio) < 1:
            raise InvalidValueError(f"ratio is {ratio}; it is the fraction of image tokens removed and lies in [0, 1)")
        if flops is not None and not 0 < _number("flops", flops) <= 1:
            raise InvalidValueError(
                f"flops is {flops}; it is the fraction of the unpatched multiply-adds left and lies in (0, 1]"
            )
        return cls("budget", (), shape, ratio, flops, _check_layers(layers))

    @classmethod
    def adaptive(cls, layers: Sequence[int] | None = None) -> Schedule:
        """Leave the counts to an adaptive method, in its own layers or in `layers`: they follow the data."""
        return cls("adaptive", layers=_check_layers(layers))

    def restore_after(self, *layers: int) -> Schedule:
        """The same schedule, with all tokens back after these layers: the next layer receives them all, and may reduce
        again."""
        return replace(self, restored=tuple(sorted({*self.restored, *map(_check_layer, layers)})))

    def check_layers(self, depth: int, whole: frozenset[int] = frozenset()) -> None:
        """Raise if an event or a layer lies beyond the model's last layer, or is one of those that need all tokens."""
        named = [layer for layer, amount in self.events if amount] + list(self.layers or ())
        late = [layer for layer in named if layer >= depth]
        if late:
            raise InvalidValueError(
                f"layer {late[0]} does not exist: the model has {depth} layers, numbered 0 to {depth - 1}"
            )
        last = [layer for layer in self.restored if layer >= depth - 1]
        if last:
            raise InvalidValueError(
                f"no layer follows layer {last[0]} of {depth}, after which all tokens should come back; give "
                "restore=True to have them back at the end"
            )
        fixed = [layer for layer in named if layer in whole]
        if fixed:
            raise InvalidValueError(
                f"layer {fixed[0]} needs all tokens (for its windows or convolutions) and cannot reduce; "
                f"layers that can: {', '.join(str(layer) for layer in range(depth) if layer not in whole)}"
            )

    def resolve(
        self,
        n: int,
        depth: int,
        least: Callable[[int], int],
        cost: Callable[[Counts], float] | None = None,
        whole: frozenset[int] = frozenset(),
    ) -> Counts:
        """Image tokens left after each of `depth` layers when `n` enter.

        Args:
            least: the fewest tokens one layer can leave of so many.
            cost: share of the unpatched MACs for given counts; needed for a `flops` budget.
            whole: layers that need and leave all tokens; what was reduced before them is restored.
        """
        walk = Walk(n, depth, least, whole, whole | {layer + 1 for layer in self.restored})
        if self.rule == "adaptive":
            raise InvalidValueError("an adaptive schedule has no counts of its own: they follow the data of a forward")
        if self.rule == "keep":
            events = dict(self.events)
            return walk.counts(lambda layer, now: wanted_by(events.get(layer), now, layer, least))
        if self.rule == "remove":
            removed = dict(self.events)
            every = removed.get(-1, 0) if self.layers is None else 0
            chosen = dict.fromkeys(self.layers or (), removed.get(-1, 0)) or removed
            return walk.counts(lambda layer, now: now - int(chosen.get(layer, every)))
        if self.ratio is not None:
            return spread_ratio(walk, self.shape, self.layers, self.ratio)
        assert self.flops is not None and cost is not None
        return spread_flops(walk, self.shape, self.layers, self.flops, cost)

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; `from_json` reads it back."""
        return {
            "rule": self.rule,
            "events": [list(event) for event in self.events],
            "shape": self.shape,
            "ratio": self.ratio,
            "flops": self.flops,
            "layers": None if self.layers is None else list(self.layers),
            "restored": list(self.restored),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Schedule:
        """The schedule that `to_json` wrote; wrong content raises as in the constructors."""
        return cls._from_rule(data).restore_after(*data.get("restored", ()))

    @classmethod
    def _from_rule(cls, data: Mapping[str, Any]) -> Schedule:
        events = {int(layer): kept for layer, kept in data["events"]}
        if data["rule"] == "keep":
            return cls.keep(events)
        if data["rule"] == "remove":
            r = events[-1] if -1 in events else [events.get(layer, 0) for layer in range(max(events, default=-1) + 1)]
            return cls.remove(r, data["layers"])
        if data["rule"] == "budget":
            return cls.budget(data["shape"], data["ratio"], data["flops"], data["layers"])
        if data["rule"] == "adaptive":
            return cls.adaptive(data["layers"])
        raise unknown("schedule rule", data["rule"], ("keep", "remove", "budget", "adaptive"))


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidTypeError(f"{name} is {value!r}; it must be a number")
    return value


def _check_layer(layer: object) -> int:
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise InvalidTypeError(f"layer is {layer!r}; layers are ints, 0 is the first")
    if layer < 0:
        raise InvalidValueError(f"layer is {layer}; layers count from 0")
    return layer


def _check_layers(layers: Sequence[int] | None) -> tuple[int, ...] | None:
    if layers is None:
        return None
    if isinstance(layers, str) or not isinstance(layers, (Sequence, Set)) or not layers:
        raise InvalidTypeError(f"layers is {layers!r}; give a list of layer numbers such as [3, 6, 9]")
    return tuple(sorted({_check_layer(layer) for layer in layers}))
