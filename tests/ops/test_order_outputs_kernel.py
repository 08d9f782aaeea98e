"""The compiled order of outputs against the reference, which sorts and scatters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import by_reference, kernel, strided

from tokenreduce import TokenMap
from tokenreduce.maps.ordering import in_order
from tokenreduce.ops.native import dispatch

pytestmark = pytest.mark.skipif(bool(dispatch.load()), reason=f"kernels cannot be compiled here: {dispatch.load()}")


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 3), st.integers(1, 40), st.sampled_from(("contiguous", "padded", "transposed")), st.data())
def test_is_the_reference(batch, n, how, data) -> None:
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    keep = data.draw(st.integers(1, n))
    alike = data.draw(st.booleans())  # a token may represent several outputs
    rep = (
        torch.randint(n, (batch, keep), generator=g)
        if alike
        else torch.rand(batch, n, generator=g).argsort(1)[:, :keep]
    )
    dest, weight = torch.randint(keep, (batch, n), generator=g), torch.rand(batch, n, generator=g)
    dest, rep = (strided(t[..., None], how)[..., 0] for t in (dest, rep))
    token_map = TokenMap(keep, dest=dest, rep=rep, weight=weight, size_weight=weight + 1, fused=True)
    with dispatch.using("cpu"):
        found = in_order(token_map)
    expected = by_reference(in_order, token_map)
    assert torch.equal(found.dest, expected.dest) and torch.equal(found.rep, expected.rep)
    for one in (found, expected):
        assert one.ascending and not one.fused and one.weight is weight and one.size_weight is token_map.size_weight


DEST, REP = torch.tensor([[0, 1, 1]]), torch.tensor([[2, 0]])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((DEST + 1, REP), r"dest holds 2; its entries must lie in \[0, 2\)"),
        ((DEST, REP + 1), r"rep holds 3; its entries must lie in \[0, 3\)"),
        ((DEST, REP.expand(2, -1)), "rep has shape"),
        ((DEST.float(), REP), "dest must be int64"),
    ],
)
def test_wrong_arguments_are_named(arguments, named) -> None:
    with pytest.raises(RuntimeError, match=named):
        kernel("order_outputs")(*arguments)


def test_only_whole_numbers_are_taken() -> None:
    assert dispatch.why_not("order_outputs", DEST.float()) == "torch.float32 is not supported"
    assert dispatch.why_not("merge_apply", DEST) == "torch.int64 is not supported"
