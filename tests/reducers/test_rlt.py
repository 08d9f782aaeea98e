"""`rlt` against a slow reference written straight from section 7.2 of the specification."""

from __future__ import annotations

import backbone_checks as checks
import numpy as np
import pytest
import torch
from backbones import BY_NAME, PATCH, fresh_model, shared_model
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import moving, some_video
from waves import waves

import tokenreduce
from tokenreduce import patch, report
from tokenreduce.forward.noted import _notes
from tokenreduce.reducers.entries import tubelets
from tokenreduce.reducers.registry import create

VIDEOS = ("hf_videomae_model", "hf_videomae", "hf_vivit_model", "hf_vivit")
every_video = pytest.mark.parametrize("name", VIDEOS)
both_models = pytest.mark.parametrize("name", ["hf_videomae_model", "hf_vivit_model"])


def all_changes(video: np.ndarray, sides: tuple[int, int, int]) -> np.ndarray:
    """`(T - 1, H, W)`: of a video `(C, frames, height, width)`, the last frame of each tubelet against the first frame
    of the one before."""
    f, h, w = sides
    steps, rows, columns = (length // side for length, side in zip(video.shape[1:], sides, strict=True))
    out = np.zeros((steps - 1, rows, columns))
    for t in range(1, steps):
        for y in range(rows):
            for x in range(columns):
                last = video[:, t * f + f - 1, y * h : (y + 1) * h, x * w : (x + 1) * w]
                first = video[:, (t - 1) * f, y * h : (y + 1) * h, x * w : (x + 1) * w]
                out[t - 1, y, x] = np.abs(last.astype(np.float64) - first).mean()
    return out


def runs(change: np.ndarray, keep: int) -> tuple[list[int], list[int], list[int]]:
    """The tokens that stay, the head of each token's run, and how many each of those that stay stands for."""
    cells = change[0].size
    flat = change.flatten().tolist()
    later = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[: keep - cells]
    kept = sorted([*range(cells), *(cells + i for i in later)])
    heads: list[int] = []
    for i in range(cells + len(flat)):
        heads.append(i if i in kept else heads[i - cells])
    return kept, heads, [heads.count(i) for i in kept]


def check_runs(token_map: tokenreduce.TokenMap, image: int, change: np.ndarray) -> None:
    kept, heads, lengths = runs(change, token_map.count)
    assert token_map.rep[image].tolist() == kept
    assert [kept[m] for m in token_map.dest[image].tolist()] == heads
    assert token_map.sizes()[image].tolist() == lengths


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(2, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(["random", "ties"]),
    st.sampled_from([(2, 2, 2), (1, 2, 3), (3, 1, 2)]),
    st.floats(0, 1.5),
    st.data(),
)
def test_matches_the_specification(seed, batch, steps, rows, columns, kind, sides, threshold, data) -> None:
    video = some_video(seed, batch, steps, rows, columns, kind, sides)
    change = [all_changes(image.numpy(), sides) for image in video]
    n, cells, grid = steps * rows * columns, rows * columns, (steps, rows, columns)
    if min(abs(c - threshold).min() for c in change) < 1e-5:
        threshold = 0.71  # no reason to differ in which side of a threshold rounding falls
    x = torch.randn(batch, n, 4)
    alone = tokenreduce.plan(x, "rlt", threshold=threshold, grid=grid, pixels=tubelets(video, sides))
    assert alone.count == cells + max((c > threshold).sum() for c in change)
    keep = data.draw(st.integers(cells, n - 1))
    planned = tokenreduce.plan(x, "rlt", keep=keep, grid=grid, pixels=tubelets(video, sides))
    for i in range(batch):
        check_runs(planned, i, change[i])
        check_runs(alone, i, change[i])
    y, _ = tokenreduce.apply(planned, x)
    assert torch.equal(y, x.gather(1, planned.rep[..., None].expand(-1, -1, 4))), "the heads as they are"
    assert torch.equal(tokenreduce.restore(planned, y), y.gather(1, planned.dest[..., None].expand(-1, -1, 4)))


def test_an_image_never_loses_what_its_own_rule_keeps() -> None:
    video = some_video(0, 4, 4, 3, 3, "random", (2, 4, 4))
    video[1] = video[1, :, :1]
    pixels, x = tubelets(video, (2, 4, 4)), torch.randn(4, 36, 4)
    together = tokenreduce.plan(x, "rlt", grid=(4, 3, 3), pixels=pixels)
    for i in range(4):
        alone = tokenreduce.plan(x[i : i + 1], "rlt", grid=(4, 3, 3), pixels=pixels[i : i + 1])
        assert set(alone.rep[0].tolist()) <= set(together.rep[i].tolist())
        assert alone.count == (9 if i == 1 else alone.count) <= together.count


def test_slow_drift_is_dropped_throughout_because_neighbours_in_time_are_compared() -> None:
    video = torch.linspace(0, 1, 16)[None, None, :, None, None].expand(1, 3, 16, 2, 2)
    token_map = tokenreduce.plan(
        torch.randn(1, 8, 4), "rlt", threshold=0.25, grid=(8, 1, 1), pixels=tubelets(video, (2, 2, 2))
    )
    assert token_map.count == 1 and token_map.sizes().tolist() == [[8.0]]


@every_video
def test_on_a_model_the_input_decides(name: str) -> None:
    backbone, model = BY_NAME[name], fresh_model(BY_NAME[name])
    inputs = moving(backbone)
    video = inputs["pixel_values"].transpose(1, 2).numpy()
    change = [all_changes(image, (PATCH, PATCH, PATCH)) for image in video]
    with torch.no_grad():
        patch(model, "rlt")
        backbone.outputs(model, inputs)
        most = 16 + max((c > 0.1).sum() for c in change)
        assert report(model).tokens == (most,) * 4 and most < 64
        for budget in ({}, {"ratio": 0.6}):
            patch(model, "rlt", **budget)
            backbone.outputs(model, inputs)
            [(layer, token_map)] = report(model).maps
            assert layer == 0
            for i in range(3):
                check_runs(token_map, i, change[i])


@every_video
def test_of_a_static_video_one_time_step_stays_and_says_the_same(name: str) -> None:
    """With equal positions the tokens of a run are equal, so that counting them as often as they were is exact."""
    backbone, model = BY_NAME[name], fresh_model(BY_NAME[name])
    backbone.equal_positions(model)
    inputs = backbone.repeated((4, 1, 1))
    inputs["pixel_values"] = inputs["pixel_values"][:, :1].expand(-1, 16, -1, -1, -1)
    before = checks.everything(model, backbone, inputs)
    patch(model, "rlt", prop_attn=True, restore=True)
    assert checks.close(checks.everything(model, backbone, inputs), before, 2e-5)
    assert report(model).tokens == (16,) * 4
    assert torch.equal(report(model).sizes, torch.full((2, 16), 4.0))


@every_video
def test_dropping_what_repeats_exactly_changes_nothing(name: str) -> None:
    """The same with runs of many lengths, some tokens of which stay to fill up the batch."""
    backbone, model = BY_NAME[name], fresh_model(BY_NAME[name])
    backbone.equal_positions(model)
    inputs = moving(backbone, kind="steady")
    before = checks.everything(model, backbone, inputs)
    patch(model, "rlt", prop_attn=True, restore=True)
    assert checks.close(checks.everything(model, backbone, inputs), before, 2e-5)
    assert report(model).tokens[0] < 64 and report(model).sizes.unique().tolist() == [1, 2, 3, 4]
    patch(model, "rlt", prop_attn=False, restore=True)
    assert not checks.close(checks.everything(model, backbone, inputs), before, 1e-3)


@every_video
def test_below_zero_nothing_repeats(name: str) -> None:
    backbone = BY_NAME[name]
    for inputs in (moving(backbone), {"pixel_values": torch.zeros(2, 16, 3, 16, 16)}):
        with checks.shared(backbone) as model:
            before = checks.everything(model, backbone, inputs)
            patch(model, "rlt", threshold=-0.01)
            assert checks.same(checks.everything(model, backbone, inputs), before)
            assert report(model).tokens == (64,) * 4


@every_video
def test_exact_compiled_exported_and_restored(name: str) -> None:
    for check in (checks.check_exact, checks.check_restore, checks.check_compile, checks.check_export):
        check(BY_NAME[name], "rlt")
        assert _notes.videos == []


@both_models
def test_budgets_are_met_and_work_is_counted(name: str) -> None:
    backbone, x = BY_NAME[name], moving(BY_NAME[name], 1)
    with checks.shared(backbone) as model, torch.no_grad():
        full = tokenreduce.count_flops(model, x).total
        for budget in ({"flops": 0.6}, {"flops": 0.8}, {}):
            patch(model, "rlt", **budget)
            counted = tokenreduce.count_flops(model, x)
            assert counted.uncounted == {}
            assert counted.total / full == pytest.approx(report(model).flops_share, abs=0.002)
            assert counted.total / full == pytest.approx(budget.get("flops", counted.total / full), abs=0.02)
        assert counted.total < full


@both_models
def test_budgets_that_cannot_be_are_refused_when_patching(name: str) -> None:
    model = fresh_model(BY_NAME[name])
    for arguments, message in [
        ({"ratio": 0.8}, r"ratio=0.8 asks for 12 of 64 image tokens; .* reach 16 at least \(ratio=0.750\)"),
        ({"r": 4}, r"rlt can reduce in one layer only, but this budget reduces in layers \[0, 1, 2, 3\]"),
        ({"layers": [0, 2]}, r"rlt can reduce in one layer only, but it is to decide in layers \[0, 2\]"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": -2}, "threshold is -2; it must be finite and at least -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            patch(model, "rlt", **arguments)
        assert not hasattr(model, "_tokenreduce")
    patch(model, "rlt", layers=[2])
    BY_NAME[name].outputs(model, moving(BY_NAME[name]))
    assert report(model).tokens[:2] == (64, 64) > report(model).tokens[2:]


def test_what_cannot_be_known_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="it needs frames, but the model takes images, not videos; it needs pixels"):
        patch(shared_model("timm_vit_qk_norm"), "rlt")
    x, pixels = torch.randn(1, 24, 4), torch.randn(1, 24, 2, 3)
    for arguments, message in [
        ({"keep": 12, "grid": (4, 6), "pixels": pixels}, r"rlt needs a grid \(T, H, W\); pass it to plan"),
        ({"keep": 12, "grid": (4, 2, 3)}, "rlt needs pixels; pass it to plan"),
        ({"keep": 5, "grid": (4, 2, 3), "pixels": pixels}, "rlt can leave 6 to 24 of 24 tokens, not 5"),
        ({"keep": 12, "grid": (4, 2, 3), "pixels": pixels[:, 1:]}, r"pixels has shape \(1, 23, 2, 3\)"),
        ({"keep": 12, "grid": (4, 3, 3), "pixels": pixels}, r"but there are 24 in a grid \(4, 3, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            tokenreduce.plan(x, "rlt", **arguments)
    backbone, model = BY_NAME["hf_videomae_model"], fresh_model(BY_NAME["hf_videomae_model"])
    patch(model, "rlt", ratio=0.5)
    with pytest.raises(ValueError, match=r"full grid \(T, H, W\), but there are 48 in a grid None"):
        model(**backbone.inputs(), bool_masked_pos=torch.arange(64).expand(2, -1) % 4 == 0)
    with pytest.raises(ValueError, match="pixels is not available here"):
        model.encoder(torch.randn(2, 64, 32))


def test_one_time_step_stays_whole() -> None:
    x, pixels = torch.randn(2, 6, 4), torch.randn(2, 6, 2, 3)
    assert tokenreduce.plan(x, "rlt", grid=(1, 2, 3), pixels=pixels).count == 6
    assert create("rlt", {}).least_of(6, (1, 2, 3)) == 6


def test_what_the_authors_code_gave() -> None:
    """`batched_find_idxs_to_keep` of rccchoudhury/rlt@69ec8b4 on 8 frames of 4 x 4 pixels, threshold 0.7, and the
    lengths of the runs."""
    video = waves(1, 1, 8, 4, 4, start=5)
    pixels = video.reshape(4, 2, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 16, 2, 4)
    token_map = tokenreduce.plan(torch.ones(1, 16, 4), "rlt", pixels=pixels, grid=(4, 2, 2), threshold=0.7)
    assert token_map.rep[0].tolist() == [*range(13), 14, 15]
    assert token_map.sizes()[0].tolist() == [1] * 9 + [2] + [1] * 5
    alone = tokenreduce.plan(torch.ones(1, 16, 4), "rlt", pixels=pixels, grid=(4, 2, 2), threshold=0.7, inherit=False)
    assert alone.sizes()[0].tolist() == [1] * 15
