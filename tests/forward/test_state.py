"""`TokenState` against loops: what attention gets belongs to the token that represents each reduced one."""

from __future__ import annotations

import math

import pytest
import torch
from patches_by_hand import BATCH, COUNT, GRID, merging_map, reduction, tokens
from torch import Tensor

from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.state import TokenState

HEADS = 3


def state_after(*steps: tuple[int, int], patch: Reduction | None = None, valid: Tensor | None = None) -> TokenState:
    """The state after maps from n to m tokens."""
    state = TokenState(patch or reduction(follows_origin=True), COUNT, GRID, valid)
    for seed, (n, m) in enumerate(steps):
        token_map = merging_map(n, m, seed)
        state.places.follow(token_map, state.sizes)
        state.sizes, state.bias = token_map.sizes(state.sizes), None
        state.maps.append(token_map)
    return state


def origins(state: TokenState) -> list[list[int]]:
    """The input token that represents each token, by following representatives back."""
    found = []
    for b in range(BATCH):
        row = list(range(COUNT))
        for token_map in state.maps:
            assert token_map.rep is not None
            row = [row[int(r)] for r in token_map.rep[b]]
        found.append(row)
    return found


@pytest.mark.parametrize("steps", [((12, 7),), ((12, 9), (9, 4))], ids=["one map", "two maps"])
def test_rows_are_those_of_representatives(steps) -> None:
    state = state_after(*steps)
    m = steps[-1][1]
    x = tokens(count=m)
    for shape in ((COUNT, 5), (HEADS, COUNT, 5), (1, HEADS, COUNT, 5), (BATCH, HEADS, COUNT, 5), (BATCH, 1, COUNT, 5)):
        table = torch.arange(math.prod(shape)).float().view(shape)
        found = state.rows(table, x)
        heads = 1 if table.ndim == 2 else table.shape[-3]
        assert found.shape == (BATCH, heads, m, 5)
        for b, row in enumerate(origins(state)):
            own = table[b if table.ndim == 4 and table.shape[0] == BATCH else 0] if table.ndim == 4 else table
            for h in range(heads):
                of_head = own if own.ndim == 2 else own[h]
                for i, origin in enumerate(row):
                    assert torch.equal(found[b, h, i], of_head[origin])


@pytest.mark.parametrize("steps", [((12, 7),), ((12, 9), (9, 4))], ids=["one map", "two maps"])
@pytest.mark.parametrize("tables", [1, BATCH])
@pytest.mark.parametrize(("prefix", "suffix"), [(2, 1), (0, 0), (1, 0), (0, 3)])
def test_pairs_are_those_of_representatives(steps, tables, prefix, suffix) -> None:
    state = state_after(*steps, patch=reduction(follows_origin=True, prefix=prefix, suffix=suffix))
    total, left = prefix + COUNT + suffix, prefix + steps[-1][1] + suffix
    table = torch.arange(tables * HEADS * total * total).float().view(tables, HEADS, total, total)
    found = state.pairs(table, torch.empty(BATCH, left, 8))
    assert found.shape == (BATCH, HEADS, left, left)
    for b, row in enumerate(origins(state)):
        own = [*range(prefix), *(prefix + origin for origin in row), *range(prefix + COUNT, total)]
        for i, at in enumerate(own):
            for j, to in enumerate(own):
                assert torch.equal(found[b, :, i, j], table[b % tables, :, at, to])


def test_tables_stay_before_any_reduction_and_after_a_restart() -> None:
    state, table, x = state_after((12, 7)), torch.randn(1, HEADS, 15, 15), tokens()
    state.around.append((x, x))
    state.bias = x
    state.restart()
    assert state.maps == [] and state.around == [] and state.bias is None and state.sizes is None
    assert state.rows(table, x) is table and state.pairs(table, x) is table
    assert torch.equal(state.places.origin(1, x.device), torch.arange(COUNT)[None])


@pytest.mark.parametrize(("prefix", "suffix"), [(2, 1), (0, 0), (0, 2)])
def test_bias_is_the_log_of_sizes(prefix, suffix) -> None:
    patch = reduction(prefix=prefix, suffix=suffix)
    state = state_after((12, 9), (9, 4), patch=patch)
    x = torch.zeros(BATCH, prefix + 4 + suffix, 8)
    assert state.sizes is not None
    expected = [[0.0] * prefix + [math.log(s) for s in row] + [0.0] * suffix for row in state.sizes.tolist()]
    found = state.attention_bias(x, torch.float32)
    assert found is not None and found.shape == (BATCH, 1, 1, prefix + 4 + suffix)
    assert torch.allclose(found[:, 0, 0], torch.tensor(expected), atol=1e-6)
    assert len(set(state.sizes.flatten().tolist())) > 2
    assert state.attention_bias(x, torch.float32) is found, "made once"
    half = state.attention_bias(x, torch.float16)
    assert half is not None and half.dtype == torch.float16 and torch.equal(half, found.half())
    like_x = state.attention_bias(x.double())
    assert like_x is not None and like_x.dtype == torch.float64 and torch.equal(like_x, found.double())


def test_no_bias_without_sizes_or_where_none_is_wanted() -> None:
    assert state_after().attention_bias(tokens(), torch.float32) is None
    assert state_after((12, 7), patch=reduction(prop_attn=False)).attention_bias(tokens(), torch.float32) is None


VALID = torch.tensor([[1, 1] + [1] * 8 + [0] * 4 + [1], [1, 0] + [1] * 5 + [0] * 7 + [0]]).bool()


@pytest.mark.parametrize("prop_attn", [True, False])
def test_padding_has_no_size_and_gets_no_attention(prop_attn) -> None:
    patch = reduction(prop_attn=prop_attn)
    start = state_after(patch=patch, valid=VALID)
    x = tokens()
    assert start.sizes is not None
    assert torch.equal(start.sizes, VALID[:, 2:14].float()) and start.sizes.sum(1).tolist() == [8, 5]
    found = start.attention_bias(x, torch.float32)
    assert found is not None
    assert torch.equal(found[:, 0, 0], torch.where(VALID, 0.0, -math.inf))
    later = state_after((12, 5), patch=patch, valid=VALID)
    assert later.sizes is not None and later.sizes.sum(1).tolist() == [8, 5]
    bias = later.attention_bias(tokens(count=5), torch.float32)
    assert bias is not None
    for b in range(BATCH):
        image = [(math.log(s) if prop_attn else 0.0) if s else -math.inf for s in later.sizes[b].tolist()]
        edges = [0.0 if seen else -math.inf for seen in VALID[b].tolist()]
        assert bias[b, 0, 0].tolist() == pytest.approx(edges[:2] + image + edges[14:])
    later.restart()
    assert later.sizes is later.first_sizes is not None


def test_padding_is_blanked() -> None:
    x = tokens()
    assert state_after().blank(x) is x
    blank = state_after(valid=VALID).blank(x)
    for b in range(BATCH):
        for i in range(15):
            assert torch.equal(blank[b, i], x[b, i] if VALID[b, i] else torch.zeros(8))


def test_places_follow_only_what_is_read() -> None:
    assert state_after(patch=reduction(follows_origin=False)).places.reads == frozenset()
    assert state_after(patch=reduction(follows_origin=True)).places.reads == {"origin"}
    assert "positions" in state_after(patch=reduction(method="dsm")).places.reads
