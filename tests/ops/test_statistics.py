"""Compiled statistics of attention and of pairs against the references, and what rounding must not decide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import DTYPES, STRIDES, by_reference, kernel, strided
from torch import Tensor

from tokenreduce.ops.attention import received_and_own
from tokenreduce.ops.native import dispatch
from tokenreduce.reducers.parts.energy import energy

pytestmark = pytest.mark.skipif(bool(dispatch.load()), reason=f"kernels cannot be compiled here: {dispatch.load()}")


@st.composite
def attentions(draw: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries and keys `(B, H, N, d)`, a bias or none; a query may hold NaN, and keys may be masked, but not all."""
    batch, heads, n, width = (draw(st.integers(*ends)) for ends in ((0, 3), (1, 4), (1, 70), (1, 80)))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    dtype, layout = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(("fused", "apart")))
    if layout == "fused":
        queries, keys = torch.randn(batch, n, 3, heads, width, generator=g).to(dtype).permute(2, 0, 3, 1, 4)[:2]
    else:
        both = torch.randn(2, batch, heads, n, width, generator=g).to(dtype)
        queries, keys = (strided(x, draw(STRIDES)) for x in both)
    if batch and draw(st.booleans()):
        queries[0, draw(st.integers(0, heads - 1)), draw(st.integers(0, n - 1)), 0] = float("nan")
    kind = draw(st.sampled_from(("none", "random", "masked")))
    if kind == "none":
        return queries, keys, None
    bias = 2 * torch.randn(batch, 1, 1, n, generator=g)
    if kind == "masked":
        masked = torch.rand(bias.shape, generator=g) < 0.4
        masked[..., draw(st.integers(0, n - 1))] = False
        bias = bias.masked_fill(masked, -float("inf"))
    return queries, keys, bias


@settings(deadline=None, max_examples=200)
@given(attentions())
def test_statistics_of_attention_are_the_reference(case: tuple[Tensor, Tensor, Tensor | None]) -> None:
    found = kernel("attention_statistics")(*case)
    for tensor, expected in zip(found, by_reference(received_and_own, *case), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_keys_that_are_all_masked_receive_nan() -> None:
    x, bias = torch.randn(1, 2, 9, 4), torch.full((1, 1, 1, 9), -float("inf"))
    for tensor in (*kernel("attention_statistics")(x, x, bias), *by_reference(received_and_own, x, x, bias)):
        assert tensor.isnan().all()


@st.composite
def twins(draw: Any) -> Tensor:
    """`(B, N, d)`, N even, whose second half repeats the first; some rows are zero."""
    batch, half, width = draw(st.integers(0, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 80))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    x = torch.randn(batch, half, width, generator=g) + draw(st.sampled_from((0.0, 1.0)))
    x = x * (torch.rand(batch, half, 1, generator=g) > draw(st.sampled_from((0.0, 0.2))))
    return strided(torch.cat([x, x], 1).to(draw(st.sampled_from(DTYPES))), draw(STRIDES))


@settings(deadline=None, max_examples=200)
@given(twins(), st.floats(0, 1), st.floats(0, 3), st.sampled_from(("paper", "code")))
def test_energy_is_the_reference(x: Tensor, margin: float, alpha: float, form: str) -> None:
    found = kernel("pitome_energy")(x, margin, alpha, form == "code")
    expected = by_reference(energy, x.float(), margin, alpha, form)
    # Rounding decides on which side of the margin a cosine lies, where the energy of the paper jumps by the margin.
    unit = torch.nn.functional.normalize(x.double(), dim=-1, eps=1e-6)
    near = ((unit @ unit.transpose(1, 2) - margin).abs() < 1e-5).sum(2)
    allowed = 1e-6 * x.shape[1] * (1 + alpha) + (near * margin if form == "paper" else 0)
    assert found.dtype == torch.float64 and ((found - expected).abs() <= allowed).all()


@settings(deadline=None, max_examples=200)
@given(twins(), st.floats(0, 1), st.sampled_from((0.0, 0.3, 1.0, 2.5)), st.booleans(), st.integers(0, 10**6))
def test_energy_does_not_depend_on_the_order_of_tokens(
    x: Tensor, margin: float, alpha: float, above_margin: bool, seed: int
) -> None:
    found = kernel("pitome_energy")(x, margin, alpha, above_margin)
    half = x.shape[1] // 2
    assert torch.equal(found[:, :half], found[:, half:])
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))
    assert torch.equal(kernel("pitome_energy")(x[:, order], margin, alpha, above_margin), found[:, order])


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 80), st.floats(0, 1), st.booleans(), st.integers(0, 10**6))
def test_tokens_of_a_pair_have_one_energy(width: int, margin: float, above_margin: bool, seed: int) -> None:
    pairs = torch.randn(50, 2, width, generator=torch.Generator().manual_seed(seed))
    found = kernel("pitome_energy")(pairs, margin, 1.0, above_margin)
    assert torch.equal(found[:, 0], found[:, 1])
