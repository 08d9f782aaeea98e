"""`atc` against a slow reference written straight from section 3.4 of the specification."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from cases import Case, cases
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.ops.linkage import LINKAGES


def cosine_distances(case: Case) -> list[list[float]]:
    unit = [key / key.norm().clamp_min(1e-6) for key in case.mean_keys.double()]
    return [[1 - float(a @ b) for b in unit] for a in unit]


def linkage_distance(a: list[int], b: list[int], distance: list[list[float]], linkage: str) -> float:
    """Straight from the members, no update formula."""

    def mean(first: list[int], second: list[int]) -> float:
        return sum(distance[i][j] for i in first for j in second) / (len(first) * len(second))

    pairs = [distance[i][j] for i in a for j in b]
    if linkage == "ward":  # the growth of the squared error, with |z_i - z_j|^2 = 2 d_ij
        between_means = 2 * mean(a, b) - mean(a, a) - mean(b, b)
        return len(a) * len(b) / (len(a) + len(b)) * between_means
    return {"single": min(pairs), "complete": max(pairs), "average": mean(a, b)}[linkage]


def reference(case: Case, keep: int, linkage: str) -> list[list[int]]:
    """The members of each cluster, ordered by first member."""
    distance, clusters = cosine_distances(case), [[i] for i in range(case.n)]
    while len(clusters) > keep:
        best = None
        for p in range(len(clusters)):
            for q in range(p + 1, len(clusters)):
                gap = round(linkage_distance(clusters[p], clusters[q], distance, linkage), 12)
                if best is None or gap < best[0]:
                    best = (gap, p, q)
        _, p, q = best
        clusters[p] = sorted(clusters[p] + clusters.pop(q))
    return clusters


@settings(max_examples=100, deadline=None)
@given(cases(least=2), st.sampled_from(LINKAGES), st.data())
def test_matches_the_specification(case, linkage, data) -> None:
    # Ward's ties are equal only before rounding, and zero vectors are no unit vectors.
    assume(linkage != "ward" or case.kind == "random")
    keep = data.draw(st.integers(1, case.n - 1))
    token_map = tokenreduce.plan(case.x, "atc", keep=keep, linkage=linkage, **case.arguments("keys"))
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    clusters = reference(case, keep, linkage)
    assert len(clusters) == keep == token_map.count
    for output, members in enumerate(clusters):
        mass = [case.mass[i] for i in members]
        mean = sum(m * case.x[0, i] for m, i in zip(mass, members, strict=True)) / sum(mass)
        assert torch.allclose(y[0, output], mean, atol=1e-5)
        assert float(sizes[0, output]) == sum(mass)
        assert all(int(token_map.dest[0, i]) == output for i in members)
    assert token_map.rep[0].tolist() == [members[0] for members in clusters]
    assert sorted(token_map.sources[0].tolist()) == sorted(i for members in clusters for i in members[1:])


@pytest.mark.parametrize("linkage", LINKAGES)
def test_well_separated_groups_are_found_and_come_back(linkage) -> None:
    x = torch.eye(8)[torch.tensor([3, 1, 3, 0, 1, 7, 3, 0])].expand(2, 8, 8)
    token_map = tokenreduce.plan(x, "atc", keep=4, linkage=linkage)
    y, sizes = tokenreduce.apply(token_map, x)
    assert token_map.dest.tolist() == [[0, 1, 0, 2, 1, 3, 0, 2]] * 2
    assert torch.equal(tokenreduce.restore(token_map, y), x)
    assert sizes.tolist() == [[3, 2, 2, 1]] * 2


@pytest.mark.parametrize("linkage", LINKAGES)
def test_shuffled_tokens_give_the_same_clusters(linkage) -> None:
    g = torch.Generator().manual_seed(0)
    x, order = torch.randn(1, 30, 8, generator=g), torch.randperm(30, generator=g)
    together = [
        (label[:, None] == label)
        for label in (
            tokenreduce.plan(x, "atc", keep=9, linkage=linkage).dest[0],
            tokenreduce.plan(x[:, order], "atc", keep=9, linkage=linkage).dest[0],
        )
    ]
    assert torch.equal(together[0][order][:, order], together[1])


def test_linkages_differ_and_are_checked() -> None:
    x = torch.randn(1, 60, 8, generator=torch.Generator().manual_seed(0))
    found = {tuple(tokenreduce.plan(x, "atc", keep=15, linkage=name).dest[0].tolist()) for name in LINKAGES}
    assert len(found) == len(LINKAGES)
    with pytest.raises(ValueError, match="linkage is 'centroid'; valid: 'average', 'single', 'complete', 'ward'"):
        tokenreduce.plan(x, "atc", keep=15, linkage="centroid")


def test_keys_that_are_no_numbers_still_leave_the_count() -> None:
    keys = torch.randn(1, 10, 4)
    keys[0, 3] = torch.nan
    keys[0, 5] = torch.inf
    token_map = tokenreduce.plan(torch.randn(1, 10, 4), "atc", keep=6, keys=keys)
    assert sorted(set(token_map.dest[0].tolist())) == list(range(6))


def test_in_every_block() -> None:
    model, x = fresh_model(BY_NAME["timm_vit_qk_norm"]), BY_NAME["timm_vit_qk_norm"].images()
    tokenreduce.patch(model, "atc", r=9)
    model(x)
    assert tokenreduce.report(model).tokens == (55, 46, 37, 28)
    counted = tokenreduce.count_flops(model, x[:1])
    assert counted.uncounted == {} and counted.reducer > 0
    tokenreduce.patch(tokenreduce.unpatch(model), "atc", flops=0.7)
    assert model(x).isfinite().all()
    left = tokenreduce.report(model).tokens
    removed = [a - b for a, b in zip((64, *left), left, strict=False)]
    assert min(removed) >= 1 and max(removed) - min(removed) <= 1, "the same count, up to rounding"
