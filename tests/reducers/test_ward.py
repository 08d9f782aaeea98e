"""`ward` against a slow reference written from its definition, and how its tokens are restored."""

from __future__ import annotations

import json
from itertools import combinations, pairwise

import pytest
import timm
import torch
from backbones import BY_NAME, fresh_model
from cases import Case, cases
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.ops.native.dispatch import using
from tokenreduce.reducers.methods.ward import Ward
from tokenreduce.reducers.parts.sketch import signs
from tokenreduce.reducers.parts.ward_rounds import round_counts
from tokenreduce.reducers.tokens import Tokens


def sketched(case: Case, width: int) -> list[torch.Tensor]:
    """Directions of the tokens of one image, channel by channel."""
    sign, points = signs(4), []
    for x in case.x[0]:
        u = x / max(float(x.norm()), 1e-6)
        out = torch.zeros(width)
        for channel in range(4):
            out[channel % width] += u[channel] * (sign[channel] if width < 4 else 1)
        points.append(out)
    return points


def clusters(points: list[torch.Tensor], sizes: list[float], keep: int) -> list[list[int]]:
    """Members of every cluster, by their first one: all pairs compared before every merge, by centres and sizes."""
    groups = {i: [i] for i in range(len(points))}
    centre, mass = [point.double() for point in points], list(sizes)
    while len(groups) > keep:
        cost = {
            (i, j): float(mass[i] * mass[j] / (mass[i] + mass[j]) * (centre[i] - centre[j]).square().sum())
            for i, j in combinations(sorted(groups), 2)
        }
        assume(not nearly_equal(list(cost.values())))
        i, j = min(cost, key=lambda pair: cost[pair])
        centre[i] = (mass[i] * centre[i] + mass[j] * centre[j]) / (mass[i] + mass[j])
        mass[i] += mass[j]
        groups[i] += groups.pop(j)
    return [sorted(groups[i]) for i in sorted(groups)]


def weighed(case: Case, seen: torch.Tensor, part: float) -> list[float]:
    """What each token weighs: of its size and of the attention to it, which has a floor."""
    least = 0.01 / case.n
    return [m ** (1 - part) * max(float(a), least) ** part for m, a in zip(case.mass, seen[0], strict=True)]


@settings(max_examples=60, deadline=None)
@given(cases(least=2), st.sampled_from([None, 3, 4]), st.booleans(), st.sampled_from([None, 0.0, 0.35, 1.0]), st.data())
def test_clusters_as_ward_does(case, width, keys, part, data) -> None:
    assume(case.kind == "random")
    keep = data.draw(st.integers(1, case.n))
    shown = torch.randn(1, 2, case.n, 5, generator=torch.Generator().manual_seed(case.n))
    layer = 2 if keys else data.draw(st.sampled_from([0, 1, *range(3, 12)]))
    seen = torch.rand(1, case.n, generator=torch.Generator().manual_seed(layer)) ** 4 / case.n
    entries = {"mean_keys": lambda: shown.mean(1)} | ({} if part is None else {"class_attention": lambda: seen})
    tokens = Tokens(case.x, case.sizes, entries, layer=layer, depth=12)
    points = list(shown.mean(1)[0]) if keys else sketched(case, width or 1)
    expected = clusters(points, weighed(case, seen, part or 0.0) if layer >= 4 else case.mass, keep)
    for choice in ("reference", "auto"):
        with using(choice):
            token_map = Ward(width=width, attended=0.35 if part is None else part).plan(tokens, keep)
        found = [torch.nonzero(token_map.dest[0] == output)[:, 0].tolist() for output in range(keep)]
        assert found == expected
        assert token_map.rep[0].tolist() == [members[0] for members in expected]
        assert sorted(token_map.rep[0].tolist() + token_map.sources[0].tolist()) == list(range(case.n))
        y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
        for output, members in enumerate(expected):
            total = sum(case.mass[i] for i in members)
            assert torch.allclose(y[0, output], sum(case.x[0, i] * case.mass[i] for i in members) / total, atol=1e-5)
            assert float(sizes[0, output]) == total


@pytest.mark.parametrize("rounds", [None, 2])
def test_what_the_class_token_reads_is_merged_later(rounds) -> None:
    """Of two equal pairs the one that it looks away from; where it sees nothing, or no number, sizes decide."""
    pairs = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]])
    x = torch.cat([pairs, pairs.flip(1)], 1)[None]

    def merged(seen: torch.Tensor, layer: int = 4, **options: float) -> list[int]:
        tokens = Tokens(x, None, {"class_attention": lambda: seen}, layer=layer, depth=12)
        return Ward(rounds=rounds, early=0.0, width=4, **options).plan(tokens, 3).sources[0].tolist()

    left, right = torch.tensor([[0.3, 0.3, 0.01, 0.01]]), torch.tensor([[0.01, 0.01, 0.3, 0.3]])
    assert set(merged(left)) < {2, 3} and set(merged(right)) < {0, 1}
    assert merged(left, layer=3) == merged(right, layer=3) == merged(left, attended=0.0)
    for nothing in (0.0, float("nan")):
        assert merged(torch.full((1, 4), nothing)) == merged(left, attended=0.0)


def test_saved_patches_of_before_stay_what_they_were(tmp_path) -> None:
    model = tokenreduce.patch(fresh_model(BY_NAME["timm_vit_qk_norm"]), "ward", flops=0.7)
    tokenreduce.save_patch(model, tmp_path / "now.json")
    written = json.loads((tmp_path / "now.json").read_text())
    assert (written["options"].pop("attended"), written["options"].pop("keys_from")) == (0.35, 1 / 6)
    (tmp_path / "before.json").write_text(json.dumps(written))
    loaded = tokenreduce.load_patch(fresh_model(BY_NAME["timm_vit_qk_norm"]), tmp_path / "before.json")
    options = tokenreduce.report(loaded).options
    assert (options["attended"], options["keys_from"]) == (0.0, 0.0)


def test_without_keys_directions_decide_everywhere() -> None:
    x = torch.randn(1, 20, 8, generator=torch.Generator().manual_seed(0))
    first, last = (Ward().plan(Tokens(x, layer=layer, depth=12), 9) for layer in (0, 11))
    assert torch.equal(first.dest, last.dest)
    keys = {"mean_keys": lambda: x.flip(1)}
    assert not torch.equal(Ward().plan(Tokens(x, None, keys, layer=2, depth=12), 9).dest, first.dest)


@pytest.mark.parametrize(
    ("ward", "depth", "expected"),
    [
        (Ward(), 12, [2]),
        (Ward(), 24, [4, 5]),
        (Ward(), 40, [7, 8, 9]),
        (Ward(), 8, []),
        (Ward(), 6, [1]),
        (Ward(), 1, [0]),
        (Ward(keys_from=1, early=1), 12, [11]),
        (Ward(early=0), 12, []),
        (Ward(early=0.5), 12, [2, 3, 4, 5]),
        (Ward(keys_from=0), 12, [1, 2]),
        (Ward(keys_from=0, early=1), 3, [1, 2]),
    ],
)
def test_keys_decide_between_a_sixth_and_a_quarter_of_the_depth(ward, depth, expected) -> None:
    x = torch.randn(1, 20, 8, generator=torch.Generator().manual_seed(0))
    keys = {"mean_keys": lambda: x.flip(1)}

    def dest(layer: int, entries: dict) -> torch.Tensor:
        return ward.plan(Tokens(x, None, entries, layer=layer, depth=depth), 9).dest

    assert [layer for layer in range(depth) if not torch.equal(dest(layer, keys), dest(layer, {}))] == expected


def test_the_budget_says_where_it_starts() -> None:
    """After a quarter of the blocks, or earlier if less than 0.28 of the tokens would be left."""
    starts = {}
    for flops in (0.9, 0.7, 0.6, 0.5, 0.4):
        model = tokenreduce.patch(timm.create_model("deit_tiny_patch16_224").eval(), "ward", flops=flops)
        counts = tokenreduce.report(model).tokens
        starts[flops] = next(layer for layer, count in enumerate(counts) if count < 196), counts[-1] >= 0.28 * 196
    assert starts[0.9] == starts[0.7] == (3, True)
    assert starts[0.6] == (1, True) and starts[0.4] == (0, False)
    assert all(first == 0 or left for first, left in starts.values())


def test_exact_clusters_equal_those_of_scikit_learn() -> None:
    from sklearn.cluster import AgglomerativeClustering

    x = torch.randn(3, 40, 6, generator=torch.Generator().manual_seed(1))
    token_map = tokenreduce.plan(x, "ward", keep=15, width=6, early=0)
    for points, dest in zip(torch.nn.functional.normalize(x, dim=-1), token_map.dest, strict=True):
        labels = torch.from_numpy(AgglomerativeClustering(15, linkage="ward").fit_predict(points))
        assert torch.equal(labels[:, None] == labels, dest[:, None] == dest)


def reference(case: Case, keep: int, rounds: int, width: int) -> list[list[int]]:
    """Members of every output, one image, token by token."""
    points, sizes = sketched(case, width), [torch.tensor(s) for s in case.mass]
    groups = [[i] for i in range(case.n)]
    for left in round_counts(case.n, keep, rounds):
        first, n = case.prefix % 2, len(groups)
        a, b = list(range(first, n, 2)), list(range(1 - first, n, 2))
        best = {}
        for i in a:
            cost = [(points[i] - points[j]).square().sum() / (1 / sizes[i] + 1 / sizes[j]) for j in b]
            if case.kind in ("random", "zeros"):
                assume(not nearly_equal([float(c) for c in cost]))
            j = min(range(len(b)), key=lambda j: (float(cost[j]), j))
            best[i] = (float(cost[j]), b[j])
        if case.kind in ("random", "zeros"):
            assume(not nearly_equal([float(cost) for cost, _ in best.values()]))
        sources = sorted(a, key=lambda i: (best[i][0], i))[: n - left]
        order = [i for i in a if i not in sources] + b
        merged = {i: list(groups[i]) for i in order}
        mean = {i: points[i] * sizes[i] for i in order}
        mass = {i: sizes[i] for i in order}
        for i in sources:
            j = best[i][1]
            merged[j] += groups[i]
            mean[j] = mean[j] + points[i] * sizes[i]
            mass[j] = mass[j] + sizes[i]
        groups = [merged[i] for i in order]
        points, sizes = [mean[i] / mass[i] for i in order], [mass[i] for i in order]
    return groups


def nearly_equal(costs: list[float]) -> bool:
    """Whether rounding decides between two of the costs: all directions are equally far from a zero vector."""
    ordered = sorted(cost for cost in costs if cost > 0)
    return any(b - a <= 1e-5 * b for a, b in pairwise(ordered))


@settings(max_examples=80, deadline=None)
@given(cases(least=2), st.integers(1, 3), st.sampled_from([None, 1, 3, 4]), st.data())
def test_rounds_match_their_definition(case, rounds, width, data) -> None:
    if case.kind in (
        "ties",
        "zeros",
    ):  # means of merged tokens are rounded, which would decide the ties of later rounds
        rounds = 1
    keep = data.draw(st.integers(Ward(rounds=rounds).least(case.n), case.n - 1))
    token_map = tokenreduce.plan(case.x, "ward", keep=keep, rounds=rounds, width=width, **case.arguments())
    groups = reference(case, keep, rounds, width or 1)
    for output, members in enumerate(groups):
        assert all(int(token_map.dest[0, i]) == output for i in members), (token_map.dest, groups)
        assert int(token_map.rep[0, output]) in members
    assert sorted(token_map.rep[0].tolist() + token_map.sources[0].tolist()) == list(range(case.n))
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    for output, members in enumerate(groups):
        total = sum(case.mass[i] for i in members)
        assert torch.allclose(y[0, output], sum(case.x[0, i] * case.mass[i] for i in members) / total, atol=1e-5)
        assert float(sizes[0, output]) == total


@given(st.integers(1, 300), st.integers(1, 9), st.data())
def test_rounds_share_the_work_and_reach_the_count(n, rounds, data) -> None:
    keep = data.draw(st.integers(Ward(rounds=rounds).least(n), n))
    counts = round_counts(n, keep, rounds)
    assert ([n, *counts])[-1] == keep and len(counts) <= rounds
    assert all(b < a and b >= a - a // 2 for a, b in zip([n, *counts], counts, strict=False))


def test_more_rounds_lose_less() -> None:
    """What Ward's criterion counts, the squared error of directions, falls towards that of agglomerative clustering."""
    from sklearn.cluster import AgglomerativeClustering

    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(4, 60, 6, generator=g), dim=-1)

    def error(labels: torch.Tensor, points: torch.Tensor) -> float:
        return sum(float((points[labels == c] - points[labels == c].mean(0)).square().sum()) for c in labels.unique())

    errors = []
    for rounds in (1, 2, 8):
        token_map = tokenreduce.plan(x, "ward", keep=32, rounds=rounds, width=6)
        errors.append(sum(error(dest, points) for dest, points in zip(token_map.dest, x, strict=True)))
    full = [torch.from_numpy(AgglomerativeClustering(32, linkage="ward").fit_predict(points)) for points in x]
    exact = sum(error(labels, points) for labels, points in zip(full, x, strict=True))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1.15 * exact


def test_the_sketch_keeps_distances_on_average() -> None:
    x = torch.randn(1, 400, 384, generator=torch.Generator().manual_seed(0))
    full, sketched = torch.cdist(x, x)[0], torch.cdist(Ward().sketch(x), Ward().sketch(x))[0]
    assert Ward().sketch(x).shape == (1, 400, 64)
    ratio = (sketched / full)[~torch.eye(400, dtype=torch.bool)]
    assert abs(float(ratio.mean()) - 1) < 0.03 and ratio.std() < 0.12


def test_restored_tokens_are_what_they_were_plus_the_change_since() -> None:
    """Blocks that change nothing after the reduction: restored tokens are the unreduced ones, not copies."""
    family = BY_NAME["timm_vit_qk_norm"]
    model, x = fresh_model(BY_NAME["timm_vit_qk_norm"]), family.images()
    with torch.no_grad():
        for block in model.blocks:
            block.ls1.gamma.zero_()
            block.ls2.gamma.zero_()
    expected = model.forward_features(x)
    tokenreduce.patch(model, "ward", ratio=0.5, restore=True)
    assert torch.allclose(model.forward_features(x), expected, atol=1e-5)
    for ours, theirs in zip(model.forward_intermediates(x)[1], model.forward_intermediates(x)[1], strict=True):
        assert torch.equal(ours, theirs)
    tokenreduce.patch(model, "tome", ratio=0.5, restore=True)
    assert not torch.allclose(model.forward_features(x), expected, atol=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 0},
        {"width": 0},
        {"keys_from": -1},
        {"attended": 2},
        {"nearness": -1},
        {"early": 1.5},
        {"early": None},
        {"rounds": 1.5},
        {"width": True},
    ],
)
def test_impossible_options(options) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        tokenreduce.plan(torch.randn(1, 8, 4), "ward", keep=5, **options)
