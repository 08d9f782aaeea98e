"""`torch.compile(fullgraph=True)` in `reduce-overhead`: how long it compiles, and whether it breaks or skips."""

from __future__ import annotations

import statistics

import torch
from torch import nn
from torch._dynamo.utils import counters

from gpu_stages.cases import Case, arm_of, model_of
from gpu_stages.clock import first_call, graphed, interleaved, ratio
from gpu_stages.correct import relative
from gpu_stages.session import Facts, Session
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.lanes import patched_lane, unpatched_lane

SECONDS = 80.0
CASE = Case("deit_small_patch16_224", 224, 32)
LAYERS = {"layers": [3, 6, 9]}
ARMS = ("unpatched", "evit", "tome in 3 layers", "ward")


def run(session: Session) -> None:
    for name in ARMS:
        session.measure(lambda name=name: compiled(session, name), arm=name, mode="reduce-overhead")


def lane(session: Session, name: str) -> tuple[nn.Module, torch.Tensor]:
    net, images = model_of(session, CASE)
    base = unpatched_lane(net, images)
    if name == "unpatched":
        return base, images
    if name == "tome in 3 layers":
        return patched_lane(base, Arm("tome", r=2 if session.tiny else 45, **LAYERS)), images
    return patched_lane(base, arm_of(session, CASE, name)), images


def compiled(session: Session, name: str) -> Facts:
    torch._dynamo.reset()
    counters.clear()
    model, images = lane(session, name)
    how = {"backend": "eager"} if session.tiny else {"mode": "reduce-overhead"}
    with torch.inference_mode():
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
        rounds = interleaved({"compiled": lambda: quick(images), "graph": graphed(lambda: model(images))}, 9)
    facts |= {f"{lane}_us": statistics.median(found) for lane, found in rounds.items()}
    return facts | {"compiled_over_graph": ratio(rounds["compiled"], rounds["graph"])}
