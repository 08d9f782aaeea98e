"""`ward_cluster` in the interpreter against the reference on the matrix of all costs, ties too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import DTYPES, FIELDS, STRIDES, exact_rows, strided
from torch import Tensor

pytest.importorskip("triton")
from tokenreduce.errors import InvalidValueError
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.linkage import agglomerate_reference, members_of, mirrored
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.triton.cluster import EACH, TILE, cluster_in, ward_cluster
from tokenreduce.reducers.methods.ward import Ward, costs, signs
from tokenreduce.reducers.parts.labels import map_of_clusters
from tokenreduce.reducers.tokens import Tokens


def clustered(x: Tensor, sizes: Tensor | None, keep: int, directions: bool = False) -> TokenMap:
    dest, rep, sources = ward_cluster(x, sizes, None, x.shape[-1], directions, keep)
    return TokenMap(keep, dest=dest, rep=rep, sources=sources)


def reference(points: Tensor, sizes: Tensor | None, keep: int) -> TokenMap:
    between = mirrored(costs(points.float(), sizes))
    return map_of_clusters(agglomerate_reference(between, members_of(between, sizes), keep, "ward"), keep)


def equal(a: TokenMap, b: TokenMap) -> None:
    for field in FIELDS:
        assert torch.equal(getattr(a, field), getattr(b, field)), field


def check_whole(token_map: TokenMap, n: int) -> None:
    """Every output has its representative, and every other token is a source once."""
    dest, rep, sources = token_map.dest, token_map.rep, token_map.sources
    assert dest is not None and rep is not None and sources is not None
    assert torch.equal(dest.gather(1, rep), torch.arange(token_map.count).expand_as(rep))
    assert torch.equal(torch.cat([rep, sources], 1).sort(1).values, torch.arange(n).expand_as(dest))


@pytest.mark.interpreted
@settings(deadline=None, max_examples=30)
@given(exact_rows(40), st.booleans(), st.floats(0, 1), st.sampled_from(DTYPES), STRIDES)
def test_ties(x: Tensor, sized: bool, share: float, dtype: torch.dtype, strides: str) -> None:
    """Of costs that any order of operations finds exactly, and of those that follow from them."""
    x = torch.nan_to_num(x, nan=1, posinf=1, neginf=1)
    batch, n, _ = x.shape
    sizes = 2.0 ** torch.randint(0, 3, (batch, n), generator=torch.Generator().manual_seed(0)) if sized else None
    keep = n - round(share * (n - 1))
    equal(clustered(strided(x.to(dtype), strides), sizes, keep), reference(x, sizes, keep))


@pytest.mark.interpreted
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 3), st.integers(1, TILE + 9), st.integers(1, 3), st.sampled_from((1, 16, 33)), STRIDES, st.data())
def test_keys_of_heads(batch: int, n: int, heads: int, width: int, how: str, data: st.DataObject) -> None:
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    metric = torch.randn(batch, heads, n, width, generator=g)
    metric = torch.stack([strided(one, how) for one in metric.unbind(1)], 1) if batch else metric
    sizes = data.draw(st.sampled_from((None, torch.randint(1, 9, (batch, n), generator=g).float())))
    keep = data.draw(st.integers(1, n))
    equal(clustered(metric, sizes, keep), reference(metric.mean(1), sizes, keep))


@pytest.mark.interpreted
@pytest.mark.parametrize("n", [1, 2, 3, TILE - 1, TILE, TILE + 1, EACH - 1, EACH, EACH + 1, 2 * EACH + 5])
def test_numbers_of_tokens(n: int) -> None:
    """Nothing merges, one pair does, and more."""
    g = torch.Generator().manual_seed(n)
    x, sizes = torch.randn(2, n, 7, generator=g), torch.randint(1, 5, (2, n), generator=g).float()
    for keep in {n, max(1, n - 1), max(1, n - 20)}:
        equal(clustered(x, sizes, keep), reference(x, sizes, keep))


@pytest.mark.interpreted
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_keys_of_any_scale(scale: float) -> None:
    """They have no length that is known before, as directions have."""
    x = torch.randn(2, 60, 16, generator=torch.Generator().manual_seed(0)) * scale
    equal(clustered(x, None, 20), reference(x, None, 20))


def directed(channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Features, and the sketches of 24 channels that they have."""
    x = torch.randn(2, 70, channels, generator=torch.Generator().manual_seed(0)).to(dtype)
    unit = torch.nn.functional.normalize(x.float(), dim=-1, eps=1e-6)
    place = torch.arange(channels) % 24
    return x, torch.zeros(2, 70, 24).index_add(2, place, unit * torch.tensor(signs(channels)))


@pytest.mark.interpreted
@pytest.mark.parametrize("how", ["contiguous", "channels first"])
@pytest.mark.parametrize("channels", [48, 50, 384])
@pytest.mark.parametrize("dtype", DTYPES)
def test_directions_are_sketched(dtype: torch.dtype, channels: int, how: str) -> None:
    x, sketch = directed(channels, dtype)
    sizes = torch.arange(1, 71).repeat(2, 1).float()
    dest, rep, sources = ward_cluster(strided(x, how), sizes, torch.tensor(signs(channels)), 24, True, 31)
    equal(TokenMap(31, dest=dest, rep=rep, sources=sources), reference(sketch, sizes, 31))
    unit = torch.nn.functional.normalize(x.float(), dim=-1, eps=1e-6)
    equal(clustered(x, None, 50, directions=True), reference(unit, None, 50))


@pytest.mark.interpreted
@pytest.mark.parametrize("layer", [2, 11])
@pytest.mark.parametrize("sized", [False, True])
def test_plans_are_those_of_the_reference(layer: int, sized: bool) -> None:
    """Of layers that compare keys and of others, with sizes that are a view."""
    g = torch.Generator().manual_seed(layer)
    features = torch.randn(2, 50, 48, generator=g)
    sizes = torch.randint(1, 5, (50, 2), generator=g).float().T if sized else None
    keys = torch.randn(2, 50, 3, 3, 16, generator=g).permute(2, 0, 3, 1, 4)[1]
    tokens = Tokens(features, sizes, {"mean_keys": lambda: keys}, None, 1, 0, layer, 12, None)
    found = []
    for choice in ("triton", "reference"):
        with dispatch.using(choice):
            found.append(Ward().plan(tokens, 23))
    equal(*found)


@pytest.mark.interpreted
@pytest.mark.parametrize("odd", [0.0, torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("directions", [False, True])
def test_any_values_make_a_whole_map_and_leave_other_images_alone(directions: bool, odd: float) -> None:
    plain = torch.randn(2, 70, 16, generator=torch.Generator().manual_seed(0))
    mixed = plain.clone()
    mixed[1, ::3] = odd
    found, alone = (clustered(x, None, 9, directions) for x in (mixed, plain))
    check_whole(found, 70)
    assert torch.equal(found.dest[0], alone.dest[0])  # type: ignore[index]
    check_whole(clustered(torch.full((1, 12, 4), odd), None, 5, directions), 12)


@pytest.mark.interpreted
def test_numbers_come_before_those_that_are_none() -> None:
    """A token that is no number costs most to merge."""
    x = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(0))
    x[0, 7, 2] = torch.nan
    found = clustered(x, None, 2)
    assert found.rep.tolist() == [[0, 7]]  # type: ignore[union-attr]


@pytest.mark.interpreted
def test_padding_of_size_0_costs_nothing() -> None:
    x, sizes = torch.randn(2, 40, 12, generator=torch.Generator().manual_seed(0)), torch.ones(2, 40)
    sizes[0, 20:] = 0
    found = clustered(x, sizes, 20)
    check_whole(found, 40)
    out, grown, _ = found.merge(x, sizes)
    assert out.isfinite().all() and torch.equal(grown.sum(1), sizes.sum(1))
    assert torch.equal(found.dest[0, :20], torch.arange(20))  # type: ignore[index]


@pytest.mark.interpreted
def test_equal_tokens_merge_from_the_first_on() -> None:
    x = torch.tensor([[[1.0], [5.0], [1.0], [5.0], [1.0], [9.0]]])
    assert clustered(x, None, 4).dest.tolist() == [[0, 1, 0, 2, 0, 3]]  # type: ignore[union-attr]


@pytest.mark.parametrize("keep", [-1, 0, 5])
def test_a_number_of_clusters_that_cannot_be_is_refused_before_anything_is_launched(keep: int) -> None:
    with pytest.raises(InvalidValueError, match=rf"keep is {keep}; of 4 tokens it must lie in \[1, 4\]"):
        ward_cluster(torch.zeros(1, 4, 8), None, None, 8, True, keep)


@pytest.mark.interpreted
def test_warps_change_no_result() -> None:
    x = torch.randn(1, 50, 7, generator=torch.Generator().manual_seed(0))
    one, other = (cluster_in(warps, x, None, None, 7, False, 30) for warps in (1, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
