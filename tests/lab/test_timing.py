"""What `compare` is made of: interleaved timing, the profiler's view of a forward, and the reducer's stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timed import (
    APPLY,
    BEGIN,
    FUSED,
    PLAN,
    Clock,
    images,
    timed_vit,
    tiny_vit,
)
from torch import Tensor, nn
from torch.nn import functional as F

import tokenreduce
from tokenreduce.forward import run
from tokenreduce.forward.marks import patch_of
from tokenreduce.lab.speed import profiling
from tokenreduce.lab.speed.profiling import MIB, attention_backend, peak_memory
from tokenreduce.lab.speed.stages import stage_microseconds
from tokenreduce.lab.speed.timing import Times, bootstrap_interval, interleave, quantile

CPU = torch.device("cpu")


# timing


def test_every_lane_runs_in_every_round_and_none_is_always_first() -> None:
    calls: list[str] = []
    lanes = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = interleave(lanes, 3, 0, lambda: None)
    timed = calls[-9:]
    assert [timed[i : i + 3] for i in (0, 3, 6)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert all(len(lane.rounds) == 3 for lane in times.values())


def test_fast_lanes_run_several_times_a_turn(clock: Clock) -> None:
    """As often as their fastest warm-up needs to fill the turn; warm-ups are not among the times."""
    first = iter([900.0, 400.0, 700.0])  # milliseconds of the warm-up
    lanes: dict[str, Callable[[], None]] = {
        "slow": lambda: clock.work(1500),
        "fast": lambda: clock.work(next(first, 250)),
    }
    times = interleave(lanes, 2, 1.0, lambda: None)
    assert times["slow"].rounds == (pytest.approx((1.5,)),) * 2
    assert times["fast"].rounds == (pytest.approx((0.25, 0.25, 0.25)),) * 2


def test_the_device_is_waited_for_before_and_after(clock: Clock) -> None:
    """What earlier calls left on the device is not this call's time, what it leaves there is."""
    queue: list[float] = [5000.0]

    def synchronize() -> None:
        while queue:
            clock.work(queue.pop())

    times = interleave({"a": lambda: queue.append(3000.0)}, 1, 0, synchronize)
    assert times["a"].rounds == (pytest.approx((3.0,)),)


def test_statistics() -> None:
    slow, fast = Times(((2.0, 4.0), (8.0, 8.0))), Times(((1.0, 1.0), (2.0, 2.0)))
    assert (slow.median, slow.ratios(fast)) == (6.0, [3.0, 4.0])
    assert Times((tuple(float(i) for i in range(11)),)).p90 == 9.0
    assert quantile([1, 2], 0.5) == 1.5
    assert bootstrap_interval([2.0, 2.0]) == (2.0, 2.0)
    values = [1.0, 1.1, 1.2, 1.3, 1.4, 5.0]
    low, high = bootstrap_interval(values)
    assert 1.0 <= low < 1.25 < high <= 5.0 and bootstrap_interval(values) == (low, high)
    # The middle of the medians drawn, which are values themselves if there is an odd number of them; and all of them.
    assert bootstrap_interval([1.0, 2.0, 10.0], level=0) == (2.0, 2.0)
    assert bootstrap_interval([1.0, 2.0, 10.0], level=1) == (1.0, 10.0)


# profiler


def test_peak_memory_of_a_known_program() -> None:
    def program() -> Tensor:
        a = torch.zeros(MIB // 4)  # 1 MiB
        b = torch.zeros(2 * MIB // 4)  # 3 MiB
        del a
        c = b * 2  # 4 MiB
        d = c[: MIB // 4] + 1  # 5 MiB, the peak
        del b, c
        return d + 1  # 2 MiB

    assert peak_memory(program, CPU) == pytest.approx(5, rel=0.001)
    assert peak_memory(lambda: None, CPU) == 0


def test_peak_memory_of_a_linear_layer_leaves_out_weights_and_input() -> None:
    layer, x = nn.Linear(512, 2048), torch.randn(256, 512)
    with torch.inference_mode():
        assert peak_memory(lambda: layer(x), CPU) == pytest.approx(2, rel=0.01)
        assert peak_memory(lambda: F.relu(layer(x)), CPU) == pytest.approx(4, rel=0.01)


def test_only_the_search_for_a_peak_profiles_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noting every allocation is slow."""
    asked, profile = [], profiling.profile

    def noted(**arguments: Any) -> Any:
        asked.append(arguments["profile_memory"])
        return profile(**arguments)

    monkeypatch.setattr(profiling, "profile", noted)
    attention_backend(lambda: None)
    peak_memory(lambda: torch.zeros(8), torch.device("cpu"))
    assert asked == [False, True]


def test_attention_backends_have_names() -> None:
    model, unfused = tiny_vit(), tiny_vit()
    for block in unfused.blocks:
        block.attn.fused_attn = False
    assert attention_backend(lambda: model(images())) == "flash (CPU)"
    assert attention_backend(lambda: unfused(images())) == "manual softmax"
    assert attention_backend(lambda: nn.Linear(2, 2)(torch.ones(2))) == "none"
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert attention_backend(lambda: model(images())) == "math"

    def mixed() -> None:
        model(images())
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            model.blocks[0](torch.randn(1, 17, 32))

    assert attention_backend(mixed) == "flash (CPU) x 3 + math x 1"


# stages


def test_plan_and_apply_take_what_the_method_takes(clock: Clock) -> None:
    for name in ("timed_pre", "timed_mid", "timed_post"):
        model = tokenreduce.patch(timed_vit(), name, r=[3, 0, 2])
        found = stage_microseconds(model, images())
        assert found == pytest.approx((1000 * (BEGIN + 2 * PLAN), 1000 * 2 * APPLY)), name


def test_deciding_is_part_of_planning(clock: Clock) -> None:
    model = tokenreduce.patch(timed_vit(), "timed_adaptive")
    assert stage_microseconds(model, images()) == pytest.approx((1000 * (BEGIN + 3 * 2 * PLAN), 1000 * 3 * APPLY))


def test_a_kernel_that_plans_and_applies_at_once_is_what_is_timed(
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tokenreduce.patch(timed_vit(), "timed_fused", r=3)
    two_steps = (1000 * (BEGIN + 3 * PLAN), 1000 * 3 * APPLY)
    monkeypatch.setattr(run, "choose", lambda name, x: None)
    with torch.inference_mode():
        assert stage_microseconds(model, images()) == pytest.approx(two_steps)
    monkeypatch.setattr(run, "choose", lambda name, x: f"{name} kernel")
    assert stage_microseconds(model, images()) == pytest.approx(two_steps)  # not with gradients
    with torch.inference_mode():
        assert stage_microseconds(model, images()) == pytest.approx((1000 * (BEGIN + 3 * FUSED), 0))


def test_one_slow_forward_does_not_count(clock: Clock) -> None:
    model = tokenreduce.patch(timed_vit(), "timed_mid", r=3)
    paces = iter([1.0, 10.0, 1.0])
    hook = model.register_forward_pre_hook(lambda module, args: setattr(clock, "pace", next(paces)))
    assert stage_microseconds(model, images()) == pytest.approx((1000 * (BEGIN + 3 * PLAN), 1000 * 3 * APPLY))
    hook.remove()


@pytest.mark.parametrize("method", ["tome", "gtp", "evit"])
def test_stages_leave_patch_and_maps_as_they_were(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tokenreduce.patch(tiny_vit(), method, r=3)
    reducer, before = patch_of(model).reducer, model(images())
    made, plan = [], type(reducer).plan
    monkeypatch.setattr(type(reducer), "plan", lambda *arguments: made.append(plan(*arguments)) or made[-1])
    stage_microseconds(model, images(), forwards=1)
    assert len(made) == 3 and not any({"apply", "merge"} & set(vars(token_map)) for token_map in made)
    assert patch_of(model).reducer is reducer and torch.equal(model(images()), before)


def test_a_patch_that_reduces_nothing_has_no_stages() -> None:
    assert stage_microseconds(tokenreduce.patch(tiny_vit(), "tome", r=0), images()) == (0, 0)
