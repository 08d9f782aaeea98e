"""`mame` against a slow reference written straight from section 12 of the specification."""

from __future__ import annotations

import pytest
import torch
from cases import cases
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.registry import create


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b) / (max(float(a.norm()), 1e-6) * max(float(b.norm()), 1e-6))


def column(x: torch.Tensor, j: int, tau: float) -> list[float]:
    """Shares of source j over the targets 0, 2, 4, ...; all zero where nothing passes tau."""
    entries = [max(cosine(x[i], x[j]) - tau, 0.0) for i in range(0, len(x), 2)]
    if not any(entries):
        return entries
    entries = [e / sum(entries) for e in entries]
    zeta = sum(entries) / sum(e > 0 for e in entries)
    kept = [e if e >= zeta - 1e-9 else 0.0 for e in entries]
    return [e / sum(kept) for e in kept]


def reference(x: torch.Tensor, mass: list[float], tau: float, keep: int) -> tuple[list, list, list]:
    """New features, their sizes and the rows that restore every token."""
    n = len(x)
    targets, sources = list(range(0, n, 2)), list(range(1, n, 2))
    best = {j: max(cosine(x[i], x[j]) for i in targets) for j in sources}
    merged = sorted(sources, key=lambda j: (-best[j], j))[: n - keep]
    shares = {}
    for j in merged:
        shares[j] = column(x, j, tau)
        if not any(shares[j]):
            nearest = max(range(len(targets)), key=lambda t: (cosine(x[targets[t]], x[j]), -t))
            shares[j] = [float(t == nearest) for t in range(len(targets))]
    features, sizes = [], []
    for t, i in enumerate(targets):
        total = mass[i] + sum(shares[j][t] * mass[j] for j in merged)
        features.append((mass[i] * x[i] + sum(shares[j][t] * mass[j] * x[j] for j in merged)) / total)
        sizes.append(total)
    kept = [j for j in sources if j not in merged]
    place = {i: m for m, i in enumerate(targets + kept)}
    rows = [
        shares[i] + [0.0] * len(kept) if i in shares else [float(m == place[i]) for m in range(keep)] for i in range(n)
    ]
    return features + [x[j] for j in kept], sizes + [mass[j] for j in kept], rows


@settings(max_examples=150, deadline=None)
@given(cases(least=2), st.sampled_from((0.8, 0.3, 0.0, -0.25, 1)), st.data())
def test_matches_the_specification(case, tau, data) -> None:
    assume(tau != 1 or case.kind in ("ties", "zeros"))  # a cosine of 1 is exact there, or never reached
    keep = data.draw(st.integers(case.n - case.n // 2, case.n - 1))
    token_map = tokenreduce.plan(case.x, "mame", keep=keep, tau=tau, **case.arguments())
    features, sizes, rows = reference(case.x[0], case.mass, tau, keep)
    y, grown = tokenreduce.apply(token_map, case.x, case.sizes)
    assert torch.allclose(y[0], torch.stack(features), atol=1e-4)
    assert torch.allclose(grown[0], torch.tensor(sizes), atol=1e-4)
    assert torch.allclose(token_map.undo_matrix()[0], torch.tensor(rows), atol=1e-4)
    assert (token_map.dense()[0, range(keep), token_map.rep[0]] == 1).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(cases(least=6, most=9), min_size=1, max_size=3), st.sampled_from((0.8, 0.3)))
def test_alone_it_keeps_the_union_of_distinctive_sources(images, tau) -> None:
    images = [case for case in images if case.n == images[0].n]
    n, x = images[0].n, torch.cat([case.x for case in images])
    distinctive = {j for image in x for j in range(1, n, 2) if not any(column(image, j, tau))}
    token_map = tokenreduce.plan(x, "mame", tau=tau)
    assert token_map.count == n - n // 2 + len(distinctive)
    if len(images) == 1 and token_map.count < n:
        kept = set(token_map.rep[0].tolist())
        assert kept == set(range(0, n, 2)) | distinctive


def test_a_source_spreads_over_similar_targets_only() -> None:
    x = torch.tensor([[[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0.0, 0, -1]]])
    token_map = tokenreduce.plan(x, "mame", keep=4, tau=0.5)
    expected = torch.tensor([[1, 0.5, 0, 0, 0], [0, 0.5, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 1, 0]])
    assert torch.allclose(token_map.dense()[0], expected)


def test_sizes_are_conserved_and_identical_tokens_come_back() -> None:
    x, sizes = torch.randn(2, 11, 6), torch.randint(1, 4, (2, 11)).float()
    token_map = tokenreduce.plan(x, "mame", keep=7, tau=0.1, sizes=sizes)
    assert torch.allclose(token_map.sizes(sizes).sum(1), sizes.sum(1))
    same = x[:, :1].expand(2, 11, 6)
    token_map = tokenreduce.plan(same, "mame")
    assert token_map.count == 6
    assert torch.allclose(token_map.restore(token_map.apply(same)), same, atol=1e-5)


def test_it_decides_in_the_first_two_thirds() -> None:
    assert create("mame", {}).deciding_layers(12) == tuple(range(8))
    assert create("mame", {}).deciding_layers(1) == (0,)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"tau is 1.5; it must lie in \[-1, 1\]"):
        create("mame", {"tau": 1.5})
