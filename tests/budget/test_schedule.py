"""Schedules are plain integers; these tests compute them by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenreduce import InvalidTypeError, InvalidValueError, Schedule


def any_count(n: int) -> int:
    return 1


def half(n: int) -> int:
    return n - n // 2


def test_constant_r() -> None:
    assert Schedule.remove(13).resolve(196, 12, half)[-1] == 196 - 12 * 13
    assert Schedule.remove(60).resolve(196, 4, half) == (136, 76, 38, 19)
    assert Schedule.remove([5, 0, 3]).resolve(20, 4, any_count) == (15, 15, 12, 12)
    assert Schedule.remove(5, layers=[1, 3]).resolve(20, 4, any_count) == (20, 15, 15, 10)


def test_keep_ratios_round_down_and_ints_are_counts() -> None:
    assert Schedule.keep({3: 0.7, 6: 0.7, 9: 0.7}).resolve(196, 12, any_count)[::3] == (196, 137, 95, 66)
    assert Schedule.keep({0: 50, 1: 80}).resolve(196, 2, any_count) == (50, 50)


@given(
    st.integers(4, 400),
    st.integers(1, 30),
    st.floats(0, 0.95),
    st.sampled_from(["constant", "ratio", "stages", "once"]),
)
def test_ratio_is_met_exactly(n, depth, ratio, shape) -> None:
    counts = Schedule.budget(shape, ratio=ratio).resolve(n, depth, any_count)
    assert counts[-1] == max(1, int(n * (1 - ratio) + 1e-9))
    assert all(a >= b for a, b in zip((n, *counts), counts, strict=False))


def test_constant_shape_spreads_by_error_diffusion() -> None:
    counts = Schedule.budget("constant", ratio=0.5).resolve(196, 12, half)
    removed = [a - b for a, b in zip((196, *counts), counts, strict=False)]
    assert set(removed) == {8, 9} and sum(removed) == 98


def test_what_late_layers_cannot_give_moves_to_earlier_ones() -> None:
    counts = Schedule.budget("constant", ratio=0.97).resolve(196, 12, half)
    assert counts[-1] == 5
    assert 196 - counts[0] > 191 / 12
    shifted = Schedule.budget("once", flops=0.3).resolve(100, 8, lambda n: (n + 3) // 4, lambda c: sum(c) / 800)
    assert shifted[0] < 100, "layer 2 alone leaves 0.44 of the cost"


@given(st.floats(0.3, 1), st.sampled_from(["constant", "ratio", "stages", "once"]))
def test_flops_lands_next_to_the_goal(goal, shape) -> None:
    def cost(counts: tuple[int, ...]) -> float:
        return sum(counts) / (196 * 12)

    counts = Schedule.budget(shape, flops=goal).resolve(196, 12, any_count, cost)
    assert abs(cost(counts) - goal) < 0.01


WHOLE = frozenset({0, 3})  # of six layers


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [
        (Schedule.remove(5), (64, 59, 54, 64, 59, 54)),
        (Schedule.remove([0, 5, 0, 0, 30, 40]), (64, 59, 59, 64, 34, 17)),
        (Schedule.remove(5, layers=[2, 4]), (64, 64, 59, 64, 59, 59)),
        (Schedule.keep({1: 0.5, 2: 20, 5: 0.75}), (64, 32, 20, 64, 64, 48)),
        (Schedule.budget("constant", ratio=0.5), (64, 48, 32, 64, 48, 32)),
        (Schedule.budget("delayed", ratio=0.5), (64, 48, 32, 64, 48, 32)),
        (Schedule.budget("ratio", ratio=0.5), (64, 46, 32, 64, 46, 32)),
        (Schedule.budget("stages", ratio=0.5), (64, 46, 32, 64, 46, 32)),
        (Schedule.budget("once", ratio=0.5), (64, 32, 32, 64, 32, 32)),
        (Schedule.budget("constant", ratio=0.5, layers=[4]), (64, 64, 64, 64, 32, 32)),
        (Schedule.budget("constant", ratio=0.25, layers=[2, 4, 5]), (64, 64, 56, 64, 56, 48)),
        (Schedule.budget("ratio", ratio=0), (64,) * 6),
    ],
)
def test_layers_that_need_all_tokens_start_anew(schedule, counts) -> None:
    """Each chain of layers between them reduces as if it were alone; the longest meets the ratio."""
    assert schedule.resolve(64, 6, half, whole=WHOLE) == counts


def test_shapes_of_one_layer_take_the_first_after_all_tokens_were_there() -> None:
    counts = Schedule.budget("once", ratio=0.75).resolve(64, 6, lambda n: n // 4, whole=frozenset({1, 2, 4}))
    assert counts == (16, 64, 64, 16, 64, 16)


@given(st.floats(0.68, 1), st.sampled_from(["constant", "ratio", "once"]))
def test_flops_count_layers_that_need_all_tokens(goal, shape) -> None:
    def cost(counts: tuple[int, ...]) -> float:
        return sum(counts) / (196 * 6)

    counts = Schedule.budget(shape, flops=goal).resolve(196, 6, half, cost, WHOLE)
    assert abs(cost(counts) - goal) < 0.01
    assert counts[0] == counts[3] == 196
    assert counts[1:3] == counts[4:], "both chains give the same"


def test_unreachable_budgets_of_chains_name_the_minimum() -> None:
    with pytest.raises(InvalidValueError, match=r"reachable minimum is flops=0\.5"):
        Schedule.budget("constant", flops=0.5).resolve(64, 6, half, lambda counts: sum(counts) / 384, WHOLE)
    with pytest.raises(InvalidValueError, match=r"asks for 6 of 64 image tokens; .* reach 16"):
        Schedule.budget("constant", ratio=0.9).resolve(64, 6, half, whole=WHOLE)


def test_layers_that_need_all_tokens_cannot_be_named() -> None:
    Schedule.remove([0, 4, 0, 0, 4]).check_layers(6, WHOLE)
    Schedule.remove(4).check_layers(6, WHOLE)
    for wrong in (
        Schedule.remove([1]),
        Schedule.remove(4, layers=[3, 4]),
        Schedule.keep({3: 0.5}),
        Schedule.budget("ratio", ratio=0.5, layers=[3]),
        Schedule.adaptive([0, 1]),
    ):
        with pytest.raises(InvalidValueError, match=r"needs all tokens .* layers that can: 1, 2, 4, 5"):
            wrong.check_layers(6, WHOLE)


@pytest.mark.parametrize("n", range(60, 70))
def test_the_minimum_that_is_named_can_be_asked_for(n: int) -> None:
    def cost(counts: tuple[int, ...]) -> float:
        return sum(counts) / (4 * n)

    with pytest.raises(InvalidValueError, match="reachable minimum") as said:
        Schedule.budget("constant", flops=0.05).resolve(n, 4, half, cost)
    named = float(str(said.value).split("the reachable minimum is flops=")[1].split(";")[0])
    assert cost(Schedule.budget("constant", flops=named).resolve(n, 4, half, cost)) <= named


def test_a_keep_ratio_may_be_one_token_below_what_the_method_leaves() -> None:
    """Which is rounding; two are not, and nothing is never kept."""
    assert Schedule.keep({1: 31 / 64}).resolve(64, 4, half) == (64, 32, 32, 32)
    with pytest.raises(InvalidValueError, match="this method leaves 32 at least in one layer"):
        Schedule.keep({1: 30 / 64}).resolve(64, 4, half)
    for nothing in (0, 0.0):
        with pytest.raises(InvalidValueError, match="a keep ratio lies in"):
            Schedule.keep({1: nothing})


def test_the_whole_budget_removes_nothing_whatever_the_method_costs() -> None:
    found = Schedule.budget("constant", flops=1.0).resolve(64, 4, half, lambda counts: 0.1 + sum(counts) / 256)
    assert found == (64,) * 4


def test_unreachable_budgets_name_the_minimum() -> None:
    with pytest.raises(InvalidValueError, match=r"flops=0\.05 cannot be reached .* reachable minimum is flops=0\.\d+"):
        Schedule.budget("constant", flops=0.05).resolve(64, 4, half, lambda counts: sum(counts) / 256)
    with pytest.raises(InvalidValueError, match=r"asks for 6 of 64 image tokens; .* reach 32"):
        Schedule.budget("constant", ratio=0.9, layers=[2]).resolve(64, 4, half)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Schedule.budget("constant", ratio=1.2), InvalidValueError, r"ratio is 1.2; .* \[0, 1\)"),
        (lambda: Schedule.budget("constant", flops=0), InvalidValueError, r"flops is 0; .* \(0, 1\]"),
        (lambda: Schedule.budget("constant", ratio="half"), InvalidTypeError, "must be a number"),
        (
            lambda: Schedule.budget("spiral", ratio=0.5),
            InvalidValueError,
            "unknown shape 'spiral'; valid: after_first, after_quarter, after_twelfth, alternate",
        ),
        (lambda: Schedule.remove(-3), InvalidValueError, "must not be negative"),
        (lambda: Schedule.remove([4, -1]), InvalidValueError, "must not be negative"),
        (lambda: Schedule.remove(True), InvalidTypeError, "as an int"),
        (lambda: Schedule.remove(1.5), InvalidTypeError, "as an int"),
        (lambda: Schedule.remove([1, 2], layers=[0]), InvalidTypeError, "exclude each other"),
        (lambda: Schedule.keep({}), InvalidTypeError, "takes a mapping"),
        (lambda: Schedule.keep({-1: 0.5}), InvalidValueError, "count from 0"),
        (lambda: Schedule.keep({2: 1.5}), InvalidValueError, r"keep ratio lies in \(0, 1\]"),
        (lambda: Schedule.keep({2: "a"}), InvalidTypeError, "keeps 'a'"),
        (lambda: Schedule.budget("constant", ratio=0.5, layers=[]), InvalidTypeError, "list of layer numbers"),
        (lambda: Schedule.budget("constant", ratio=0.5, layers=2.5), InvalidTypeError, "list of layer numbers"),
        (lambda: Schedule.budget([], ratio=0.5), InvalidValueError, r"unknown shape \[\]"),
        (lambda: Schedule.keep({12: 0.5}).check_layers(12), InvalidValueError, "12 layers, numbered 0 to 11"),
    ],
)
def test_wrong_schedules(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule.keep({3: 0.7, 6: 40}),
        Schedule.remove(8),
        Schedule.remove(8, layers=[1, 2]),
        Schedule.remove([3, 0, 2]),
        Schedule.remove([]),
        Schedule.budget("stages", ratio=0.5),
        Schedule.budget("constant", flops=0.6, layers=[2, 5, 7]),
    ],
)
def test_json_round_trip(schedule) -> None:
    def cost(counts: tuple[int, ...]) -> float:
        return sum(counts) / (100 * 8)

    again = Schedule.from_json(schedule.to_json())
    assert again.resolve(100, 8, any_count, cost) == schedule.resolve(100, 8, any_count, cost)
