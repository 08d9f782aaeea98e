"""`kmedoids` against a slow reference written straight from sections 3.1 and 3.2 of the specification."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from cases import cases
from clustering import blobs, canonical, check_map, check_partition, inputs, k_medoids, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
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
    options = {"seeding": seeding, "iterations": iterations, **arguments}
    token_map = tokenreduce.plan(case.x, "kmedoids", keep=keep, **options)
    check_partition(token_map, keep)
    labels, medoids = k_medoids(points, mass, seeds(points, mass, keep, seeding), iterations)
    check_map(token_map, case, labels, medoids, mass)

    as_they_are = tokenreduce.plan(case.x, "kmedoids", keep=keep, aggregate=False, **options)
    y, sizes = tokenreduce.apply(as_they_are, case.x, case.sizes)
    assert torch.equal(y[0], case.x[0, sorted(medoids)]), "the medoids' own features"
    assert torch.equal(as_they_are.dest, token_map.dest)
    assert torch.allclose(sizes, token_map.sizes(case.sizes)), "which stand for all members"
    assert torch.allclose(as_they_are.dense() @ case.x, y)


def test_the_medoid_beats_every_other_member_and_the_objective_never_increases() -> None:
    g = torch.Generator().manual_seed(3)
    x, sizes = torch.randn(1, 80, 3, generator=g), torch.randint(1, 5, (1, 80), generator=g).float()
    distance, values = torch.cdist(x[0], x[0], compute_mode="donot_use_mm_for_euclid_dist"), []
    for iterations in range(1, 9):
        token_map = tokenreduce.plan(x, "kmedoids", keep=12, sizes=sizes, seeding="weight", iterations=iterations)
        dest, rep = token_map.dest[0], token_map.rep[0]
        for m in range(12):
            members = (dest == m).nonzero()[:, 0]
            cost = (distance[members][:, members] * sizes[0, members]).sum(1)
            assert cost[members == rep[m]] <= cost.min() + 1e-4
        values.append(float((sizes[0] * distance[torch.arange(80), rep[dest]]).sum()))
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(values))
    assert values[-1] < values[0]


def test_blobs_are_found_and_one_token_is_the_global_medoid() -> None:
    x, label = blobs(6, 7)
    token_map = tokenreduce.plan(x, "kmedoids", keep=6)
    assert torch.equal(canonical(token_map.dest, 6), canonical(label, 6))
    x = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0))
    one = tokenreduce.plan(x, "kmedoids", keep=1, aggregate=False)
    assert int(one.rep) == int(torch.cdist(x[0].double(), x[0].double()).sum(1).argmin())


@pytest.mark.parametrize("aggregate", [True, False])
def test_duplicates_come_back_bit_exactly(aggregate) -> None:
    x = torch.randn(2, 1, 10, 8).repeat(1, 3, 1, 1).flatten(1, 2)
    token_map = tokenreduce.plan(x, "kmedoids", keep=10, aggregate=aggregate)
    assert torch.equal(tokenreduce.restore(token_map, token_map.apply(x)), x)


def test_options() -> None:
    with pytest.raises(ValueError, match="iterations is -1; it must be 1 or more"):
        create("kmedoids", {"iterations": -1})
    with pytest.raises(TypeError, match="aggregate is 1; it must be of type bool"):
        create("kmedoids", {"aggregate": 1})
