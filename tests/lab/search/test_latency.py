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
from tokenreduce.lab.search import clocking
from tokenreduce.lab.search.bars import LEVELS
from tokenreduce.lab.search.clocking import QUICK, SURE, Clock, TimeShare, time_share
from tokenreduce.lab.search.hurrying import most_compute
from tokenreduce.lab.search.trials import Trials, Variant
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
