"""Agglomerative clustering against scipy, scikit-learn and the definitions of the linkages."""

from __future__ import annotations

import copy
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import linkage as scipy_linkage
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import squareform
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor

from tokenreduce.ops import linkage as module
from tokenreduce.ops.linkage import (
    LINKAGES,
    agglomerate,
    agglomerate_compiled,
    agglomerate_image,
    agglomerate_reference,
    compiled,
    members_of,
)

every_linkage = pytest.mark.parametrize("linkage", LINKAGES)


def random_distances(batch: int, n: int, seed: int = 0) -> Tensor:
    unit = torch.nn.functional.normalize(torch.randn(batch, n, 6, generator=torch.Generator().manual_seed(seed)), dim=2)
    upper = (1 - unit @ unit.transpose(1, 2)).triu(1)
    return upper + upper.transpose(1, 2)


def first_members(labels: list[int]) -> list[int]:
    """Any labels as the smallest member of each cluster."""
    return [list(labels).index(label) for label in labels]


def by_definition(distance: list[list[float]], keep: int, linkage: str) -> list[int]:
    """Clusters as lists of members, compared pair by pair from the distances of their members."""
    clusters = [[i] for i in range(len(distance))]

    def between(a: list[int], b: list[int]) -> float:
        pairs = [distance[i][j] for i in a for j in b]
        return {"single": min(pairs), "complete": max(pairs), "average": sum(pairs) / len(pairs)}[linkage]

    while len(clusters) > keep:
        count = len(clusters)
        pairs = [(between(clusters[p], clusters[q]), p, q) for p in range(count) for q in range(p + 1, count)]
        _, p, q = min(pairs)  # clusters stay ordered by first member
        clusters[p] = sorted(clusters[p] + clusters.pop(q))
    return [next(c[0] for c in clusters if i in c) for i in range(len(distance))]


@every_linkage
@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(0, 10**6), st.data())
def test_agrees_with_scipy_and_scikit_learn(linkage, n, seed, data) -> None:
    distance, keep = random_distances(1, n, seed), data.draw(st.integers(1, n - 1))
    found = agglomerate(distance, keep, linkage)[0].tolist()
    matrix = distance[0].double().numpy()
    # Ward is defined on the Euclidean distances of the normalised vectors.
    condensed = squareform((2 * matrix) ** 0.5 if linkage == "ward" else matrix, checks=False)
    assert found == first_members(fcluster(scipy_linkage(condensed, linkage), keep, "maxclust").tolist())
    if linkage != "ward":
        other = AgglomerativeClustering(keep, metric="precomputed", linkage=linkage).fit_predict(matrix)
        assert found == first_members(other.tolist())


def test_single_linkage_cuts_the_minimum_spanning_tree() -> None:
    distance = random_distances(1, 40)
    tree = minimum_spanning_tree(distance[0].double().numpy()).toarray()
    for keep in (1, 2, 7, 39):
        cut = tree.copy()
        for edge in sorted(zip(*tree.nonzero(), strict=True), key=lambda e: -tree[e])[: keep - 1]:
            cut[edge] = 0
        expected = first_members(connected_components(cut, directed=False)[1].tolist())
        assert agglomerate(distance, keep, "single")[0].tolist() == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6), st.sampled_from(["single", "complete", "average"]), st.data())
def test_ties_go_to_the_lowest_pair(n, seed, linkage, data) -> None:
    # Averages over two members are exact; those over three round, alike in both kernels only.
    removed = data.draw(st.integers(0, min(2, n - 1) if linkage == "average" else n - 1))
    keep = n - removed
    values = torch.randint(0, 3, (1, n, n), generator=torch.Generator().manual_seed(seed)).float()
    symmetric = (values.triu(1) + values.triu(1).transpose(1, 2))[0].tolist()
    assert agglomerate(values, keep, linkage)[0].tolist() == by_definition(symmetric, keep, linkage)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 24),
    st.sampled_from(LINKAGES),
    st.sampled_from(["random", "ties", "zeros", "equal", "infinite"]),
    st.integers(0, 10**6),
    st.data(),
)
def test_both_kernels_take_the_same_decisions(batch, n, linkage, kind, seed, data) -> None:
    g = torch.Generator().manual_seed(seed)
    values = torch.rand(batch, n, n, generator=g)
    if kind == "ties":
        values = torch.randint(0, 4, (batch, n, n), generator=g) / 3.0
    elif kind == "zeros":
        values = values * (torch.rand(batch, n, n, generator=g) > 0.5)
    elif kind == "equal":
        values = torch.full_like(values, 0.1)
    elif kind == "infinite":
        values = torch.where(values > 0.8, 1e30, values)
    between = values.triu(1) + values.triu(1).transpose(1, 2)
    keep = data.draw(st.integers(1, n))
    expected = agglomerate_reference(between.clone(), members_of(between, None), keep, linkage)
    assert all(len(set(labels)) == keep for labels in expected.tolist())
    for kernel in (agglomerate_image, compiled()):
        assert torch.equal(
            agglomerate_compiled(kernel, between.clone(), members_of(between, None), keep, linkage), expected
        )


def test_a_merge_that_makes_a_tie_moves_the_remembered_neighbour() -> None:
    """Once 1 takes 3, cluster 0 is as far from 1 as from 2, which it remembers."""
    distance = torch.tensor([[[0.0, 3, 1, 1], [3, 0, 3, 0], [1, 3, 0, 3], [1, 0, 3, 0]]])
    for kernel in (agglomerate_image, compiled()):
        assert agglomerate_compiled(kernel, distance.clone(), members_of(distance, None), 2, "single").tolist() == [
            [0, 0, 2, 0]
        ]
    assert agglomerate_reference(distance.clone(), members_of(distance, None), 2, "single").tolist() == [[0, 0, 2, 0]]


def test_a_larger_random_case_with_exact_neighbours_cached() -> None:
    distance = random_distances(3, 150)
    for linkage in LINKAGES:
        for keep in (1, 20, 75):
            expected = agglomerate_reference(distance.clone(), members_of(distance, None), keep, linkage)
            assert torch.equal(agglomerate(distance, keep, linkage), expected)


def test_not_numbers_do_not_leave_the_arrays() -> None:
    nothing = torch.full((1, 9, 9), torch.nan)
    assert len(set(agglomerate(nothing, 4, "average")[0].tolist())) == 4


def test_without_numba_the_reference_runs(monkeypatch) -> None:
    distance = random_distances(2, 12)
    expected = agglomerate(distance, 5, "average")
    monkeypatch.setitem(sys.modules, "numba", None)
    compiled.cache_clear()
    try:
        assert compiled() is None
        assert torch.equal(agglomerate(distance, 5, "average"), expected)
    finally:
        compiled.cache_clear()


def test_without_a_folder_for_its_cache_the_kernel_compiles_anyway(monkeypatch) -> None:
    import numba

    njit, tried = numba.njit, []

    def refusing(**options):
        tried.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", refusing)
    compiled.cache_clear()
    try:
        assert compiled() is not None and tried == [True, False]
    finally:
        compiled.cache_clear()


def test_threads_inside_and_outside(monkeypatch) -> None:
    monkeypatch.setattr(module, "WORTH_THREADS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    distance = random_distances(7, 60)
    expected = agglomerate_reference(distance.clone(), members_of(distance, None), 20, "average")
    right = []
    threads = [
        threading.Thread(target=lambda: right.append(torch.equal(agglomerate(distance, 20, "average"), expected)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 4


class Clusters(torch.nn.Module):
    def forward(self, distance: Tensor) -> Tensor:
        return agglomerate(distance * 1.0, 4, "complete")


def test_one_operator_in_compiled_and_exported_graphs() -> None:
    torch._dynamo.reset()
    first, other = random_distances(2, 10), random_distances(5, 10, seed=1)
    assert torch.equal(torch.compile(Clusters(), fullgraph=True, backend="aot_eager")(first), Clusters()(first))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Clusters(), (first,), dynamic_shapes=({0: batch},))
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert [str(node.target) for node in calls if "tokenreduce" in str(node.target)] == [
        "tokenreduce.agglomerate.default"
    ]
    assert torch.equal(copy.deepcopy(program.module())(other), Clusters()(other))
    torch.library.opcheck(torch.ops.tokenreduce.agglomerate, (first, 4, "average"))
