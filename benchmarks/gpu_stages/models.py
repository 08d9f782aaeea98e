"""Whole models: patched against the limit (sliced to the same counts) and the unpatched one, in alternating rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from gpu_stages.cases import CASES, DEIT, METHODS, Case, arm_of, model_of
from gpu_stages.cases import ROUNDS as IN_ROUNDS
from gpu_stages.clock import Call, first_call, graphed, interleaved, ratio
from gpu_stages.session import Facts, Session
from tokenreduce.forward.records import last_record
from tokenreduce.lab.lanes import limit_lane, patched_lane, unpatched_lane
from tokenreduce.ops.native import dispatch
from tokenreduce.patching.finding import reduction_of

SECONDS, MORE_SECONDS = 75.0, 90.0
FIRST = ("ward", IN_ROUNDS, "tome")  # and the first five cases
ROUNDS = {"graph": 11, "eager": 3}
SLOW_PLAN = 0.1  # seconds


def run(session: Session) -> None:
    if not session.tiny:
        choose_attention(session)
    for case in CASES[:5] if not session.tiny else CASES[:1]:
        for method in FIRST:
            measure(session, case, method, "auto")


def more(session: Session) -> None:
    """The other models and methods, rows of the same stage."""
    session.stage = "models"
    cases = CASES if not session.tiny else CASES[:1]
    for methods in ((*FIRST, "evit"), METHODS[3:]):
        for case in cases:
            for method in methods:
                measure(session, case, method, "auto")
    for case in cases:
        if case == Case(DEIT, 224, 32) or session.tiny:
            for method in METHODS:
                measure(session, case, method, "reference")


def measure(session: Session, case: Case, method: str, choice: str) -> None:
    key = {"model": case.model, "side": case.side, "batch": case.batch, "method": method, "choice": choice}
    session.measure(lambda: timed(session, case, method, choice), **key)
    if not session.tiny:
        torch.cuda.empty_cache()


def timed(session: Session, case: Case, method: str, choice: str) -> Facts:
    net, images = model_of(session, case)
    base = unpatched_lane(net, images)
    with dispatch.using(choice), torch.inference_mode():
        model = patched_lane(base, arm_of(session, case, method))
        _, first = first_call(partial(model, images))
        reduction = reduction_of(model)
        record = last_record(reduction)
        counts = record.counts
        facts: Facts = {"width": reduction.geometry.width, "tokens": record.entered, "counts": list(counts)}
        facts |= {"dtype": str(session.dtype).removeprefix("torch."), "first_s": first}
        with limit_lane(base, counts, reduction.reducer.placement) as limit:
            lanes = {"patched": model, "limit": limit, "unpatched": base}
            calls = {name: partial(lane, images) for name, lane in lanes.items()}
            for mode, rounds in ROUNDS.items():
                facts |= figures(mode, calls, 2 if session.tiny else rounds)
    return facts


def figures(mode: str, calls: Mapping[str, Call], count: int) -> Facts:
    """Medians, ratios and the microseconds of every round in this mode, or why there are none."""
    try:
        ready = {name: graphed(call) for name, call in calls.items()} if mode == "graph" else calls
        rounds = interleaved(ready, count)
    except Exception as error:  # the other mode may still run
        return {f"{mode}_failed": f"{type(error).__name__}: {error}"[:600]}
    facts: Facts = {f"{mode}_{name}_us": statistics.median(found) for name, found in rounds.items()}
    facts[f"{mode}_limit_share"] = ratio(rounds["patched"], rounds["limit"])
    facts[f"{mode}_speedup"] = ratio(rounds["unpatched"], rounds["patched"])
    return facts | {f"{mode}_rounds_{name}": found for name, found in rounds.items()}


def choose_attention(session: Session) -> None:
    """Switch cuDNN's attention off where a new shape costs it long: every reduced layer has one, so that plans alone
    would take minutes. Both models of a ratio then run without."""

    def decide() -> Facts:
        seconds = plan_seconds()
        slow = seconds > SLOW_PLAN
        return {"seconds_a_plan": seconds, "cudnn_attention": not slow}

    session.measure(decide, what="seconds of cuDNN attention for a new shape")
    decided = [row for row in session.rows if row["stage"] == session.stage and "cudnn_attention" in row]
    if decided and not decided[0]["cudnn_attention"]:
        torch.backends.cuda.enable_cudnn_sdp(False)


def plan_seconds() -> float:
    """Median seconds of the first cuDNN attention of a shape; 0 where cuDNN has none."""
    seconds = []
    for n in (173, 149, 131):
        q, k, v = torch.randn(3, 8, 6, n, 64, device="cuda", dtype=torch.float16)
        try:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                seconds.append(first_call(partial(sdpa, q, k, v))[1])
        except RuntimeError:
            return 0.0
    return statistics.median(seconds)
