"""The answer of `advise` for an input on a GPU, from rows that were measured on one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tokenreduce.lab.speed.gpu_rows import GpuRow, nearest_row, shipped_rows

HALF = (torch.float16, torch.bfloat16)


def answer_on_gpu(
    methods: Sequence[str], width: int, tokens: int, batch_size: int, dtype: torch.dtype, device: str
) -> dict[str, Any]:
    """Fields of `Advice`, for the first of `methods` that pays, or for the first that was measured."""
    found = [nearest_row(method, width, tokens, batch_size) for method in methods]
    rows = [row for row in found if row is not None]
    reason = unmeasured(rows, width, tokens, batch_size, dtype, device)
    answer: dict[str, Any] = {"pays": None, "method": methods[0], "break_even_tokens": None, "expected_speedup": None}
    if reason:
        return answer | {"reason": reason}
    row = next((row for row in rows if row.pays), rows[0])
    answer |= {"pays": row.pays, "method": row.method, "expected_speedup": row.graph_speedup}
    return answer | {"reason": described(row, tokens, batch_size)}


def unmeasured(
    rows: Sequence[GpuRow], width: int, tokens: int, batch_size: int, dtype: torch.dtype, device: str
) -> str:
    """Why no row covers the case; empty if one does."""
    if not shipped_rows():
        return f"GPU speed was never measured for this version, and the input is on {device}"
    if dtype not in HALF:
        given = str(dtype).removeprefix("torch.")
        return f"on a GPU only half precision was measured, and the input is {given}"
    if not rows:
        return f"no model near width {width}, {tokens} image tokens and batch {batch_size} was measured on a GPU"
    return ""


def described(row: GpuRow, tokens: int, batch_size: int) -> str:
    """What was measured, and what follows from it."""
    case = f"{row.model}, width {row.width}, {row.tokens} tokens, batch {row.batch_size}"
    figures = f"{row.graph_speedup:.2f} x with {row.method} as a CUDA graph"
    if row.eager_speedup is not None:
        figures += f" and {row.eager_speedup:.2f} x without"
    sentence = f"it has {tokens} image tokens at batch {batch_size}, and on {row.gpu} the nearest case ({case}) had "
    if not row.pays:
        why = "the model is so small that launching kernels takes most of the time, which fewer tokens do not shorten"
        return f"{sentence}{figures}: {why}"
    return f"{sentence}{figures}; run it as a graph, tokenreduce.graph(model, input)"
