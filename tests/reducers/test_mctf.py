"""`mctf` against a slow reference written straight from section 8 of the specification."""

from __future__ import annotations

import math

import pytest
import torch
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.methods.mctf import MCTF

DEFAULTS = {"similarity": 1.0, "information": 1 / 20, "size": 1 / 40, "bidirectional": True}


def cosine(u: torch.Tensor, v: torch.Tensor) -> float:
    return float((u / u.norm().clamp_min(1e-6)) @ (v / v.norm().clamp_min(1e-6)))


def reference(case: Case, r: int, similarity: float, information: float, size: float, bidirectional: bool):
    """Members of each new token, the new features and sizes; positions count from the first protected token."""
    p, n, s = case.prefix, case.n, case.mass
    rows = case.attention[0].flatten(0, 1)  # all heads and queries
    a = [float(rows[:, p + j].mean()) for j in range(n)]
    evens = [j for j in range(n) if (p + j) % 2 == 0]
    odds = [j for j in range(n) if (p + j) % 2 == 1]

    def w(i: int, j: int) -> float:
        alike = max(0.0, (1 + cosine(case.x[0, i], case.x[0, j])) / 2)
        return alike**similarity * (1 / (a[i] * a[j])) ** information * (1 / (s[i] * s[j])) ** size

    forward = r // 2 if bidirectional else r
    parent = {}
    best = {i: max(odds, key=lambda j: (w(i, j), -j)) for i in evens if odds}
    for i in sorted(best, key=lambda i: (-w(i, best[i]), i))[:forward]:
        parent[i] = best[i]
    left = [i for i in evens if i not in parent]
    back = {j: max(left, key=lambda i: (w(i, j), -i)) for j in odds if left}
    for j in sorted(back, key=lambda j: (-w(back[j], j), j))[: r - forward]:
        parent[j] = back[j]
    groups = {root: [] for root in [*left, *(j for j in odds if j not in parent)]}
    for token in range(n):
        root = token
        while root in parent:
            root = parent[root]
        groups[root].append(token)
    features = []
    for members in groups.values():
        omega = [a[i] * s[i] / max(s) for i in members]
        features.append(sum(o * case.x[0, i] for o, i in zip(omega, members, strict=True)) / sum(omega))
    return groups, torch.stack(features), [sum(s[i] for i in members) for members in groups.values()]


def check(case: Case, r: int, **options) -> None:
    groups, features, sizes = reference(case, r, **(DEFAULTS | options))
    token_map = tokenreduce.plan(case.x, "mctf", keep=case.n - r, **case.arguments("attention"), **options)
    y, grown = tokenreduce.apply(token_map, case.x, case.sizes)
    assert token_map.count == case.n - r
    assert token_map.rep[0].tolist() == list(groups)
    assert [[i for i in range(case.n) if token_map.dest[0, i] == output] for output in range(len(groups))] == list(
        groups.values()
    )
    assert torch.allclose(y[0], features, atol=1e-5)
    assert torch.allclose(grown[0], torch.tensor(sizes))
    assert torch.allclose(tokenreduce.restore(token_map, y)[0], features[token_map.dest[0]], atol=1e-5)


@settings(max_examples=150, deadline=None)
@given(cases(least=2), st.data())
def test_matches_the_specification(case, data) -> None:
    check(case, data.draw(st.integers(1, case.n // 2)))


@settings(max_examples=100, deadline=None)
@given(cases(least=2), st.data())
def test_options_match_the_specification(case, data) -> None:
    # No two exponents in a whole ratio: half the similarity must not equal half the size, or rounding breaks the tie.
    choices = {"similarity": [0, 0.7, 2.3], "information": [0, 0.5, 2.0], "size": [0, 0.31, 1.9]}
    exponents = {option: data.draw(st.sampled_from(values)) for option, values in choices.items()}
    check(case, data.draw(st.integers(1, case.n // 2)), **exponents, bidirectional=data.draw(st.booleans()))


def given_attention(received: list[float]) -> torch.Tensor:
    """Every query of one head attends alike."""
    return torch.tensor(received).expand(1, 1, len(received), len(received))


def test_of_two_equally_similar_pairs_the_uninformative_and_the_small_one_merges() -> None:
    x = torch.eye(4).repeat_interleave(2, 0)[None]  # pairs (0, 1), (2, 3), ...
    attention = given_attention([0.2, 0.2, 0.2, 0.2, 0.05, 0.05, 0.05, 0.05])
    token_map = tokenreduce.plan(x, "mctf", keep=7, attention=attention)
    assert int(token_map.dest[0, 4]) == int(token_map.dest[0, 5])
    sizes = torch.tensor([[1.0, 1, 1, 1, 3, 3, 1, 1]])
    token_map = tokenreduce.plan(x, "mctf", keep=7, attention=attention, sizes=sizes)
    assert int(token_map.dest[0, 6]) == int(token_map.dest[0, 7])
    token_map = tokenreduce.plan(x, "mctf", keep=7, attention=attention, sizes=sizes, size=0)
    assert int(token_map.dest[0, 4]) == int(token_map.dest[0, 5])
    token_map = tokenreduce.plan(x, "mctf", keep=7, attention=attention, sizes=sizes, size=0, information=0)
    assert int(token_map.dest[0, 0]) == int(token_map.dest[0, 1])


def test_a_token_that_received_may_move_on_with_what_it_received() -> None:
    """0 merges into 1, the best pair; then 1 prefers 2 to all other kept even tokens: all three are one."""
    x = torch.tensor([[[1.0, 0, 0], [1, 0.1, 0], [1, 0.3, 0], [0, 0, 1], [0, 1, 0], [0, -1, 0]]])
    token_map = tokenreduce.plan(x, "mctf", keep=4, attention=given_attention([1 / 6] * 6))
    assert token_map.rep.tolist() == [[2, 4, 3, 5]]
    assert token_map.dest.tolist() == [[0, 0, 0, 2, 1, 3]]
    assert torch.allclose(token_map.apply(x)[0, 0], x[0, :3].mean(0))
    assert token_map.sizes().tolist() == [[3, 1, 1, 1]]
    one_way = tokenreduce.plan(x, "mctf", keep=4, attention=given_attention([1 / 6] * 6), bidirectional=False)
    assert one_way.rep.tolist() == [[4, 1, 3, 5]]


def test_opposite_tokens_attract_least() -> None:
    """(1 + cos) / 2 rounds below zero for some of them, and a fractional power of that is no number."""
    u, v = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0))
    x = torch.stack([u, -0.7 * u, v, v], 1)
    token_map = tokenreduce.plan(x, "mctf", keep=3, attention=torch.ones(64, 1, 4, 4) / 4, similarity=0.5)
    assert torch.equal(token_map.dest[:, 2], token_map.dest[:, 3])


@pytest.mark.parametrize("exponents", [{}, {"information": 50.0, "size": 50.0}], ids=["default", "large"])
def test_tokens_that_none_attends_to_merge_by_similarity(exponents) -> None:
    x = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    x[:, 7] = x[:, 6]
    given = {"attention": torch.zeros(1, 2, 16, 16), "sizes": torch.full((1, 16), 9.0), **exponents}
    token_map = tokenreduce.plan(x, "mctf", keep=15, **given)
    assert int(token_map.dest[0, 6]) == int(token_map.dest[0, 7])
    assert torch.isfinite(tokenreduce.plan(x, "mctf", keep=8, **given).apply(x)).all()


@pytest.mark.parametrize("option", ["similarity", "information", "size"])
def test_exponents_are_checked(option) -> None:
    assert getattr(MCTF(**{option: 2}), option) == 2
    for wrong in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"option {option} is .*; it must be 0 or more and finite"):
            MCTF(**{option: wrong})
    with pytest.raises(TypeError, match=f"option {option} is True; it must be of type float"):
        MCTF(**{option: True})


def test_deit_small_r16_counts_like_tome_not_like_the_published_placement() -> None:
    """Published (inside the attention): 2.58 G. Between attention and MLP it is ToMe's 2.29 G from block 0 on,
    blocks 1 to 11 here: the model part must be what the counts of the schedule give."""
    import timm

    model = timm.create_model("deit_small_patch16_224").eval()
    tokenreduce.patch(model, "mctf", r=[0] + [16] * 11)
    counted = tokenreduce.count_flops(model, torch.zeros(1, 3, 224, 224))
    n, expected = 197, 196 * 384 * 768 + 384 * 1000
    for layer in range(12):
        m = n - 16 if layer else n
        expected += 4 * n * 384**2 + 2 * n**2 * 384 + 8 * m * 384**2
        n = m
    assert counted.model == pytest.approx(expected, rel=1e-3)
    assert tokenreduce.report(model).tokens[-1] == 196 - 11 * 16
