"""Schedules against slow loops: every count one by one, and the nearest of all budgets that can be had."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce import Schedule
from tokenreduce.reducers.contract import SHAPES

Counts = tuple[int, ...]
calm = settings(deadline=None, max_examples=60, derandomize=True)


def any_count(n: int) -> int:
    return 1


def third(n: int) -> int:
    return -(-n // 3)


@st.composite
def models(draw) -> tuple[int, int, frozenset[int], tuple[int, ...]]:
    """Tokens, layers, layers that need all tokens, layers after which all come back."""
    depth = draw(st.integers(1, 8))
    whole = draw(st.frozensets(st.integers(0, depth - 1), max_size=3))
    back = draw(st.sets(st.integers(0, depth - 1), max_size=2))
    return draw(st.integers(2, 60)), depth, whole, tuple(sorted(back))


def walked(n: int, depth: int, whole: frozenset[int], back: Counts, wanted: Callable[[int, int], int]) -> Counts:
    """Layer by layer, where `wanted(layer, now)` is what a layer that may reduce should leave."""
    counts: list[int] = []
    for layer in range(depth):
        enter = n if layer == 0 or layer in whole or layer - 1 in back else counts[-1]
        counts.append(enter if layer in whole else min(enter, wanted(layer, enter)))
    return tuple(counts)


@given(models(), st.data())
@calm
def test_keep_layer_by_layer(model, data) -> None:
    n, depth, whole, back = model
    amount = st.one_of(st.integers(1, 70), st.sampled_from([0.34, 0.5, 0.7, 0.75, 1.0]))
    events = data.draw(st.dictionaries(st.integers(0, depth - 1), amount, min_size=1))

    def wanted(layer: int, now: int) -> int:
        kept = events.get(layer, now)
        kept = kept if isinstance(kept, int) else max(1, int(now * kept + 1e-9))
        return max(kept, third(now))

    schedule = Schedule.keep(events).restore_after(*back)
    assert schedule.resolve(n, depth, third, whole=whole) == walked(n, depth, whole, back, wanted)


@given(models(), st.data())
@calm
def test_remove_layer_by_layer(model, data) -> None:
    n, depth, whole, back = model
    r = data.draw(st.one_of(st.integers(0, 20), st.lists(st.integers(0, 20), max_size=depth)))
    layers = (
        data.draw(st.one_of(st.none(), st.lists(st.integers(0, depth - 1), min_size=1))) if isinstance(r, int) else None
    )
    schedule = Schedule.remove(r, layers).restore_after(*back)

    def wanted(layer: int, now: int) -> int:
        if isinstance(r, int):
            gone = r if layers is None or layer in layers else 0
        else:
            gone = r[layer] if layer < len(r) else 0
        return max(now - gone, third(now))

    assert schedule.resolve(n, depth, third, whole=whole) == walked(n, depth, whole, back, wanted)


def test_remove_in_some_layers_only() -> None:
    found = Schedule.remove(4, layers=[3, 0, 3]).restore_after(1).resolve(20, 5, any_count)
    assert found == (16, 16, 20, 16, 16)


def turns(depth: int, layers: set[int], whole: frozenset[int], back: Counts) -> dict[int, int]:
    """How many of `layers` have reduced since all tokens were there, after each of them."""
    found, since = {}, 0
    for layer in range(depth):
        if layer in whole or layer - 1 in back:
            since = 0
        if layer in layers - whole:
            since += 1
            found[layer] = since
    return found


def every_spread(
    by: str, n: int, depth: int, layers: set[int], whole: frozenset[int], back: Counts, target: int
) -> list[Counts]:
    """All counts that some amount gives, from none to everything: `amount` of n tokens from every layer of `layers`, or
    that share of what enters it, until `target` are left."""
    turn = turns(depth, layers, whole, back)
    most = max(turn.values())
    steps = {0.0, 1.0}
    for k in range(1, most + 1):
        for j in range(n + 1):
            steps.add(min(1.0, j / (n * k)) if by == "count" else 1 - min(1.0, (max(j - 0.5, 0) / n)) ** (1 / k))
    edges = sorted(steps)
    amounts = [0.0, *((a + b) / 2 for a, b in pairwise(edges) if b - a > 1e-12), 1.0]

    def wanted(layer: int, now: int, amount: float) -> int:
        if layer not in turn:
            return now
        k = turn[layer]
        left = n - math.floor(k * amount * n) if by == "count" else round_half_up(n * (1 - amount) ** k)
        return max(target, left)

    found: list[Counts] = []
    for amount in amounts:
        counts = walked(n, depth, whole, back, lambda layer, now, amount=amount: wanted(layer, now, amount))
        if not found or counts != found[-1]:
            found.append(counts)
    return found


def round_half_up(x: float) -> int:
    return math.floor(x + 0.5)


def weights(depth: int) -> list[int]:
    """What a token costs in each layer: not the same, so that layers cannot be confused."""
    return [5 + 3 * (layer % 3) for layer in range(depth)]


CASES = [
    ("constant", 24, 4, {0, 1, 2, 3}, frozenset(), ()),
    ("constant", 31, 5, {1, 2, 4}, frozenset(), ()),
    ("constant", 20, 6, {0, 1, 2, 3, 4, 5}, frozenset({2}), ()),
    ("ratio", 24, 4, {0, 1, 2, 3}, frozenset(), ()),
    ("ratio", 30, 6, {1, 3, 4}, frozenset(), (3,)),
    ("stages", 29, 5, {0, 2, 4}, frozenset({1}), ()),
]
by_case = pytest.mark.parametrize(("shape", "n", "depth", "layers", "whole", "back"), CASES)


@by_case
def test_a_flops_budget_ends_at_the_nearest_share(shape, n, depth, layers, whole, back) -> None:
    each = weights(depth)

    def cost(counts: Counts) -> float:
        return sum(c * w for c, w in zip(counts, each, strict=True)) / (n * sum(each))

    possible = every_spread(SHAPES[shape].by, n, depth, layers, whole, back, 1)
    shares = [cost(counts) for counts in possible]
    assert len(set(shares)) > 10 and shares == sorted(shares, reverse=True)
    goals = [shares[-1] + (1 - shares[-1]) * k / 41 for k in range(1, 41)]
    nearest_above = 0
    for goal in goals:
        schedule = Schedule.budget(shape, flops=goal, layers=sorted(layers)).restore_after(*back)
        counts = schedule.resolve(n, depth, any_count, cost, whole)
        assert counts in possible
        assert abs(cost(counts) - goal) == pytest.approx(min(abs(share - goal) for share in shares), abs=1e-12)
        nearest_above += cost(counts) > goal
    assert 5 < nearest_above < 35, "goals lie on both sides"


@by_case
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.62, 0.9])
def test_a_ratio_takes_the_least_amount_that_meets_it(shape, n, depth, layers, whole, back, ratio) -> None:
    target = max(1, math.floor(n * (1 - ratio) + 1e-9))
    schedule = Schedule.budget(shape, ratio=ratio, layers=sorted(layers)).restore_after(*back)
    counts = schedule.resolve(n, depth, any_count, whole=whole)
    assert min(counts) == target
    by = SHAPES[shape].by
    if by == "ratio":
        possible = every_spread(by, n, depth, layers, whole, back, target)
        assert counts == next(spread for spread in possible if min(spread) == target)
        return
    turn = turns(depth, layers, whole, back)  # fractions of a token wait for the next layer

    def wanted(layer: int, now: int) -> int:
        return n - turn[layer] * (n - target) // max(turn.values()) if layer in turn else now

    assert counts == walked(n, depth, whole, back, wanted)


OWN_LAYERS = {
    12: {
        "constant": range(12),
        "after_first": range(1, 12),
        "after_twelfth": range(1, 12),
        "delayed": range(4, 12),
        "ratio": range(12),
        "after_quarter": range(3, 12),
        "deferred": range(3, 12),
        "root": range(12),
        "stages": (3, 6, 9),
        "alternate": (1, 3, 5, 7, 9),
        "once": (3,),
        "late": (6,),
        "middle": (6,),
        "first": (0,),
        "first_and_third": (0, 4),
        "early": (0, 2, 4),
    },
    5: {"delayed": range(1, 5), "stages": (1, 2, 3), "alternate": (0, 1, 2, 3), "once": (1,), "middle": (2,)}
    | {"after_first": range(1, 5), "after_quarter": range(1, 5)},
    24: {"after_first": range(1, 24), "after_quarter": range(6, 24)},
    1: {"after_first": (0,), "after_quarter": (0,)},
}


@pytest.mark.parametrize(
    ("depth", "shape", "layers"),
    [(d, shape, tuple(own)) for d, found in OWN_LAYERS.items() for shape, own in found.items()],
)
def test_shapes_reduce_in_their_own_layers(depth: int, shape: str, layers: tuple[int, ...]) -> None:
    counts = Schedule.budget(shape, ratio=0.5).resolve(4000, depth, any_count)
    assert tuple(layer for layer, (a, b) in enumerate(pairwise((4000, *counts))) if b < a) == layers
    assert set(OWN_LAYERS[12]) == set(SHAPES)


@pytest.mark.parametrize("shape", ["once", "middle", "after_quarter", "after_first", "stages"])
@pytest.mark.parametrize("goal", [0.9, 0.7, 0.55, 0.5, 0.45, 0.35])
def test_a_budget_moves_to_earlier_layers_only_as_far_as_it_must(shape: str, goal: float) -> None:
    """One layer leaves a third at least; the shape's layers move one by one until the budget can be had."""
    n, depth = 90, 12
    own, parts = OWN_LAYERS[12][shape], SHAPES[shape].parts

    def cost(counts: Counts) -> float:
        return sum(counts) / (n * depth)

    for back in range(max(own) + 1):
        moved = {max(0, layer - back) for layer in own} if parts else set(range(max(0, min(own) - back), depth))
        lowest = walked(n, depth, frozenset(), (), lambda layer, now, m=moved: third(now) if layer in m else now)
        if cost(lowest) <= goal:
            break
    counts = Schedule.budget(shape, flops=goal).resolve(n, depth, third, cost)
    assert {layer for layer, (a, b) in enumerate(pairwise((n, *counts))) if b < a} <= moved
    first = next(layer for layer, count in enumerate(counts) if count < n)
    assert first == min(moved) and cost(counts) == pytest.approx(goal, abs=0.02)


def test_a_keep_ratio_below_what_a_method_leaves_is_refused_but_for_rounding() -> None:
    half = lambda n: n - n // 2  # noqa: E731
    assert Schedule.keep({0: 0.5}).resolve(9, 1, half) == (5,), "4 of 9, one token is rounding"
    with pytest.raises(
        ValueError, match=r"layer 0 should keep 0\.3 of 9 image tokens, but this method leaves 5 at least"
    ):
        Schedule.keep({0: 0.3}).resolve(9, 1, half)


def test_nothing_is_removed_where_nothing_is_asked_for() -> None:
    for schedule in (Schedule.budget("constant", ratio=0), Schedule.budget("ratio", flops=1), Schedule.remove(0)):
        assert schedule.resolve(30, 3, any_count, lambda counts: 1.0) == (30, 30, 30)


def test_shapes_of_one_layer_take_the_first_of_each_run_between_layers_that_need_all_tokens() -> None:
    """A lower goal than one layer can meet shows which layers reduce."""
    found = Schedule.budget("once", ratio=0.5).resolve(64, 7, third, whole=frozenset({0, 4}))
    assert found == (64, 32, 32, 32, 64, 32, 32)
    with pytest.raises(ValueError, match="reach 22 at least"):
        Schedule.budget("once", ratio=0.8).resolve(64, 7, third, whole=frozenset({0, 4}))
