"""`ats` against a slow reference written straight from section 2.2 of the specification."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from waves import waves

import tokenreduce
from tokenreduce.reducers.registry import create

every_height = pytest.mark.parametrize("heights", ["official", "paper"])


def reference_scores(case: Case) -> list[float]:
    raw = []
    for j in range(case.n):
        norm = sum(float(v) ** 2 for v in case.values[0, :, j].flatten()) ** 0.5
        raw.append(float(case.class_attention[0, j]) * norm)
    return [s / sum(raw) if sum(raw) else 1 / len(raw) for s in raw]


def reference_picks(score: list[float], count: int, heights: str) -> tuple[list[int], set[int]]:
    """Tokens from best to worst, and those that `count` heights pick."""
    best_first = sorted(range(len(score)), key=lambda j: (-score[j], j))
    order, cumulative, total = best_first[::-1], [], 0.0
    for j in order:
        total += score[j]
        cumulative.append(total)
    span = cumulative[-1] - cumulative[0]
    level = [(f - cumulative[0]) / span if span else 0.0 for f in cumulative]
    level = [0.0 if score[j] == 0 else v for j, v in zip(order, level, strict=True)]
    lowest = min((v for v in level if v > 0), default=1.0)
    if heights == "paper":
        wanted = [(2 * t - 1) / (2 * count) for t in range(1, count + 1)]
    elif count == 1:
        wanted = [1.0]
    else:
        wanted = [lowest + t * (1 - lowest) / (count - 1) for t in range(count)]
    picked = set()
    for y in wanted:
        # From high to low, so that of equal levels the better token is seen first; the lower level of a tie wins.
        near = len(order) - 1
        for i in reversed(range(len(order))):
            if heights == "official" and level[i] == 0:
                continue  # no height lies below the lowest level but 0
            if level[i] < level[near] and abs(level[i] - y) < abs(level[near] - y) + 2e-6:
                near = i
        picked.add(order[near])
    return best_first, picked


def reference(score: list[float], keep: int, n_ref: int, heights: str) -> list[int]:
    largest = n_ref - 1
    excess = max(0, largest - keep)
    for step in range(16):
        best_first, picked = reference_picks(score, largest - step * excess // 15, heights)
        if len(picked) <= keep:
            break
    fill = [j for j in best_first if j not in picked]
    return sorted([*picked, *fill[: keep - len(picked)]])


def nearest(keys: torch.Tensor, i: int, kept: list[int]) -> int:
    cosines = [float(torch.nn.functional.cosine_similarity(keys[i], keys[k], dim=0, eps=1e-12)) for k in kept]
    return max(range(len(kept)), key=lambda m: (round(cosines[m], 5), -m))


@given(
    cases(least=2, most=20),
    st.sampled_from(["official", "paper"]),
    st.sampled_from([None, 2, 5, 12, 40]),
    st.booleans(),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_matches_the_specification(case, heights, n_ref, inherit, data) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    given_to_plan = case.arguments("keys", "values", "class_attention")
    options = {"heights": heights, "n_ref": n_ref, "inherit": inherit}
    token_map = tokenreduce.plan(case.x, "ats", keep=keep, **options, **given_to_plan)
    kept = reference(reference_scores(case), keep, n_ref or case.n + 1, heights)
    assert token_map.rep[0].tolist() == kept and token_map.drops
    expected = [kept.index(i) if i in kept else nearest(case.mean_keys, i, kept) for i in range(case.n)]
    assert token_map.dest[0].tolist() == expected
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    assert torch.equal(y, case.x[:, kept]) and sizes[0].tolist() == case.inherited(kept, expected, inherit)


@given(cases(least=1, most=24), st.sampled_from(["official", "paper"]), st.sampled_from([None, 2, 12, 60]))
@settings(max_examples=60, deadline=None)
def test_alone_it_keeps_what_the_heights_pick_and_8_at_least(case, heights, n_ref) -> None:
    given_to_plan = case.arguments("keys", "values", "class_attention")
    token_map = tokenreduce.plan(case.x, "ats", heights=heights, n_ref=n_ref, **given_to_plan)
    score = reference_scores(case)
    best_first, picked = reference_picks(score, (n_ref or case.n + 1) - 1, heights)
    assert len(picked) <= min((n_ref or case.n + 1) - 1, case.n)
    fill = [j for j in best_first if j not in picked]
    expected = sorted([*picked, *fill[: max(0, min(8, case.n) - len(picked))]])
    assert token_map.rep[0].tolist() == expected


def inputs(n: int, batch: int = 1, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    values = torch.nn.functional.normalize(torch.randn(batch, 1, n, 4, generator=g), dim=-1)
    x = torch.randn(batch, n, 3, generator=g)
    return x, {"values": values, "class_attention": torch.rand(batch, n, generator=g) ** 3}


def test_a_batch_takes_the_largest_count_and_the_others_fill_up() -> None:
    x, given_to_plan = inputs(40, 3)
    given_to_plan["class_attention"][1] = given_to_plan["class_attention"][1] ** 4
    together = tokenreduce.plan(x, "ats", **given_to_plan)
    alone = [
        tokenreduce.plan(x[i : i + 1], "ats", **{name: t[i : i + 1] for name, t in given_to_plan.items()})
        for i in range(3)
    ]
    assert together.count == max(m.count for m in alone) > min(m.count for m in alone)
    for i, single in enumerate(alone):
        assert set(single.rep[0].tolist()) <= set(together.rep[i].tolist())


def test_fewer_important_tokens_or_a_lower_reference_keep_fewer() -> None:
    x, given_to_plan = inputs(196)
    counts = [tokenreduce.plan(x, "ats", n_ref=n, **given_to_plan).count for n in (197, 100, 50, 9)]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) == 4
    given_to_plan["class_attention"] = given_to_plan["class_attention"] ** 4
    assert tokenreduce.plan(x, "ats", **given_to_plan).count < counts[0]


def test_equal_scores_keep_all_but_the_last_one() -> None:
    """The official heights then lie exactly on all values but 0."""
    x = torch.randn(1, 31, 4)
    flat = {"values": torch.ones(1, 1, 31, 4), "class_attention": torch.full((1, 31), 0.01)}
    for n_ref in (None, 31, 1000):
        assert tokenreduce.plan(x, "ats", n_ref=n_ref, **flat).rep[0].tolist() == list(range(30))
    assert tokenreduce.plan(x, "ats", n_ref=1000, heights="paper", **flat).count == 31
    nothing = flat | {"values": torch.zeros(1, 1, 31, 4)}
    assert tokenreduce.plan(x, "ats", **nothing).rep[0].tolist() == list(range(30))


@given(st.integers(9, 40), st.integers(2, 300), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_official_heights_never_pick_the_least_significant(n, n_ref, seed) -> None:
    x, given_to_plan = inputs(n, seed=seed)
    token_map = tokenreduce.plan(x, "ats", n_ref=n_ref, **given_to_plan)
    score = given_to_plan["class_attention"][0] * given_to_plan["values"][0, 0].norm(dim=-1)
    assert int(score.argmin()) not in token_map.rep[0].tolist()


@every_height
def test_enough_heights_pick_every_token_but_the_least(heights) -> None:
    x, given_to_plan = inputs(12)
    given_to_plan["class_attention"] += 0.05
    token_map = tokenreduce.plan(x, "ats", n_ref=2001, heights=heights, **given_to_plan)
    assert token_map.count == (12 if heights == "paper" else 11)


@every_height
def test_a_permuted_image_keeps_the_same_tokens(heights) -> None:
    x, given_to_plan = inputs(20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    moved = {
        "values": given_to_plan["values"][:, :, order],
        "class_attention": given_to_plan["class_attention"][:, order],
    }
    first = tokenreduce.plan(x, "ats", keep=9, heights=heights, **given_to_plan)
    second = tokenreduce.plan(x[:, order], "ats", keep=9, heights=heights, **moved)
    assert sorted(order[second.rep[0]].tolist()) == first.rep[0].tolist()


def test_a_budget_keeps_more_than_the_best_scores() -> None:
    x, given_to_plan = inputs(196)
    kept = tokenreduce.plan(x, "ats", keep=60, **given_to_plan).rep[0].tolist()
    score = given_to_plan["class_attention"][0]
    best = score.argsort(descending=True)[:60].tolist()
    assert len(set(kept) - set(best)) > 10, "sampling keeps some tokens of low score"
    assert set(best[:20]) <= set(kept)


def test_options_and_layers() -> None:
    for options in ({"heights": "odd"}, {"n_ref": 1}, {"n_ref": 3.5}, {"n_ref": True}, {"inherit": 1}):
        with pytest.raises((ValueError, TypeError), match=next(iter(options))):
            create("ats", options)
    assert create("ats", {}).deciding_layers(12) == tuple(range(3, 12))


def test_an_adaptive_model_needs_no_budget() -> None:
    model, x = fresh_model(BY_NAME["timm_vit_qk_norm"]), BY_NAME["timm_vit_qk_norm"].images()
    tokenreduce.patch(model, "ats")
    assert torch.isfinite(model(x)).all()
    tokens = tokenreduce.report(model).tokens
    assert tokens[0] == 64 and tokens[-1] < 64 and list(tokens) == sorted(tokens, reverse=True)


def test_what_the_authors_code_gave() -> None:
    """AdaptiveTokenSampler of adaptivetokensampling/ATS@9271257, 16 tokens, reference count 17: two are not picked."""
    x, values, logits = waves(1, 17, 8), waves(1, 2, 17, 4, start=7), waves(1, 2, 17, 17, start=50)
    attention = (2 * logits).softmax(-1)[:, :, 0, 1:].mean(1)
    token_map = tokenreduce.plan(x[:, 1:], "ats", values=values[:, :, 1:], class_attention=attention)
    assert token_map.rep[0].tolist() == [1, *range(3, 16)]
