"""`atm` against a slow reference written straight from section 10 of the specification."""

from __future__ import annotations

import math

import pytest
import torch
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.registry import create


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b) / (max(float(a.norm()), 1e-6) * max(float(b.norm()), 1e-6))


def pairs(case: Case, layer: int, depth: int) -> tuple[list[tuple[float, int, int]], list[int]]:
    """For every source (score, source, target), best first; and the targets."""
    n, mass = case.n, case.mass
    sources = [i for i in range(n) if (case.prefix + i) % 2 == 0]
    targets = [i for i in range(n) if (case.prefix + i) % 2 == 1]
    if layer + 1 >= 2 * depth / 3 - 1e-9 and case.sizes is not None:
        by_size = sorted(sources + targets, key=lambda i: mass[i])  # stable: equal sizes stay split by parity
        sources, targets = sorted(by_size[: n // 2]), sorted(by_size[n // 2 :])
    found = []
    for a in sources:
        scores = [cosine(case.mean_keys[a], case.mean_keys[b]) for b in targets]
        best = max(range(len(targets)), key=lambda j: (scores[j], -j))
        found.append((scores[best], a, targets[best]))
    return sorted(found, key=lambda pair: (-pair[0], pair[1])), targets


def reference(case: Case, layer: int, depth: int, keep: int) -> list[list[int]]:
    """The members of each output, its representative first."""
    found, targets = pairs(case, layer, depth)
    merged, rest = found[: case.n - keep], found[case.n - keep :]
    return [[a] for a in sorted(a for _, a, _ in rest)] + [[b] + [a for _, a, t in merged if t == b] for b in targets]


@settings(max_examples=100, deadline=None)
@given(cases(least=2), st.integers(0, 5), st.data())
def test_matches_the_specification(case, layer, data) -> None:
    keep = data.draw(st.integers(case.n - case.n // 2, case.n - 1))
    more = {"layer": layer, "depth": 6}
    token_map = tokenreduce.plan(case.x, "atm", keep=keep, **more, **case.arguments("keys"))
    groups = reference(case, layer, 6, keep)
    assert token_map.rep[0].tolist() == [group[0] for group in groups]
    assert token_map.dest[0].tolist() == [next(m for m, g in enumerate(groups) if i in g) for i in range(case.n)]
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    for m, group in enumerate(groups):
        total = sum(case.mass[i] for i in group)
        assert sizes[0, m] == total
        assert torch.allclose(y[0, m], sum(case.mass[i] * case.x[0, i] for i in group) / total, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.lists(cases(least=6, most=6, prefixes=(1,)), min_size=1, max_size=3), st.sampled_from(("mean", "min", "max")))
def test_alone_it_counts_the_pairs_above_the_threshold(images, batch) -> None:
    images = [case for case in images if case.n == images[0].n]
    n, layer, depth, alpha = images[0].n, 1, 6, 0.6
    theta = max(alpha - (math.exp(0.05 * layer) - 1), 0.5)
    passed = []
    for case in images:
        found, _ = pairs(case, layer, depth)
        passed.append(sum(score > theta for score, _, _ in found))
    removed = {"min": min(passed), "max": max(passed), "mean": math.floor(sum(passed) / len(passed) + 0.5)}[batch]
    x, keys = (torch.cat([getattr(case, name) for case in images]) for name in ("x", "keys"))
    options = {"alpha": alpha, "beta": 0.05, "theta_min": 0.5, "batch": batch}
    token_map = tokenreduce.plan(x, "atm", keys=keys, prefix=1, layer=layer, depth=depth, **options)
    assert token_map.count == n - min(removed, n // 2)


def test_the_threshold_falls_as_specified_for_these_values() -> None:
    reducer = create("atm", {})
    specified = [0.95, 0.94, 0.93, 0.92, 0.91, 0.90, 0.89, 0.88, 0.87, 0.86, 0.85, 0.83]
    # Two decimals, one of them (0.845) rounded up instead of down.
    assert [reducer.threshold(layer) for layer in range(12)] == pytest.approx(specified, abs=0.0055)
    assert reducer.threshold(40) == 0.8


@pytest.mark.parametrize(("alpha", "expected"), [(1.5, 8), (-1, 4)])
def test_extreme_thresholds(alpha, expected) -> None:
    x = torch.randn(3, 8, 4)
    assert tokenreduce.plan(x, "atm", alpha=alpha, theta_min=alpha).count == expected


def test_large_tokens_never_meet_late() -> None:
    x = torch.randn(1, 12, 4)
    sizes = torch.tensor([[9.0, 9, 9, 1, 1, 1, 1, 1, 1, 9, 9, 9]])
    late = tokenreduce.plan(x, "atm", keep=6, sizes=sizes, layer=11, depth=12)
    early = tokenreduce.plan(x, "atm", keep=6, sizes=sizes, layer=3, depth=12)
    large = [0, 1, 2, 9, 10, 11]
    assert len({int(late.dest[0, i]) for i in large}) == 6 and set(late.rep[0].tolist()) == set(large)
    assert torch.equal(early.dest, tokenreduce.plan(x, "tome", keep=6).dest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 3}, r"alpha is 3; it must lie in \[-1, 2\]"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"theta_min": float("nan")}, "theta_min is nan"),
        ({"batch": "median"}, "batch is 'median'; valid: 'mean', 'min', 'max'"),
    ],
)
def test_options_are_checked(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        create("atm", options)
