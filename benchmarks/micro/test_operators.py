"""Every operator by every implementation that can run here, on the CPU or, where there is one, on the GPU.

python -m pytest benchmarks/micro --benchmark-autosave     # before a change
python -m pytest benchmarks/micro --benchmark-compare      # after it, against the last saved run
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from gpu_stages.attention import WAYS, triton_way
from gpu_stages.clock import wait
from gpu_stages.operators import KERNELS, METHODS, Tensors, operators

from tokenreduce.ops.native import dispatch
from tokenreduce.ops.triton import launching

GPU = torch.cuda.is_available()
DEVICE, DTYPE = torch.device("cuda" if GPU else "cpu"), torch.float16 if GPU else torch.float32
# batch, image tokens, channels, tokens removed
SIZES = (
    ((32, 196, 384, 13), (256, 196, 384, 13), (32, 1369, 1024, 57)) if GPU else ((1, 196, 384, 13), (8, 196, 384, 13))
)
CHOICES = [name for name in dispatch.CHOICES if name not in ("auto", "cpu" if GPU else "cuda")]


@lru_cache(maxsize=2)
def calls(size: tuple[int, int, int, int]) -> dict[str, Callable[[], Tensors]]:
    return operators(DEVICE, DTYPE, *size)


def timed(benchmark: Any, call: Callable[[], object]) -> None:
    def run() -> None:
        call()
        wait()

    with torch.inference_mode():
        benchmark(run)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("operator", [*KERNELS, *(method for method in METHODS if method not in KERNELS)])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_operator(benchmark: Any, size: tuple[int, int, int, int], operator: str, choice: str) -> None:
    benchmark.group = f"{operator} {size}"
    x = torch.zeros(1, 8, 64, device=DEVICE, dtype=torch.float32 if operator == "size_bias" else DTYPE)
    with dispatch.using(choice):
        reason = dispatch.why_not(KERNELS[operator], x) if operator in KERNELS else "there is no kernel of it"
        if reason and choice != "reference":
            pytest.skip(reason)
        timed(benchmark, calls(size)[operator])


@pytest.mark.parametrize("way", [*WAYS, "triton"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_attention(benchmark: Any, size: tuple[int, int, int, int], way: str) -> None:
    reason = "Triton interprets here" if launching.interpreted() else launching.why_not()
    if way == "triton" and reason:
        pytest.skip(reason)
    batch, n, channels, _ = size
    benchmark.group = f"attention {size}"
    fused = torch.randn(batch, n + 1, 3, channels // 64, 64, device=DEVICE, dtype=DTYPE)
    q, k, v = fused.permute(2, 0, 3, 1, 4)
    logs = torch.rand(batch, n + 1, device=DEVICE)
    call = triton_way if way == "triton" else WAYS[way]
    timed(benchmark, lambda: call(q, k, v, logs))
