"""What one forward shows the profiler: its allocation peak and the attention kernels that really ran."""

from __future__ import annotations

import os
from collections import Counter
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tokenreduce.lab.speed.timing import Call

MIB = 2**20

# Operator -> what people call it.
ATTENTION = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash (CPU)",
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
    "aten::_scaled_dot_product_fused_attention_overrideable": "device's own",
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::_native_multi_head_attention": "native fast path",
    "aten::_transformer_encoder_layer_fwd": "native fast path",
}


def peak_memory(call: Call, device: torch.device) -> float:
    """MiB that `call` holds at its worst moment, beyond what was allocated before it (weights, input).

    CUDA: the allocator's own peak. CPU: the highest running sum of the allocations and releases that the profiler saw;
    scratch space that a kernel library takes from the operating system is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    changes = [event for event in _profiled(call, memory=True) if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0)) / MIB


def attention_backend(call: Call) -> str:
    """The attention kernels that ran during `call`, such as "flash" or "efficient x 11 + flash x 1"."""
    operators = Counter(event.name() for event in _profiled(call, memory=False))
    kernels: Counter[str] = Counter()
    for operator, name in ATTENTION.items():
        kernels[name] += operators[operator]
    ran = [(name, calls) for name, calls in kernels.most_common() if calls]
    if not ran:
        return "manual softmax" if operators["aten::softmax"] else "none"
    return ran[0][0] if len(ran) == 1 else " + ".join(f"{name} x {calls}" for name, calls in ran)


def _profiled(call: Call, memory: bool) -> list[Any]:
    # The profiler's library reads this at its first use; by default it reports every start and stop on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=memory) as profiler:
        call()
    # The public `events()` gives sums per operator, from which no peak can be told.
    return list(profiler.profiler.kineto_results.events())
