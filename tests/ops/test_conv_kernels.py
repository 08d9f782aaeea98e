"""The compiled short convolution and its gradients against sums over taps in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import DTYPES, STRIDES, kernel, strided
from torch import Tensor

from tokenreduce.ops.causal_conv import causal_conv
from tokenreduce.ops.native import dispatch

pytestmark = pytest.mark.skipif(bool(dispatch.load()), reason=f"kernels cannot be compiled here: {dispatch.load()}")

# Of the greatest number, or of 1: many of about 1 are summed.
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13, torch.float16: 6e-4, torch.bfloat16: 5e-3}


def shifts(batch: int, length: int, width: int, reverse: bool) -> Tensor:
    """The taps `(B, L, K)` of a convolution without any."""
    back = torch.arange(width - 1, -1, -1)
    taps = torch.arange(length)[:, None] + (back if reverse else -back)
    return taps.where((taps >= 0) & (taps < length), -1).expand(batch, -1, -1)


def by_taps(x: Tensor, weight: Tensor, bias: Tensor | None, taps: Tensor | None, reverse: bool) -> Tensor:
    """The same with one sum for each image and token."""
    if taps is None:
        taps = shifts(*x.shape[:2], weight.shape[1], reverse)
    images = []
    for rows, read in zip(x, taps, strict=True):
        tokens = [sum((weight[:, j] * rows[r] for j, r in enumerate(t) if r >= 0), 0 * x[0, 0]) for t in read.tolist()]
        images.append(torch.stack([token if bias is None else token + bias for token in tokens]))
    return torch.nn.functional.silu(torch.stack(images))


def conv_inputs(
    batch: int, length: int, channels: int, width: int, dtype: torch.dtype, bias: bool, taps: bool, reverse: bool
) -> list[Any]:
    """The arguments of the operator; x is half of a wider tensor."""
    g = torch.Generator().manual_seed(channels)
    wide = dtype if dtype == torch.float64 else torch.float32
    return [
        torch.randn(batch, length, 2 * channels, generator=g).to(dtype)[..., channels:],
        torch.randn(channels, width, generator=g).to(wide),
        torch.randn(channels, generator=g).to(wide) if bias else None,
        torch.randint(-1, length, (batch, length, width), generator=g) if taps else None,
        reverse,
    ]


@st.composite
def convolutions(draw: Any) -> list[Any]:
    sizes = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.sampled_from((1, 7, 16, 17, 150)))
    flags = [draw(st.booleans()) for _ in range(3)]
    return conv_inputs(*sizes, draw(st.sampled_from((1, 3, 4, 8))), draw(st.sampled_from(DTYPES)), *flags)


def agrees(given: list[Any]) -> None:
    x, grad = given[0], torch.randn(given[0].shape).to(given[0].dtype)
    tensors = [None if t is None else t.detach().double().requires_grad_() for t in given[:3]]
    expected = by_taps(*tensors, *given[3:])  # type: ignore[arg-type]
    backs = iter(
        torch.autograd.grad(expected, [t for t in tensors if t is not None], grad.double(), materialize_grads=True)
    )
    pairs = [(kernel("causal_conv")(*given), expected.detach(), x)]
    for found, tensor in zip(kernel("causal_conv_backward")(grad, *given), given[:3], strict=True):
        if tensor is None:
            assert found.shape == (0,)
        else:
            pairs.append((found, next(backs), tensor))
    for found, wanted, like in pairs:
        assert found.dtype == like.dtype and found.shape == like.shape and found.is_contiguous()
        error = (found.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1)
        assert error <= TOLERANCE[like.dtype]


@settings(deadline=None, max_examples=100)
@given(convolutions())
def test_convolution_and_gradients_are_sums_over_taps(given: list[Any]) -> None:
    agrees(given)


@pytest.mark.parametrize("taps", [False, True])
def test_at_the_size_of_a_model(taps: bool) -> None:
    agrees(conv_inputs(2, 197, 384, 4, torch.float32, True, taps, False))


@pytest.mark.parametrize("reverse", [False, True])
def test_rows_before_or_after_are_taps_too(reverse: bool) -> None:
    """Bit for bit; with taps, the direction says nothing."""
    x, weight, bias, *_ = conv_inputs(2, 30, 70, 4, torch.float32, True, False, False)
    taps, grad = shifts(2, 30, 4, reverse), torch.randn(2, 30, 70)
    expected = kernel("causal_conv")(x, weight, bias, None, reverse)
    backs = kernel("causal_conv_backward")(grad, x, weight, bias, None, reverse)
    for either in (False, True):
        assert torch.equal(kernel("causal_conv")(x, weight, bias, taps, either), expected)
        found = kernel("causal_conv_backward")(grad, x, weight, bias, taps, either)
        assert all(map(torch.equal, found, backs))


@pytest.mark.parametrize(("batch", "length", "channels"), [(0, 5, 8), (2, 0, 8), (2, 5, 0)])
def test_nothing_gives_nothing(batch: int, length: int, channels: int) -> None:
    given = [torch.zeros(batch, length, channels), torch.ones(channels, 4), torch.ones(channels), None, False]
    assert kernel("causal_conv")(*given).shape == (batch, length, channels)
    backs = kernel("causal_conv_backward")(given[0], *given)
    assert [t.shape for t in backs] == [t.shape for t in given[:3]] and not any(t.any() for t in backs)


@settings(deadline=None, max_examples=30)
@given(convolutions(), STRIDES, STRIDES)
def test_strides_change_nothing(given: list[Any], how: str, taps_how: str) -> None:
    x, weight, bias, taps, reverse = given
    grad = torch.randn(x.shape).to(x.dtype)
    other = (
        strided(x, how),
        weight.t().contiguous().t(),
        bias,
        None if taps is None else strided(taps, taps_how),
        reverse,
    )
    assert torch.equal(kernel("causal_conv")(*other), kernel("causal_conv")(*given))
    backs = [kernel("causal_conv_backward")(strided(grad, how), *these) for these in (other, given)]
    assert all(map(torch.equal, *backs))


def test_threads_and_the_rest_of_a_batch_change_no_bit() -> None:
    given, runs = conv_inputs(5, 60, 200, 4, torch.float32, True, True, False), []
    grad, before = torch.randn(5, 60, 200), torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            runs.append((kernel("causal_conv")(*given), *kernel("causal_conv_backward")(grad, *given)))
        finally:
            torch.set_num_threads(before)
    assert all(map(torch.equal, runs[0], runs[1])) and all(map(torch.equal, runs[0], runs[2]))
    x, weight, bias, taps, reverse = given
    third = x[3:4], weight, bias, taps[3:4], reverse
    assert torch.equal(kernel("causal_conv")(*third), runs[0][0][3:4])
    assert torch.equal(kernel("causal_conv_backward")(grad[3:4], *third)[0], runs[0][1][3:4])


def test_gradients_reach_the_operator() -> None:
    *tensors, taps, _ = conv_inputs(2, 5, 3, 4, torch.float64, True, True, False)
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    with dispatch.using("cpu"):
        assert torch.autograd.gradcheck(lambda *t: causal_conv(*t, taps=taps), leaves)


BAD = [
    (1, torch.zeros(7, 9), "weight has 9 columns; it must have 1 to 8"),
    (1, torch.zeros(6, 4), r"weight has shape \(6, 4\)"),
    (2, torch.zeros(1), r"bias has shape \(1\); it must be \(7\)"),
    (3, torch.full((2, 5, 4), 5), r"taps holds 5; its entries must lie in \[-1, 5\)"),
    (3, torch.full((2, 5, 4), -2), "taps holds -2"),
    (3, torch.zeros(2, 5, 3, dtype=torch.long), r"taps has shape \(2, 5, 3\); it must be \(2, 5, 4\)"),
    (3, torch.zeros(2, 5, 4, dtype=torch.int32), "taps must be int64"),
]


@pytest.mark.parametrize(("place", "tensor", "words"), BAD)
def test_bad_tensors_are_refused(place: int, tensor: Tensor, words: str) -> None:
    given = conv_inputs(2, 5, 7, 4, torch.float32, True, True, False)
    grad, given[place] = given[0], tensor
    for call in (lambda: kernel("causal_conv")(*given), lambda: kernel("causal_conv_backward")(grad, *given)):
        with pytest.raises(RuntimeError, match=words):
            call()
