"""`centerclip` against a slow reference written straight from section 3.2 of the specification."""

from __future__ import annotations

import backbone_checks as checks
import numpy as np
import pytest
import torch
from backbones import BY_NAME, fresh_model, shared_model
from cases import cases
from clustering import blobs, canonical, cheapest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce import Schedule, patch, report
from tokenreduce.reducers.methods.centerclip import shares
from tokenreduce.reducers.registry import create

VIDEOS = ("hf_videomae", "hf_vivit")
every_video = pytest.mark.parametrize("name", VIDEOS)


def deal(room: list[int], count: int) -> list[int]:
    """`count` tokens dealt out one by one, past segments that are full."""
    dealt, s = [0] * len(room), 0
    for _ in range(count):
        while dealt[s % len(room)] == room[s % len(room)]:
            s += 1
        dealt[s % len(room)] += 1
        s += 1
    return dealt


def segment_of(step: int, steps: int, segments: int) -> int:
    return next(s for s in range(segments) if s * steps // segments <= step < (s + 1) * steps // segments)


def distances(points: np.ndarray, metric: str) -> np.ndarray:
    unit = points / np.linalg.norm(points, axis=1, keepdims=True).clip(1e-12)
    out = np.zeros((len(points), len(points)))
    for i in range(len(points)):
        for j in range(len(points)):
            if metric == "euclidean":
                out[i, j] = np.linalg.norm(points[i] - points[j])
            elif metric == "normalised":
                out[i, j] = np.linalg.norm(unit[i] - unit[j])
            else:
                out[i, j] = 1 - unit[i] @ unit[j]
    return np.where(out < 1e-7, 0, out)


def medoids(points: np.ndarray, weight: list[float], count: int, metric: str, rounds: int) -> tuple[list, list]:
    """Labels and medoids by k-medoids++: KKZ seeds, then rounds of assigning and moving."""
    n, apart = len(points), distances(points, metric)
    chosen = [max(range(n), key=lambda i: (round(float(np.linalg.norm(points[i])), 6), -i))]
    while len(chosen) < count:
        rest = [i for i in range(n) if i not in chosen]
        chosen.append(max(rest, key=lambda i: (round(min(apart[i, m] for m in chosen), 6), -i)))
    chosen.sort()
    for _ in range(rounds):
        labels = [min(range(count), key=lambda m: (round(apart[i, chosen[m]], 6), m)) for i in range(n)]
        for m, i in enumerate(chosen):
            labels[i] = m
        clusters = [[i for i in range(n) if labels[i] == m] for m in range(count)]
        cost = [sum(weight[t] * apart[i, t] for t in clusters[labels[i]]) for i in range(n)]
        chosen = [cheapest(members, cost) for members in clusters]
    return labels, chosen


@settings(max_examples=100, deadline=None)
@given(
    cases(least=4, most=20),
    st.integers(1, 5),
    st.sampled_from(["euclidean", "normalised", "cosine"]),
    st.integers(1, 4),
    st.booleans(),
    st.data(),
)
def test_matches_the_specification(case, segments, metric, rounds, aggregate, data) -> None:
    assume(metric == "euclidean" or case.kind != "zeros")  # they have no direction
    steps, cells = case.grid
    used = min(segments, steps)
    assume(used < case.n)  # with one token in each segment there is nothing to remove
    keep = data.draw(st.integers(used, case.n - 1))
    options = {"segments": segments, "metric": metric, "iterations": rounds, "aggregate": aggregate}
    grid = (steps, cells, 1)
    token_map = tokenreduce.plan(case.x, "centerclip", keep=keep, grid=grid, **case.arguments(), **options)

    where = [segment_of(i // cells, steps, used) for i in range(case.n)]
    counts = deal([where.count(s) for s in range(used)], keep)
    rep: list[int] = []
    stands_for = [0] * case.n
    for s, count in enumerate(counts):
        members = [i for i in range(case.n) if where[i] == s]
        points = case.x[0, members].double().numpy()
        labels, chosen = medoids(points, [case.mass[i] for i in members], count, metric, rounds)
        for i, label in zip(members, labels, strict=True):
            stands_for[i] = members[chosen[label]]
        rep += sorted(members[m] for m in chosen)

    assert token_map.count == keep and token_map.rep[0].tolist() == rep
    assert [rep[m] for m in token_map.dest[0].tolist()] == stands_for
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    for m, medoid in enumerate(rep):
        cluster = [i for i in range(case.n) if stands_for[i] == medoid] if aggregate else [medoid]
        mass = torch.tensor([case.mass[i] for i in cluster])
        assert torch.allclose(y[0, m], (case.x[0, cluster] * mass[:, None]).sum(0) / mass.sum(), atol=1e-5)
        assert float(sizes[0, m]) == pytest.approx(float(mass.sum()))
    assert torch.equal(tokenreduce.restore(token_map, y)[0], y[0, token_map.dest[0]])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 9), st.data())
def test_segments_share_evenly_and_each_can_give_what_the_next_count_asks(steps, cells, segments, data) -> None:
    segments, total = min(segments, steps), steps * cells
    room = [shares((steps, cells, 1), segments, total)[s] for s in range(segments)]
    assert room == [sum(segment_of(t, steps, segments) == s for t in range(steps)) * cells for s in range(segments)]
    count = data.draw(st.integers(segments, total))
    found = shares((steps, cells, 1), segments, count)
    assert list(found) == deal(room, count) and sum(found) == count and min(found) >= 1
    after = shares((steps, cells, 1), segments, data.draw(st.integers(segments, count)))
    assert all(b <= a for a, b in zip(found, after, strict=True))


def test_one_medoid_a_segment_is_the_one_nearest_to_its_other_tokens() -> None:
    x = torch.randn(2, 32, 5, generator=torch.Generator().manual_seed(0))
    token_map = tokenreduce.plan(x, "centerclip", keep=4, grid=(8, 2, 2))
    for b in range(2):
        apart = torch.cdist(x[b].double().view(4, 8, 5), x[b].double().view(4, 8, 5))
        assert token_map.rep[b].tolist() == [8 * s + int(apart[s].sum(1).argmin()) for s in range(4)]
    assert torch.equal(token_map.dest, torch.arange(4).repeat_interleave(8).expand(2, -1))


def test_blobs_are_found_in_each_segment() -> None:
    found = [blobs(5, 4) for _ in range(3)]
    x, label = torch.cat([x + s for s, (x, _) in enumerate(found)], 1), found[0][1]
    token_map = tokenreduce.plan(x, "centerclip", keep=15, grid=(6, 10, 1), segments=3)
    for s, dest in enumerate(token_map.dest.split(20, 1)):
        assert torch.equal(canonical(dest - 5 * s, 5), canonical(label, 5))


@pytest.mark.parametrize("aggregate", [False, True])
def test_repeated_frames_come_back_bit_exactly(aggregate) -> None:
    frames = torch.randn(2, 2, 1, 10, 8, generator=torch.Generator().manual_seed(0))
    x = frames.expand(-1, -1, 3, -1, -1).flatten(1, 3)
    token_map = tokenreduce.plan(x, "centerclip", keep=20, grid=(6, 5, 2), segments=2, aggregate=aggregate)
    assert torch.equal(tokenreduce.restore(token_map, token_map.apply(x)), x)
    assert token_map.rep[0].tolist() == [*range(10), *range(30, 40)]


def test_rounds_after_the_medoids_rest_change_nothing() -> None:
    x = torch.randn(3, 96, 6, generator=torch.Generator().manual_seed(1))
    maps = [tokenreduce.plan(x, "centerclip", keep=24, grid=(6, 4, 4), iterations=n) for n in (1, 40, 41)]
    assert not torch.equal(maps[0].rep, maps[1].rep)
    assert torch.equal(maps[1].rep, maps[2].rep) and torch.equal(maps[1].dest, maps[2].dest)


@every_video
@pytest.mark.parametrize("counts", [{2: 32}, {1: 41, 3: 18}])
def test_on_a_model_tokens_stay_in_their_segments_and_in_order(name: str, counts: dict[int, int]) -> None:
    """Also in a second stage, which sees a grid no more."""
    backbone, model = BY_NAME[name], fresh_model(BY_NAME[name])
    patch(model, "centerclip", schedule=Schedule.keep(counts))
    with torch.no_grad():
        backbone.outputs(model, backbone.inputs())
    layers, last = [layer for layer, _ in report(model).maps], min(counts.values())
    assert layers == list(counts) and report(model).tokens[-1] == last
    composed = report(model).map
    origin = composed.rep
    assert (origin.diff(dim=1) > 0).all()
    assert origin[0].div(16, rounding_mode="floor").bincount().tolist() == deal([16] * 4, last)
    assert torch.equal(origin.gather(1, composed.dest) // 16, torch.arange(4).repeat_interleave(16).expand(2, -1))


@every_video
def test_nothing_leaks_compiles_exports_and_restores(name: str) -> None:
    for check in (checks.check_exact, checks.check_restore, checks.check_compile, checks.check_export):
        check(BY_NAME[name], "centerclip")


@every_video
@pytest.mark.parametrize("aggregate", [False, True])
def test_budgets_are_met_and_class_tokens_pass(name: str, aggregate: bool) -> None:
    backbone, x = BY_NAME[name], BY_NAME[name].inputs(1)
    with checks.shared(backbone) as model, torch.no_grad():
        full = tokenreduce.count_flops(model, x).total
        patch(model, "centerclip", flops=0.7, aggregate=aggregate)
        counted = tokenreduce.count_flops(model, x)
        assert counted.uncounted == {} and counted.total / full == pytest.approx(0.7, abs=0.02)
        assert counted.total / full == pytest.approx(report(model).flops_share, abs=0.002)
        assert report(model).tokens[1] == 64 > report(model).tokens[2], "before a block in the middle"
        assert bool((report(model).sizes > 1).any()) is aggregate
    silent = checks.silenced(fresh_model(backbone), backbone)
    part = tokenreduce.patching.finding.find_backbone(silent)[1]
    with torch.no_grad():
        before = part(**x).last_hidden_state[:, : backbone.prefix]
        patch(silent, "centerclip", ratio=0.5, aggregate=aggregate)
        assert torch.equal(part(**x).last_hidden_state[:, : backbone.prefix], before)


def test_images_and_masked_videos_are_refused_with_the_reason() -> None:
    model = shared_model("timm_vit_qk_norm")
    with pytest.raises(
        ValueError, match=r"centerclip cannot run on this .*: it needs frames, but the model takes imag"
    ):
        patch(model, "centerclip", ratio=0.5)
    assert not hasattr(model, "_tokenreduce")
    with pytest.raises(ValueError, match=r"centerclip needs a grid \(T, H, W\); pass it to plan"):
        tokenreduce.plan(torch.randn(1, 24, 4), "centerclip", keep=12, grid=(4, 6))
    with pytest.raises(ValueError, match="centerclip can leave 3 to 24 of 24 tokens, not 2"):
        tokenreduce.plan(torch.randn(1, 24, 4), "centerclip", keep=2, grid=(3, 4, 2))
    backbone, model = BY_NAME["hf_videomae_model"], fresh_model(BY_NAME["hf_videomae_model"])
    patch(model, "centerclip", ratio=0.5)
    masked = torch.arange(64).expand(2, -1) % 4 == 0
    with pytest.raises(ValueError, match=r"full grid \(T, H, W\), but there are 48 in a grid None"):
        model(**backbone.inputs(), bool_masked_pos=masked)


def test_options() -> None:
    for options, message in [
        ({"segments": 0}, "segments is 0; it must be 1 or more"),
        ({"iterations": 0}, "iterations is 0; it must be 1 or more"),
        ({"metric": "l1"}, "metric is 'l1'; valid: 'euclidean', 'normalised', 'cosine'"),
    ]:
        with pytest.raises(ValueError, match=message):
            create("centerclip", options)
    with pytest.raises(TypeError, match="aggregate is 1; it must be of type bool"):
        create("centerclip", {"aggregate": 1})
