"""Slow references shared by the tests of clustering methods, point by point in Python numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from cases import Case
from torch import Tensor

import tokenreduce
from tokenreduce import stable_order
from tokenreduce.reducers.parts.clusters import rank_of, representatives

Points = list[list[float]]


def squared(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def mean(points: Points, weight: list[float], members: list[int]) -> list[float]:
    total = sum(weight[i] for i in members)
    return [sum(weight[i] * points[i][c] for i in members) / total for c in range(len(points[0]))]


def density_peaks(points: Points, k: int) -> tuple[list[float], list[float]]:
    """Log density and squared distance to the nearest denser point."""
    everyone = range(len(points))
    distances = [[squared(a, b) for b in points] for a in points]
    k = min(k, len(points))
    density = [-sum(sorted(row)[:k]) / k for row in distances]
    gaps = []
    for i in everyone:
        denser = [j for j in everyone if (density[j], -j) > (density[i], -i)]
        gaps.append(min(distances[i][j] for j in denser) if denser else max(map(max, distances)))
    return density, gaps


def seeds(points: Points, weight: list[float], keep: int, seeding: str) -> list[int]:
    everyone = range(len(points))
    if seeding != "kkz":
        _, gaps = density_peaks(points, 5)
        score = weight if seeding == "weight" else [w * g for w, g in zip(weight, gaps, strict=True)]
        return sorted(sorted(everyone, key=lambda i: (-score[i], i))[:keep])
    chosen = [max(everyone, key=lambda i: (squared(points[i], [0.0] * len(points[i])), -i))]
    while len(chosen) < keep:
        rest = [i for i in everyone if i not in chosen]
        chosen.append(max(rest, key=lambda i: (min(squared(points[i], points[j]) for j in chosen), -i)))
    return sorted(chosen)


def cheapest(members: list[int], cost: list[float]) -> int:
    """Equal costs may differ by rounding; the first of them is taken."""
    return next(i for i in members if cost[i] <= min(cost[m] for m in members) * (1 + 1e-5))


def k_means(points: Points, weight: list[float], start: list[int], iterations: int) -> tuple[list[int], list[int]]:
    """Lloyd's rounds; an empty cluster takes the point of largest cost that is not the nearest of its own centre."""
    n, centres = len(points), [points[i] for i in start]
    for _ in range(iterations):
        labels = [min(range(len(centres)), key=lambda m: (squared(p, centres[m]), m)) for p in points]
        cost = [squared(points[i], centres[labels[i]]) for i in range(n)]
        nearest = {}
        for m in set(labels):
            nearest[m] = cheapest([i for i in range(n) if labels[i] == m], cost)
        spare = [i for i in range(n) if i not in nearest.values()]
        spare.sort(key=lambda i: (-cost[i] * weight[i], i))
        for m in range(len(centres)):
            if m not in nearest:
                nearest[m] = spare.pop(0)
                labels[nearest[m]] = m
        centres = [mean(points, weight, [i for i in range(n) if labels[i] == m]) for m in range(len(centres))]
    return labels, [nearest[m] for m in range(len(centres))]


def k_medoids(points: Points, weight: list[float], medoids: list[int], iterations: int) -> tuple[list[int], list[int]]:
    """Rounds in which a medoid always belongs to its own cluster."""

    def distance(i: int, j: int) -> float:
        return math.sqrt(squared(points[i], points[j]))

    n = len(points)
    for _ in range(iterations):
        labels = [min(range(len(medoids)), key=lambda m: (distance(i, medoids[m]), m)) for i in range(n)]
        for m, i in enumerate(medoids):
            labels[i] = m
        clusters = [[i for i in range(n) if labels[i] == m] for m in range(len(medoids))]
        cost = [sum(weight[t] * distance(i, t) for t in clusters[labels[i]]) for i in range(n)]
        medoids = [cheapest(members, cost) for members in clusters]
    return labels, medoids


def inputs(case: Case, metric: str, weights: str) -> tuple[Points, list[float], dict[str, Any]]:
    """The points and masses of a case, and the arguments for `tokenreduce.plan` that show them."""
    points = (case.mean_keys if metric == "keys" else case.x[0]).tolist()
    received = case.attention[0, :, :, case.prefix :].sum(1).mean(0).tolist()
    arguments = case.arguments("keys", "attention") | {"metric": metric, "weights": weights}
    return points, case.mass if weights == "size" else received, arguments


def check_map(token_map: Any, case: Case, labels: list[int], rep: list[int], mass: list[float]) -> None:
    """The map holds these clusters in ascending order of representative, and merges them by mass."""
    order = sorted(range(len(rep)), key=lambda m: rep[m])
    assert token_map.rep[0].tolist() == [rep[m] for m in order]
    assert token_map.dest[0].tolist() == [order.index(label) for label in labels]
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    for output, m in enumerate(order):
        members = [i for i in range(case.n) if labels[i] == m]
        assert torch.allclose(y[0, output], torch.tensor(mean(case.x[0].tolist(), mass, members)), atol=1e-5)
        assert math.isclose(float(sizes[0, output]), sum(case.mass[i] for i in members), rel_tol=1e-6)


def check_partition(token_map: Any, keep: int) -> None:
    """Every output has members, represents itself, and outputs stand in ascending order of representative."""
    assert token_map.count == keep and token_map.rep.shape[1] == keep
    assert (token_map.rep.diff(dim=1) > 0).all()
    assert torch.equal(token_map.dest.gather(1, token_map.rep), torch.arange(keep).expand_as(token_map.rep))
    both = torch.cat([token_map.rep, token_map.sources], 1).sort(dim=1).values
    assert torch.equal(both, torch.arange(token_map.entered).expand_as(both))


def blobs(count: int, members: int, spread: float = 0.01) -> tuple[Tensor, Tensor]:
    """Well-separated groups of points in mixed order: `(1, count * members, 8)`, and the group of each."""
    g = torch.Generator().manual_seed(0)
    label = torch.arange(count).repeat_interleave(members)[torch.randperm(count * members, generator=g)]
    centres = torch.randn(count, 8, generator=g) * 10
    return (centres[label] + spread * torch.randn(count * members, 8, generator=g))[None], label[None]


def canonical(labels: Tensor, count: int) -> Tensor:
    """`labels (B, N)` in [0, count) renamed so that clusters are ordered by their smallest member index."""
    return rank_of(stable_order(representatives(labels, count), 1)).gather(1, labels)
