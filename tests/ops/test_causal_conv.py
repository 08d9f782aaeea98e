"""`causal_conv` against a loop over tokens and taps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from tokenreduce import count_flops
from tokenreduce.ops.causal_conv import causal_conv, conv_operator, conv_reference
from tokenreduce.ops.native import dispatch

B, L, E, K = 2, 7, 5, 4


def inputs(dtype: torch.dtype = torch.float64, length: int = L, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`x`, weight and bias, and taps that read any row, or nothing."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(B, length, 2 * E, generator=g, dtype=torch.float64)[..., :E]
    weight, bias = torch.randn(E, K, generator=g, dtype=torch.float64), torch.randn(E, generator=g, dtype=torch.float64)
    taps = torch.randint(-1, length, (B, length, K), generator=g)
    return x.to(dtype), weight.to(dtype), bias.to(dtype), taps


def slow(x: Tensor, weight: Tensor, bias: Tensor | None, taps: Tensor | None, reverse: bool) -> Tensor:
    x, weight = x.double(), weight.double()
    out = torch.zeros_like(x) if bias is None else bias.double().expand_as(x).clone()
    for image in range(x.shape[0]):
        for t in range(x.shape[1]):
            for k in range(weight.shape[1]):
                back = weight.shape[1] - 1 - k
                row = (t + back if reverse else t - back) if taps is None else int(taps[image, t, k])
                if 0 <= row < x.shape[1]:
                    out[image, t] += weight[:, k] * x[image, row]
    return F.silu(out)


def call(x: Tensor, weight: Tensor, bias: Tensor | None, taps: Tensor | None, reverse: bool) -> Tensor:
    return causal_conv(x, weight, bias, taps=taps, reverse=reverse)


def by_reference(*given: Any) -> Tensor:
    with dispatch.using("reference"):
        return call(*given)


def each_image(x: Tensor, weight: Tensor, bias: Tensor | None, taps: Tensor | None, reverse: bool) -> Tensor:
    def one(x: Tensor, taps: Tensor | None) -> Tensor:
        return call(x[None], weight, bias, None if taps is None else taps[None], reverse)[0]

    return vmap(one, (0, None if taps is None else 0))(x, taps)


WAYS = {
    "call": call,
    "reference": by_reference,
    "operator": conv_operator,
    "compiled": lambda *given: torch.compile(call, fullgraph=True, backend="eager")(*given),
    "vmap": each_image,
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("chosen", [False, True], ids=["in a row", "taps"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_is_the_loop(way: str, biased: bool, chosen: bool, reverse: bool) -> None:
    torch._dynamo.reset()
    x, weight, bias, taps = inputs()
    given = (x, weight, bias if biased else None, taps if chosen else None, reverse)
    torch.testing.assert_close(WAYS[way](*given), slow(*given), rtol=0, atol=1e-13)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_lengths(length: int) -> None:
    x, weight, bias, taps = inputs(length=length)
    for given in ((x, weight, bias, taps, False), (x, weight, bias, None, False), (x, weight, bias, None, True)):
        for way in WAYS.values():
            torch.testing.assert_close(way(*given), slow(*given), rtol=0, atol=1e-13)


def test_taps_in_a_row_are_none() -> None:
    x, weight, bias, _ = inputs(torch.float32)
    for reverse in (False, True):
        back = torch.arange(K - 1, -1, -1) * (1 if reverse else -1)
        rows = torch.arange(L)[:, None] + back
        taps = torch.where((rows >= 0) & (rows < L), rows, -1).expand(B, -1, -1)
        found = call(x, weight, bias, taps, reverse)
        torch.testing.assert_close(found, call(x, weight, bias, None, reverse), rtol=0, atol=1e-6)


@pytest.mark.parametrize("chosen", [False, True], ids=["in a row", "taps"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("way", ["call", "reference", "operator"])
def test_gradients(way: str, biased: bool, chosen: bool) -> None:
    x, weight, bias, taps = inputs()
    wanted = [t.detach().clone().requires_grad_() for t in ((x, weight, bias) if biased else (x, weight))]
    for reverse in (False, True):
        rest = (taps if chosen else None, reverse)
        assert torch.autograd.gradcheck(
            lambda x, weight, bias=None, rest=rest: WAYS[way](x, weight, bias, *rest), wanted
        )


@pytest.mark.parametrize("chosen", [False, True], ids=["in a row", "taps"])
def test_the_operator_is_one(chosen: bool) -> None:
    x, weight, bias, taps = inputs(torch.float32)
    given = (x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), taps if chosen else None, False)
    torch.library.opcheck(torch.ops.tokenreduce.causal_conv.default, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x, weight, bias, taps = inputs(dtype)
    for given in ((x, weight, bias, taps, False), (x, weight, bias, None, True)):
        expected = slow(*given)
        for found in (call(*given), conv_reference(*given)):
            assert found.dtype == dtype
            assert ((found.double() - expected).abs() <= torch.finfo(dtype).eps * expected.abs() * 0.51 + 1e-6).all()


def test_multiply_adds_are_one_for_each_tap() -> None:
    x, weight, bias, taps = inputs()
    for rows in (None, taps):
        counted = count_flops(lambda rows=rows: call(x, weight, bias, rows, False), ())
        assert counted.total == B * L * E * K and not counted.uncounted
