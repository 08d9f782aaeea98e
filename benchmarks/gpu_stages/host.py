"""What the host does in a forward without a graph: the functions that take it longest, and what a launch costs it."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable
from typing import Any

import torch

from gpu_stages.cases import DEIT, ROUNDS, Case, arm_of, model_of
from gpu_stages.clock import wait
from gpu_stages.session import Facts, Session
from tokenreduce.lab.lanes import patched_lane, unpatched_lane

SECONDS = 10.0
ARMS = ("unpatched", "tome", "ward", ROUNDS)
FORWARDS = 10
SHOWN = 30


def run(session: Session) -> None:
    if not session.tiny:
        session.measure(launches, what="microseconds of the host a launch")
    for method in ARMS:
        session.measure(lambda method=method: profiled(session, method), method=method)


def profiled(session: Session, method: str) -> Facts:
    """Microseconds of the host for each forward, and the functions with most time of their own in them."""
    case = Case(DEIT, 224, 1)  # few images: the GPU never makes the host wait
    net, images = model_of(session, case)
    model = unpatched_lane(net, images)
    with torch.inference_mode():
        if method != "unpatched":
            model = patched_lane(model, arm_of(session, case, method))
        plain = host_us(lambda: model(images), FORWARDS)
        profiler = cProfile.Profile()
        profiler.enable()
        for _ in range(FORWARDS):
            model(images)
        profiler.disable()
    found = pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
    longest = sorted(((1e6 * own / FORWARDS, calls / FORWARDS, where) for where, (_, calls, own, _, _) in found))
    top = [[f"{file[-50:]}:{line} {name}"[-110:], count, us] for us, count, (file, line, name) in longest[::-1][:SHOWN]]
    for name, count, us in top:
        print(f"{us:9.1f} us {count:7.1f} calls  {name}", flush=True)
    return {"host_us": plain, "profiled_us": sum(us for us, _, _ in longest), "top": top}


def launches() -> Facts:
    """Of the smallest kernel in Triton: as the library launches it, and as what Triton compiled it to is launched; and
    of an addition of PyTorch."""
    from tokenreduce.ops.triton.probe import _write_one

    one = torch.zeros(1, dtype=torch.int32, device="cuda")
    compiled = _write_one[(1,)](one)
    facts: Facts = {"torch_us": host_us(lambda: one.add_(1), 200)}
    facts["triton_us"] = host_us(lambda: _write_one[(1,)](one), 200)
    try:
        return facts | {"compiled_us": host_us(lambda: compiled[(1, 1, 1)](one), 200)}
    except Exception as error:  # not a public way of Triton: the other figures count without it
        return facts | {"compiled": f"{type(error).__name__}: {error}"[:200]}


def host_us(call: Callable[[], Any], times: int) -> float:
    """Microseconds until a call returns, which the GPU may not have done yet."""
    call()
    wait()
    start = time.perf_counter()
    for _ in range(times):
        call()
    took = time.perf_counter() - start
    wait()
    return 1e6 * took / times
