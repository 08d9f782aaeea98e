"""The compiled agglomerative clustering of `ward` against the reference on the matrix of all costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_calls import DTYPES, FIELDS, STRIDES, kernel, strided

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.linkage import agglomerate
from tokenreduce.ops.native import dispatch
from tokenreduce.reducers.methods.ward import costs
from tokenreduce.reducers.parts.labels import map_of_clusters
from tokenreduce.reducers.parts.sketch import signs

pytestmark = pytest.mark.skipif(bool(dispatch.load()), reason=f"kernels cannot be compiled here: {dispatch.load()}")


def call(*args: object) -> TokenMap:
    dest, rep, sources = kernel("ward_cluster")(*args)
    return TokenMap(rep.shape[1], dest=dest, rep=rep, sources=sources)


def expected(points: torch.Tensor, sizes: torch.Tensor | None, keep: int) -> TokenMap:
    return map_of_clusters(agglomerate(costs(points.float(), sizes), keep, "ward", sizes), keep)


def decided(points: torch.Tensor, sizes: torch.Tensor | None, keep: int) -> bool:
    """Whether rounding decides nothing: the clusters are the same in fp64, and where all points are moved."""
    matrices = [costs(moved, sizes) for moved in (points.double(), points, points + 1, points - 1)]
    first, *others = (map_of_clusters(agglomerate(one, keep, "ward", sizes), keep).dest for one in matrices)
    return all(torch.equal(first, other) for other in others)


def equal(a: TokenMap, b: TokenMap) -> None:
    for field in FIELDS:
        assert torch.equal(getattr(a, field), getattr(b, field)), field


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.integers(2, 150), st.integers(1, 3), st.sampled_from((1, 5, 16, 33)), STRIDES, st.data())
def test_keys_are_clustered_as_by_the_reference(batch, n, heads, width, how, data) -> None:
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    metric = torch.randn(batch, heads, n, width, generator=g)
    metric = torch.stack([strided(one, how) for one in metric.unbind(1)], 1) if batch else metric
    sizes = data.draw(st.sampled_from((None, torch.randint(1, 9, (batch, n), generator=g).float())))
    keep = data.draw(st.integers(1, n))
    assume(decided(metric.mean(1), sizes, keep))
    equal(call(metric, sizes, None, width, False, keep), expected(metric.mean(1), sizes, keep))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [48, 50, 384])
def test_directions_are_sketched_as_by_the_reference(dtype: torch.dtype, channels: int) -> None:
    x = torch.randn(3, 90, channels, generator=torch.Generator().manual_seed(0)).to(dtype)
    sizes = torch.arange(1, 91).repeat(3, 1).float()
    unit = torch.nn.functional.normalize(x.float(), dim=-1)
    sign = torch.tensor(signs(channels))
    sketch = torch.zeros(3, 90, 24).index_add(2, torch.arange(channels) % 24, unit * sign)
    equal(call(x, sizes, sign, 24, True, 31), expected(sketch, sizes, 31))
    equal(call(x, None, None, channels, True, 60), expected(unit, None, 60))


@pytest.mark.parametrize("odd", [0.0, float("nan"), float("inf"), 1e30])
def test_any_values_make_a_whole_map_and_leave_other_images_alone(odd: float) -> None:
    g = torch.Generator().manual_seed(0)
    plain = torch.randn(2, 40, 16, generator=g)
    mixed = plain.clone()
    mixed[1, ::3] = odd
    found, alone = (call(x, None, None, 16, False, 9) for x in (mixed, plain))
    assert torch.equal(found.dest[0], alone.dest[0])
    assert sorted(found.rep[1].tolist() + found.sources[1].tolist()) == list(range(40))
    assert set(found.dest[1].tolist()) == set(range(9))
    everywhere = call(torch.full((1, 12, 4), odd), None, None, 4, False, 5)
    assert set(everywhere.dest[0].tolist()) == set(range(5))


def test_equal_tokens_merge_from_the_first_on() -> None:
    x = torch.tensor([[[1.0], [5.0], [1.0], [5.0], [1.0], [9.0]]])
    found = call(x, None, None, 1, False, 4)
    assert found.dest.tolist() == [[0, 1, 0, 2, 0, 3]]
    equal(found, expected(x, None, 4))


def test_threads_do_not_change_the_result() -> None:
    x = torch.randn(3, 700, 32, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2):
            torch.set_num_threads(number)
            found += [call(x, None, None, 32, False, 600), call(x[1:2], None, None, 32, False, 600)]
    finally:
        torch.set_num_threads(threads)
    equal(found[0], found[2])
    assert torch.equal(found[0].dest[1:2], found[1].dest) and torch.equal(found[0].dest[1:2], found[3].dest)


X = torch.randn(1, 4, 8)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((X, torch.ones(1, 3), None, 8, True, 3), "sizes"),
        ((X, torch.ones(1, 4).long(), None, 8, True, 3), "sizes"),
        ((X, None, torch.ones(3), 4, True, 3), "signs"),
        ((X, None, None, 4, True, 3), "signs"),
        ((X, None, torch.ones(8), 4, False, 3), "directions"),
        ((X, None, None, 9, True, 3), "width"),
        ((X, None, None, 8, True, 0), "keep"),
        ((X, None, None, 8, True, 5), "keep"),
        ((X[0], None, None, 8, True, 3), "metric"),
    ],
)
def test_wrong_arguments_are_named(arguments, named) -> None:
    with pytest.raises(RuntimeError, match=named):
        kernel("ward_cluster")(*arguments)
