"""The compiled walks of a scan against those that `maps.walks` makes of ranks and owners."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import by_reference, kernel
from torch import Tensor

from tokenreduce import TokenMap
from tokenreduce.forward.scan_state import ScanRules, ScanState
from tokenreduce.maps.ordering import in_order
from tokenreduce.maps.walks import Walk
from tokenreduce.ops.native import dispatch

pytestmark = pytest.mark.skipif(bool(dispatch.load()), reason=f"kernels cannot be compiled here: {dispatch.load()}")
CPU = torch.device("cpu")


def clustered(batch: int, n: int, keep: int, g: torch.Generator) -> TokenMap:
    """A map of random clusters, each represented by a random member."""
    order = torch.stack([torch.randperm(n, generator=g) for _ in range(batch)]) if batch else torch.empty(0, n).long()
    rep = order[:, :keep]
    dest = torch.randint(keep, (batch, n), generator=g).scatter(1, rep, torch.arange(keep).expand(batch, -1))
    return in_order(TokenMap(keep, dest=dest, rep=rep))


def fields(walk: Walk) -> dict[str, Tensor | None]:
    return {name: getattr(walk, name) for name in (*Walk.tables, "frozen", "sizes")}


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 3), st.integers(2, 40), st.integers(0, 3), st.booleans(), st.integers(1, 5),
    st.sampled_from(("size", "hold")), st.integers(1, 3), st.data(),
)  # fmt: skip
def test_is_the_reference(batch, entered, prefix, middle, taps, gap, reductions, data) -> None:
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    state, left = ScanState(ScanRules(gap=gap), entered, prefix, middle), entered
    for _ in range(reductions):
        keep = data.draw(st.integers(1, left))
        state.follow(clustered(batch, left, keep, g))
        left = keep
    wide = torch.randint(1, 9, (batch, 2 * left), generator=g).float()
    sizes = wide[:, :left] if data.draw(st.booleans()) else wide[:, :left].contiguous()
    expected = by_reference(state._walk, batch, CPU, taps, sizes)
    with dispatch.using("cpu"):
        found = state._walk(batch, CPU, taps, sizes)
    for one, other in zip(found, expected, strict=True):
        assert one.gap == other.gap
        for name, table in fields(other).items():
            made = fields(one)[name]
            assert (made is None) == (table is None), name
            if table is not None:
                torch.testing.assert_close(made, table, rtol=0, atol=0, msg=name)


ORIGIN, STANDS, SIZES = torch.tensor([[0, 2]]), torch.tensor([[0, 0, 1]]), torch.ones(1, 2)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((ORIGIN + 2, STANDS, SIZES, 0, 1, 4), r"origin holds 4; its entries must lie in \[0, 3\)"),
        ((ORIGIN.flip(1), STANDS, SIZES, 0, 1, 4), "origin must ascend"),
        ((ORIGIN, STANDS + 1, SIZES, 0, 1, 4), r"stands holds 2; its entries must lie in \[0, 2\)"),
        ((ORIGIN, STANDS.expand(2, -1), SIZES, 0, 1, 4), "stands has shape"),
        ((ORIGIN, STANDS, SIZES[:, :1], 0, 1, 4), "sizes has shape"),
        ((ORIGIN, STANDS, SIZES.double(), 0, 1, 4), "sizes must be float32"),
        ((ORIGIN, STANDS, SIZES, 4, 1, 4), r"place is 4; it must lie in \[0, 3\]"),
        ((ORIGIN, STANDS, SIZES, 0, -1, 4), "prefix is -1"),
        ((ORIGIN, STANDS, SIZES, 0, 1, 0), "taps is 0"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(arguments, named) -> None:
    with pytest.raises(RuntimeError, match=named):
        kernel("scan_walks")(*arguments)
