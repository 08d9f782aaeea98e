"""The kernels of one forward, and whether the host waits for the GPU in it."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from gpu_stages.cases import Case, arm_of, model_of
from gpu_stages.session import Facts, Session
from tokenreduce.lab.lanes import patched_lane, unpatched_lane
from tokenreduce.ops.native import dispatch

SECONDS = 15.0
ARMS = (
    ("unpatched", "auto"),
    ("tome", "auto"),
    ("ward", "auto"),
    ("evit", "auto"),
    ("tome", "reference"),
    ("ward", "reference"),
    ("pitome", "auto"),
    ("topk", "auto"),
)
SHOWN = 20


def run(session: Session) -> None:
    for method, choice in ARMS:
        session.measure(lambda m=method, c=choice: traced(session, m, c), method=method, choice=choice)


def traced(session: Session, method: str, choice: str) -> Facts:
    case = Case("deit_small_patch16_224", 224, 32)
    net, images = model_of(session, case)
    model = unpatched_lane(net, images)
    with dispatch.using(choice), torch.inference_mode():
        if method != "unpatched":
            model = patched_lane(model, arm_of(session, case, method))
        for _ in range(3):
            model(images)
        waits = synchronisations(model, images)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 if session.tiny else 2]) as profiler:
            model(images)
            if not session.tiny:
                torch.cuda.synchronize()
    events = profiler.events()
    on_gpu = [event for event in events if str(event.device_type).endswith("CUDA")]
    copies = [event for event in on_gpu if event.name.startswith(("Memcpy", "Memset"))]
    print(profiler.key_averages().table(row_limit=25, max_name_column_width=60, sort_by=by(session)), flush=True)
    launches = sum("LaunchKernel" in event.name for event in events)
    return {
        "kernels": len(on_gpu) - len(copies),
        "copies": len(copies),
        "launches": launches,
        "gpu_us": sum(event.device_time for event in on_gpu),
        "waits": waits,
        "top": top(on_gpu if on_gpu else events),
    }


def by(session: Session) -> str:
    return "self_cpu_time_total" if session.tiny else "self_cuda_time_total"


def top(events: list) -> list[tuple[str, int, float]]:
    """Names with how often they ran and their microseconds, the longest first."""
    found: dict[str, tuple[int, float]] = {}
    for event in events:
        count, us = found.get(event.name[:120], (0, 0.0))
        found[event.name[:120]] = (count + 1, us + event.device_time)
    ordered = sorted(found.items(), key=lambda item: -item[1][1])[:SHOWN]
    return [(name, count, us) for name, (count, us) in ordered]


def synchronisations(model: nn.Module, images: torch.Tensor) -> list[str]:
    """PyTorch's warnings about waiting for the GPU in one forward."""
    if not images.is_cuda:
        model(images)
        return []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{word.filename}:{word.lineno}: {word.message}"[:300] for word in caught]
