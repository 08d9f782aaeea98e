"""`ScanState` against a list of tokens that is followed one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from patches_by_hand import dropping_map, merging_map
from torch import Tensor

from tokenreduce import TokenMap
from tokenreduce.forward.scan_state import ScanRules, ScanState, missing_before, scan_rules, walks_of_all, walks_of_one
from tokenreduce.maps.ordering import in_order
from tokenreduce.maps.walks import CONVOLUTIONS, GAPS, Walk

BATCH, ENTERED, WIDTH = 2, 12, 3
CPU = torch.device("cpu")
PLACES = [("first", 1), ("middle", 1), ("middle", 2), ("first", 0)]
places = pytest.mark.parametrize(("where", "prefix"), PLACES, ids=str)


def dense_map(n: int, m: int, seed: int) -> TokenMap:
    share = torch.rand(BATCH, m, n, generator=torch.Generator().manual_seed(seed))
    return TokenMap(m, share=share / share.sum(1, keepdim=True))


MAKERS = {"merging": merging_map, "dropping": dropping_map, "dense": dense_map}


def maps(kind: str) -> list[TokenMap]:
    """Two reductions, one after the other."""
    return [in_order(MAKERS[kind](n, m, seed)) for seed, (n, m) in enumerate(((ENTERED, 8), (8, 5)))]


def sequence(prefix: int, where: str) -> list[Any]:
    """The whole sequence: protected tokens by name, image tokens by number."""
    image, protected = [*range(ENTERED)], [f"p{i}" for i in range(prefix)]
    start = ENTERED // 2 if where == "middle" else 0
    return [*image[:start], *protected, *image[start:]]


@places
@pytest.mark.parametrize("kind", MAKERS)
def test_ranks_and_owners_are_those_of_a_list(kind: str, where: str, prefix: int) -> None:
    state = ScanState(ScanRules(), ENTERED, prefix, where == "middle")
    every = sequence(prefix, where)
    for image in range(BATCH):
        rows = [*(f"p{i}" for i in range(prefix)), *range(ENTERED)]
        assert [every[rank] for rank in state.ranks(BATCH, CPU)[image].tolist()] == rows
        assert [rows[row] for row in state.owners(BATCH, CPU)[image].tolist()] == every
    tokens = [[*range(ENTERED)] for _ in range(BATCH)]
    stands = [[*range(ENTERED)] for _ in range(BATCH)]  # the token in `tokens` that stands for each of the input
    for token_map in maps(kind):
        rep, dest = token_map.representatives(), token_map.dest_or_argmax()
        assert (rep.diff(dim=1) >= 0).all()
        state.follow(token_map)
        for image in range(BATCH):
            kept = rep[image].tolist()
            owner = {row: int(dest[image, row]) for row in range(token_map.entered)}
            owner |= {row: out for out, row in enumerate(kept)}
            stands[image] = [owner[row] for row in stands[image]]
            tokens[image] = [tokens[image][row] for row in kept]
            rows = [*(f"p{i}" for i in range(prefix)), *tokens[image]]
            assert [every[rank] for rank in state.ranks(BATCH, CPU)[image].tolist()] == rows
            whole = [place if isinstance(place, str) else stands[image][place] + prefix for place in every]
            found = state.owners(BATCH, CPU)[image].tolist()
            assert found == [int(row[1:]) if isinstance(row, str) else row for row in whole]


def steps_by_hand(prefix: int, where: str, kind: str) -> tuple[ScanState, list[dict[Any, Tensor]], list[list[Any]]]:
    """A state after reductions, the step that each token had when it was last computed, and the rows that are left."""
    state = ScanState(ScanRules(gap="frozen"), ENTERED, prefix, where == "middle")
    g = torch.Generator().manual_seed(5)
    tokens = [[*(f"p{i}" for i in range(prefix)), *range(ENTERED)] for _ in range(BATCH)]
    last: list[dict[Any, Tensor]] = [{} for _ in range(BATCH)]
    # Of dense maps one: where a token represents two outputs, one of them may leave and its place is still taken.
    for token_map in maps(kind)[: 1 if kind == "dense" else 2]:
        steps = [torch.rand(BATCH, prefix + token_map.entered, WIDTH, generator=g) for _ in range(2)]
        rep = token_map.representatives()
        for image in range(BATCH):
            for row, token in enumerate(tokens[image]):
                last[image][token] = torch.stack([step[image, row] for step in steps])
            stays = [tokens[image][prefix + row] for row in rep[image].tolist()]
            tokens[image] = [*tokens[image][:prefix], *stays]
        state.follow(token_map, steps)
    return state, last, tokens


@places
@pytest.mark.parametrize("kind", MAKERS)
def test_frozen_steps_are_sums_over_what_is_missing(kind: str, where: str, prefix: int) -> None:
    state, last, tokens = steps_by_hand(prefix, where, kind)
    assert state.frozen is not None
    every = sequence(prefix, where)
    for direction, found in enumerate(state.frozen):
        for image in range(BATCH):
            expected, waited = torch.zeros(len(tokens[image]), WIDTH), torch.zeros(WIDTH)
            for token in every[::-1] if direction else every:
                if token in tokens[image]:
                    copies = [row for row, other in enumerate(tokens[image]) if other == token]
                    expected[copies[-1 if direction else 0]], waited = waited, torch.zeros(WIDTH)
                else:
                    waited = waited + last[image][token][direction]
            torch.testing.assert_close(found[image], expected, rtol=1e-5, atol=1e-6)


def test_sums_of_segments_keep_their_digits() -> None:
    """Of ten thousand steps, in fp32: differences of running sums would lose three of them."""
    g = torch.Generator().manual_seed(0)
    step = torch.rand(1, 10_000, 2, generator=g)
    rank, stays = torch.arange(10_000)[None], torch.tensor([[3, 4, 5000, 9998]])
    for sign, segments in (
        (1, ((0, 3), (4, 4), (5, 5000), (5001, 9998))),
        (-1, ((4, 4), (5, 5000), (5001, 9998), (9999, 10_000))),
    ):
        found = missing_before(rank, stays, step, torch.zeros_like(step), sign)
        exact = torch.stack([step[0, a:b].double().sum(0) for a, b in segments])
        torch.testing.assert_close(found[0].double(), exact, rtol=1e-5, atol=1e-6)


def test_walks_are_made_once_a_reduction() -> None:
    state = ScanState(ScanRules(), ENTERED, 1, middle=True)
    first = state.walks(BATCH, CPU, 4, None)
    assert first is state.walks(BATCH, CPU, 4, None)
    [one, _] = maps("merging")
    state.follow(one)
    assert state.walks(BATCH, CPU, 4, None) is not first
    assert ScanState(ScanRules(), ENTERED, 1, middle=False).walks(BATCH, CPU, 4, None) is None, "rows stand in order"


def test_rules() -> None:
    assert scan_rules("auto", "auto") == ScanRules("stand_in", "size")
    assert scan_rules("zeros", "prev") == ScanRules("zeros", "prev")
    with pytest.raises(ValueError, match="unknown scan_conv 'dense'; valid: auto, compact, stand_in, zeros"):
        scan_rules("dense", "auto")
    with pytest.raises(ValueError, match="unknown scan_gap 'none'; valid: auto, bias, frozen, hold, prev, self, size"):
        scan_rules("auto", "none")


def test_frozen_steps_must_have_been_shown() -> None:
    state, [one, _] = ScanState(ScanRules(gap="frozen"), ENTERED, 1, middle=True), maps("merging")
    with pytest.raises(ValueError, match='placement "pre" comes before them; give another scan_gap'):
        state.follow(one)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("conv", CONVOLUTIONS)
@pytest.mark.parametrize("prefix", [1, 2])
def test_walks_over_all_tokens_are_kept_of_one_image(conv: str, gap: str, prefix: int) -> None:
    """However many images a forward has."""
    walks_of_all.cache_clear()
    walks_of_one.cache_clear()
    rules, batch, taps, kept = ScanRules(conv, gap), 64, 4, 0
    for images in (batch, 1, 3):
        state = ScanState(rules, ENTERED, prefix, True)
        both, anew = state.walks(images, CPU, taps, None), state._walk(images, CPU, taps, None)
        assert both is not None
        for found, expected in zip(both, anew, strict=True):
            for name in Walk.tables:
                one, other = getattr(found, name), getattr(expected, name)
                assert (one is None and other is None) or torch.equal(one, other)
                kept += 0 if one is None or images != batch else one.untyped_storage().nbytes()
    assert walks_of_one.cache_info().currsize == 1
    assert state.walks(3, CPU, taps, None) is ScanState(rules, ENTERED, prefix, True).walks(3, CPU, taps, None)
    assert kept <= 2 * (ENTERED + prefix) * (taps + 3) * 8  # of each direction taps, order, missing and before
