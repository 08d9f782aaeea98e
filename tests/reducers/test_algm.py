"""`algm` against a slow reference written straight from section 5.2 of the specification."""

from __future__ import annotations

import math
import statistics
from itertools import combinations

import pytest
import torch
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.registry import create


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b) / (max(float(a.norm()), 1e-6) * max(float(b.norm()), 1e-6))


def windows(x: torch.Tensor, grid: tuple[int, int]) -> list[tuple[float, list[int]]]:
    """Score and cells of each 2 x 2 window, of smaller ones at the border, but not of single cells."""
    height, width = grid
    found = []
    for top in range(0, height, 2):
        for left in range(0, width, 2):
            cells = [y * width + x for y in range(top, min(top + 2, height)) for x in range(left, min(left + 2, width))]
            cosines = [cosine(x[i], x[j]) for i, j in combinations(cells, 2)]
            if cosines:
                found.append((sum(cosines) / len(cosines), cells))
    return found


def local(x: torch.Tensor, grid: tuple[int, int], keep: int) -> list[list[int]]:
    """The members of each output, its representative first; at least one for each window."""
    n, groups, left = len(x), [], len(x) - keep
    for _, (first, *others) in sorted(windows(x, grid), key=lambda w: (-w[0], w[1][0])):
        others = sorted(others, key=lambda i: (-cosine(x[first], x[i]), i))[:left]
        if others:
            groups.append([first, *others])
        left -= len(others)
    return groups + [[i] for i in range(n) if not any(i in group for group in groups)]


def best_pairs(x: torch.Tensor, prefix: int) -> list[tuple[float, int, int]]:
    sources = [i for i in range(len(x)) if (prefix + i) % 2 == 0]
    targets = [i for i in range(len(x)) if (prefix + i) % 2 == 1]
    found = []
    for a in sources:
        score = {b: cosine(x[a], x[b]) for b in targets}
        target = max(targets, key=lambda b: (score[b], -b))
        found.append((score[target], a, target))
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))


def pairwise(x: torch.Tensor, prefix: int, keep: int) -> list[list[int]]:
    edges = best_pairs(x, prefix)
    merged, rest = edges[: len(x) - keep], edges[len(x) - keep :]
    targets = [i for i in range(len(x)) if (prefix + i) % 2 == 1]
    return [[a] for a in sorted(a for _, a, _ in rest)] + [[b] + [a for _, a, t in merged if t == b] for b in targets]


def means(x: torch.Tensor, mass: list[float], groups: list[list[int]]) -> torch.Tensor:
    return torch.stack([sum(mass[i] * x[i] for i in g) / sum(mass[i] for i in g) for g in groups])


def fewest_of_one_step(case: Case, is_local: bool) -> int:
    return math.ceil(case.grid[0] / 2) * math.ceil(case.grid[1] / 2) if is_local else case.n - case.n // 2


def reference(case: Case, is_local: bool, keep: int) -> list[list[int]]:
    x, fewest = case.x[0], fewest_of_one_step(case, is_local)
    groups = local(x, case.grid, max(keep, fewest)) if is_local else pairwise(x, case.prefix, max(keep, fewest))
    if keep < fewest:
        second = pairwise(means(x, case.mass, groups), case.prefix, keep)
        groups = [[i for m in members for i in groups[m]] for members in second]
    return groups


@settings(max_examples=100, deadline=None)
@given(cases(least=2, most=20), st.sampled_from((0, 1, 2, 4, 11)), st.data())
def test_matches_the_specification(case, layer, data) -> None:
    keep = data.draw(st.integers(-(-case.n // 4), case.n - 1))
    if case.kind == "ties":  # means of three are not exact: in a second step rounding would decide between equals
        keep = max(keep, fewest_of_one_step(case, layer < 2))
    token_map = tokenreduce.plan(case.x, "algm", keep=keep, grid=case.grid, layer=layer, depth=6, **case.arguments())
    groups = reference(case, layer < 2, keep)
    assert token_map.count == keep == len(groups)
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    assert torch.allclose(y[0], means(case.x[0], case.mass, groups), atol=1e-5)
    assert sizes[0].tolist() == [sum(case.mass[i] for i in group) for group in groups]
    assert token_map.rep[0].tolist() == [group[0] for group in groups]
    assert token_map.dest[0].tolist() == [next(m for m, g in enumerate(groups) if i in g) for i in range(case.n)]


@settings(max_examples=100, deadline=None)
@given(st.lists(cases(least=2, most=16, prefixes=(1,)), min_size=1, max_size=4), st.sampled_from((0.88, 0.3)))
def test_alone_the_local_step_merges_windows_that_pass_in_every_image(images, tau) -> None:
    images = [case for case in images if case.grid == images[0].grid]
    removed = [sum(len(cells) - 1 for s, cells in windows(case.x[0], case.grid) if s >= tau) for case in images]
    x = torch.cat([case.x for case in images])
    token_map = tokenreduce.plan(x, "algm", tau=tau, grid=images[0].grid, prefix=1)
    assert token_map.count == images[0].n - min(removed)


@settings(max_examples=100, deadline=None)
@given(st.lists(cases(least=6, most=9, prefixes=(1,)), min_size=1, max_size=4))
def test_alone_the_global_step_merges_what_is_above_mean_and_deviation(images) -> None:
    images = [case for case in images if case.n == images[0].n]
    n, layer, found = images[0].n, 4, [best_pairs(case.x[0], 1) for case in images]
    theta = statistics.mean(statistics.mean(s for s, *_ in pairs) for pairs in found)
    deviations = [statistics.stdev([s for s, *_ in pairs]) if len(pairs) > 1 else 0 for pairs in found]
    theta += statistics.mean(deviations) / (layer + 1)
    removed = min(sum(s >= theta - 1e-6 for s, *_ in pairs) for pairs in found)
    x = torch.cat([case.x for case in images])
    token_map = tokenreduce.plan(x, "algm", grid=images[0].grid, prefix=1, layer=layer, depth=12)
    assert token_map.count == n - min(removed, n // 2)


@pytest.mark.parametrize(("layer", "expected"), [(1, 7), (2, 6)])
def test_the_deviation_counts_less_in_later_layers(layer, expected) -> None:
    """Best cosines 1, 0.91, 0.8, 0.7: mean 0.853, deviation 0.131, so the threshold is 0.918 in block 2, 0.896 in 3."""
    cosines = torch.tensor([1.0, 0.91, 0.8, 0.7])
    sources = torch.stack([cosines, (1 - cosines**2).sqrt()], 1)
    x = torch.stack([sources, torch.tensor([1.0, 0.0]).expand(4, 2)], 1).reshape(1, 8, 2)
    assert tokenreduce.plan(x, "algm", grid=(2, 4), layer=layer, depth=3).count == expected


def test_a_second_step_compares_size_weighted_means() -> None:
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        x, sizes = torch.randn(1, 24, 4, generator=g), torch.randint(1, 20, (1, 24), generator=g).float()
        first = pairwise(x[0], 0, 12)
        second = pairwise(means(x[0], sizes[0].tolist(), first), 0, 8)
        token_map = tokenreduce.plan(x, "algm", keep=8, sizes=sizes, grid=(4, 6), layer=4, depth=6)
        found = [set((token_map.dest[0] == m).nonzero()[:, 0].tolist()) for m in range(8)]
        assert found == [{i for m in members for i in first[m]} for members in second]


@pytest.mark.parametrize(("tau", "expected"), [(1.01, 48), (-1, 12)])
def test_extreme_thresholds(tau, expected) -> None:
    assert tokenreduce.plan(torch.randn(3, 48, 4), "algm", tau=tau, grid=(6, 8)).count == expected


def test_a_uniform_window_scores_1_and_merges_first() -> None:
    x = torch.randn(1, 16, 8)
    x[0, [2, 3, 6, 7]] = x[0, 2].clone()
    token_map = tokenreduce.plan(x, "algm", tau=0.9999, grid=(4, 4))
    assert token_map.count == 13 and token_map.dest[0, [2, 3, 6, 7]].tolist() == [0] * 4
    y, sizes = tokenreduce.apply(token_map, x)
    assert torch.equal(y[0, 0], x[0, 2]) and sizes[0, 0] == 4


def test_full_windows_are_average_pooling() -> None:
    x = torch.randn(2, 48, 5)
    y, _ = tokenreduce.apply(tokenreduce.plan(x, "algm", keep=12, grid=(6, 8)), x)
    pooled = torch.nn.functional.avg_pool2d(x.transpose(1, 2).unflatten(-1, (6, 8)), 2).flatten(2).transpose(1, 2)
    assert torch.allclose(y.sum(1), pooled.sum(1), atol=1e-5)
    assert all((y[b, :, None] - pooled[b]).abs().amax(-1).amin(0).max() < 1e-5 for b in range(2))


def test_the_second_step_is_global_also_when_the_first_merged_nothing() -> None:
    x = torch.randn(1, 48, 4)
    second = tokenreduce.plan(x, "algm", keep=40, grid=(6, 8), layer=4, depth=12)
    assert torch.equal(second.dense(), tokenreduce.plan(x, "tome", keep=40).dense())


def test_it_decides_in_the_first_block_and_at_a_third() -> None:
    assert create("algm", {}).deciding_layers(12) == (0, 4)
    assert create("algm", {}).deciding_layers(2) == (0,)


def test_options_are_checked_and_a_grid_is_needed() -> None:
    with pytest.raises(ValueError, match=r"tau is -2; it must lie in \[-1, 2\]"):
        create("algm", {"tau": -2})
    with pytest.raises(ValueError, match="algm needs grid; pass it to plan"):
        tokenreduce.plan(torch.randn(1, 8, 4), "algm", keep=5)
    with pytest.raises(ValueError, match=r"come from a grid \(H, W\), not \(2, 2, 2\)"):
        tokenreduce.plan(torch.randn(1, 8, 4), "algm", keep=5, grid=(2, 2, 2))
