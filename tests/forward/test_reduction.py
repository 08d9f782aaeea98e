"""`Reduction`: counts and shares of a patch, and what does not change them."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from patches_by_hand import COUNT, GRID, geometry, reduction
from torch import nn

from tokenreduce import InvalidValueError, Schedule
from tokenreduce.budget.geometry import Costs
from tokenreduce.forward.owner import Owner
from tokenreduce.forward.reduction import Reduction
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


class Free:
    """A rehearsal of work that costs nothing."""

    def begin(self) -> int:
        return 0

    def plan(self, layer: int, n: int, keep: int) -> int:
        return 0


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


def test_too_few_tokens_for_a_budget_pass_through_and_no_others() -> None:
    """Where the image is smaller than that of the patch; a schedule says itself what it removes."""
    schedule = Schedule.budget("constant", ratio=0.9, layers=[3])
    patch = dataclasses.replace(reduction(costs=COSTS), reducer=AtMostHalf(), schedule=schedule)
    assert patch.counts(4) == (4,) * 4 and patch.passes(4) and patch.is_identity(4)
    assert not patch.passes(3) and not patch.passes(COUNT)
    for count in (COUNT, COUNT + 1):
        with pytest.raises(InvalidValueError, match="this method and its layers reach"):
            patch.counts(count)
        assert not patch.passes(count)
    said = dataclasses.replace(patch, schedule=Schedule.keep({3: 0.1}))
    with pytest.raises(InvalidValueError, match=r"layer 3 should keep 0\.1 of 10 image tokens"):
        said.counts(10)


class Priced:
    """In the place of an adapter: says what a model costs now."""

    def __init__(self, answer: Callable[[], Costs]) -> None:
        self.answer = answer

    def costs_now(self, model: nn.Module) -> Costs:
        return self.answer()


def owned(answer: Callable[[], Costs]) -> tuple[nn.Sequential, Reduction]:
    """A model with a patch whose budget was spread, and a part that was replaced then."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    schedule, owner = Schedule.budget("constant", flops=0.6), Owner(model, Priced(answer), "tokens")
    patch = dataclasses.replace(reduction(costs=COSTS), schedule=schedule, owner=owner)
    patch.counts(60)
    patch._passing.add(5)
    model[1] = nn.Linear(2, 2)
    return model, patch


DEARER = dataclasses.replace(COSTS, mlp=(110, 120, 130, 140))


def test_what_a_budget_was_by_the_old_costs_is_forgotten() -> None:
    _model, patch = owned(lambda: DEARER)
    key, before, known, passing = patch.key, patch.counts(60), patch._counts, patch._passing
    patch.follow()
    assert patch.geometry.costs == DEARER and patch.key != key and not patch.passes(5)
    assert patch.counts(60) != before and known == {60: before} and passing == {5}


@pytest.mark.parametrize("error", [AttributeError, InvalidValueError, RuntimeError, None])
def test_a_model_whose_costs_cannot_be_read_keeps_its_budget(error: type[Exception] | None) -> None:
    """And is asked again in its next forward; so does one that was cut, which is not."""
    asked = []

    def answer() -> Costs:
        asked.append(1)
        if error is not None:
            raise error("unknown")
        return DEARER.first(2)

    _model, patch = owned(answer)
    key, before = patch.key, patch.counts(60)
    patch.follow()
    patch.follow()
    assert len(asked) == (1 if error is None else 2)
    assert patch.key == key and patch.counts(60) is before and patch.geometry.costs == COSTS


def test_one_thread_alone_spreads_a_budget_anew() -> None:
    others, calls = threading.Event(), []

    def answer() -> Costs:
        calls.append(1)
        if len(calls) > 1:
            others.set()
        others.wait(0.3)  # for a second thread, which must not come
        return DEARER

    _model, patch = owned(answer)
    threads = [threading.Thread(target=patch.follow) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and patch.geometry.costs == DEARER
    patch.follow()
    assert len(calls) == 1


def test_a_patch_for_the_first_layers_alone() -> None:
    patch = reduction({0: 8, 1: 4}, costs=COSTS, needs_all=frozenset({2, 3}))
    patch.counts(12)
    first = patch.cut(2)
    assert first.geometry.depth == 2 and first.geometry.needs_all == frozenset()
    assert first.geometry.costs == COSTS.first(2) and first.counts(12) == patch.counts(12)[:2]
    assert first._work is not patch._work and first._counts is not patch._counts
    assert patch.cut(3).geometry.needs_all == frozenset({2})


@pytest.mark.parametrize("placement", ["pre", "mid", "post"])
def test_the_share_is_of_the_places_where_the_method_reduces(placement: str) -> None:
    class Placed(lookup("random")):
        pass

    Placed.placement = placement
    patch = dataclasses.replace(reduction(costs=COSTS), reducer=Placed())
    whole, counts = (12,) * 4, (10, 8, 8, 7)
    expected = COSTS.macs((12, 10, 8, 8), counts, 3, placement) / COSTS.macs(whole, whole, 3, "mid")
    assert patch.share(12, counts, Free()) == pytest.approx(expected, rel=1e-12)


def test_image_tokens_are_all_but_the_protected_ones_and_decide_where_they_may() -> None:
    patch = dataclasses.replace(reduction(needs_all=frozenset({1})), schedule=Schedule.adaptive([0, 1, 3]))
    assert patch.image_tokens(torch.zeros(1, COUNT + 3, 8)) == COUNT
    assert patch.deciding_layers == (0, 3)
