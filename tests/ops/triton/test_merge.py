"""`merge_apply` and `bipartite_merge` in the interpreter are the reference in fp64, to a rounding of their own type."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import DTYPES, STRIDES, by_reference, same, strided
from torch import Tensor

pytest.importorskip("triton")
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.triton.merge import AT_ONCE, bipartite_merge
from tokenreduce.reducers.parts.bipartite import match_bipartite

# Parts are in fp32, for tokens in fp64 too.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def scattered(n: int, keep: int, few: int, batch: int = 2, seed: int = 0) -> TokenMap:
    """A map of tokens in any order, in which all that merge join `few` outputs."""
    g = torch.Generator().manual_seed(seed)
    order = torch.rand(batch, n, generator=g).argsort(1)
    rep, sources = order[:, :keep].contiguous(), order[:, keep:].contiguous()
    joined = torch.randint(few, sources.shape, generator=g) * (keep // few) % keep
    outputs = torch.arange(keep).expand(batch, -1)
    dest = torch.zeros_like(order).scatter(1, rep, outputs).scatter(1, sources, joined)
    return TokenMap(keep, dest=dest, rep=rep, sources=sources)


def check(token_map: TokenMap, x: Tensor, sizes: Tensor | None, prefix: int = 0, suffix: int = 0) -> Tensor:
    with dispatch.using("triton"):
        out, grown, bias = token_map.merge(x, sizes, prefix, suffix)
    expected, expected_sizes, _ = by_reference(token_map.merge, x.double(), sizes, prefix, suffix)
    tolerance = TOLERANCE[x.dtype]
    assert out.dtype == x.dtype and out.is_contiguous() and bias is not None
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert torch.equal(grown, expected_sizes)
    logs = torch.nn.functional.pad(grown.log(), (prefix, suffix))[:, None, None]
    torch.testing.assert_close(bias, logs)
    return out


@st.composite
def cases(draw: st.DrawFn) -> tuple[TokenMap, Tensor, Tensor | None, int, int]:
    batch, n, seed = draw(st.integers(0, 3)), draw(st.integers(1, 90)), draw(st.integers(0, 10**6))
    keep, width = draw(st.integers(1, n)), draw(st.sampled_from((1, 7, 64, 100, 256, 300)))
    token_map = scattered(n, keep, draw(st.integers(1, keep)), batch, seed)
    prefix, suffix = draw(st.sampled_from((0, 1, 5))), draw(st.sampled_from((0, 3)))
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, prefix + n + suffix, width, generator=g).to(draw(st.sampled_from(DTYPES)))
    sizes = torch.randint(1, 9, (batch, n + 2), generator=g).float()[:, 1:-1] if draw(st.booleans()) else None
    return token_map, strided(x, draw(STRIDES)), sizes, prefix, suffix


@pytest.mark.interpreted
@settings(deadline=None, max_examples=60)
@given(cases())
def test_maps_types_strides_and_protected_tokens(case: tuple[TokenMap, Tensor, Tensor | None, int, int]) -> None:
    check(*case)


@pytest.mark.interpreted
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 300])
def test_numbers_of_tokens(n: int, sized: bool) -> None:
    sizes = torch.randint(1, 5, (2, n), generator=torch.Generator().manual_seed(n)).float() if sized else None
    x = torch.randn(2, n + 1, 24, generator=torch.Generator().manual_seed(n))
    for keep in {n, n - n // 2, max(1, n // 4)}:
        check(scattered(n, keep, keep), x, sizes, 1)


@pytest.mark.interpreted
@pytest.mark.parametrize("members", [0, 1, 2, 3, 4, AT_ONCE, 3 * AT_ONCE + 1])
def test_outputs_of_so_many_more_members(members: int) -> None:
    """Two are added at once, more one after the other; a list longer than what is looked at together has them apart."""
    n, g = 8 + members, torch.Generator().manual_seed(members)
    x, sizes = torch.randn(1, n, 16, generator=g), torch.randint(1, 4, (1, n), generator=g).float()
    token_map = scattered(n, 8, 1, 1)
    check(token_map, x, None)
    out = check(token_map, x, sizes)
    alone = [i for i in range(8) if members == 0 or i > 0]
    assert torch.equal(out[0, alone], x[0, token_map.rep[0, alone]])  # type: ignore[index]


@pytest.mark.interpreted
@pytest.mark.parametrize("few", [2, 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_tokens_merge_to_themselves(dtype: torch.dtype, few: int) -> None:
    x = torch.randn(2, 1, 40, generator=torch.Generator().manual_seed(0)).to(dtype).expand(-1, 60, -1)
    with dispatch.using("triton"):
        out = scattered(60, 20, few).merge(x, torch.arange(1.0, 61).expand(2, -1))[0]
    assert torch.equal(out, x[:, :20])


@pytest.mark.interpreted
@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
@pytest.mark.parametrize("few", [1, 12])
def test_nan_and_infinity_stay_in_their_outputs(few: int, odd: float) -> None:
    token_map = scattered(40, 12, few)
    clean = torch.randn(2, 43, 8, generator=torch.Generator().manual_seed(0))
    expected = check(token_map, clean, None, 2, 1)
    for place in (0, 5, 6, 20, 42):
        x = clean.clone()
        x[1, place, 3] = odd
        with dispatch.using("triton"):
            out = token_map.merge(x, None, 2, 1)[0]
        at = place if place < 2 else 14 if place == 42 else 2 + int(token_map.dest[1, place - 2])  # type: ignore[index]
        assert not out[1, at, 3].isfinite()
        out[1, at, 3] = expected[1, at, 3]
        assert torch.equal(out, expected)


@pytest.mark.interpreted
def test_outputs_of_padding_have_no_size_and_are_their_representatives() -> None:
    token_map = scattered(20, 6, 6, 1)
    x, sizes = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(0)), torch.ones(1, 20)
    padding = int(token_map.dest[0, token_map.sources[0, 0]])  # type: ignore[index]
    sizes[token_map.dest == padding] = 0
    with dispatch.using("triton"):
        out, grown, bias = token_map.merge(x, sizes)
    assert grown[0, padding] == 0 and bias is not None and bias[0, 0, 0, padding] == -torch.inf
    assert torch.equal(out[0, padding], x[0, token_map.rep[0, padding]]) and out.isfinite().all()  # type: ignore[index]


@pytest.mark.interpreted
@pytest.mark.parametrize("sized", [False, True])
def test_gradients_are_those_of_the_reference(sized: bool) -> None:
    token_map, grads = scattered(20, 8, 3), []
    sizes = torch.arange(1.0, 21).expand(2, -1) if sized else None
    x = torch.randn(2, 23, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(2, 11, 6, generator=torch.Generator().manual_seed(1))
    for choice in ("triton", "reference"):
        with dispatch.using(choice):
            grads.append(torch.autograd.grad((token_map.merge(x, sizes, 2, 1)[0] * weight).sum(), x)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.interpreted
@pytest.mark.parametrize(("prefix", "suffix"), [(0, 0), (1, 0), (2, 3)])
@pytest.mark.parametrize("n", [60, 270])
def test_matching_and_merging_in_one_call(n: int, prefix: int, suffix: int) -> None:
    g = torch.Generator().manual_seed(n)
    x = torch.randn(2, prefix + n + suffix, 48, generator=g)
    keys = torch.randn(2, prefix + n + suffix, 3, 2, 16, generator=g).permute(2, 0, 3, 1, 4)[1]
    sizes = torch.randint(1, 4, (2, n), generator=g).float()
    *merged, dest, rep, sources = bipartite_merge(x, keys, sizes, n - 20, 1, prefix, suffix)
    token_map = TokenMap(n - 20, dest=dest, rep=rep, sources=sources)
    image = keys[:, :, prefix : prefix + n]
    same(token_map, by_reference(match_bipartite, image, n - 20, 1))
    with dispatch.using("triton"):
        expected = token_map.merge(x, sizes, prefix, suffix)
    assert all(torch.equal(found, other) for found, other in zip(merged, expected, strict=True))


def with_gaps(x: Tensor) -> Tensor:
    """`x` with something else between its numbers."""
    return torch.stack([x, torch.full_like(x, 7)], -1)[..., 0]


@pytest.mark.interpreted
def test_maps_and_sizes_with_gaps() -> None:
    token_map = scattered(40, 25, few=10)
    sizes = torch.randint(1, 9, (2, 40), generator=torch.Generator().manual_seed(0)).float()
    parts = {name: with_gaps(getattr(token_map, name)) for name in ("dest", "rep", "sources")}
    spread = TokenMap(25, **parts)
    x = torch.randn(2, 43, 20, generator=torch.Generator().manual_seed(1))
    out = check(spread, x, with_gaps(sizes), 1, 2)
    assert torch.equal(out, check(token_map, x, sizes, 1, 2))
    with dispatch.using("triton"):
        assert torch.equal(spread.restore(out, 1, 2), token_map.restore(out, 1, 2))
        every = sizes[:, :1].expand_as(sizes)  # one number for all tokens of an image
        assert torch.equal(token_map.merge(x, every, 1, 2)[0], token_map.merge(x, every.contiguous(), 1, 2)[0])
