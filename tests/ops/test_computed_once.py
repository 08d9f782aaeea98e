"""Numbers that follow from counts and widths alone are computed once, and not in every forward."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import tokenreduce
from tokenreduce.ops.tracing import computed_once
from tokenreduce.reducers.methods import algm, centerclip, expedit, pool, random
from tokenreduce.reducers.parts import sketch

FUNCTIONS: dict[str, list[Any]] = {
    "ward": [sketch.signs],
    "random": [random.choose],
    "pool": [pool.pooling],
    "expedit": [expedit.coarse_grid],
    "algm": [algm.window_cells, algm.corners],
}


@contextmanager
def bodies() -> Iterator[Counter[Any]]:
    """How often the code of each function of Python runs."""
    found: Counter[Any] = Counter()
    sys.setprofile(lambda frame, event, arg: found.update([frame.f_code]) if event == "call" else None)
    try:
        yield found
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("method", FUNCTIONS)
def test_later_forwards_compute_nothing_anew(method: str) -> None:
    net = timm.create_model("vit_tiny_patch16_224", img_size=144, depth=4, num_classes=3).eval()
    model, images = tokenreduce.patch(net, method, flops=0.7), torch.zeros(2, 3, 144, 144)
    with torch.inference_mode():
        model(images)
        with bodies() as found:
            model(images)
    for function in FUNCTIONS[method]:
        assert found[function.__code__] > 0 == found[function.__wrapped__.__code__]


def test_nor_does_a_method_for_videos() -> None:
    centerclip.shares((8, 3, 3), 4, 20)
    with bodies() as found:
        centerclip.shares((8, 3, 3), 4, 20)
    assert found[centerclip.shares.__code__] == 1 and not found[centerclip.shares.__wrapped__.__code__]  # type: ignore[attr-defined]


@pytest.fixture
def halved() -> tuple[Callable[..., Any], list[Any]]:
    calls: list[Any] = []

    @computed_once
    def half(n: int) -> tuple[int, ...]:
        calls.append(n)
        if n < 0:
            raise ValueError("negative")
        return tuple(range(n // 2))

    return half, calls


def test_errors_are_not_remembered(halved: Any) -> None:
    half, calls = halved
    assert half(6) is half(6) and calls == [6]
    for _ in range(2):
        with pytest.raises(ValueError, match="negative"):
            half(-1)
    assert calls == [6, -1, -1]


def test_lengths_that_are_tensors_are_not_remembered(halved: Any) -> None:
    half, calls = halved
    for _ in range(2):
        assert half(torch.tensor(4)) == (0, 1)
    assert len(calls) == 2


def test_the_compiler_traces_no_computing() -> None:
    """Neither the generator of random numbers nor the cache: both would break the graph."""

    def signed(x: Tensor) -> Tensor:
        return x * torch.tensor(sketch.signs(x.shape[-1]))

    x = torch.ones(2, 24)
    compiled = torch.compile(signed, backend="eager", fullgraph=True)
    for _ in range(2):
        assert torch.equal(compiled(x), signed(x))
