"""The selective scan and its convolution, compiled and as plain PyTorch, forward and backward: one direction of a layer
of Vision Mamba (tiny) at 224 x 224.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenreduce.ops.causal_conv import causal_conv
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.selective_scan import selective_scan

LENGTH, WIDTH = 197, 384


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


def scan(batch: int, states: int) -> Callable[[], Tensor]:
    x, z = normal(batch, LENGTH, 2 * WIDTH).chunk(2, -1)
    write, read = normal(batch, LENGTH, 12 + 2 * states)[..., 12:].chunk(2, -1)
    rate = (-torch.arange(1.0, states + 1).repeat(WIDTH, 1)).requires_grad_()
    step, skip, bias = normal(batch, LENGTH, WIDTH), normal(WIDTH), (torch.randn(WIDTH) - 4).requires_grad_()
    return lambda: selective_scan(x, step, rate, write, read, skip, z, dt_bias=bias, softplus=True)


def convolution(batch: int, taps: bool) -> Callable[[], Tensor]:
    x, weight, bias = normal(batch, LENGTH, WIDTH), normal(WIDTH, 4), normal(WIDTH)
    rows = torch.randint(LENGTH, (batch, LENGTH, 4)) if taps else None
    return lambda: causal_conv(x, weight, bias, taps=rows)


CALLS: dict[str, Callable[[int], Callable[[], Tensor]]] = {
    "scan of 16 states": lambda batch: scan(batch, 16),
    "scan of 8 states": lambda batch: scan(batch, 8),
    "convolution": lambda batch: convolution(batch, False),
    "convolution by taps": lambda batch: convolution(batch, True),
}


@pytest.mark.parametrize("choice", ["cpu", "reference"])
@pytest.mark.parametrize("way", ["forward", "forward and backward"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("call", CALLS)
def test_scan(benchmark: Any, call: str, batch: int, way: str, choice: str) -> None:
    benchmark.group = f"{call}, batch {batch}, {way}"
    run = CALLS[call](batch)
    grad = torch.randn(batch, LENGTH, WIDTH)
    with dispatch.using(choice):
        reason = dispatch.load()
        if reason and choice == "cpu":
            pytest.skip(reason)
        if way == "forward":
            with torch.inference_mode():
                benchmark(run)
        else:
            benchmark(lambda: run().backward(grad))
