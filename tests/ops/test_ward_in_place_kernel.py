"""The compiled `ward` for models that scan their tokens against the reference, which sorts and scatters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import DTYPES, STRIDES, by_reference, kernel, same, strided

from tokenreduce.maps.ordering import in_order
from tokenreduce.maps.places import grid_positions
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.native import dispatch
from tokenreduce.reducers.methods.ward import Ward
from tokenreduce.reducers.tokens import Tokens

pytestmark = pytest.mark.skipif(bool(dispatch.load()), reason=f"kernels cannot be compiled here: {dispatch.load()}")


def shown(x: torch.Tensor, positions: torch.Tensor, sizes: torch.Tensor | None) -> Tokens:
    tokens = Tokens(x, sizes, {"positions": lambda: positions})
    tokens.ordered = True
    return tokens


def both(ward: Ward, tokens: Tokens, keep: int) -> tuple[TokenMap, TokenMap]:
    with dispatch.using("cpu"):
        found = ward.plan(tokens, keep)
    return found, in_order(by_reference(ward.plan, tokens, keep))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.sampled_from((4, 33, 80)), STRIDES,
    st.sampled_from((0.0, 0.2, 3.0)), st.booleans(), st.data(),
)  # fmt: skip
def test_is_the_reference_in_order(batch, height, width, channels, how, nearness, moved, data) -> None:
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    n = height * width
    x = strided(torch.randn(batch, n, channels, generator=g), how)
    places = grid_positions((height, width), x.device).expand(batch, -1, -1)
    places = places + torch.rand(batch, n, 2, generator=g) if moved else places  # else many are as near as others
    sizes = data.draw(st.sampled_from((None, torch.randint(1, 9, (batch, n), generator=g).float())))
    found, expected = both(Ward(nearness=nearness), shown(x, places, sizes), data.draw(st.integers(1, n)))
    same(found, expected)
    assert found.ascending
    means = TokenMap(found.count, dest=found.dest).apply(places, sizes)
    torch.testing.assert_close(found.middles, means, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_takes_any_type(dtype: torch.dtype) -> None:
    x = torch.randn(2, 64, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    same(*both(Ward(), shown(x, grid_positions((8, 8), x.device).expand(2, -1, -1), None), 21))


def test_no_number_is_no_reason_to_lose_a_token() -> None:
    x, places = torch.randn(1, 16, 8), grid_positions((4, 4), torch.device("cpu"))[None].clone()
    x[0, 3], places[0, 5] = float("nan"), float("nan")
    dest, rep, sources, _ = kernel("ward_in_place")(x, places, None, None, 8, 0.2, 6)
    assert sorted([*rep[0].tolist(), *sources[0].tolist()]) == [*range(16)]
    assert set(dest[0].tolist()) == {*range(6)} and rep[0].tolist() == sorted(rep[0].tolist())


X, PLACES = torch.randn(1, 4, 8), torch.randn(1, 4, 2)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((X, PLACES[:, :3], None, None, 8, 0.2, 3), "positions"),
        ((X, PLACES.double(), None, None, 8, 0.2, 3), "positions"),
        ((X, PLACES, torch.ones(1, 3), None, 8, 0.2, 3), "sizes"),
        ((X, PLACES, None, torch.ones(3), 4, 0.2, 3), "signs"),
        ((X, PLACES, None, None, 4, 0.2, 3), "signs"),
        ((X, PLACES, None, None, 9, 0.2, 3), "width"),
        ((X, PLACES, None, None, 8, 0.2, 0), "keep"),
        ((X[0], PLACES, None, None, 8, 0.2, 3), "features"),
    ],
)
def test_wrong_arguments_are_named(arguments, named) -> None:
    with pytest.raises(RuntimeError, match=named):
        kernel("ward_in_place")(*arguments)
