"""`spectral` against a slow reference written straight from section 3.2 of the specification."""

from __future__ import annotations

import math

import pytest
import torch
from cases import cases
from clustering import blobs, canonical, check_map, check_partition, density_peaks, inputs, k_means, k_medoids, squared
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.registry import create


def rows_norms_and_gap(points, keep, sigma) -> tuple[list[list[float]], list[float], float]:
    """Normalised rows of the eigenvectors in double precision, their norms before, and the gap behind the last
    eigenvalue taken."""
    n = len(points)
    pairs = sorted(squared(points[i], points[j]) for i in range(n) for j in range(n) if i != j)
    median = max(pairs[(len(pairs) - 1) // 2], 1e-12)
    graph = [[math.exp(-squared(a, b) / (2 * sigma**2 * median)) for b in points] for a in points]
    degree = [sum(row) for row in graph]
    laplacian = [[float(i == j) - graph[i][j] / math.sqrt(degree[i] * degree[j]) for j in range(n)] for i in range(n)]
    values, vectors = torch.linalg.eigh(torch.tensor(laplacian, dtype=torch.float64))
    rows = vectors[:, :keep]
    norm = rows.norm(dim=1, keepdim=True)
    return (rows / norm).tolist(), norm[:, 0].tolist(), float(values[keep] - values[keep - 1])


def farthest_first(rows, norms, keep) -> tuple[list[int], float]:
    """The row of largest norm, then again and again the one farthest from those chosen; by how much the closest of
    these choices was made."""
    chosen, margin, score = [], math.inf, list(norms)
    for _ in range(keep):
        first, second = sorted(range(len(rows)), key=lambda i: -score[i])[:2]
        margin = min(margin, score[first] - score[second])
        chosen.append(first)
        score = [-1.0 if i in chosen else min(squared(rows[i], rows[j]) for j in chosen) for i in range(len(rows))]
    return sorted(chosen), margin


def expected(points, mass, keep, clusters, sigma, seeding, iterations) -> tuple[list[int], list[int]] | None:
    """None where rounding may decide: eigenvalues equal across the cut, rows equal, or seeds chosen by a hair."""
    rows, norms, gap = rows_norms_and_gap(points, keep, sigma)
    if seeding == "kkz":
        start, margin = farthest_first(rows, norms, keep)
    else:
        _, gaps = density_peaks(rows, 5)
        cost = sorted((w * g for w, g in zip(mass, gaps, strict=True)), reverse=True)
        start = sorted(sorted(range(len(rows)), key=lambda i: -mass[i] * gaps[i])[:keep])
        margin = cost[keep - 1] - cost[keep]
    close = min(squared(a, b) for i, a in enumerate(rows) for b in rows[:i])
    if gap < 1e-3 or close < 1e-4 or margin < 1e-3:
        return None
    return (k_means if clusters == "kmeans" else k_medoids)(rows, mass, start, iterations)


@settings(max_examples=80, deadline=None)
@given(
    cases(least=2),
    st.data(),
    st.sampled_from(["keys", "features"]),
    st.sampled_from(["size", "attention"]),
    st.sampled_from(["kmedoids", "kmeans"]),
    st.sampled_from([0.3, 0.5, 1]),
    st.sampled_from(["kkz", "density"]),
)
def test_matches_the_specification(case, data, metric, weights, clusters, sigma, seeding) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    points, mass, arguments = inputs(case, metric, weights)
    options = {"clusters": clusters, "sigma": sigma, "seeding": seeding}
    token_map = tokenreduce.plan(case.x, "spectral", keep=keep, **options, **arguments)
    check_partition(token_map, keep)
    wanted = expected(points, mass, keep, clusters, sigma, seeding, 5)
    if wanted is not None:
        check_map(token_map, case, *wanted, mass)


@pytest.mark.parametrize("seeding", ["kkz", "density"])
def test_most_random_cases_are_compared(seeding) -> None:
    g = torch.Generator().manual_seed(0)
    points = [torch.randn(12, 4, generator=g).tolist() for _ in range(20)]
    found = [expected(p, [1.0] * 12, 5, "kmedoids", 0.5, seeding, 5) for p in points]
    assert sum(f is not None for f in found) >= 15


@pytest.mark.parametrize("clusters", ["kmedoids", "kmeans"])
@pytest.mark.parametrize("seeding", ["density", "weight", "kkz"])
def test_blobs_are_found(clusters, seeding) -> None:
    x, label = blobs(6, 7)
    sizes = torch.zeros(1, 42) + 1
    sizes[0, [label[0].tolist().index(m) for m in range(6)]] = 2  # one heavy token in each blob, for "weight"
    token_map = tokenreduce.plan(x, "spectral", keep=6, sizes=sizes, clusters=clusters, seeding=seeding)
    assert torch.equal(canonical(token_map.dest, 6), canonical(label, 6))


def rings() -> tuple[torch.Tensor, torch.Tensor]:
    """Two concentric rings of 40 points, `(1, 80, 2)`."""
    angle = torch.arange(40) * (2 * math.pi / 40)
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    label = torch.arange(80) % 2
    x = torch.empty(80, 2)
    x[0::2], x[1::2] = circle, 3 * circle + 0.01
    return x[None], label[None]


def test_separates_what_k_means_cannot() -> None:
    x, label = rings()
    spectral = tokenreduce.plan(x, "spectral", keep=2, sigma=0.1)
    assert torch.equal(canonical(spectral.dest, 2), label)
    assert not torch.equal(canonical(tokenreduce.plan(x, "kmeans", keep=2).dest, 2), label)


def test_agrees_with_scikit_learn() -> None:
    """Its embedding is the eigenvectors divided by sqrt(degree), which normalising the rows takes away."""
    cluster = pytest.importorskip("sklearn.cluster")
    from tokenreduce.reducers.methods.spectral import affinity

    x = torch.cat([torch.randn(1, 15, 3, generator=torch.Generator().manual_seed(i)) + 2.5 * i for i in range(3)], 1)
    graph = affinity((x[0, :, None] - x[0]).square().sum(-1)[None], 0.5)[0].double().numpy()
    other = cluster.SpectralClustering(3, affinity="precomputed", random_state=0).fit(graph).labels_
    token_map = tokenreduce.plan(x, "spectral", keep=3, clusters="kmeans")
    agreement = cluster_agreement(token_map.dest[0].tolist(), other.tolist())
    assert agreement >= 0.95


def cluster_agreement(a: list[int], b: list[int]) -> float:
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    return sum((a[i] == a[j]) == (b[i] == b[j]) for i, j in pairs) / len(pairs)


@pytest.mark.parametrize("clusters", ["kmedoids", "kmeans"])
@pytest.mark.parametrize("seeding", ["density", "kkz"])
def test_signs_of_the_eigenvectors_do_not_matter(clusters, seeding, monkeypatch) -> None:
    from tokenreduce.reducers.methods import spectral

    x, own = torch.randn(2, 30, 6), spectral.eigenvectors
    plain = tokenreduce.plan(x, "spectral", keep=9, clusters=clusters, seeding=seeding)
    signs = torch.tensor([1.0, -1, -1, 1, -1, 1, 1, -1, 1])
    monkeypatch.setattr(spectral, "eigenvectors", lambda graph, count: own(graph, count) * signs)
    flipped = tokenreduce.plan(x, "spectral", keep=9, clusters=clusters, seeding=seeding)
    assert torch.equal(plain.dest, flipped.dest) and torch.equal(plain.rep, flipped.rep)


def test_the_scale_of_the_features_does_not_matter() -> None:
    x = torch.randn(2, 30, 6, generator=torch.Generator().manual_seed(0))
    plain, large = tokenreduce.plan(x, "spectral", keep=9), tokenreduce.plan(64 * x, "spectral", keep=9)
    assert torch.equal(plain.dest, large.dest)


def test_options() -> None:
    assert create("spectral", {"sigma": 1}).sigma == 1
    for sigma in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="it must be positive and finite"):
            create("spectral", {"sigma": sigma})
    with pytest.raises(ValueError, match="clusters is 'mean'; valid: 'kmedoids', 'kmeans'"):
        create("spectral", {"clusters": "mean"})
    with pytest.raises(ValueError, match="iterations is 0; it must be 1 or more"):
        create("spectral", {"iterations": 0})
