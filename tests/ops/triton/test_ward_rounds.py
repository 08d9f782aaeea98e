"""`ward_match` in the interpreter: its first round is the reference, ties too; all rounds make clusters as good."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import DTYPES, STRIDES, by_reference, exact_rows, same, strided
from torch import Tensor

pytest.importorskip("triton")
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.triton import ward as operators
from tokenreduce.ops.triton.match import SMALL
from tokenreduce.ops.triton.points import sketched_points
from tokenreduce.ops.triton.ward import MOST_ROUNDS, WIDEST, ward_match
from tokenreduce.reducers.methods.ward import Ward
from tokenreduce.reducers.parts.sketch import signs
from tokenreduce.reducers.parts.ward_rounds import merge_in_rounds, round_counts
from tokenreduce.reducers.tokens import Tokens


def in_one_round(x: Tensor, sizes: Tensor | None, keep: int, first: int) -> TokenMap:
    dest, rep, sources = ward_match(x, sizes, None, x.shape[-1], [keep], first)
    return TokenMap(keep, dest=dest, rep=rep, sources=sources)


def reference(x: Tensor, sizes: Tensor | None, keep: int, first: int) -> TokenMap:
    unit = torch.nn.functional.normalize(x.float(), dim=-1, eps=1e-6)
    return by_reference(merge_in_rounds, unit, sizes, [keep], first)


def powers(batch: int, n: int, seed: int = 0) -> Tensor:
    """Sizes whose costs any order of operations finds exactly."""
    return 2.0 ** torch.randint(0, 3, (batch, n), generator=torch.Generator().manual_seed(seed))


@pytest.mark.interpreted
@settings(deadline=None, max_examples=50)
@given(exact_rows(60), st.booleans(), st.integers(0, 1), st.floats(0, 1), st.sampled_from(DTYPES), STRIDES)
def test_ties(x: Tensor, sized: bool, first: int, share: float, dtype: torch.dtype, strides: str) -> None:
    x = torch.nan_to_num(x, nan=1, posinf=1)
    batch, n, _ = x.shape
    sizes, keep = powers(batch, n) if sized else None, n - round(share * (n // 2))
    if keep < n:
        same(in_one_round(strided(x.to(dtype), strides), sizes, keep, first), reference(x, sizes, keep, first))


@pytest.mark.interpreted
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("n", [2, 3, 33, 127, 128, 129, SMALL - 1, SMALL, SMALL + 1, 300])
def test_numbers_of_tokens(n: int, first: int) -> None:
    g = torch.Generator().manual_seed(n)
    x = torch.zeros(2, n, 5).scatter(2, torch.randint(5, (2, n, 1), generator=g), 1.0)
    for keep in {n - 1, n - n // 2}:
        same(in_one_round(x, powers(2, n), keep, first), reference(x, powers(2, n), keep, first))


@pytest.mark.interpreted
@pytest.mark.parametrize("width", [1, 5, 33, WIDEST, WIDEST + 1, 100])
def test_widths(width: int) -> None:
    x = torch.zeros(2, 30, width).scatter(
        2, torch.randint(width, (2, 30, 1), generator=torch.Generator().manual_seed(0)), -1.0
    )
    same(in_one_round(x, None, 20, 0), reference(x, None, 20, 0))


@pytest.mark.interpreted
@pytest.mark.parametrize("n", [1, 7, SMALL + 1])
def test_without_rounds_all_tokens_stay(n: int) -> None:
    dest, rep, sources = ward_match(torch.ones(2, n, 4), None, None, 4, [], 0)
    assert torch.equal(dest, torch.arange(n).expand(2, -1)) and torch.equal(rep, dest) and sources.shape == (2, 0)


def planned(x: Tensor, sizes: Tensor | None, keep: int, rounds: int, prefix: int = 1) -> tuple[TokenMap, TokenMap]:
    """By the operator and by the reference."""
    tokens, ward = Tokens(x, sizes, {}, None, prefix, 0, 0, 12, None), Ward(rounds=rounds)
    with dispatch.using("triton"):
        found = ward.plan(tokens, keep)
    return found, by_reference(ward.plan, tokens, keep)


def error(token_map: TokenMap, x: Tensor, sizes: Tensor | None) -> Tensor:
    """What merging loses of the directions."""
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    moved = unit - token_map.restore(token_map.apply(unit, sizes))
    return ((torch.ones(x.shape[:2]) if sizes is None else sizes)[..., None] * moved.square()).sum()


@pytest.mark.interpreted
@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("n", "dtype"), [(90, torch.float32), (150, torch.float16), (SMALL + 20, torch.bfloat16)])
def test_rounds(n: int, dtype: torch.dtype, rounds: int) -> None:
    """Rounds after the first compare means, which sums in another order round otherwise: a near tie may fall to the
    other side."""
    g = torch.Generator().manual_seed(rounds)
    x = torch.randn(2, n, 24, generator=g).to(dtype)
    sizes = torch.randint(1, 5, (2, n), generator=g).float() if n < SMALL else None
    keep = n * 2 // 5 if rounds > 1 else n * 3 // 5
    assert len(round_counts(n, keep, rounds)) == rounds
    found, expected = planned(x, sizes, keep, rounds)
    assert (found.dest == expected.dest).float().mean() > 0.95  # type: ignore[union-attr]
    torch.testing.assert_close(error(found, x, sizes), error(expected, x, sizes), rtol=2e-3, atol=0)
    check_parts(found, n)


def check_parts(token_map: TokenMap, n: int) -> None:
    """Every output has its representative, and every other token is a source once."""
    dest, rep, sources = token_map.dest, token_map.rep, token_map.sources
    assert dest is not None and rep is not None and sources is not None
    assert torch.equal(dest.gather(1, rep), torch.arange(token_map.count).expand_as(rep))
    assert torch.equal(torch.cat([rep, sources], 1).sort(1).values, torch.arange(n).expand_as(dest))


@pytest.mark.interpreted
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("rounds", range(2, MOST_ROUNDS + 1))
def test_one_program_does_as_a_launch_a_round(rounds: int, first: int) -> None:
    """They add up means in other orders; in these tokens no near tie falls to the other side."""
    g = torch.Generator().manual_seed(rounds)
    n, counts = 120, round_counts(120, 50, rounds)
    x, sizes = torch.randn(2, n, 32, generator=g), torch.randint(1, 5, (2, n), generator=g).float()
    found = ward_match(x, sizes, None, 32, counts, first)
    points, mass, tickets = sketched_points(x, sizes, None, 32, rounds)
    expected = operators._rounds_apart(points, mass, tickets, counts, first)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.interpreted
@pytest.mark.parametrize("channels", [6, 40, 100, 384])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sketches_are_those_of_the_reference(channels: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, 37, channels, generator=torch.Generator().manual_seed(0)).to(dtype)
    width = Ward().sketch_width(channels)
    for how in ("contiguous", "padded", "transposed"):
        points, mass, tickets = sketched_points(strided(x, how), None, torch.tensor(signs(channels)), width, 3)
        torch.testing.assert_close(points, Ward().sketch(torch.nn.functional.normalize(x.float(), dim=-1)))
        assert torch.equal(mass, torch.ones(2, 37)) and torch.equal(tickets, torch.zeros(2, 3).int())


@pytest.mark.interpreted
@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
@pytest.mark.parametrize("n", [60, SMALL + 10])
def test_images_with_nan_or_infinity_leave_others_right(n: int, odd: float) -> None:
    """And get a map that is one: the operator ranks NaN first, after which no order means anything."""
    x = torch.randn(2, n, 12, generator=torch.Generator().manual_seed(0))
    clean, _ = planned(x, None, n // 2, 2)
    x[1, 4, 2], x[1, 9, 0] = odd, odd
    found, _ = planned(x, None, n // 2, 2)
    check_parts(found, n)
    assert torch.equal(found.dest[0], clean.dest[0])  # type: ignore[index]


@pytest.mark.interpreted
@pytest.mark.parametrize("n", [40, SMALL + 10])
def test_padding_of_size_0_makes_no_nan(n: int) -> None:
    x, sizes = torch.randn(2, n, 12, generator=torch.Generator().manual_seed(0)), torch.ones(2, n)
    sizes[0, n // 2 :] = 0
    found, _ = planned(x, sizes, n // 2, 2)
    check_parts(found, n)
    with dispatch.using("triton"):
        out, grown, _ = found.merge(x, sizes)
    assert out.isfinite().all() and torch.equal(grown.sum(1), sizes.sum(1))
