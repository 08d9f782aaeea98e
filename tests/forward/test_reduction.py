"""`Reduction`: counts and shares of a patch, and what does not change them."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
from patches_by_hand import COUNT, GRID, geometry, reduction

from tokenreduce import Schedule
from tokenreduce.budget.geometry import Costs
from tokenreduce.maps.restoring import Restoring
from tokenreduce.reducers.registry import lookup

COSTS = Costs(fixed=500, per_token=3, attention=(7, 8, 9, 10), pairs=(2, 3, 4, 5), mlp=(11, 12, 13, 14))


def test_counts_are_resolved_once_for_each_number_of_tokens() -> None:
    patch = reduction({1: 0.5, 2: 5})
    assert patch.counts(12) == (12, 6, 5, 5) and patch.counts(20) == (20, 10, 5, 5)
    assert patch.counts(12) is patch.counts(12) is patch._resolve(12, patch.key) and set(patch._counts) == {12, 20}
    assert patch.entering(12, patch.counts(12)) == (12, 12, 6, 5)


def test_what_is_remembered_is_not_shown() -> None:
    patch = reduction()
    patch.counts(12)
    assert "_counts" not in repr(patch) and "_work" not in repr(patch) and "random" in repr(patch).lower()


def test_nothing_removed_is_the_identity_of_that_number_only() -> None:
    patch = reduction({1: 12})
    assert patch.is_identity(12) and patch.is_identity(3) and not patch.is_identity(13)


@pytest.mark.parametrize(
    ("whole", "restored", "full"), [((), (), ()), ((1,), (), (1,)), ((), (1,), (2,)), ((0, 2), (1, 2), (0, 2, 3))]
)
def test_layers_that_all_tokens_enter(whole, restored, full) -> None:
    patch = reduction(needs_all=frozenset(whole))
    patch = dataclasses.replace(patch, schedule=patch.schedule.restore_after(*restored))
    assert patch.full_layers == frozenset(full)
    counts = (8, 7, 6, 5)
    assert patch.entering(COUNT, counts) == tuple(
        COUNT if layer in full or layer == 0 else counts[layer - 1] for layer in range(4)
    )


class AtMostHalf(lookup("random")):
    """Says of which grid it was asked."""

    def least_of(self, n: int, grid: tuple[int, ...] | None) -> int:
        assert grid == GRID
        return n - n // 2


def test_counts_follow_what_the_method_and_the_model_allow() -> None:
    patch = dataclasses.replace(
        reduction(needs_all=frozenset({2})), reducer=AtMostHalf(), schedule=Schedule.remove([9, 9, 0, 9])
    )
    assert patch.counts(12) == (6, 3, 12, 6)


def test_a_flops_budget_is_met_by_the_share() -> None:
    schedule = Schedule.budget("constant", flops=0.6)
    patch = dataclasses.replace(reduction(costs=COSTS), schedule=schedule)
    counts = patch.counts(60)
    assert patch.share(60, counts) == pytest.approx(0.6, abs=0.02) and min(counts) < 40
    assert patch.share(60, counts) == pytest.approx(macs((60, *counts[:-1]), counts) / macs((60,) * 4, (60,) * 4))


class Bill:
    """A rehearsal with prices that tell layers, counts and kinds of work apart."""

    def begin(self) -> int:
        return 1

    def plan(self, layer: int, n: int, keep: int) -> int:
        return 1000 * (layer + 1) + 10 * n + keep

    def decide(self, layer: int, n: int) -> int:
        return 100_000 * (layer + 1) + n


def macs(entered, left, protected=3) -> int:
    total = 500 + 3 * entered[0]
    for layer, (n, m) in enumerate(zip(entered, left, strict=True)):
        n, m = n + protected, m + protected
        total += COSTS.attention[layer] * n + COSTS.pairs[layer] * n * n + COSTS.mlp[layer] * m
    return total


def test_the_share_holds_model_and_reducer() -> None:
    patch = reduction(costs=COSTS, needs_all=frozenset({2}))
    counts = (10, 8, 12, 7)
    work = 1 + (1000 + 120 + 10) + (2000 + 100 + 8) + (4000 + 120 + 7)
    expected = (macs((12, 10, 12, 12), counts) + work) / macs((12,) * 4, (12,) * 4)
    assert patch.share(12, counts, Bill()) == pytest.approx(expected, rel=1e-12)
    whole = (12,) * 4
    assert patch.share(12, whole, Bill()) == pytest.approx(1 + 1 / macs(whole, whole), rel=1e-12)


def test_an_adaptive_method_also_pays_for_deciding() -> None:
    schedule = Schedule.adaptive([1, 3])
    patch = dataclasses.replace(reduction(costs=COSTS), schedule=schedule)
    counts = (12, 8, 8, 8)
    work = 1 + (2000 + 120 + 8) + (200_000 + 12) + (400_000 + 8)
    expected = (macs((12, 12, 8, 8), counts) + work) / macs((12,) * 4, (12,) * 4)
    assert patch.share(12, counts, Bill()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("charged", [True, False])
def test_restoring_is_rehearsed_where_the_budget_pays_for_it(charged: bool) -> None:
    patch = reduction(restoring=Restoring("delta", "freeze", ends=True, taps=True, charged=charged))
    rehearsal = patch.rehearsal(7)
    assert rehearsal.restoring == ("delta" if charged else None)
    assert rehearsal.entered == 7 and rehearsal.known is patch._work and rehearsal.reducer is patch.reducer


def test_a_patch_can_be_copied_and_written() -> None:
    patch = reduction({1: 0.5})
    for twin in (copy.deepcopy(patch), pickle.loads(pickle.dumps(patch))):
        assert twin is not patch and twin.counts(12) == patch.counts(12) and twin.full_layers == patch.full_layers
    with pytest.raises(dataclasses.FrozenInstanceError):
        patch.prop_attn = False  # type: ignore[misc]
    assert geometry().count == COUNT and geometry().grid == GRID
    written = dataclasses.replace(patch, requested={"restore": "auto", "prop_attn": True}).to_json()
    assert written["method"] == "random" and written["restore"] == "auto" and written["prop_attn"] is True
    assert Schedule.from_json(written["schedule"]) == patch.schedule and written["options"] == patch.reducer.options()
