"""How scans walk over what is left of a sequence, against loops over the places of the whole sequence."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tokenreduce.maps.walks import CONVOLUTIONS, GAPS, NOT_MISSED, Walk, gaps, walks
from tokenreduce.ops.causal_conv import causal_conv
from tokenreduce.ops.selective_scan import selective_scan

BATCH, WHOLE, WIDTH, TAPS = 3, 13, 5, 4


class Left(NamedTuple):
    """What is left of sequences, other places in each image, and who stands for the rest."""

    rank: Tensor
    owners: Tensor
    in_order: bool


def left(count: int, in_order: bool, seed: int = 0) -> Left:
    g = torch.Generator().manual_seed(seed)
    rank = torch.stack([torch.randperm(WHOLE, generator=g)[:count] for _ in range(BATCH)])
    rank = rank.sort(1).values if in_order else rank
    owners = torch.randint(count, (BATCH, WHOLE), generator=g)
    return Left(rank, owners.scatter(1, rank, torch.arange(count).expand(BATCH, -1)), in_order)


cases = pytest.mark.parametrize(
    "case", [left(count, order, count) for count in (1, 2, 7, WHOLE) for order in (True, False)],
    ids=lambda case: f"{case.rank.shape[1]}-{'in_order' if case.in_order else 'any_order'}",
)  # fmt: skip


def whole(x: Tensor, case: Left, conv: str) -> tuple[Tensor, Tensor]:
    """The sequence that a convolution reads, and the place in it of each row of `x`."""
    if conv == "compact":
        order = case.rank.argsort(1)
        return x.gather(1, order[..., None].expand_as(x)), order.argsort(1)
    restored = x.gather(1, case.owners[..., None].expand(-1, -1, x.shape[2]))
    if conv == "zeros":
        there = torch.zeros(BATCH, WHOLE, 1, dtype=x.dtype).scatter(1, case.rank[..., None], 1.0)
        restored = restored * there
    return restored, case.rank


@pytest.mark.parametrize("conv", CONVOLUTIONS)
@cases
def test_convolutions_are_those_of_the_whole_sequence(case: Left, conv: str) -> None:
    """Exactly: the same rows are multiplied and added in the same order."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, case.rank.shape[1], WIDTH, generator=g, dtype=torch.float64)
    weight, bias = torch.randn(WIDTH, TAPS, generator=g, dtype=x.dtype), torch.randn(WIDTH, generator=g, dtype=x.dtype)
    both = walks(case.rank, case.owners, TAPS, conv, "hold", case.in_order)
    sequence, place = whole(x, case, conv)
    for walk, sign in zip(both, (1, -1), strict=True):
        assert walk.taps is not None
        row = torch.arange(sequence.shape[1])[:, None] - sign * torch.arange(TAPS - 1, -1, -1)
        in_a_row = torch.where((row >= 0) & (row < sequence.shape[1]), row, -1).expand(BATCH, -1, -1)
        expected = causal_conv(sequence, weight, bias, taps=in_a_row).gather(1, place[..., None].expand_as(x))
        assert torch.equal(causal_conv(x, weight, bias, taps=walk.taps), expected)
        plain = causal_conv(sequence, weight, bias, reverse=sign < 0).gather(1, place[..., None].expand_as(x))
        torch.testing.assert_close(expected, plain, rtol=0, atol=1e-14)


@cases
def test_rows_are_visited_in_the_order_of_their_places(case: Left) -> None:
    for walk in walks(case.rank, case.owners, TAPS, "stand_in", "self", case.in_order):
        order = torch.arange(case.rank.shape[1]).expand_as(case.rank) if walk.order is None else walk.order
        assert (walk.order is None) == case.in_order
        assert torch.equal(case.rank.gather(1, order), case.rank.sort(1).values)


def missing_one_by_one(rank: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """How many places are free between each row and the one visited before, and that row."""
    missing, before = torch.zeros_like(rank), torch.zeros_like(rank)
    for image, places in enumerate(rank.tolist()):
        last = None
        for place in sorted(places, reverse=sign < 0):
            row = places.index(place)
            missing[image, row] = 0 if last is None else abs(place - last) - 1
            before[image, row] = row if last is None else places.index(last)
            last = place
    return missing, before


@cases
def test_gaps_are_the_free_places(case: Left) -> None:
    both = walks(case.rank, case.owners, TAPS, "stand_in", "prev", case.in_order)
    for walk, sign in zip(both, (1, -1), strict=True):
        missing, before = missing_one_by_one(case.rank, sign)
        assert torch.equal(walk.missing, missing) and torch.equal(walk.before, before)
    held = walks(case.rank, case.owners, TAPS, "stand_in", "hold", case.in_order)
    assert all(walk.missing is None and walk.before is None for walk in held)


def test_gaps_of_a_worked_example() -> None:
    """Tokens 0, 3 and 4 of 6: forwards the state goes on by 3 places before token 3, backwards by 3 before token 0."""
    rank = torch.tensor([[0, 3, 4]])
    assert gaps(rank, None, 1)[0].tolist() == [[0, 2, 0]]
    assert gaps(rank, None, -1)[0].tolist() == [[2, 0, 0]]
    owners = torch.tensor([[0, 0, 1, 1, 2, 2]])
    ahead, back = walks(rank, owners, 3, "stand_in", "self", in_order=True)
    assert ahead.taps.tolist() == [[[-1, -1, 0], [0, 1, 1], [1, 1, 2]]]
    assert back.taps.tolist() == [[[1, 0, 0], [2, 2, 1], [-1, 2, 2]]]
    zeros, _ = walks(rank, owners, 3, "zeros", "hold", in_order=True)
    assert zeros.taps.tolist() == [[[-1, -1, 0], [-1, -1, 1], [-1, 1, 2]]]
    compact, _ = walks(rank, owners, 3, "compact", "hold", in_order=True)
    assert compact.taps.tolist() == [[[-1, -1, 0], [-1, 0, 1], [0, 1, 2]]]


@pytest.mark.parametrize("gap", GAPS)
def test_sizes_are_left_to_the_scan_by_one_gap(gap: str) -> None:
    case, sizes = left(7, True), torch.rand(BATCH, 7)
    for walk in walks(case.rank, case.owners, TAPS, "zeros", gap, True, sizes):
        assert walk.sizes is (sizes if gap == "size" else None)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@cases
def test_decays_over_gaps(case: Left, gap: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(2)
    raw, bias = torch.randn(*case.rank.shape, WIDTH, generator=g).to(dtype), torch.randn(WIDTH, generator=g).to(dtype)
    frozen = torch.rand(*case.rank.shape, WIDTH, generator=g)
    for walk, sign in zip(walks(case.rank, case.owners, TAPS, "zeros", gap, case.in_order), (1, -1), strict=True):
        walk = Walk(walk.order, walk.taps, walk.missing, walk.before, walk.gap, frozen)
        step, decay = walk.steps(raw, bias)
        if gap in NOT_MISSED:
            assert step is raw and decay is None
            continue
        missing, before = missing_one_by_one(case.rank, sign)
        exact = F.softplus(raw.double())
        assert step.dtype == decay.dtype == dtype
        near = {"rtol": {torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.float64: 1e-13}[dtype], "atol": 0}
        torch.testing.assert_close(step.double(), exact, **near)
        for image in range(BATCH):
            for row in range(case.rank.shape[1]):
                each = {
                    "self": exact[image, row],
                    "prev": exact[image, before[image, row]],
                    "bias": F.softplus(bias.double()),
                }
                longer = frozen[image, row].double() if gap == "frozen" else missing[image, row] * each[gap]
                torch.testing.assert_close(decay[image, row].double(), exact[image, row] + longer, **near)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
@cases
def test_a_walk_is_the_whole_scan_with_nothing_in_the_gaps(case: Left, dtype: torch.dtype, tolerance: float) -> None:
    """With the steps of the missing tokens as they were ("frozen"), of both directions, in rows of any order."""
    g = torch.Generator().manual_seed(3)
    x, z = torch.randn(2, BATCH, WHOLE, WIDTH, generator=g, dtype=torch.float64).to(dtype)
    write, read = torch.randn(2, BATCH, WHOLE, 4, generator=g, dtype=torch.float64).to(dtype)
    raw = torch.randn(BATCH, WHOLE, WIDTH, generator=g, dtype=torch.float64).to(dtype) - 2
    rate = -torch.rand(WIDTH, 4, generator=g, dtype=torch.float64).to(dtype)
    there = torch.zeros(BATCH, WHOLE, 1, dtype=dtype).scatter(1, case.rank[..., None], 1.0)
    step = F.softplus(raw)
    for walk, sign in zip(walks(case.rank, case.owners, TAPS, "zeros", "frozen", case.in_order), (1, -1), strict=True):
        reverse = sign < 0
        frozen = torch.zeros(*case.rank.shape, WIDTH, dtype=dtype)
        for image, places in enumerate(case.rank.tolist()):
            waited = torch.zeros(WIDTH, dtype=dtype)
            for place in range(WHOLE)[::sign]:
                if place in places:
                    frozen[image, places.index(place)], waited = waited, torch.zeros(WIDTH, dtype=dtype)
                else:
                    waited = waited + step[image, place]
        expected = selective_scan(x * there, step, rate, write, read, None, z, reverse=reverse)
        walk = Walk(walk.order, walk.taps, walk.missing, walk.before, walk.gap, frozen)
        x_left, z_left, write_left, read_left, raw_left, expected = (
            t.gather(1, case.rank[..., None].expand(-1, -1, t.shape[2])) for t in (x, z, write, read, raw, expected)
        )
        step_left, decay = walk.steps(raw_left, None)
        found = selective_scan(
            x_left, step_left, rate, write_left, read_left, None, z_left, decay, order=walk.order, reverse=reverse
        )
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()
