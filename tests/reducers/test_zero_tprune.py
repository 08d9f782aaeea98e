"""`zero_tprune` against a slow reference written straight from section 1 of the specification."""

from __future__ import annotations

import math

import pytest
import torch
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.methods.zero_tprune import first_mass, page_rank
from tokenreduce.reducers.registry import create


def votes(matrix: list[list[float]], boosted: int | None, iterations: int) -> list[float]:
    """Weighted page rank of one head; row i is query i."""
    n = len(matrix)
    matrix = [[a / max(sum(row), 1e-12) for a in row] for row in matrix]
    mass = [math.sqrt(n) if i == boosted else 1.0 for i in range(n)]
    s = [m / sum(mass) for m in mass]
    for _ in range(iterations):
        s = [sum(matrix[i][j] * s[i] for i in range(n)) for j in range(n)]
    return s


def importance(case: Case, alive: list[int], start: str, iterations: int, limits: tuple[float, float]) -> dict:
    """Of the image tokens `alive`, after deleting the rows and columns of the others."""
    nodes = list(range(case.prefix)) + [case.prefix + i for i in alive]
    heads, passing = [], []
    for head in case.attention[0].double().tolist():
        matrix = [[head[i][j] for j in nodes] for i in nodes]
        s = votes(matrix, 0 if start == "cls" and case.prefix else None, iterations)
        heads.append(s[case.prefix :])
        mean = sum(heads[-1]) / len(alive)
        variance = sum((v / mean - 1) ** 2 for v in heads[-1]) / len(alive)
        if limits[0] <= variance <= limits[1]:
            passing.append(heads[-1])
    used = passing or heads
    score = [math.sqrt(sum(s[k] ** 2 for s in used) / len(used)) for k in range(len(alive))]
    return {i: round(v * len(nodes) * 2**16) for i, v in zip(alive, score, strict=True)}


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return round(float(torch.nn.functional.cosine_similarity(a, b, dim=0, eps=1e-12)), 5)


def reference(
    case: Case, keep: int, start: str, share: float, iterations: int, limits: tuple[float, float]
) -> tuple[list[int], list[int]]:
    """Kept tokens, and for every token which of them stands for it."""
    n, keys = case.n, case.mean_keys
    similar = min(n // 2, math.floor((n - keep) * share + 1e-9))
    before = importance(case, list(range(n)), start, 1, limits)
    ascending = sorted(range(n), key=lambda i: (before[i], -i))
    unimportant, rest = sorted(ascending[: n // 2]), sorted(ascending[n // 2 :])
    match = {a: max(rest, key=lambda b: (cosine(keys[a], keys[b]), -b)) for a in unimportant}
    dropped = sorted(unimportant, key=lambda a: (-cosine(keys[a], keys[match[a]]), a))[:similar]
    alive = [i for i in range(n) if i not in dropped]
    after = importance(case, alive, start, iterations, limits)
    kept = sorted(sorted(alive, key=lambda i: (-after[i], i))[:keep])

    def stands_for(i: int) -> int:
        if i in kept:
            return kept.index(i)
        if i in dropped:
            return stands_for(match[i])
        return max(range(keep), key=lambda m: (cosine(keys[i], keys[kept[m]]), -m))

    return kept, [stands_for(i) for i in range(n)]


@given(
    cases(least=2),
    st.sampled_from(["cls", "uniform"]),
    st.sampled_from([0, 0.3, 0.5, 1.0]),
    st.sampled_from([(0.01, 0.7), (0.1, 0.2), (0.0, 9.0)]),
    st.sampled_from([(0, 12), (5, 12), (11, 12)]),
    st.booleans(),
    st.data(),
)
@settings(max_examples=80, deadline=None)
def test_matches_the_specification(case, start, share, limits, place, inherit, data) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    token_map = tokenreduce.plan(
        case.x,
        "zero_tprune",
        keep=keep,
        start=start,
        similarity=share,
        variance_min=limits[0],
        variance_max=limits[1],
        layer=place[0],
        depth=place[1],
        inherit=inherit,
        **case.arguments("keys", "attention"),
    )
    iterations = {0: 40, 5: 8, 11: 1}[place[0]]
    kept, dest = reference(case, keep, start, share, iterations, limits)
    assert token_map.rep[0].tolist() == kept and token_map.drops
    assert token_map.dest[0].tolist() == dest
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    assert torch.equal(y, case.x[:, kept]) and sizes[0].tolist() == case.inherited(kept, dest, inherit)


def attention(n: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    return (2 * torch.randn(batch, 3, n, n, generator=torch.Generator().manual_seed(seed))).softmax(-1)


@pytest.mark.parametrize("boost", [False, True])
def test_many_votes_reach_the_perron_vector_and_keep_the_mass(boost) -> None:
    a, nodes = attention(20), torch.ones(2, 20)
    values, vectors = torch.linalg.eig(a.double().transpose(-1, -2))
    top = values.real.argmax(-1)
    perron = vectors.real.gather(-1, top[..., None, None].expand(-1, -1, 20, 1))[..., 0]
    expected = (perron / perron.sum(-1, keepdim=True)).float()
    scores = page_rank(a, nodes, first_mass(nodes, boost), 200)
    assert torch.allclose(scores, expected, atol=1e-5)
    for t in (1, 8, 50):
        assert torch.allclose(page_rank(a, nodes, first_mass(nodes, boost), t).sum(-1), torch.ones(2, 3), atol=1e-5)


def test_uniform_and_identity_attention() -> None:
    nodes = torch.ones(2, 15)
    uniform = torch.full((2, 3, 15, 15), 1 / 15)
    for t in (1, 40):
        assert torch.allclose(page_rank(uniform, nodes, first_mass(nodes, True), t), torch.tensor(1 / 15))
    start = first_mass(nodes, True)
    assert float(start[0, 0] / start[0, 1]) == pytest.approx(15**0.5)
    assert torch.allclose(page_rank(torch.eye(15).expand(2, 3, 15, 15), nodes, start, 40), start[:, None])
    doubly = attention(15)
    for _ in range(200):
        doubly = doubly / doubly.sum(-1, keepdim=True)
        doubly = doubly / doubly.sum(-2, keepdim=True)
    flat = page_rank(doubly, nodes, first_mass(nodes, False), 40)
    assert torch.allclose(flat, torch.tensor(1 / 15), atol=1e-5)


def test_deleting_tokens_is_deleting_rows_and_columns() -> None:
    a, left = attention(12), [0, 1, 4, 5, 8, 11]
    nodes = torch.zeros(2, 12)
    nodes[:, left] = 1
    small = a[:, :, left][..., left]
    small = small / small.sum(-1, keepdim=True)
    expected = page_rank(small, torch.ones(2, 6), first_mass(torch.ones(2, 6), True), 10)
    assert torch.allclose(page_rank(a, nodes, first_mass(nodes, True), 10)[..., left], expected, atol=1e-6)


def plan(a: torch.Tensor, x: torch.Tensor, keep: int, prefix: int = 1, **options) -> tokenreduce.TokenMap:
    options = {"similarity": 0.5, **options}
    return tokenreduce.plan(x, "zero_tprune", keep=keep, attention=a, prefix=prefix, layer=0, depth=4, **options)


def test_equal_heads_are_one_head_and_no_head_is_all_heads() -> None:
    a, x = attention(25), torch.randn(2, 24, 6)
    wide = {"variance_min": 0, "variance_max": 1e9}
    one = plan(a[:, :1], x, 10, **wide)
    assert torch.equal(one.rep, plan(a[:, :1].expand(-1, 3, -1, -1), x, 10, **wide).rep)
    nobody = {"variance_min": 1e8, "variance_max": 1e9}
    assert torch.equal(plan(a, x, 10, **nobody).rep, plan(a, x, 10, **wide).rep)


def test_the_filter_leaves_out_heads() -> None:
    """Head 0 votes uniformly (no variance), head 1 sends everything to a few tokens (too much), head 2 decides."""
    a = attention(25, batch=1)
    a[:, 0], a[:, 1] = 1 / 25, 0.0
    a[:, 1, :, 20] = 1.0
    x = torch.randn(1, 24, 6)
    filtered = plan(a, x, 10, similarity=0, iterations=1, variance_min=0.01, variance_max=3.0)
    alone = plan(a[:, 2:], x, 10, similarity=0, iterations=1, variance_min=0, variance_max=1e9)
    assert torch.equal(filtered.rep, alone.rep)
    assert not torch.equal(filtered.rep, plan(a, x, 10, similarity=0, variance_min=0, variance_max=1e9).rep)


def test_planted_duplicates_are_dropped_first_and_come_back() -> None:
    n = 12
    a = torch.full((1, 1, n + 1, n + 1), 0.01)
    a[..., 1 : 1 + n // 2] = 1.0  # the first half is important
    a = a / a.sum(-1, keepdim=True)
    x = torch.randn(1, n, 16, generator=torch.Generator().manual_seed(0))
    x[0, 8], x[0, 10] = x[0, 2] * 3, x[0, 0]
    token_map = plan(a, x, n - 2, similarity=1)
    assert sorted(set(range(n)) - set(token_map.rep[0].tolist())) == [8, 10]
    assert token_map.rep[0, token_map.dest[0, 8]] == 2 and token_map.rep[0, token_map.dest[0, 10]] == 0


def test_the_class_start_matters_after_few_votes_only() -> None:
    a, x = attention(25, batch=8), torch.randn(8, 24, 6)
    for votes_cast, differs in ((1, True), (200, False)):
        kept = [plan(a, x, 8, similarity=0, iterations=votes_cast, start=start).rep for start in ("cls", "uniform")]
        assert differs != torch.equal(*kept)
    no_class = tokenreduce.plan(x, "zero_tprune", keep=8, attention=a[..., 1:, 1:])
    assert torch.equal(
        no_class.rep, tokenreduce.plan(x, "zero_tprune", keep=8, attention=a[..., 1:, 1:], start="uniform").rep
    )


def test_early_layers_vote_often_and_late_ones_once() -> None:
    """With tokens that mostly attend to themselves, mass spreads slowly, so the number of votes shows."""
    a, x = 0.95 * torch.eye(25) + 0.05 * attention(25, batch=4), torch.randn(4, 24, 6)
    kept = {
        t: tokenreduce.plan(x, "zero_tprune", keep=8, attention=a, prefix=1, iterations=t).rep.tolist()
        for t in (1, 8, 40)
    }
    assert kept[1] != kept[8] != kept[40] != kept[1]
    for depth, expected in ((12, [40] * 3 + [8] * 6 + [1] * 3), (5, [40, 40, 8, 1, 1]), (1, [40])):
        for layer, t in enumerate(expected):
            by_depth = tokenreduce.plan(
                x, "zero_tprune", keep=8, attention=a, prefix=1, layer=layer, depth=depth
            ).rep.tolist()
            assert by_depth == kept[t]


def test_a_permuted_image_keeps_the_same_tokens() -> None:
    a, x = attention(25, batch=1), torch.randn(1, 24, 6)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    whole = torch.cat([torch.zeros(1, dtype=torch.long), order + 1])
    first, second = plan(a, x, 10), plan(a[:, :, whole][..., whole], x[:, order], 10)
    assert sorted(order[second.rep[0]].tolist()) == first.rep[0].tolist()


def test_options() -> None:
    for options in (
        {"start": "class"},
        {"similarity": 1.5},
        {"similarity": -0.1},
        {"iterations": 0},
        {"iterations": 2.0},
        {"variance_min": 0.8},
        {"variance_max": True},
    ):
        with pytest.raises((ValueError, TypeError), match=next(iter(options))):
            create("zero_tprune", options)
    assert create("zero_tprune", {"similarity": 1}).similarity == 1


def test_by_default_similarity_alone_drops() -> None:
    """The same whatever the number of votes, as long as half of the tokens stay."""
    given_to_plan = {"attention": attention(25), "prefix": 1}
    x = torch.randn(2, 24, 6, generator=torch.Generator().manual_seed(0))
    few, many = (
        tokenreduce.plan(x, "zero_tprune", keep=12, iterations=votes, **given_to_plan).rep for votes in (1, 40)
    )
    assert torch.equal(few, many)
    few, many = (tokenreduce.plan(x, "zero_tprune", keep=4, iterations=votes, **given_to_plan).rep for votes in (1, 40))
    assert not torch.equal(few, many)
