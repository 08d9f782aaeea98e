"""`torch.compile(fullgraph=True)`: how long it compiles, whether it breaks or skips, and how fast it is."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters

from gpu_stages.cases import DEIT, Case, arm_of, model_of
from gpu_stages.clock import first_call, graphed, interleaved, ratio
from gpu_stages.correct import relative
from gpu_stages.session import Facts, Session
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.lanes import patched_lane, unpatched_lane

SECONDS = 120.0
LAYERS = {"layers": [3, 6, 9]}
# What decides comes first: a model compiles for half a minute or more.
ROWS = (
    ("unpatched", 32, "default"),
    ("ward", 32, "default"),
    ("tome", 32, "default"),
    ("ward", 32, "reduce-overhead"),
    ("ward", 256, "default"),
    ("unpatched", 256, "default"),
    ("tome", 256, "default"),
    ("tome", 32, "reduce-overhead"),
    ("ward", 256, "reduce-overhead"),
    ("tome", 256, "reduce-overhead"),
    ("unpatched", 32, "reduce-overhead"),
    ("ward(rounds=3)", 32, "reduce-overhead"),
    ("evit", 32, "reduce-overhead"),
    ("tome in 3 layers", 32, "reduce-overhead"),
)


def run(session: Session) -> None:
    for arm, batch, mode in ROWS:
        key = {"arm": arm, "batch": batch, "mode": mode}
        session.measure(lambda key=key: compiled(session, **key), **key)


def lane(session: Session, name: str, case: Case) -> tuple[nn.Module, torch.Tensor]:
    net, images = model_of(session, case)
    base = unpatched_lane(net, images)
    if name == "unpatched":
        return base, images
    if name == "tome in 3 layers":
        return patched_lane(base, Arm("tome", r=2 if session.tiny else 45, **LAYERS)), images
    return patched_lane(base, arm_of(session, case, name)), images


def compiled(session: Session, arm: str, batch: int, mode: str) -> Facts:
    """Microseconds of the compiled model as it is called, of the same in a graph, and of what is not compiled in one.
    With `reduce-overhead` it is a graph as it is called."""
    torch._dynamo.reset()
    counters.clear()
    model, images = lane(session, arm, Case(DEIT, 224, batch))
    how: dict[str, Any] = {"backend": "eager"} if session.tiny else {} if mode == "default" else {"mode": mode}
    with torch.inference_mode(), no_longer_than(session.stage_ends - time.time()):
        eager = model(images)
        quick = torch.compile(model, fullgraph=True, **how)
        _, took = first_call(lambda: [quick(images).clone() for _ in range(3)])
        one, again = quick(images).clone(), quick(images).clone()
        facts: Facts = {
            "compile_s": took,
            "breaks": sum(counters["graph_break"].values()),
            "skips": counters["inductor"].get("cudagraph_skips", 0),
            "error": relative(one, eager),
            "repeats": torch.equal(one, again),
            "graphs": counters["stats"].get("unique_graphs", 0),
        }
        calls: dict[str, Callable[[], Any]] = {
            "compiled": lambda: quick(images),
            "graph": graphed(lambda: model(images)),
        }
        if mode == "default":
            calls["compiled_graph"] = graphed(lambda: quick(images))
        rounds = interleaved(calls, 9)
    facts |= {f"{lane}_us": statistics.median(found) for lane, found in rounds.items()}
    return facts | {"compiled_over_graph": ratio(rounds["compiled"], rounds["graph"])}


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Raises: TimeoutError in the block after so many seconds, at least 5: compiling cannot be cut otherwise."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s, when the stage's time was over")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(5.0, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
