"""From a share of tokens or of multiply-adds to counts: how much every layer of a shape removes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from tokenreduce.errors import InvalidValueError
from tokenreduce.reducers.contract import SHAPES

Counts = tuple[int, ...]  # image tokens left after each layer
Layers = tuple[int, ...]
EXACT = 1e-9  # of a product that stands for a whole number of tokens
CLOSE = 1e-5  # of the amount that a search ends with


class Walk(NamedTuple):
    """What counts are resolved for.

    Args:
        n: image tokens that enter.
        depth: number of layers.
        least: the fewest tokens one layer can leave of so many.
        whole: layers that need and leave all tokens.
        full: layers that all tokens enter, restored if need be.
    """

    n: int
    depth: int
    least: Callable[[int], int]
    whole: frozenset[int]
    full: frozenset[int]

    def counts(self, kept: Callable[[int, int], int]) -> Counts:
        """Image tokens left after each layer, where `kept(layer, now)` are wanted of the `now` that enter."""
        counts, now = [], self.n
        for layer in range(self.depth):
            now = self.n if layer in self.full else now
            now = now if layer in self.whole else min(now, max(kept(layer, now), self.least(now)))
            counts.append(now)
        return tuple(counts)

    def order(self, layers: Layers) -> dict[int, int]:
        """How many of `layers` have reduced after each of them, since all tokens were there."""
        order, since = {}, 0
        for layer in range(self.depth):
            since = 0 if layer in self.full else since
            if layer in layers and layer not in self.whole:
                since += 1
                order[layer] = since
        return order


def spread_ratio(walk: Walk, shape: str, layers: Layers | None, ratio: float) -> Counts:
    """The counts with which the fraction `ratio` of the tokens is gone, in the `layers` given or those of the shape.

    Raises: ValueError if these layers cannot remove as much.
    """
    if ratio == 0:
        return (walk.n,) * walk.depth
    target = max(1, math.floor(walk.n * (1 - ratio) + EXACT))
    fewest = walk.n
    for chosen in layer_choices(walk, shape, layers):
        fewest = min(fewest, *spread(walk, shape, chosen, 1.0, target))
        if fewest <= target:
            return _meet_ratio(walk, shape, chosen, target)
    raise InvalidValueError(
        f"ratio={ratio} asks for {target} of {walk.n} image tokens; this method and its layers reach {fewest} at least "
        f"(ratio={1 - fewest / walk.n:.3f}); ask for less, or give layers= or schedule="
    )


def _meet_ratio(walk: Walk, shape: str, layers: Layers, target: int) -> Counts:
    if SHAPES[shape].by == "count":
        longest = max(walk.order(layers).values())
        counts = spread(walk, shape, layers, (walk.n - target) / (walk.n * longest), target)
        if min(counts) == target:
            return counts
    amount, _ = bisect(lambda amount: min(spread(walk, shape, layers, amount, target)) <= target)
    return spread(walk, shape, layers, amount, target)


def spread_flops(
    walk: Walk, shape: str, layers: Layers | None, flops: float, cost: Callable[[Counts], float]
) -> Counts:
    """The counts whose `cost`, a share of the unpatched MACs, is nearest to `flops`.

    Raises: ValueError if these layers cannot save as much.
    """
    if flops == 1:
        return (walk.n,) * walk.depth
    lowest, choices = math.inf, layer_choices(walk, shape, layers)
    for chosen in choices:
        lowest = min(lowest, cost(spread(walk, shape, chosen, 1.0)))
        if lowest <= flops and (chosen is choices[-1] or _leaves_enough(walk, shape, chosen, flops, cost)):
            enough, too_little = bisect(lambda amount, at=chosen: cost(spread(walk, shape, at, amount)) <= flops)  # type: ignore[misc]
            below, above = (spread(walk, shape, chosen, amount) for amount in (enough, too_little))
            nearest = below if flops - cost(below) <= cost(above) - flops else above
            if min(nearest) >= SHAPES[shape].left * walk.n - EXACT or chosen is choices[-1]:
                return nearest
    raise InvalidValueError(
        f"flops={flops} cannot be reached with {walk.n} image tokens; the reachable minimum is "
        f"flops={lowest + 0.0005:.3f}; ask for more, or give layers= or schedule="
    )


def _leaves_enough(walk: Walk, shape: str, layers: Layers, flops: float, cost: Callable[[Counts], float]) -> bool:
    """Whether `flops` can be met with as many tokens left as the shape asks for."""
    least = math.ceil(walk.n * SHAPES[shape].left - EXACT)
    if least == 0:
        return True
    share, times = least / walk.n, max(walk.order(layers).values())
    amount = 1 - share ** (1 / times) if SHAPES[shape].by == "ratio" else (1 - share) / times
    return cost(spread(walk, shape, layers, amount, least)) <= flops


def layer_choices(walk: Walk, shape: str, layers: Layers | None) -> list[Layers]:
    """The shape's layers, then the same moved to earlier layers one by one; where some layers need all tokens, every
    other layer, or of those in a row the first if the shape has one layer only."""
    if layers is not None:
        return [layers]
    parts, spared = SHAPES[shape].parts, SHAPES[shape].spared
    start = max(min(spared, walk.depth - 1), walk.depth * SHAPES[shape].start // 12)
    if walk.whole:
        free = [layer for layer in range(walk.depth) if layer not in walk.whole]
        return [tuple(layer for layer in free if len(parts) != 1 or layer - 1 not in free)]
    if not parts:
        return [tuple(range(start - back, walk.depth)) for back in range(start + 1)]
    own = [walk.depth * part // 12 for part in parts]
    return [tuple(sorted({max(0, layer - back) for layer in own})) for back in range(own[-1] + 1)]


def spread(walk: Walk, shape: str, layers: Layers, amount: float, target: int = 1) -> Counts:
    """Counts when every layer of `layers` gives `amount` (of n, or of what enters), but leaves `target` tokens;
    monotone in `amount`."""
    n, order = walk.n, walk.order(layers)

    def kept(layer: int, now: int) -> int:
        if layer not in order:
            return now
        if SHAPES[shape].by == "count":
            return max(target, n - math.floor(order[layer] * amount * n + EXACT))
        if SHAPES[shape].by == "root":
            return max(target, math.floor(n * max(0.0, 1 - order[layer] * amount) ** 2 + 0.5))
        # Of the exact ratio, rounded: rounding down in every layer would take a token from each at once.
        return max(target, math.floor(n * (1 - amount) ** order[layer] + 0.5))

    return walk.counts(kept)


def bisect(is_enough: Callable[[float], bool]) -> tuple[float, float]:
    """The least amount in (0, 1] that is enough and the greatest that is not, nearly; 1 is enough."""
    low, high = 0.0, 1.0
    while high - low > CLOSE:
        middle = (low + high) / 2
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high, low


def wanted_by(event: float | None, now: int, layer: int, least: Callable[[int], int]) -> int:
    """Tokens that `Schedule.keep` wants after `layer`, of the `now` that enter: a keep ratio or a number of tokens.

    Raises: ValueError for a ratio that the method cannot reach in one layer.
    """
    if event is None:
        return now
    if isinstance(event, int):  # met as far as possible: the same number may suit another input size
        return event
    wanted = max(1, math.floor(now * event + EXACT))
    if wanted < least(now) - 1:  # one token is rounding
        raise InvalidValueError(
            f"layer {layer} should keep {event} of {now} image tokens, but this method leaves {least(now)} at least "
            "in one layer; keep more there, or spread it over several layers"
        )
    return wanted
