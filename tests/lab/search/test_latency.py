"""`calibrate(latency=...)`: the most compute that a measured time allows, with times that are made up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_calibrating import small_vit, some_images
from torch import Tensor, nn

from tokenreduce import calibrate, patch, report
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.journal import Journal
from tokenreduce.lab.search import clocking, searching
from tokenreduce.lab.search.bars import LEVELS
from tokenreduce.lab.search.clocking import QUICK, SURE, Clock, TimeShare, time_share
from tokenreduce.lab.search.halving import FINAL
from tokenreduce.lab.search.hurrying import NEIGHBOURS, level_of, most_compute, settle
from tokenreduce.lab.search.trials import Candidate, Trials, Variant
from tokenreduce.patching.finding import reduction_of

Counts = tuple[int, ...]
Timed = list[tuple[str, Counts, int]]


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Timed]:
    """Makes times up from the method, its counts and the rounds; gives what was timed."""

    def plant(share: Callable[[str, Counts, int], float]) -> Timed:
        timed: Timed = []

        def measure(base: nn.Module, patched: nn.Module, batch: Tensor, rounds: int) -> TimeShare:
            reduction = reduction_of(patched)
            found = (reduction.reducer.name, reduction.counts(16), rounds)
            timed.append(found)
            value = share(*found)
            return TimeShare(value, (value - 0.01, value + 0.01))

        monkeypatch.setattr(clocking, "time_share", measure)
        return timed

    return plant


def stairs(method: str, counts: Counts, rounds: int) -> float:
    """Time falls in steps of eight tokens, summed over the layers."""
    return math.ceil(sum(counts) / 8) * 8 / 64


def bench(journal: Journal | None = None) -> tuple[Trials, Clock]:
    images = some_images(4)
    trials = Trials(small_vit(), Variant("tome"), images, [[0, 1, 2, 3]], journal or Journal())
    return trials, Clock(trials, images)


@pytest.mark.parametrize("latency", [0.5, 0.6, 0.8, 0.9])
def test_the_most_compute_is_what_trying_every_level_finds(clocked: Any, latency: float) -> None:
    timed = clocked(stairs)
    trials, clock = bench()
    at = partial(trials.own, Variant("tome"))
    found = most_compute(clock, latency, at)
    reachable = [one for level in LEVELS if (one := attempt(at, level)) is not None]
    expected = next(one for one in reachable if stairs("tome", one.counts, SURE) <= latency)
    assert found is not None and found[0] == expected and found[1].share <= latency
    assert len(timed) < len(reachable) / 2  # few are measured


def attempt(at: Any, level: float) -> Any:
    try:
        return at(level)
    except InvalidValueError:
        return None


def test_a_step_that_is_fast_above_one_that_is_slow_is_found(clocked: Any) -> None:
    """Kernels like some counts: two levels above the boundary one is fast again."""
    trials, clock = bench()
    at = partial(trials.own, Variant("tome"))
    boundary, lucky = at(LEVELS[12]), at(LEVELS[10])
    assert lucky.counts != boundary.counts

    def share(method: str, counts: Counts, rounds: int) -> float:
        return 0.5 if sum(counts) <= sum(boundary.counts) or counts == lucky.counts else 0.9

    clocked(share)
    found = most_compute(clock, 0.6, at)
    assert found is not None and found[0].counts == lucky.counts


def test_a_lucky_quick_measurement_is_not_believed(clocked: Any) -> None:
    trials, clock = bench()
    at = partial(trials.own, Variant("tome"))
    clocked(lambda method, counts, rounds: stairs(method, counts, rounds) * (0.9 if rounds == QUICK else 1))
    found = most_compute(clock, 0.7, at)
    assert found is not None and stairs("tome", found[0].counts, SURE) <= 0.7


def test_what_was_timed_is_not_timed_again(clocked: Any, tmp_path: Path) -> None:
    timed = clocked(stairs)
    run = partial(calibrate, small_vit(), some_images(12), latency=0.7, methods=["tome"], greedy=False)
    first = run(resume=tmp_path / "trials.jsonl")
    count = len(timed)
    assert count and run(resume=tmp_path / "trials.jsonl") == first and len(timed) == count
    run(resume=tmp_path / "trials.jsonl", batch_size=2)
    assert len(timed) > count  # another batch is another time


def test_a_slow_method_gets_less_compute_and_the_result_is_fast_enough(clocked: Any) -> None:
    def share(method: str, counts: Counts, rounds: int) -> float:
        return sum(counts) / 64 * (1.3 if method == "ward" else 1.0)

    clocked(share)
    model = small_vit()
    found = calibrate(model, some_images(24), latency=0.75, methods=["ward", "tome"], greedy=False)
    known = found.figures["latency"]
    assert known["share"] <= known["asked"] == 0.75 and known["interval95"][0] < known["share"]
    assert known["share"] == pytest.approx(share(found.method, tuple(found.figures["tokens"]), SURE), abs=1e-3)
    assert (known["rounds"], known["batch_size"], known["device"]) == (SURE, 8, "cpu")
    assert known["threads"] == torch.get_num_threads()
    patch(model, **found.arguments)(some_images(1))
    assert list(report(model).tokens) == found.figures["tokens"]
    assert json.loads(json.dumps(found.to_json()))["calibration"]["latency"] == known
    assert "of the unpatched model's time (95 % interval" in str(found)


def test_only_methods_that_are_fast_enough_are_chosen_from(clocked: Any) -> None:
    clocked(lambda method, counts, rounds: 2.0 if method == "ward" else sum(counts) / 64)
    found = calibrate(small_vit(), some_images(24), latency=0.75, methods=["ward", "tome"], greedy=False)
    assert found.method == "tome" and found.figures["default"] == "tome"


def test_a_time_that_nothing_meets_is_refused_with_the_times(clocked: Any) -> None:
    clocked(lambda method, counts, rounds: 1.2)
    with pytest.raises(InvalidValueError, match=r"latency=0\.65 is not met on cpu .*: .*tome 1\.200 .*; allow more"):
        calibrate(small_vit(), some_images(8), latency=0.65, methods=["tome"])


def test_rounds_take_turns_and_shares_are_medians(fake_clock: Any) -> None:
    base, patched = nn.Identity(), nn.Identity()
    fake_clock({base: 0.2, patched: 0.13})
    found = time_share(base, patched, torch.zeros(1), 3)
    assert found.share == pytest.approx(0.65) and found.interval == pytest.approx((0.65, 0.65))


def test_no_level_is_sought_beyond_the_last(clocked: Any) -> None:
    clocked(lambda method, counts, rounds: 1.2)
    trials, clock = bench()
    candidate = trials.own(Variant("tome"), 0.8)
    last = len(LEVELS) - 1
    assert level_of(0.05) == level_of(LEVELS[-1]) == last
    assert settle(clock, 0.5, lambda level: candidate, last - 1, last + NEIGHBOURS) is None


def test_the_time_that_is_told_is_of_the_variant_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two variants of one method have the same schedule, and other times."""

    def early(patched: nn.Module) -> bool:
        return reduction_of(patched).reducer.options()["early"] != 0

    def measure(base: nn.Module, patched: nn.Module, batch: Tensor, rounds: int) -> TimeShare:
        return TimeShare(0.7, (0.7, 0.7)) if early(patched) else TimeShare(0.6, (0.6, 0.6))

    def errors(self: Trials, candidate: Candidate, batches: Any) -> Tensor:
        images = torch.arange(sum(len(self._batches[batch]) for batch in batches), dtype=torch.float64)
        better = candidate.counts == own.counts and candidate.variant.options
        return (0.01 + images[:, None] / 1e4).expand(-1, 2) * (0.5 if better else 1.0)

    own = bench()[0].own(Variant("ward"), LEVELS[0])
    monkeypatch.setattr(clocking, "time_share", measure)
    monkeypatch.setattr(Trials, "errors", errors)
    monkeypatch.setattr(searching, "grid", lambda depth: [])
    methods = ["ward", ("ward", {"early": 0})]
    found = calibrate(small_vit(), some_images(24), latency=0.75, methods=methods, greedy=False)
    assert found.improved and found.options == {"early": 0} and found.figures["latency"]["share"] == 0.6


def test_candidates_that_are_better_and_too_slow_are_not_said_to_be_worse(
    clocked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def errors(self: Trials, candidate: Candidate, batches: Any) -> Tensor:
        count = sum(len(self._batches[batch]) for batch in batches)
        return torch.full((count, 2), 0.01 if candidate.curve is None else 0.005, dtype=torch.float64)

    own = set()
    trials, _ = bench()
    for level in LEVELS:
        own |= {one.counts for one in [attempt(partial(trials.own, Variant("tome")), level)] if one is not None}
    clocked(lambda method, counts, rounds: sum(counts) / 64 if counts in own else 2.0)
    monkeypatch.setattr(Trials, "errors", errors)
    found = calibrate(small_vit(), some_images(24), latency=0.75, methods=["tome"], greedy=False)
    assert not found.improved and found.evidence is None and found.figures["best_candidate"] is None
    assert f"of the best {FINAL} of" in found.verdict and "and fast enough" in found.verdict


def test_progress_moves_while_levels_are_bisected(clocked: Any) -> None:
    clocked(stairs)
    told: list[float] = []
    progress = lambda fraction, what: told.append(fraction)  # noqa: E731
    calibrate(small_vit(), some_images(24), latency=0.7, methods=["tome"], greedy=False, progress=progress)
    assert told == sorted(told) and 0 < told[1] < told[4] < 0.7 and 0.5 < told[-1] <= 1
