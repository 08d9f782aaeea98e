"""Time on a GPU by events, eager and in CUDA graphs; on a CPU by the clock."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Call = Callable[[], Any]


def graphed(call: Call) -> Call:
    """`call` as a CUDA graph, warmed up on a side stream; without a GPU `call` itself."""
    if not torch.cuda.is_available():
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def wait() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def turn(call: Call, times: int) -> float:
    """Microseconds of one of so many calls in a row."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        for _ in range(times):
            call()
        return 1e6 * (time.perf_counter() - start) / times
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    wait()
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end) / times


def repeats(call: Call, seconds: float) -> int:
    """How many calls take so long; warms up."""
    turn(call, 1)
    return min(1000, max(1, math.ceil(seconds / max(1e-6, 1e-6 * turn(call, 2)))))


def microseconds(call: Call, turns: int = 9, seconds: float = 4e-3) -> float:
    """Median microseconds of a call over some turns, each at least so long."""
    times = repeats(call, seconds)
    return statistics.median(turn(call, times) for _ in range(turns))


def interleaved(calls: Mapping[str, Call], rounds: int, seconds: float = 0.012) -> dict[str, list[float]]:
    """Microseconds of each call in every round; rounds run all calls, in rotating order."""
    times = {name: repeats(call, seconds) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(turn(calls[name], times[name]))
    return found


def ratio(own: list[float], other: list[float]) -> float:
    """The median over rounds of one time over the other."""
    return statistics.median(a / b for a, b in zip(own, other, strict=True))


def first_call(call: Call) -> tuple[Any, float]:
    """What the first call gives, and its seconds: compiling, planning and loading included."""
    wait()
    start = time.perf_counter()
    out = call()
    wait()
    return out, time.perf_counter() - start
