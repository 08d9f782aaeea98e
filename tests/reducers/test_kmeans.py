"""`kmeans` against a slow reference written straight from section 3.1 of the specification."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from cases import cases
from clustering import blobs, canonical, check_map, check_partition, inputs, k_means, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.parts.clusters import representatives
from tokenreduce.reducers.registry import create


@settings(max_examples=100, deadline=None)
@given(
    cases(least=2),
    st.data(),
    st.sampled_from(["keys", "features"]),
    st.sampled_from(["size", "attention"]),
    st.sampled_from(["density", "weight", "kkz"]),
    st.integers(1, 6),
)
def test_matches_the_specification(case, data, metric, weights, seeding, iterations) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    points, mass, arguments = inputs(case, metric, weights)
    token_map = tokenreduce.plan(case.x, "kmeans", keep=keep, seeding=seeding, iterations=iterations, **arguments)
    check_partition(token_map, keep)
    labels, nearest = k_means(points, mass, seeds(points, mass, keep, seeding), iterations)
    check_map(token_map, case, labels, nearest, mass)


def objective(token_map, x, sizes) -> float:
    back = token_map.restore(token_map.apply(x, sizes))
    return float((sizes * (back - x).square().sum(-1)).sum())


@pytest.mark.parametrize("seeding", ["density", "weight", "kkz"])
@pytest.mark.parametrize("duplicates", [False, True])
def test_objective_never_increases(seeding, duplicates) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1, 60, 3, generator=g)
    x = torch.cat([x, x[:, :20]], 1) if duplicates else x
    sizes = torch.randint(1, 5, x.shape[:2], generator=g).float()
    values = []
    for iterations in range(1, 9):
        token_map = tokenreduce.plan(x, "kmeans", keep=12, sizes=sizes, seeding=seeding, iterations=iterations)
        values.append(objective(token_map, x, sizes))
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(values))
    assert values[-1] < values[0]


def test_agrees_with_scikit_learn_from_the_same_start() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x = torch.randn(1, 100, 4, generator=torch.Generator().manual_seed(1))
    sizes = torch.randint(1, 5, (1, 100), generator=torch.Generator().manual_seed(2)).float()
    token_map = tokenreduce.plan(x, "kmeans", keep=8, sizes=sizes, seeding="weight", iterations=100)
    start = x[0, sorted(range(100), key=lambda i: (-float(sizes[0, i]), i))[:8]].numpy()
    other = cluster.KMeans(8, init=start, n_init=1, max_iter=100, tol=0).fit(x[0].numpy(), sample_weight=sizes[0])
    assert objective(token_map, x, sizes) == pytest.approx(other.inertia_, rel=1e-4)


def test_blobs_are_found_and_one_token_is_the_weighted_mean() -> None:
    x, label = blobs(6, 7)
    token_map = tokenreduce.plan(x, "kmeans", keep=6)
    assert torch.equal(canonical(token_map.dest, 6), canonical(label, 6))
    sizes = torch.rand(1, 42) + 1
    y, grown = tokenreduce.apply(tokenreduce.plan(x, "kmeans", keep=1, sizes=sizes), x, sizes)
    assert torch.allclose(y, (sizes[..., None] * x).sum(1, keepdim=True) / sizes.sum(), atol=1e-5)
    assert torch.allclose(grown, sizes.sum(1, keepdim=True))


def test_an_empty_cluster_takes_the_token_of_largest_weighted_cost() -> None:
    x = torch.tensor([[[0.0], [0.0], [3.0], [-4.0]]])
    sizes = torch.tensor([[9.0, 9.0, 4.0, 1.0]])  # both seeds stand at 0; 4 * 3^2 is more than 1 * 4^2
    token_map = tokenreduce.plan(x, "kmeans", keep=2, sizes=sizes, seeding="weight", iterations=1)
    assert token_map.dest.tolist() == [[0, 0, 1, 0]]


def test_duplicates_merge_bit_exactly() -> None:
    x = torch.randn(2, 1, 10, 8).repeat(1, 3, 1, 1).flatten(1, 2)
    token_map = tokenreduce.plan(x, "kmeans", keep=10)
    assert torch.equal(tokenreduce.restore(token_map, token_map.apply(x)), x)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 10**6))
def test_canonical_labels_and_first_members(n, count, seed) -> None:
    labels = torch.randint(0, count, (2, n), generator=torch.Generator().manual_seed(seed))
    named, first = canonical(labels, count), representatives(labels, count)
    for row, old, firsts in zip(named.tolist(), labels.tolist(), first.tolist(), strict=True):
        order = list(dict.fromkeys(old))
        assert row == [order.index(label) for label in old]
        assert firsts == [old.index(m) if m in old else n for m in range(count)]


def test_options() -> None:
    assert create("kmeans", {}).required() == {"mean_keys"}
    assert create("kmeans", {"metric": "features"}).required() == frozenset()
    assert create("kmeans", {"weights": "attention"}).required() == {"mean_keys", "received_attention"}
    with pytest.raises(ValueError, match="iterations is 0; it must be 1 or more"):
        create("kmeans", {"iterations": 0})
    with pytest.raises(ValueError, match="seeding is 'random'; valid: 'density', 'weight', 'kkz'"):
        create("kmeans", {"seeding": "random"})
    with pytest.raises(ValueError, match="weights is 'norm'; valid: 'size', 'attention'"):
        create("kmeans", {"weights": "norm"})


@pytest.mark.parametrize("metric", ["keys", "features"])
def test_tokens_of_one_channel(metric: str) -> None:
    x = torch.tensor([[[0.0], [0.1], [5.0], [5.2]]])
    token_map = tokenreduce.plan(x, "kmeans", keep=2, metric=metric)
    assert token_map.dest.tolist() == [[0, 0, 1, 1]]
