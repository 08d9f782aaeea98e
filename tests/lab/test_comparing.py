"""`compare`: what its rows say, on models that move a clock of their own; and the lanes that it runs."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from timed import (
    APPLY,
    ATTENTION,
    BEGIN,
    MLP,
    PLAN,
    Clock,
    images,
    timed_vit,
    tiny_vit,
)
from timm.models.vision_transformer import ResPostBlock
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

import tokenreduce
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.lanes import limit_lane, patched_lane, twin, unpatched_lane
from tokenreduce.lab.speed import Arm, compare, slower_sentences

ARMS = [Arm("tome", flops=0.7), Arm("evit", ratio=0.5), Arm("tome", r=3, metric="features")]


def quick(model: nn.Module, arms: list[Arm] = ARMS, **arguments: Any) -> list[dict[str, Any]]:
    return compare(model, arguments.pop("inputs", images()), arms, rounds=3, min_time=0, **arguments)


def tokens_of_each_layer(model: nn.Module, image: Tensor) -> list[int]:
    """Tokens, protected ones too, that reach the first Linear of each block's MLP."""
    seen: list[int] = []
    blocks: Any = model.blocks
    hooks = [b.mlp.fc1.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1])) for b in blocks]
    model(image)
    for hook in hooks:
        hook.remove()
    return seen


# compare: values


def milliseconds(attention: list[int], mlp: list[int]) -> float:
    """Of one forward whose layers see so many tokens, without what a reducer does."""
    return ATTENTION * sum(attention) + MLP * sum(mlp)


FULL, LESS = [17, 17, 17], [14, 11, 8]  # 16 image tokens and the class token; three go in each layer
UNPATCHED = milliseconds(FULL, FULL)
# Before a layer, between its two halves or after it: the layers of the limit must lose their tokens at the same place.
LIMITS = {
    "timed_pre": milliseconds(LESS, LESS),
    "timed_mid": milliseconds([17, 14, 11], LESS),
    "timed_post": milliseconds([17, 14, 11], [17, 14, 11]),
}


def timed_rows(clock: Clock, arms: list[Arm], paces: tuple[float, ...] = (1.0, 2.0, 4.0)) -> list[dict[str, Any]]:
    """Rows of a machine that is slower in each round, and as fast as at first once all are done."""
    lanes, ticks = 1 + 2 * len(arms), 0

    def follow(fraction: float, what: str) -> None:
        nonlocal ticks
        ticks += 1
        turn = ticks // lanes - 1  # the first tick of every lane is that of its warm-up
        clock.pace = paces[max(turn, 0)] if turn < len(paces) else 1.0

    return compare(timed_vit(), images(), arms, rounds=len(paces), min_time=0, progress=follow)


def test_every_value_of_a_row(clock: Clock) -> None:
    unpatched, *reduced = timed_rows(clock, [Arm(name, r=3) for name in LIMITS])
    assert unpatched["median_ms"] == pytest.approx(2 * UNPATCHED)
    assert (unpatched["speedup"], unpatched["speedup_interval"], unpatched["limit_share"]) == (1.0, [1.0, 1.0], 1.0)
    assert (unpatched["plan_us"], unpatched["apply_us"], unpatched["tokens_left"]) == (0, 0, 16)
    for row, (name, limit) in zip(reduced, LIMITS.items(), strict=True):
        own = limit + BEGIN + 3 * (PLAN + APPLY)
        assert (row["method"], row["budget"], row["batch_size"], row["tokens_left"]) == (name, "r=3", 2, 7)
        assert row["median_ms"] == pytest.approx(2 * own) and row["p90_ms"] == pytest.approx(3.6 * own)
        assert row["images_per_second"] == pytest.approx(1000 * 2 / (2 * own))
        assert row["speedup"] == pytest.approx(UNPATCHED / own) and row["speedup"] > 1
        assert row["speedup_interval"] == pytest.approx([UNPATCHED / own] * 2)
        assert row["limit_share"] == pytest.approx(own / limit) and row["limit_share"] > 1
        assert row["plan_us"] == pytest.approx(1000 * (BEGIN + 3 * PLAN))
        assert row["apply_us"] == pytest.approx(1000 * 3 * APPLY)


def test_the_interval_holds_the_speedups_of_single_rounds(clock: Clock) -> None:
    """One round in which only the lane that is first is slow."""
    arms, ticks = [Arm("timed_mid", r=3)], 0

    def follow(fraction: float, what: str) -> None:
        nonlocal ticks
        ticks += 1
        clock.pace = 2.0 if ticks == 3 else 1.0  # three warm-ups, then the first turn, which is the unpatched model's

    _, row = compare(timed_vit(), images(), arms, rounds=3, min_time=0, progress=follow)
    usual = UNPATCHED / (LIMITS["timed_mid"] + BEGIN + 3 * (PLAN + APPLY))
    assert row["speedup"] == pytest.approx(usual)
    assert row["speedup_interval"] == pytest.approx([usual, 2 * usual])


def test_every_batch_has_rows_of_its_own() -> None:
    rows = quick(tiny_vit(), inputs=[images(1), images(2)])
    assert [(row["method"], row["budget"], row["batch_size"]) for row in rows] == [
        (method, budget, size)
        for size in (1, 2)
        for method, budget in (("unpatched", None), ("tome", "flops=0.7"), ("evit", "ratio=0.5"), ("tome", "r=3"))
    ]
    assert json.loads(json.dumps(rows)) == rows
    assert [row["options"] for row in rows[:4]] == [{}, {}, {}, {"metric": "features"}]
    assert all(row["attention"] == "flash (CPU)" and row["uncounted"] == {} for row in rows)
    small, large = rows[0]["peak_memory_mib"], rows[4]["peak_memory_mib"]
    assert 0 < small < large < 3 * small


# compare: what it counts, takes and leaves alone


def test_macs_and_tokens_are_those_of_the_patched_model() -> None:
    model = tiny_vit()
    unpatched, *reduced = quick(model)
    base = tokenreduce.count_flops(model, images(1)).total
    assert (unpatched["macs"], unpatched["flops_share"], unpatched["tokens_left"]) == (base, 1.0, 16)
    for row, arm in zip(reduced, ARMS, strict=True):
        patched = tokenreduce.patch(twin(model), arm.method, **arm.arguments)
        assert row["macs"] == tokenreduce.count_flops(patched, images(1)).total
        assert row["flops_share"] == row["macs"] / base
        assert row["tokens_left"] == tokenreduce.report(patched).tokens_left < 16


def test_identity_has_no_tokens_to_slice() -> None:
    rows = quick(
        tiny_vit(dynamic_img_size=True), [Arm("tome", r=0), Arm("tome", r=4)], inputs=torch.randn(1, 3, 48, 48)
    )
    assert [row["tokens_left"] for row in rows] == [36, 36, 24]
    assert all(math.isfinite(row["limit_share"]) for row in rows)


@pytest.mark.parametrize("patched_before", [False, True])
def test_the_given_model_stays_as_it_is(patched_before: bool) -> None:
    model = tiny_vit().train()
    if patched_before:
        tokenreduce.patch(model, "random", r=2)
    modules = {name: (type(m), dict(m._forward_hooks), m.training) for name, m in model.named_modules()}
    weights = {name: (id(p), p.detach().clone()) for name, p in model.state_dict(keep_vars=True).items()}
    for dtype in (torch.float32, torch.bfloat16):
        rows = quick(model, [Arm("evit", flops=0.7)], inputs=images().to(dtype))
        assert rows[0]["flops_share"] == 1 and rows[0]["tokens_left"] == 16
    assert {name: (type(m), dict(m._forward_hooks), m.training) for name, m in model.named_modules()} == modules
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == weights[name][0] and torch.equal(tensor, weights[name][1])
    if patched_before:
        assert tokenreduce.report(model).method == "random"


def test_post_norm_blocks_have_a_limit() -> None:
    rows = quick(tiny_vit(block_fn=ResPostBlock), [Arm("tome", r=3)])
    assert rows[1]["limit_share"] > 0


def test_a_family_that_cannot_slice_has_no_limit() -> None:
    """Between windows all tokens are needed."""
    model = VisionTransformerSAM(
        img_size=32, patch_size=4, embed_dim=32, depth=3, num_heads=2, window_size=4, global_attn_indexes=(1,)
    )
    rows = quick(model.eval(), [Arm("tome", r=3)])
    assert rows[1]["limit_share"] is None and math.isfinite(rows[1]["speedup"])


def test_progress_runs_from_zero_to_one() -> None:
    """A warm-up and three turns of each of three models, and the end."""
    seen: list[float] = []
    quick(tiny_vit(), ARMS[:1], progress=lambda fraction, what: seen.append(fraction))
    assert seen == pytest.approx([tick / 12 for tick in range(1, 13)] + [1])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"inputs": []}, InvalidTypeError),
        ({"inputs": torch.zeros(0, 3, 32, 32)}, InvalidTypeError),
        ({"inputs": [images(), images().double()]}, InvalidValueError),
        ({"arms": []}, InvalidTypeError),
        ({"arms": ["tome"]}, InvalidTypeError),
        ({"arms": [Arm("tom", flops=0.6)]}, InvalidValueError),
        ({"arms": [Arm("tome")]}, InvalidTypeError),
        ({"rounds": 0}, InvalidValueError),
        ({"min_time": -1}, InvalidValueError),
        ({"model": nn.Linear(2, 2)}, InvalidValueError),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        compare(**({"model": tiny_vit(), "inputs": images(), "arms": ARMS} | arguments))


def test_sentences_for_slower_rows_only() -> None:
    row = {"method": "tome", "budget": "flops=0.6", "batch_size": 1}
    rows = [row | {"speedup": speedup} for speedup in (0.934, 0.996, 1.2)] + [{"method": "unpatched", "speedup": 1.0}]
    assert slower_sentences(rows) == [
        "tome at flops=0.6 is slower than the unpatched model at batch 1 (0.93 x): reduction does not pay here."
    ]


def test_arms_out_of_reach_are_rows() -> None:
    rows = quick(tiny_vit(), [Arm("pool", ratio=0.999), Arm("tome", r=3)], inputs=[images(1), images(2)])
    assert [row["method"] for row in rows] == ["unpatched", "tome"] * 2 + ["pool"]
    assert "asks for" in rows[-1]["refused"] and all("speedup" in row for row in rows[:-1])
    assert len(slower_sentences([rows[-1]])) == 0
    with pytest.raises(InvalidValueError, match="asks for"):
        quick(tiny_vit(), [Arm("pool", ratio=0.999)])


# lanes


@pytest.mark.parametrize("arm", [*ARMS, Arm("pool", flops=0.6), Arm("random", r=[5, 0, 2])], ids=repr)
def test_the_limit_has_the_token_counts_of_the_patched_model(arm: Arm) -> None:
    model = tiny_vit()
    patched = patched_lane(model, arm)
    reduced = tokens_of_each_layer(patched, images())
    assert reduced[-1] == tokenreduce.report(patched).tokens_left + 1 < 17
    with limit_lane(model, tokenreduce.report(patched).tokens, "mid") as limit:
        assert tokens_of_each_layer(limit, images()) == reduced
    assert tokens_of_each_layer(model, images()) == [17, 17, 17]


def test_lanes_share_weights_and_nothing_else() -> None:
    model = tiny_vit()
    lane = unpatched_lane(model, images())
    assert all(a is b for a, b in zip(lane.parameters(), model.parameters(), strict=True))
    assert not set(map(id, lane.modules())) & set(map(id, model.modules()))
    assert torch.equal(lane(images()), model(images()))
    half = unpatched_lane(model, images().half())
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
