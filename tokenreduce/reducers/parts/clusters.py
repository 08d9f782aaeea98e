"""Clustering of batched points `(B, N, d)` without loops over images; every cluster keeps at least one point.

Ties go to the lowest index everywhere. Sums over members are matrix products, which add in the same order every time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.ops.farthest_first import farthest_first
from tokenreduce.ops.order import stable_order

SEEDINGS = ("density", "weight", "kkz")
NEIGHBOURS = 5  # of which the density of a point is made when it seeds
ROUNDING = 2e-6  # squared distances below this part of the norms are what rounding leaves of zero
EQUAL = 1 + 1e-5  # costs within this factor tie: the two members of a pair are equally far from their mean


def representatives(labels: Tensor, count: int) -> Tensor:
    """`(B, count)`: the first member of each cluster, N for an empty one."""
    return _first_member(labels, torch.ones_like(labels, dtype=torch.bool), count)


def cheapest_members(labels: Tensor, cost: Tensor, count: int) -> Tensor:
    """`(B, count)`: the member of least `cost (B, N)` in each cluster, N for an empty one."""
    least = cost.new_full((cost.shape[0], count), float("inf")).scatter_reduce(1, labels, cost, "amin")
    return _first_member(labels, cost <= EQUAL * least.gather(1, labels), count)


def rank_of(order: Tensor) -> Tensor:
    """`(B, N)`: at which place of the permutations `order (B, N)` each index stands."""
    return torch.zeros_like(order).scatter(1, order, indices(order.shape[1], order).expand_as(order))


def squared_distances(points: Tensor) -> Tensor:
    """`(B, N, N)`, symmetric to the last bit; copies of a point have the same distances, 0 between them."""
    points = points - points[:, :1]  # a common offset would cost digits; a point keeps exact differences exact
    product = points @ points.transpose(1, 2)
    norms = product.diagonal(dim1=1, dim2=2)
    scale = norms[:, :, None] + norms[:, None, :]
    distance = scale - (product + product.transpose(1, 2))
    distance = torch.where(distance > ROUNDING * scale, distance, torch.zeros_like(distance))
    # Which bits a product ends in depends on the place of the row in the matrix: copies take those of the first.
    first = (distance == 0).byte().argmax(2)
    distance = distance.gather(1, first[:, :, None].expand_as(distance))
    return distance.gather(2, first[:, None, :].expand_as(distance))


def density_peaks(squared: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Of each point the log of its density and the squared distance to the nearest denser point: `(B, N)` each.

    The density is exp(- mean of the squared distances to the `neighbours` nearest points, itself included). Of equally
    dense points the one of lower index counts as denser; the densest gets the largest distance of its image.
    """
    nearest = squared.topk(min(neighbours, squared.shape[1]), dim=2, largest=False).values
    density = -nearest.mean(-1)
    rank = rank_of(stable_order(density, 1, descending=True))
    denser = rank[:, None, :] < rank[:, :, None]
    gap = squared.masked_fill(~denser, float("inf")).amin(2)
    return density, torch.where(rank == 0, squared.amax((1, 2))[:, None], gap)


def choose_seeds(squared: Tensor, norm: Tensor, weight: Tensor, count: int, seeding: str) -> Tensor:
    """`(B, count)`: different points to start from, in ascending order.

    Args:
        squared: `(B, N, N)`, squared distances.
        norm: `(B, N)`, the points' norms.
        weight: `(B, N)`, how much each point counts.
        seeding: "density": the points whose move to their nearest denser point would cost most, w d^2; "weight": the
            heaviest; "kkz": the one of largest norm, then again and again the one farthest from those chosen.
    """
    if seeding == "kkz":
        return farthest_first(squared, norm.argmax(1), count).sort(dim=1).values
    cost = weight if seeding == "weight" else weight * density_peaks(squared, NEIGHBOURS)[1]
    return stable_order(cost, 1, descending=True)[:, :count].sort(dim=1).values


def join_nearest(distance: Tensor, centres: Tensor) -> Tensor:
    """`(B, N)`: which of the points `centres (B, M)` is nearest by `distance (B, N, N)`; a centre joins itself."""
    rows = distance.gather(1, centres[..., None].expand(-1, -1, distance.shape[2]))
    return rows.argmin(1).scatter(1, centres, indices(centres.shape[1], centres).expand_as(centres))


def k_means(points: Tensor, weight: Tensor, seeds: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Labels `(B, N)` and of each cluster the member nearest to its centre `(B, M)`, by weighted k-means.

    A cluster that ends up empty takes the point that adds most to the objective and is not the nearest of its own
    centre; that lowers the objective, so no round raises it.
    """
    points, count = points - points[:, :1], seeds.shape[1]
    centres = points.gather(1, seeds[..., None].expand(-1, -1, points.shape[2]))
    labels, nearest = _join_centres(points, weight, centres)
    for _ in range(iterations - 1):
        share = (labels[:, None, :] == indices(count, labels)[:, None]) * weight[:, None, :]
        labels, nearest = _join_centres(points, weight, (share @ points) / share.sum(-1, keepdim=True))
    return labels, nearest


def k_means_work(n: int, count: int, width: int, iterations: int) -> int:
    """MACs of `k_means`: every round compares points with centres, every one but the first adds up new centres."""
    return (2 * iterations - 1) * n * count * width


def k_medoids(distance: Tensor, weight: Tensor, seeds: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Labels `(B, N)` and medoids `(B, M)` by weighted k-medoids on `distance (B, N, N)`.

    Each medoid has the least weighted sum of distances to the members of its cluster, of all its members.
    """
    medoids = seeds
    for _ in range(iterations):
        labels = join_nearest(distance, medoids)
        together = labels[:, :, None] == labels[:, None, :]
        cost = (distance * together) @ weight[..., None]
        medoids = cheapest_members(labels, cost[..., 0], seeds.shape[1])
    return labels, medoids


def indices(count: int, like: Tensor) -> Tensor:
    """0 ... count - 1 on the device of `like`."""
    return torch.arange(count, device=like.device)


def _first_member(labels: Tensor, eligible: Tensor, count: int) -> Tensor:
    n = labels.shape[1]
    place = indices(n, labels).expand_as(labels).masked_fill(~eligible, n)
    return place.new_full((labels.shape[0], count), n).scatter_reduce(1, labels, place, "amin")


def _join_centres(points: Tensor, weight: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Labels by nearest of `centres (B, M, d)`, and of each cluster the nearest member; no cluster stays empty."""
    n, count = points.shape[1], centres.shape[1]
    distance = centres.square().sum(-1)[:, None] - 2 * (points @ centres.transpose(1, 2))
    labels = distance.argmin(2)
    cost = (points - centres.gather(1, labels[..., None].expand_as(points))).square().sum(-1)
    cost = cost.masked_fill(cost <= ROUNDING**2 * points.square().sum(-1), 0.0)  # the mean of copies
    nearest = cheapest_members(labels, cost, count)
    empty, stays = nearest == n, nearest.gather(1, labels) == indices(n, labels)
    spare = stable_order((cost * weight).masked_fill(stays, -1.0), 1, descending=True)
    taken = spare.gather(1, (empty.cumsum(1) - 1).clamp_min(0))
    # Clusters that are not empty write into a column after the last point, which is cut off again.
    widened = torch.cat([labels, labels[:, :1]], 1)
    widened = widened.scatter(1, taken.masked_fill(~empty, n), indices(count, labels).expand_as(taken))
    return widened[:, :n], torch.where(empty, taken, nearest)
