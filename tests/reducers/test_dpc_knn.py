"""`dpc_knn` against a slow reference written straight from section 3.3 of the specification."""

from __future__ import annotations

import math

import pytest
import torch
from cases import cases
from clustering import blobs, canonical, check_map, check_partition, density_peaks, inputs, squared
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.registry import create


def reference(points, keep, k) -> tuple[list[int], list[int]]:
    scaled = [[value / math.sqrt(len(p)) for value in p] for p in points]
    density, gaps = density_peaks(scaled, k)
    score = [r + (math.log(math.sqrt(g)) if g else -math.inf) for r, g in zip(density, gaps, strict=True)]
    centres = sorted(sorted(range(len(points)), key=lambda i: (-round(score[i], 5), i))[:keep])
    labels = [min(range(keep), key=lambda m: (squared(p, points[centres[m]]), m)) for p in points]
    for m, i in enumerate(centres):
        labels[i] = m
    return labels, centres


@settings(max_examples=100, deadline=None)
@given(
    cases(least=2),
    st.data(),
    st.sampled_from(["keys", "features"]),
    st.sampled_from(["size", "attention"]),
    st.integers(1, 9),
)
def test_matches_the_specification(case, data, metric, weights, neighbours) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    points, mass, arguments = inputs(case, metric, weights)
    token_map = tokenreduce.plan(case.x, "dpc_knn", keep=keep, neighbours=neighbours, **arguments)
    check_partition(token_map, keep)
    check_map(token_map, case, *reference(points, keep, neighbours), mass)


def test_one_centre_in_each_blob() -> None:
    x, label = blobs(6, 9)
    token_map = tokenreduce.plan(x, "dpc_knn", keep=6)
    assert torch.equal(canonical(token_map.dest, 6), canonical(label, 6))
    assert sorted(label[0, token_map.rep[0]].tolist()) == list(range(6))


def test_a_constant_vector_on_all_tokens_changes_nothing() -> None:
    x = torch.randn(2, 60, 16, generator=torch.Generator().manual_seed(0))
    plain = tokenreduce.plan(x, "dpc_knn", keep=20, metric="features")
    moved = tokenreduce.plan(x + torch.linspace(-30, 30, 16), "dpc_knn", keep=20, metric="features")
    assert torch.equal(plain.dest, moved.dest) and torch.equal(plain.rep, moved.rep)


def test_large_features_do_not_underflow() -> None:
    """At this scale every density is 0 in fp32; in log form the choice is that in double precision."""
    x = 60 * torch.randn(1, 40, 4, generator=torch.Generator().manual_seed(0))
    labels, centres = reference(x[0].tolist(), 10, 5)
    token_map = tokenreduce.plan(x, "dpc_knn", keep=10)
    assert token_map.rep[0].tolist() == centres and token_map.dest[0].tolist() == labels


def test_permuted_tokens_give_the_permuted_map() -> None:
    g = torch.Generator().manual_seed(0)
    x, order = torch.randn(1, 30, 6, generator=g), torch.randperm(30, generator=g)
    plain, moved = (tokenreduce.plan(t, "dpc_knn", keep=9) for t in (x, x[:, order]))
    assert torch.equal(canonical(plain.dest[:, order], 9), canonical(moved.dest, 9))


def test_options() -> None:
    with pytest.raises(ValueError, match="neighbours is 0; it must be 1 or more"):
        create("dpc_knn", {"neighbours": 0})
    with pytest.raises(TypeError, match=r"neighbours is 2\.5; it must be of type int"):
        create("dpc_knn", {"neighbours": 2.5})
